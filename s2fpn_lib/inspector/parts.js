// The elements of one model: its picture with divider, scale, and readout, and its four levels.
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function modelPart(viewer, index) {
  const { scene } = viewer, { w, h, data } = scene, model = data.models[index];
  const main = canvasOf(w, h, "s2fpn-picture s2fpn-interactive");
  main.tabIndex = 0;
  main.setAttribute("role", "application");
  main.setAttribute("aria-roledescription", "picture with a movable crosshair");
  const divider = wipeDivider(viewer), tags = [0, 1].map((side) => element("span", { className: `s2fpn-tag s2fpn-tag-${side}` }));
  const tip = element("div", { className: "s2fpn-tip", hidden: true });
  const frame = element("div", { className: "s2fpn-frame s2fpn-main-frame" }, main, divider, ...tags, tip);
  listen(viewer, main, index, tip);
  const scale = element("div", { className: "s2fpn-scale" }), readout = element("div", { className: "s2fpn-readout" });
  const levels = model.levels.map((level) => {
    const canvas = canvasOf(w, h, "s2fpn-picture"), plot = element("canvas", { className: "s2fpn-plot" });
    canvas.setAttribute("role", "img");
    plot.setAttribute("aria-hidden", "true"); // the caption says it in words
    const caption = element("div", { className: "s2fpn-caption" });
    const stride = level.step > 1 ? `, 1 of ${level.step}x${level.step} pixels kept` : "";
    const size = element("span", { className: "s2fpn-muted" }, ` ${level.size.join("x")}${stride}  ${level.weight.split(", ").pop().replace(" of the blend", "")}`);
    const node = element("div", { className: "s2fpn-level" }, element("div", { className: "s2fpn-head", title: level.weight }, element("b", {}, level.name), size),
      element("div", { className: "s2fpn-frame" }, canvas), ...(level.gates ? [plot] : []), caption);
    return { canvas, plot, caption, node };
  });
  const note = element("div", { className: "s2fpn-note" }, element("p", { className: "s2fpn-muted" }, model.note),
    ...(model.levels.some((level) => level.gates) ? [colorBar(model.scale)] : []));
  const left = element("div", { className: "s2fpn-left" }, element("div", { className: "s2fpn-shown" }, frame, scale), readout);
  const title = element("h3", {}, model.name, element("span", { className: "s2fpn-muted" }, `  revision ${model.revision}`));
  const node = element("section", { className: "s2fpn-model", ariaLabel: model.name }, title,
    element("div", { className: "s2fpn-columns" }, left,
      element("div", { className: "s2fpn-right" }, element("div", { className: "s2fpn-levels" }, ...levels.map((each) => each.node)), note)));
  return { node, left, main, divider, tags, tip, scale, readout, levels };
}
function message(kind, ...content) {
  const role = kind === "status" ? "status" : "alert";
  return element("div", { className: `s2fpn-message s2fpn-${kind}`, role }, ...content);
}
function colorBar(scale, title = scale.title) {
  const canvas = canvasOf(256, 1, "s2fpn-colors"), pixels = new ImageData(256, 1);
  new Uint32Array(pixels.data.buffer).set(scale.colors.map(RGBA));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  const ticks = scale.ticks.map(([place, text]) => {
    const tick = element("span", { className: "s2fpn-tick" }, text);
    tick.style.left = `${100 * place}%`;
    return tick;
  });
  return element("div", { className: "s2fpn-colorbar" }, element("div", { className: "s2fpn-ticked" }, canvas, ...ticks),
    element("span", {}, title));
}
function swatch(rgb, text) {
  const box = element("span", { className: "s2fpn-swatch" });
  box.style.background = css(rgb);
  return element("span", { className: "s2fpn-key" }, box, ` ${text}`);
}
// What the colors of the view mean
function scaleNodes(scene, index, view) {
  const { data, state } = scene, scale = data.scales[view], { wrong, different, gray } = data.colors;
  if (!data.views.includes(view)) return [];
  if (view === "errors" || view === "disagreement") {
    const share = markedShare(scene, index, view);
    const [marked, rest] = view === "errors" ? ["wrong", "correct"] : ["the models differ", "they agree"];
    return [swatch(view === "errors" ? wrong : different, `${marked} ${percent(share)}`), swatch(gray, `${rest} ${percent(1 - share)}`)];
  }
  if (!scale) return []; // class colors, which the legend explains
  if (view !== "class probability") return [colorBar(scale)];
  const above = percent(markedShare(scene, index, view)), least = Math.round(100 * state.threshold);
  return [colorBar(scale, `probability of ${data.classes[state.shown_class]}; ${above} of the pixels have at least ${least}%`)];
}
function drawPart(viewer, part, index) {
  const { scene } = viewer, { data, state } = scene, model = data.models[index];
  drawMain(part.main, scene, index);
  part.main.setAttribute("aria-label",
    `${data.name}, ${state.view} of ${model.name}: click, or move with the arrow keys`);
  const key = JSON.stringify([state.view, state.before, state.shown_class, state.threshold]);
  if (part.shownScale !== key) // both sides of the divider
    part.scale.replaceChildren(...[...new Set([state.view, state.before])].flatMap((view) => scaleNodes(scene, index, view)));
  part.shownScale = key;
  part.readout.replaceChildren(...readoutNodes(scene, model));
  model.levels.forEach((level, k) => {
    const { canvas, plot, caption } = part.levels[k], values = level.gates ? levelValues(scene, level) : null;
    drawLevel(canvas, scene, model, level, values);
    drawPlot(plot, scene, model, level, values);
    const lines = facts(scene, level, values);
    canvas.setAttribute("aria-label", `${level.name}, ${level.size.join("x")}: ${lines.join("; ")}.`);
    caption.textContent = lines.slice(1).join("; ").replace("attends most to ", "most: ");
    caption.title = lines.join("\n");
  });
  drawDivider(viewer, part, index);
}
function readoutNodes(scene, model) {
  const { data, state } = scene, pixel = drawnPixel(scene), top = ranked(scene, model, pixel), [[id]] = top;
  const rows = top.map(([each, p]) => {
    const bar = element("span", { className: "s2fpn-bar" });
    bar.style.cssText = `width: calc(1px + ${p.toFixed(4)} * var(--s2fpn-longest)); background: ${css(data.palette[each])}`;
    return element("tr", {}, element("th", {}, data.classes[each]), element("td", {}, bar, percent(p)));
  });
  const known = truth(scene, model, pixel), label = data.label?.[pixel];
  const verdict = !(label < data.classes.length) ? "" : label === id ? ", correct" : ", the prediction is wrong";
  return [
    element("div", {}, element("h4", {}, data.classes[id]), element("div", {}, `row ${state.y}, column ${state.x}`),
      element("div", {}, `true class: ${known || "unknown"}${verdict}`),
      element("div", { className: "s2fpn-muted" },
        `entropy ${entropy(scene, model, pixel).toFixed(2)} bits, margin ${margin(scene, model, pixel).toFixed(2)}`)),
    element("table", {}, element("tbody", {}, ...rows)),
  ];
}

// Mouse, touch, and keys on a picture
function listen(viewer, main, index, tip) {
  const place = (event) => {
    const box = main.getBoundingClientRect(), { H, W } = viewer.scene; // of the zoomed canvas
    return [((event.clientY - box.top) / box.height) * H, ((event.clientX - box.left) / box.width) * W].map(Math.floor);
  };
  let panning = null;
  main.addEventListener("pointerdown", (event) => {
    main.focus({ preventScroll: true });
    if (event.button === 1 || event.shiftKey) {
      panning = [event.clientX, event.clientY];
      main.setPointerCapture(event.pointerId);
      event.preventDefault();
    } else if (event.button === 0) viewer.choose(...place(event), event.timeStamp);
  });
  main.addEventListener("pointermove", (event) => {
    if (panning) {
      const box = main.parentElement.getBoundingClientRect();
      viewer.pan((event.clientX - panning[0]) / box.width, (event.clientY - panning[1]) / box.height);
      panning = [event.clientX, event.clientY];
    } else if (event.buttons & 1) viewer.choose(...place(event), event.timeStamp);
    hover(viewer, index, tip, place(event), event);
  });
  main.addEventListener("pointerup", () => { panning = null; });
  main.addEventListener("pointerleave", () => { tip.hidden = true; });
  main.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== main && main.getRootNode().activeElement !== main)
      return; // the page scrolls over a picture that has not been clicked
    event.preventDefault();
    const box = main.parentElement.getBoundingClientRect();
    viewer.zoomBy(Math.exp(-0.002 * event.deltaY), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });
  main.addEventListener("keydown", (event) => {
    const step = ARROWS[event.key], { state, data } = viewer.scene, reach = (event.shiftKey ? 10 : 1) * data.stride;
    if (step) viewer.choose(state.y + reach * step[0], state.x + reach * step[1], event.timeStamp);
    else if (event.key === "+" || event.key === "-") viewer.zoomBy(event.key === "+" ? 1.5 : 1 / 1.5);
    else if (event.key === "0") viewer.resetZoom();
    else return;
    event.preventDefault();
    event.stopPropagation(); // a notebook would move to another cell
  });
}
function hover({ scene }, index, tip, place, event) {
  const { data, H, W } = scene, [y, x] = place.map((each) => each - (each % data.stride)), model = data.models[index];
  tip.hidden = !(y >= 0 && x >= 0 && y < H && x < W);
  if (tip.hidden) return;
  const pixel = drawnPixel(scene, y, x), [[id, p]] = ranked(scene, model, pixel), known = truth(scene, model, pixel);
  tip.textContent = `${data.classes[id]} ${percent(p)}${known && ` · true ${known}`} · row ${y}, column ${x}`;
  const box = tip.parentElement.getBoundingClientRect(), left = event.clientX - box.left, top = event.clientY - box.top;
  tip.style.left = `${clamp(left + 14, 0, Math.max(box.width - tip.offsetWidth, 0))}px`;
  tip.style.top = `${top + 18 + tip.offsetHeight < box.height ? top + 18 : top - tip.offsetHeight - 10}px`;
}

// The divider between what is before and after
function wipeDivider(viewer) {
  const node = element("div", { className: "s2fpn-divider", tabIndex: 0, role: "slider", hidden: true });
  for (const [name, value] of [["label", "Divider of the wipe, in percent of the width"], ["valuemin", 0], ["valuemax", 100]])
    node.setAttribute(`aria-${name}`, value);
  const move = (wipe) => viewer.change({ wipe: clamp(wipe, 0, 1) });
  node.addEventListener("pointerdown", (event) => node.setPointerCapture(event.pointerId));
  node.addEventListener("pointermove", (event) => {
    const box = node.parentElement.querySelector("canvas").getBoundingClientRect();
    if (event.buttons & 1) move((event.clientX - box.left) / box.width);
  });
  node.addEventListener("keydown", (event) => {
    const { wipe } = viewer.scene.state, reach = event.shiftKey ? 0.1 : 0.01;
    const places = { ArrowLeft: wipe - reach, ArrowRight: wipe + reach, Home: 0, End: 1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    event.stopPropagation();
    move(places[event.key]);
  });
  return node;
}
function drawDivider({ scene, zoom }, { divider, tags }, index) {
  const before = beforeView(scene, index), { state, data } = scene, place = zoom.x + state.wipe * zoom.scale;
  divider.hidden = !before || place < 0 || place > 1;
  divider.style.left = `${100 * place}%`;
  divider.setAttribute("aria-valuenow", Math.round(100 * state.wipe));
  tags.forEach((tag) => { tag.hidden = !before; });
  if (!before) return;
  const [left, right] = [before, { view: state.view, model: index }];
  tags.forEach((tag, side) => {
    const { view, model } = side ? right : left;
    tag.textContent = left.model === right.model ? view : `${data.models[model].name}: ${view}`;
  });
}
