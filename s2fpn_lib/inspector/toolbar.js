// The controls that need no kernel, and the legend; `update` sets them to the state.
const BEFORE = { "": "no wipe", "other model": "the other model" };

function toolbar(viewer) {
  const { scene } = viewer, { data, H, W, state } = scene;
  const change = (name, convert = (value) => value) => (value) => viewer.change({ [name]: convert(value) });
  const slider = (name) => {
    const input = element("input", { type: "range", min: 0, max: 1, step: 0.01, value: state[name] });
    input.addEventListener("input", () => viewer.change({ [name]: Number(input.value) }));
    return { input, output: element("output", {}) };
  };
  const number = (largest) => {
    const input = element("input", { type: "number", min: 0, max: largest, step: data.stride });
    input.addEventListener("change", (event) => viewer.choose(row.valueAsNumber, column.valueAsNumber, event.timeStamp));
    input.addEventListener("keydown", (event) => event.stopPropagation());
    return input;
  };
  const view = select(data.views, state.view, change("view"));
  const shown = select(data.classes.map((name, id) => [id, name]), state.shown_class, change("shown_class", Number));
  const threshold = slider("threshold"), opacity = slider("opacity");
  const others = [...data.views, ...(data.models.length > 1 ? ["other model"] : [])];
  const before = select(["", ...others].map((name) => [name, BEFORE[name] ?? name]), state.before, change("before"));
  const row = number(H - 1), column = number(W - 1);
  const pin = button("Pin", "Keep this pixel", () => viewer.pin()), pins = element("span", { className: "s2fpn-pins" });
  const scaleText = element("output", {});
  const zoom = element("span", { className: "s2fpn-group", role: "group", ariaLabel: "Zoom" },
    button("−", "Zoom out (key −, or the wheel after a click on the picture)", () => viewer.zoomBy(1 / 1.5)), scaleText,
    button("+", "Zoom in (key +); drag with Shift to move the picture", () => viewer.zoomBy(1.5)),
    button("1:1", "The whole picture (key 0)", () => viewer.resetZoom()));
  const ofClass = element("span", { className: "s2fpn-group" }, labeled("class", shown),
    labeled("threshold", threshold.input), threshold.output);
  const node = element("div", { className: "s2fpn-tools", role: "toolbar", ariaLabel: "View" },
    labeled("view", view), ofClass, labeled("opacity", opacity.input), labeled("wipe from", before), zoom,
    labeled("row y", row), labeled("column x", column), pin, pins);
  const update = () => {
    fill(view, data.views, state.view);
    ofClass.hidden = state.view !== "class probability" && state.before !== "class probability";
    shown.value = state.shown_class;
    threshold.input.value = state.threshold;
    threshold.output.textContent = `${Math.round(100 * state.threshold)}%`;
    opacity.input.value = state.opacity;
    before.value = state.before;
    row.value = state.y;
    column.value = state.x;
    scaleText.textContent = `${viewer.zoom.scale.toFixed(1)}x`;
    const here = state.pins.some(([y, x]) => y === state.y && x === state.x);
    pin.textContent = here ? "Unpin" : "Pin";
    const key = JSON.stringify(state.pins);
    if (pins.dataset.key !== key) // new buttons would lose the focus
      pins.replaceChildren(...state.pins.map(([y, x]) => button(`${y}, ${x}`, `Go to pin ${y}, ${x}`, (event) => viewer.choose(y, x, event.timeStamp))));
    pins.dataset.key = key;
  };
  return { node, update };
}
function legend(viewer) {
  const { data, state } = viewer.scene, every = data.classes.map((_, id) => id);
  const hide = (ids) => viewer.change({ hidden: new Set(ids) });
  const boxes = data.classes.map((name, id) => {
    const box = element("input", { type: "checkbox" });
    box.addEventListener("change", () => hide(every.filter((each) => !boxes[each].checked)));
    return box;
  });
  const entries = data.classes.map((name, id) => element("span", { className: "s2fpn-entry" },
    element("label", {}, boxes[id], swatch(data.palette[id], name)),
    button("only", `Show only ${name}`, () => hide(every.filter((each) => each !== id)), { ariaLabel: `only ${name}` })));
  const node = element("div", { className: "s2fpn-legend", role: "group", ariaLabel: "Classes" }, ...entries,
    button("all", "Show every class", () => hide([])), button("none", "Hide every class", () => hide(every)));
  return { node, update: () => boxes.forEach((box, id) => { box.checked = !state.hidden.has(id); }) };
}
