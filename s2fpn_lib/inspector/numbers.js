// The numbers at a pixel, as readout of numbers.py returns them.
function drawnPixel({ state, data, h, w }, y = state.y, x = state.x) {
  return Math.min(Math.floor(y / data.stride), h - 1) * w + Math.min(Math.floor(x / data.stride), w - 1);
}
const onLevel = ({ state, H, W }, [high, wide]) => [Math.floor((state.y * high) / H), Math.floor((state.x * wide) / W)];

// v2: of large levels the exported page keeps one pixel per square of `step` pixels
const keptPixel = (scene, level) => onLevel(scene, level.size).map((place) => Math.floor(place / level.step));

// The image's pixel that the distribution is of, in words where it may be another than the chosen one
function ofPixel(scene, level) {
  if (!(level.step > 1)) return "";
  const place = onLevel(scene, level.size), kept = keptPixel(scene, level).map((each) => each * level.step);
  const { state, H, W } = scene, same = place.every((each, i) => each === kept[i]);
  const [y, x] = same ? [state.y, state.x] : [H, W].map((side, i) => Math.floor(((kept[i] + 0.5) * side) / level.size[i]));
  return `of pixel ${y}, ${x}: `;
}
// v2: the chosen pixel's distribution over the strip entries
function attention(scene, level) {
  const [y, x] = keptPixel(scene, level);
  const [high, wide] = level.kept, length = level.length, scores = new Float64Array(length);
  for (let c = 0, channels = level.keys.length / length; c < channels; c++) {
    const q = level.query[(c * high + y) * wide + x] * level.query_scale * level.keys_scale;
    for (let i = 0; i < length; i++) scores[i] += q * level.keys[c * length + i];
  }
  const largest = Math.max(...scores), powers = scores.map((score) => Math.exp(score - largest));
  const total = powers.reduce((sum, value) => sum + value, 0);
  return powers.map((value) => value / total);
}
// What the level draws: v2: attention relative to uniform; v1: the difference of the two gates
function levelValues(scene, level) {
  if (level.own_distribution) return attention(scene, level).map((value) => value * level.length);
  return Float64Array.from({ length: level.length }, (_, i) => level.gates[i] - level.gates[level.length + i]);
}
function gatesAt(scene, level) {
  const [y, x] = onLevel(scene, level.size);
  if (level.own_distribution) {
    const [high, wide] = level.kept, [row, column] = keptPixel(scene, level);
    return [level.gates[row * wide + column], level.gates[(high + row) * wide + column]];
  }
  const entry = level.entries === "rows" ? y : x;
  return [level.gates[entry], level.gates[level.length + entry]];
}
// The facts about a level, as LevelReadout.facts returns them
function facts(scene, level, values) {
  const found = [level.weight];
  if (level.gates) {
    const own = level.own_distribution, size = level.entries === "rows" ? scene.H : scene.W;
    const strengths = Array.from(values, Math.abs);
    const order = strengths.map((_, i) => i).sort((a, b) => strengths[b] - strengths[a]).slice(0, 3);
    const places = order.filter((entry, place) => place === 0 || !own || strengths[entry] >= 1).map((entry) => {
      const [first, end] = [entry, entry + 1].map((edge) => Math.ceil((edge * size) / level.length));
      return `${first}-${end - 1} (${short(strengths[entry])}${own ? "x" : ""})`;
    }).join(", ").replace("x)", "x uniform)");
    const [one, two] = gatesAt(scene, level).map(short), entry = level.entries.slice(0, -1);
    found.push(own ? `${ofPixel(scene, level)}attends most to ${level.entries} ${places}; gates ${one} and ${two}`
      : `gates of this ${entry}: average ${one}, maximum ${two}; they differ most at ${level.entries} ${places}`);
  }
  if (level.decides) {
    const [y, x] = onLevel(scene, level.size);
    found.push(`auxiliary head: ${scene.data.classes[level.decides[y * level.size[1] + x]]}`);
  }
  return found;
}
// The most probable classes of a pixel with their probabilities
function ranked({ h, w }, model, pixel) {
  const places = Array.from({ length: model.ranked.length / (h * w) }, (_, k) => k * h * w + pixel);
  return places.map((i) => [model.ranked[i], model.shares[i] / 65535]);
}
function truth({ data }, model, pixel) {
  if (!data.label) return "";
  return (data.classes[data.label[pixel]] ?? "not labeled") + (model.seen ? " (trained on)" : "");
}
function sentence(scene, model) {
  const { state, data } = scene, pixel = drawnPixel(scene);
  const [[id, p]] = ranked(scene, model, pixel), known = truth(scene, model, pixel);
  const sure = `${data.classes[id]}, ${Math.round(100 * p)}% sure`;
  return `Row ${state.y}, column ${state.x}: ${sure}${known && `, true class ${known}`}.`;
}
const PROBABILITIES = Float32Array.from({ length: 256 }, (_, value) => (value / 255) ** 2);
const probability = ({ h, w }, model, id, pixel) => PROBABILITIES[model.probabilities[id * h * w + pixel]];

const bits = (p) => (p > 0 ? -p * Math.log2(p) : 0);
function entropy(scene, model, pixel) {
  const top = ranked(scene, model, pixel);
  let sum = top.reduce((total, [, p]) => total + bits(p), 0);
  for (let id = 0; id < scene.data.classes.length; id++)
    if (!top.some(([each]) => each === id)) sum += bits(probability(scene, model, id, pixel));
  return sum;
}
function margin(scene, model, pixel) {
  const [[, first], second] = ranked(scene, model, pixel);
  return first - (second ? second[1] : 0);
}
