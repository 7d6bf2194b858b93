// The layer of a view: its color at each pixel, as _layer of views.py returns them.
const RGBA = ([red, green, blue]) => (255 << 24 | blue << 16 | green << 8 | red) >>> 0; // of a little-endian machine
const NOTHING = 0;

const position = (scale, value) => {
  if (!scale.log) return clamp((value - scale.low) / (scale.high - scale.low), 0, 1);
  return clamp(Math.log(Math.max(value, scale.low) / scale.low) / Math.log(scale.high / scale.low), 0, 1);
};
const paint = (scale, value) => scale.colors[Math.round(255 * position(scale, value))];

// Calls `compute` once for a key; the cache belongs to the scene and keeps the newest entries
function remembered(scene, key, compute) {
  if (!scene.cache.has(key)) {
    scene.cache.set(key, compute());
    if (scene.cache.size > 24) scene.cache.delete(scene.cache.keys().next().value);
  }
  return scene.cache.get(key);
}
// The numbers that a view of `scales` draws, one for each pixel
function viewValues(scene, index, view) {
  const { data, h, w, state } = scene, model = data.models[index], id = view === "class probability" ? state.shown_class : 0;
  return remembered(scene, `values ${index} ${view} ${id}`, () => {
    const values = new Float32Array(h * w), size = h * w;
    if (view === "total variation") return distances(scene, values);
    if (view === "entropy") return entropies(scene, model, values);
    for (let i = 0; i < size; i++) {
      if (view === "class probability") values[i] = PROBABILITIES[model.probabilities[id * size + i]];
      else values[i] = (model.shares[i] - (view === "margin" ? model.shares[size + i] || 0 : 0)) / 65535;
    }
    if (view === "class probability") // exact where the class is one of the most probable ones
      model.ranked.forEach((each, k) => { if (each === id) values[k % size] = model.shares[k] / 65535; });
    return values;
  });
}
function distances({ data, h, w }, values) {
  const [one, two] = data.models.map((model) => model.probabilities);
  for (let id = 0; id < data.classes.length; id++)
    for (let i = 0, k = id * h * w; i < h * w; i++, k++)
      values[i] += 0.5 * Math.abs(PROBABILITIES[one[k]] - PROBABILITIES[two[k]]);
  return values;
}
// Entropies in bits; the most probable classes have their exact probabilities
function entropies({ data, h, w }, model, values) {
  const size = h * w, table = Float32Array.from(PROBABILITIES, bits);
  for (let id = 0, k = 0; id < data.classes.length; id++)
    for (let i = 0; i < size; i++, k++) values[i] += table[model.probabilities[k]];
  for (let k = 0; k < model.ranked.length; k++)
    values[k % size] += bits(model.shares[k] / 65535) - table[model.probabilities[model.ranked[k] * size + (k % size)]];
  return values;
}
// A canvas of the view's colors, transparent where nothing is drawn; null for the photograph alone
function layer(scene, index, view) {
  const { data, state, h, w } = scene;
  if (view === "image" || !data.views.includes(view)) return null;
  const ranges = view === "class probability" ? `${state.shown_class} ${state.threshold}` : "";
  const key = `layer ${index} ${view} ${ranges} ${[...state.hidden].sort()}`;
  return remembered(scene, key, () => {
    const pixels = new ImageData(w, h);
    new Uint32Array(pixels.data.buffer).set(colored(scene, index, view));
    const canvas = canvasOf(w, h);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  });
}
function colored(scene, index, view) {
  const { data, state, h, w } = scene, { ranked: ids } = data.models[index], out = new Uint32Array(h * w);
  const shown = view === "true classes" || view === "errors" ? data.label : ids;
  const [wrong, different, gray] = ["wrong", "different", "gray"].map((name) => RGBA(data.colors[name]));
  const palette = data.palette.map(RGBA), scale = data.scales[view], known = data.classes.length;
  const visible = Uint8Array.from({ length: 256 }, (_, id) => id < known && !state.hidden.has(id));
  if (scale) {
    const values = viewValues(scene, index, view), table = scale.colors.map(RGBA);
    const least = view === "class probability" ? state.threshold : -Infinity;
    for (let i = 0; i < out.length; i++) {
      const drawn = view === "class probability" ? values[i] >= least : visible[ids[i]];
      out[i] = drawn ? table[Math.round(255 * position(scale, values[i]))] : NOTHING;
    }
    return out;
  }
  const other = view === "disagreement" ? data.models[1 - index].ranked : null;
  for (let i = 0; i < out.length; i++) {
    if (!visible[shown[i]]) continue;
    if (view === "errors") out[i] = ids[i] === shown[i] ? gray : wrong;
    else if (other) out[i] = ids[i] === other[i] ? gray : different;
    else out[i] = palette[shown[i]];
  }
  return out;
}
// The share of the scored or drawn pixels that a view marks: wrong ones, different ones, or those above the threshold
function markedShare(scene, index, view) {
  const { data, state } = scene, { ranked: ids } = data.models[index], known = data.classes.length;
  const count = (length, marked, counted = () => true) => {
    let [hits, all] = [0, 0];
    for (let i = 0; i < length; i++) if (counted(i)) { all++; hits += marked(i); }
    return hits / Math.max(all, 1);
  };
  const size = scene.h * scene.w;
  if (view === "errors") return count(size, (i) => ids[i] !== data.label[i], (i) => data.label[i] < known);
  if (view === "disagreement") return count(size, (i) => ids[i] !== data.models[1 - index].ranked[i]);
  const values = viewValues(scene, index, view);
  return count(size, (i) => values[i] >= state.threshold);
}
