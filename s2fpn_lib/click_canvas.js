// A picture that answers with a pixel: by mouse, by touch, or by the arrow keys (with shift: ten pixels).
function render({ model, el }) {
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  canvas.className = "s2fpn-canvas";
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "picture with a movable cross");
  const live = document.createElement("div");
  live.className = "s2fpn-live";
  live.setAttribute("aria-live", "polite");
  el.append(canvas, live);

  let drawing = 0;
  async function draw() {
    const bytes = model.get("picture");
    if (!bytes || bytes.byteLength === 0) return;
    const mine = ++drawing;
    const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    if (mine !== drawing) return; // a newer picture has come meanwhile
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    canvas.dataset.drawn = String(Number(canvas.dataset.drawn || 0) + 1);
  }
  function describe() {
    canvas.setAttribute("aria-label", model.get("label"));
    live.textContent = model.get("description");
  }
  function choose(y, x) {
    const [height, width] = model.get("size");
    const inside = (value, end) => Math.min(Math.max(Math.floor(value), 0), end - 1);
    model.set("pixel", [inside(y, height), inside(x, width)]);
    model.save_changes();
  }
  function point(event) {
    const box = canvas.getBoundingClientRect();
    const [height, width] = model.get("size");
    choose(((event.clientY - box.top) / box.height) * height, ((event.clientX - box.left) / box.width) * width);
  }
  const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  function key(event) {
    const step = arrows[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook would move between cells
    const [y, x] = model.get("pixel");
    const reach = event.shiftKey ? 10 : 1;
    choose(y + reach * step[0], x + reach * step[1]);
  }
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus();
    point(event);
  });
  canvas.addEventListener("keydown", key);
  model.on("change:picture", draw);
  model.on("change:label", describe);
  model.on("change:description", describe);
  draw();
  describe();
}
export default { render };
