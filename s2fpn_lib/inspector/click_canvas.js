// A picture in which a pixel is chosen by mouse, touch, or arrow keys (with Shift: ten pixels).
function render({ model, el }) {
  const canvas = document.createElement("canvas");
  canvas.className = "s2fpn-canvas";
  el.append(canvas);

  let drawing = 0;
  async function draw() {
    const bytes = model.get("picture");
    if (!bytes || bytes.byteLength === 0) return;
    const mine = ++drawing;
    const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
    if (mine !== drawing) return; // a newer picture has arrived in the meantime
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    canvas.dataset.drawn = String(Number(canvas.dataset.drawn || 0) + 1);
  }
  function name() {
    canvas.setAttribute("aria-label", model.get("label"));
  }
  const listeners = { "change:picture": draw, "change:label": name };

  if (model.get("interactive")) listeners["change:description"] = interact(model, el, canvas);
  else canvas.setAttribute("role", "img");
  for (const [event, listener] of Object.entries(listeners)) {
    model.on(event, listener);
    listener();
  }
  return () => {
    for (const [event, listener] of Object.entries(listeners)) model.off(event, listener);
  };
}

// Makes the canvas interactive; returns a listener that announces the description of the chosen pixel.
function interact(model, el, canvas) {
  canvas.tabIndex = 0;
  canvas.classList.add("s2fpn-interactive");
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "picture with a movable crosshair");
  const live = document.createElement("div");
  live.className = "s2fpn-live";
  live.setAttribute("aria-live", "polite");
  el.append(live);

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
  canvas.addEventListener("keydown", (event) => {
    const step = arrows[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook would move to another cell
    const [y, x] = model.get("pixel");
    const reach = event.shiftKey ? 10 : 1;
    choose(y + reach * step[0], x + reach * step[1]);
  });
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus();
    point(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons & 1) point(event);
  });
  return () => {
    live.textContent = model.get("description");
  };
}
export default { render };
