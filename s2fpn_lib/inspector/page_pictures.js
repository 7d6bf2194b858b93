// The pictures of the exported page, drawn as render and render_level of views.py draw them.
const PROFILE = 56, BLUE = "rgb(0,114,178)", VERMILION = "rgb(213,94,0)", OWN = "rgb(205,211,217)";

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
function layer(model) {
  const pixels = new ImageData(w, h), confidence = state.view === "confidence", errors = state.view === "errors";
  const known = data.label || new Uint8Array(h * w).fill(255);
  for (let i = 0; i < h * w; i++) {
    const id = model.ranked[i], shown = state.view === "true classes" || errors ? known[i] : id;
    if (shown >= data.classes.length || state.hidden.has(shown) || state.view === "image") continue;
    let rgb = data.palette[shown];
    if (confidence) rgb = data.confidence_colors[Math.round((model.shares[i] / 65535) * 255)];
    if (errors) rgb = id === shown ? [205, 211, 217] : [213, 94, 0];
    pixels.data.set([...rgb, 255], 4 * i);
  }
  const canvas = element("canvas", { width: w, height: h });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}
function cross(context, y, x, tone, arm) {
  for (const [fill, rim] of [["black", 1], [tone, 0]]) {
    context.fillStyle = fill;
    for (const [from, to] of [[-arm - rim, -3 + rim], [4 - rim, arm + 1 + rim]]) {
      context.fillRect(x + from, y - rim, to - from, 2 * rim + 1);
      context.fillRect(x - rim, y + from, 2 * rim + 1, to - from);
    }
  }
}
const crossAt = (context, [y, x], tone, arm) => cross(context, Math.floor(y / s), Math.floor(x / s), tone, arm);
function drawMain(canvas, photo, model) {
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.drawImage(photo, 0, 0, w, h);
  context.globalAlpha = state.opacity;
  context.drawImage(model.layer, 0, 0);
  context.globalAlpha = 1;
  for (const pin of state.pins) crossAt(context, pin, "rgb(255,221,0)", 6);
  crossAt(context, [state.y, state.x], "white", 11);
}
function drawLevel(canvas, photo, level) {
  const context = canvas.getContext("2d"), rows = level.entries === "rows", long = rows ? h : w;
  context.globalAlpha = 1;
  context.globalCompositeOperation = "source-over";
  context.drawImage(photo, 0, 0, w, h);
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "black";
  context.fillRect(0, 0, w, h);
  context.globalCompositeOperation = "source-over";
  context.fillStyle = "white";
  context.fillRect(0, h, w, PROFILE);
  if (!level.gates) return;
  context.fillStyle = OWN;
  context.fillRect((rows ? Math.floor((state.y * w) / H) : Math.floor(state.x / s)) - 1, h, 3, PROFILE);
  const found = values(level), largest = Math.max(...Array.from(found, Math.abs), 1e-12);
  const edge = (i, length) => Math.ceil((i * length) / level.length);
  if (level.own_distribution) {
    context.fillStyle = "rgba(0,0,0,0.65)";
    context.fillRect(0, 0, w, h);
  }
  for (let i = 0; i < level.length; i++) {
    const from = edge(i, long), extent = edge(i + 1, long) - from, strength = found[i] / largest;
    const box = rows ? [0, from, w, extent] : [from, 0, extent, h];
    context.globalAlpha = level.own_distribution ? strength : 0.7 * Math.abs(strength);
    if (level.own_distribution) context.drawImage(photo, ...scaled(photo, box), ...box);
    else {
      context.fillStyle = strength > 0 ? BLUE : VERMILION;
      context.fillRect(...box);
    }
  }
  context.globalAlpha = 1;
  profile(context, level, found, largest, (i) => edge(i, w));
  crossAt(context, [state.y, state.x], "white", 11);
}
const scaled = (photo, [x, y, wide, high]) =>
  [x * photo.width / w, y * photo.height / h, wide * photo.width / w, high * photo.height / h];
function profile(context, level, found, largest, edge) {
  if (level.own_distribution) {
    context.fillStyle = BLUE;
    for (let i = 0; i < level.length; i++) {
      const high = Math.floor((found[i] / largest) * (PROFILE - 4));
      context.fillRect(edge(i), h + PROFILE - high, edge(i + 1) - edge(i), high);
    }
    return;
  }
  const top = Math.max(...level.gates);
  for (const [gate, tone] of [[0, BLUE], [1, VERMILION]]) {
    context.strokeStyle = tone;
    context.lineWidth = 1.5;
    context.beginPath();
    for (let i = 0; i < level.length; i++) {
      const y = h + PROFILE - 3 - (level.gates[gate * level.length + i] / top) * (PROFILE - 6);
      context.lineTo(edge(i), y);
      context.lineTo(edge(i + 1), y);
    }
    context.stroke();
  }
}
