// The pictures of the viewer, drawn as render and render_level of views.py draw them, and the plots below the levels.
function cross(context, y, x, tone, arm, thick) {
  for (const [fill, rim] of [["black", 1], [tone, 0]]) {
    context.fillStyle = fill;
    for (const [from, to] of [[-arm - rim, -3 + rim], [4 - rim, arm + 1 + rim]]) {
      context.fillRect(x + from, y - thick - rim, to - from, 2 * (thick + rim) + 1);
      context.fillRect(x - thick - rim, y + from, 2 * (thick + rim) + 1, to - from);
    }
  }
}
function crossAt(context, { data }, [y, x], tone, arm, thick = 0) {
  cross(context, Math.floor(y / data.stride), Math.floor(x / data.stride), tone, arm, thick);
}
// The view that is left of the divider and the model that it is of; null without a wipe
function beforeView({ data, state }, index) {
  if (!state.before) return null;
  if (state.before !== "other model") return { view: state.before, model: index };
  return data.models.length > 1 ? { view: state.view, model: 1 - index } : null;
}
function drawMain(canvas, scene, index) {
  const context = drawingOn(canvas), { state, w, h } = scene, before = beforeView(scene, index);
  blend(context, scene, index, state.view);
  if (before) {
    context.save();
    context.beginPath();
    context.rect(0, 0, Math.round(state.wipe * w), h);
    context.clip();
    blend(context, scene, before.model, before.view);
    context.restore();
  }
  for (const pin of state.pins) crossAt(context, scene, pin, css(scene.data.colors.pin), 6);
  crossAt(context, scene, [state.y, state.x], "white", 11);
}
function blend(context, scene, index, view) {
  const { data, state, w, h } = scene, colors = layer(scene, index, view);
  context.globalAlpha = 1;
  context.drawImage(colors && data.scales[view] ? scene.gray : scene.photo, 0, 0, w, h);
  if (!colors) return;
  context.globalAlpha = state.opacity;
  context.drawImage(colors, 0, 0);
  context.globalAlpha = 1;
}
function drawLevel(canvas, scene, model, level, values) {
  const context = drawingOn(canvas), { w, h, data, state } = scene;
  const rows = level.entries === "rows", long = rows ? h : w;
  context.globalAlpha = 1;
  context.drawImage(scene.faded, 0, 0);
  context.globalAlpha = data.level_opacity;
  for (let i = 0; i < (values ? level.length : 0); i++) {
    const [from, end] = [i, i + 1].map((edge) => Math.ceil((edge * long) / level.length));
    context.fillStyle = css(paint(model.scale, values[i]));
    context.fillRect(...(rows ? [0, from, w, end - from] : [from, 0, end - from, h]));
  }
  context.globalAlpha = 1;
  crossAt(context, scene, [state.y, state.x], "white", 20, 1);
}

// The numbers of a level over the image columns (or rows), with axes; a line marks the chosen pixel's own
const PLOT = { left: 32, right: 4, top: 6, bottom: 15 };
function drawPlot(canvas, scene, model, level, values) {
  const wide = canvas.clientWidth, high = canvas.clientHeight, ratio = window.devicePixelRatio || 1;
  if (!wide) return;
  const pixels = [wide, high].map((side) => Math.round(side * ratio));
  if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) [canvas.width, canvas.height] = pixels;
  const context = canvas.getContext("2d"), style = getComputedStyle(canvas);
  const plot = { wide: wide - PLOT.left - PLOT.right, high: high - PLOT.top - PLOT.bottom };
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, wide, high);
  if (!values) return;
  const rows = level.entries === "rows", size = rows ? scene.H : scene.W, own = rows ? scene.state.y : scene.state.x;
  const left = (place) => PLOT.left + (place / size) * plot.wide, floor = PLOT.top + plot.high;
  const largest = level.own_distribution ? 1 : Math.max(...level.gates) || 1;
  const up = (part) => floor - part * plot.high;
  context.strokeStyle = style.getPropertyValue("--s2fpn-muted");
  context.fillStyle = style.color;
  context.font = `9.5px ${style.fontFamily}`;
  context.strokeRect(PLOT.left, PLOT.top, plot.wide, plot.high);
  line(context, [[left(own + 0.5), PLOT.top], [left(own + 0.5), floor]]);
  axes(context, { size, left, floor, up, plot, rows }, level.own_distribution
    ? model.scale.ticks.map(([place], i) => [place, ["0.1", "1", "10", "100"][i]])
    : [[0, "0"], [1, short(largest)]]);
  const edge = (i) => left((i * size) / level.length);
  if (level.own_distribution) {
    line(context, [[PLOT.left, up(position(model.scale, 1))], [PLOT.left + plot.wide, up(position(model.scale, 1))]], [2, 3]);
    for (let i = 0; i < level.length; i++) {
      const part = position(model.scale, values[i]) * plot.high;
      context.fillRect(edge(i), floor - part, Math.max(edge(i + 1) - edge(i), 1), part);
    }
    return;
  }
  for (const [gate, tone] of [[0, 225], [1, 30]]) {
    context.strokeStyle = css(model.scale.colors[tone]);
    line(context, Array.from({ length: level.length }, (_, i) => up(level.gates[gate * level.length + i] / largest))
      .flatMap((y, i) => [[edge(i), y], [edge(i + 1), y]]));
  }
}
function axes(context, { size, left, floor, up, plot, rows }, ticks) {
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const [part, text] of ticks) context.fillText(text, PLOT.left - 3, up(part));
  context.textBaseline = "top";
  for (const [place, align] of [[0, "left"], [size, "right"]]) {
    context.textAlign = align;
    context.fillText(String(place), left(place), floor + 3);
  }
  context.textAlign = "center";
  context.fillText(`${plot.wide < 150 ? "" : "image "}${rows ? "row" : "column"}`, PLOT.left + plot.wide / 2, floor + 3);
}
function line(context, points, dashes = []) {
  context.setLineDash(dashes);
  context.beginPath();
  for (const point of points) context.lineTo(...point);
  context.stroke();
  context.setLineDash([]);
}
