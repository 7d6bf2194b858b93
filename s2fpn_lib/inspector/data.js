// What `packed` of export.py wrote, and small helpers that every part of the viewer uses.
const ARRAYS = { u1: Uint8Array, u2: Uint16Array, i2: Int16Array, f4: Float32Array };

// A scene: the unpacked data, the state of the view, and the photograph in color and in gray
async function openScene(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = Number(new DataView(buffer).getBigUint64(0, true)), start = 8 + length;
  const header = new TextDecoder().decode(new Uint8Array(buffer, 8, length));
  const data = JSON.parse(header, (_, value) =>
    value && value.array ? new ARRAYS[value.array](buffer, start + value.at, value.length) : value);
  const [H, W] = data.size, [h, w] = data.drawn;
  const photo = await createImageBitmap(new Blob([data.image], { type: "image/jpeg" }));
  const scene = { data, H, W, h, w, photo, state: plainState(data.state), cache: new Map() };
  scene.gray = grayscale(scene, 0, 1);
  scene.faded = grayscale(scene, ...data.faded);
  return scene;
}
const plainState = (values) => ({ ...values, hidden: new Set(values.hidden) });
const savedState = (state) => ({ ...state, hidden: [...state.hidden].sort((a, b) => a - b) });

function canvasOf(w, h, className = "") {
  return element("canvas", { width: w, height: h, className });
}
// Canvases that are read, or drawn to by small steps, are faster in memory than on a graphics card
const drawingOn = (canvas) => canvas.getContext("2d", { willReadFrequently: true });

// The photograph as offset + factor * (mean of red, green, and blue)
function grayscale({ photo, h, w }, offset, factor) {
  const canvas = canvasOf(w, h), context = drawingOn(canvas);
  context.drawImage(photo, 0, 0, w, h);
  const pixels = context.getImageData(0, 0, w, h), values = pixels.data;
  for (let i = 0; i < values.length; i += 4)
    values[i] = values[i + 1] = values[i + 2] = offset + (factor * (values[i] + values[i + 1] + values[i + 2])) / 3;
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
function button(text, title, action, properties = {}) {
  const node = element("button", { type: "button", title, ...properties }, text);
  node.addEventListener("click", action);
  return node;
}
function labeled(text, control) {
  control.ariaLabel = text; // the text of the label's element would include the options
  return element("label", { className: "s2fpn-label" }, `${text} `, control);
}
function select(options, value, changed, properties = {}) {
  const node = element("select", properties);
  fill(node, options, value);
  node.addEventListener("change", () => changed(node.value));
  return node;
}
// Sets the options, each a text or [value, text], of a select element
function fill(node, options, value) {
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  const wanted = JSON.stringify(pairs);
  if (node.dataset.options !== wanted)
    node.replaceChildren(...pairs.map(([key, text]) => element("option", { value: key }, text)));
  node.dataset.options = wanted;
  node.value = value;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const percent = (p) => (100 * p).toFixed(1) + "%";
// Two significant digits, as _short of numbers.py writes them
const short = (value) => {
  const size = Math.abs(value);
  return size >= 10 ? value.toFixed(0) : size < 1e-4 ? "0" : String(Number(value.toPrecision(2)));
};
const css = (rgb) => `rgb(${rgb.join(",")})`;
