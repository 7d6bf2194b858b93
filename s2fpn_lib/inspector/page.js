// The exported page: its elements, and how it answers to clicks, keys, and controls.
const VIEWS = ["prediction", "true classes", "errors", "confidence", "image"];
const byId = (id) => document.getElementById(id);

function choose(y, x) {
  state.y = Math.min(Math.max(Math.floor(y), 0), H - 1);
  state.x = Math.min(Math.max(Math.floor(x), 0), W - 1);
  draw();
}
let photo, parts;
function draw(relayer = false) {
  for (const [index, model] of data.models.entries()) {
    const part = parts[index];
    if (relayer || !model.layer) model.layer = layer(model);
    drawMain(part.main, photo, model);
    part.main.setAttribute("aria-label", `${data.name}, ${state.view} of ${model.name}: click, or move with the arrow keys`);
    part.readout.replaceChildren(...readoutNodes(model));
    for (const [k, level] of model.levels.entries()) {
      drawLevel(part.levels[k].canvas, photo, level);
      const lines = describe(level);
      if (level.decides) {
        const [y, x] = onLevel(level.size);
        lines.push(`auxiliary head: ${data.classes[level.decides[y * level.size[1] + x]]}`);
      }
      part.levels[k].canvas.setAttribute("aria-label", `${level.name}: ${lines.join("; ")}`);
      part.levels[k].caption.replaceChildren(...lines.flatMap((line) => [line, element("br")]));
    }
  }
  byId("y").value = state.y;
  byId("x").value = state.x;
  byId("spoken").textContent = data.models.map((model) => sentence(model)).join(" ");
}
function readoutNodes(model) {
  const rows = ranked(model).map(([id, p]) => {
    const bar = element("span", { className: "s2fpn-bar" });
    bar.style.cssText = `width: ${Math.max(1, Math.round(110 * p))}px; background: ${color(id)}`;
    return element("tr", {}, element("th", {}, data.classes[id]), element("td", {}, bar, percent(p)));
  });
  return [
    element("h4", {}, data.classes[ranked(model)[0][0]]),
    `row ${state.y}, column ${state.x}`, element("br"), `true class: ${truth(model) || "unknown"}`,
    element("table", {}, element("tbody", {}, ...rows)),
  ];
}
const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
function modelPart(model) {
  const main = element("canvas", { width: w, height: h, tabIndex: 0, className: "s2fpn-canvas s2fpn-interactive" });
  main.setAttribute("role", "application");
  const point = (event) => {
    const box = main.getBoundingClientRect();
    choose(((event.clientY - box.top) / box.height) * H, ((event.clientX - box.left) / box.width) * W);
  };
  main.addEventListener("pointerdown", point);
  main.addEventListener("pointermove", (event) => event.buttons & 1 && point(event));
  main.addEventListener("keydown", (event) => {
    const step = arrows[event.key], reach = event.shiftKey ? 10 : 1;
    if (!step) return;
    event.preventDefault();
    choose(state.y + reach * step[0], state.x + reach * step[1]);
  });
  const readout = element("div", { className: "s2fpn-readout" });
  const levels = model.levels.map((level) => {
    const canvas = element("canvas", { width: w, height: h + PROFILE, className: "s2fpn-canvas" });
    canvas.setAttribute("role", "img");
    return { canvas, caption: element("div", { className: "s2fpn-level" }), title: level };
  });
  const pictures = levels.map(({ canvas, caption, title }) => {
    const size = element("span", { className: "s2fpn-muted" }, ` ${title.size.join("x")}`);
    return element("div", {}, canvas, element("b", {}, title.name), size, caption);
  });
  const warning = model.warning ? [element("p", { className: "s2fpn-message s2fpn-warning" }, model.warning + ".")] : [];
  byId("models").append(element("section", { className: "model" },
    element("h2", {}, model.name), ...warning,
    element("div", { className: "top" }, main, readout),
    element("p", { className: "s2fpn-muted" }, model.note),
    element("div", { className: "levels" }, ...pictures)));
  return { main, readout, levels };
}
function controls() {
  const number = (id, name, largest) => {
    const input = element("input", { type: "number", id, min: 0, max: largest });
    input.addEventListener("change", () => choose(Number(byId("y").value), Number(byId("x").value)));
    return element("label", {}, `${name} `, input);
  };
  const views = VIEWS.filter((view) => data.label || !["true classes", "errors"].includes(view));
  const view = element("select", { id: "view" }, ...views.map((each) => element("option", {}, each)));
  view.value = state.view;
  view.addEventListener("change", () => { state.view = view.value; draw(true); });
  const opacity = element("input", { type: "range", min: 0, max: 1, step: 0.05, value: state.opacity });
  opacity.addEventListener("input", () => { state.opacity = Number(opacity.value); draw(); });
  const pins = data.state.pins.map(([y, x]) => {
    const button = element("button", { type: "button" }, `pin ${y}, ${x}`);
    button.addEventListener("click", () => choose(y, x));
    return button;
  });
  byId("controls").append(number("y", "row y", H - 1), number("x", "column x", W - 1),
    element("label", {}, "view ", view), element("label", {}, "opacity ", opacity), ...pins);
}
function legend() {
  const boxes = data.classes.map((name, id) => {
    const box = element("input", { type: "checkbox", checked: !state.hidden.has(id) });
    box.addEventListener("change", () => hide(boxes.flatMap((each, k) => (each.checked ? [] : [k]))));
    return box;
  });
  const hide = (ids) => {
    state.hidden = new Set(ids);
    boxes.forEach((box, id) => { box.checked = !state.hidden.has(id); });
    draw(true);
  };
  const button = (text, spoken, ids) => {
    const node = element("button", { type: "button", title: spoken, ariaLabel: spoken }, text);
    node.addEventListener("click", () => hide(ids));
    return node;
  };
  const every = data.classes.map((_, id) => id);
  data.classes.forEach((name, id) => {
    const swatch = element("span", { className: "s2fpn-swatch" });
    swatch.style.background = color(id);
    const only = button("only", `only ${name}`, every.filter((each) => each !== id));
    byId("legend").append(element("span", { className: "s2fpn-legend-entry" },
      element("label", {}, boxes[id], " ", swatch, ` ${name}`), only));
  });
  byId("legend").append(button("all", "all classes", []), button("none", "none of the classes", every));
}
async function start() {
  await unpackAll();
  photo = await photograph();
  parts = data.models.map(modelPart);
  controls();
  legend();
  draw(true);
  for (const id of ["controls", "legend", "models"]) byId(id).hidden = false;
  byId("status").textContent = "Click on the picture, or move with the arrow keys (with Shift: ten pixels).";
}
start().catch((error) => {
  byId("status").textContent = `This browser cannot show the page (${error.message}): open it in a newer one. Still pictures are below.`;
  byId("status").setAttribute("role", "alert");
  byId("stills").open = true;
});
