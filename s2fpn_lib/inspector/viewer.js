// The viewer of one scene: its state, its zoom, and when it is drawn. It needs no kernel.
const LARGEST_ZOOM = 8;

class Viewer {
  // changed: called with the state after each change of the viewer's own
  constructor(root, changed = () => {}) {
    this.root = root;
    this.changed = changed;
    this.zoom = { scale: 1, x: 0, y: 0 }; // x and y: where the picture's corner is, in parts of its frame
    this.resized = new ResizeObserver(() => this.scene && this.schedule());
    this.resized.observe(root);
  }
  show(scene) {
    this.scene = scene;
    this.zoom = { scale: 1, x: 0, y: 0 };
    this.parts = scene.data.models.map((_, index) => modelPart(this, index));
    this.tools = [toolbar(this), legend(this)];
    this.spoken = element("div", { className: "s2fpn-live", ariaLive: "polite" });
    const models = element("div", { className: "s2fpn-models" }, ...this.parts.map((part) => part.node));
    const warnings = scene.data.models.filter((model) => model.warning)
      .map((model) => message("warning", `${model.name}: ${model.warning}.`));
    const [controls, classes] = this.tools.map((tool) => tool.node);
    this.root.replaceChildren(...warnings, controls, models, this.spoken);
    (this.parts.length > 1 ? this.root : this.parts[0].left).append(classes); // one model leaves room below the picture
    this.root.style.setProperty("--s2fpn-aspect", scene.w / scene.h);
    this.root.dataset.models = scene.data.models.length;
    this.transform();
    this.draw();
  }
  // Takes over a state that the kernel has set
  restore(values) {
    Object.assign(this.scene.state, plainState(values));
    this.schedule();
  }
  change(values, since) {
    Object.assign(this.scene.state, values);
    this.changed(savedState(this.scene.state));
    this.schedule(since);
  }
  choose(y, x, since) {
    const { H, W, state, data: { stride } } = this.scene;
    const drawn = (value, old, end) => { // the drawn pixel; NaN is an emptied field
      const place = clamp(Number.isNaN(value) ? old : Math.floor(value), 0, end - 1);
      return place - (place % stride);
    };
    this.change({ y: drawn(y, state.y, H), x: drawn(x, state.x, W) }, since);
    this.keepInView();
  }
  pin() {
    const { y, x, pins } = this.scene.state, others = pins.filter((each) => each[0] !== y || each[1] !== x);
    this.change({ pins: others.length < pins.length ? others : [...pins, [y, x]] });
  }
  // Draws in the next frame; since: time of the event that caused it, from which `data-repaint-ms` counts
  schedule(since) {
    this.since ??= since;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
      const began = this.since, { port1, port2 } = new MessageChannel();
      this.since = undefined;
      port1.onmessage = () => { // comes after the browser has painted
        if (began) this.root.dataset.repaintMs = (performance.now() - began).toFixed(1);
        this.root.dataset.drawn = Number(this.root.dataset.drawn || 0) + 1;
      };
      port2.postMessage("painted");
    });
  }
  draw() {
    this.parts.forEach((part, index) => drawPart(this, part, index));
    this.tools.forEach((tool) => tool.update());
    const spoken = this.scene.data.models.map((model) => sentence(this.scene, model)).join(" ");
    if (this.spoken.textContent !== spoken) this.spoken.textContent = spoken;
  }

  // Zoom about a point of the frame, in parts of its width and height; without one, about the chosen pixel
  zoomBy(factor, x, y) {
    const { zoom, scene: { state, H, W } } = this, scale = clamp(zoom.scale * factor, 1, LARGEST_ZOOM);
    const about = x === undefined ? { x: zoom.x + ((state.x + 0.5) / W) * zoom.scale, y: zoom.y + ((state.y + 0.5) / H) * zoom.scale } : { x, y };
    for (const axis of ["x", "y"]) zoom[axis] = about[axis] - ((about[axis] - zoom[axis]) / zoom.scale) * scale;
    zoom.scale = scale;
    this.pan(0, 0);
  }
  pan(x, y) {
    const { zoom } = this;
    zoom.x = clamp(zoom.x + x, 1 - zoom.scale, 0);
    zoom.y = clamp(zoom.y + y, 1 - zoom.scale, 0);
    this.transform();
    this.schedule();
  }
  resetZoom() {
    this.zoom = { scale: 1, x: 0, y: 0 };
    this.pan(0, 0);
  }
  keepInView() {
    const { zoom, scene: { state, H, W } } = this;
    const outside = (corner, part) => {
      const place = corner + part * zoom.scale;
      return place < 0.02 ? 0.1 - place : place > 0.98 ? 0.9 - place : 0;
    };
    if (zoom.scale > 1) this.pan(outside(zoom.x, (state.x + 0.5) / W), outside(zoom.y, (state.y + 0.5) / H));
  }
  transform() {
    const { style } = this.root, { scale, x, y } = this.zoom;
    style.setProperty("--s2fpn-zoom", `translate(${100 * x}%, ${100 * y}%) scale(${scale})`);
    this.root.classList.toggle("s2fpn-zoomed", scale > 1);
  }
  // The chosen pixel's distribution over the columns at a level
  attention(model, level) {
    return Array.from(attention(this.scene, this.scene.data.models[model].levels[level]));
  }
  close() {
    this.resized.disconnect();
    cancelAnimationFrame(this.frame);
  }
}
// The first model's picture as it is shown, as PNG
const pictureOf = (viewer) => new Promise((resolve) => viewer.parts[0].main.toBlob(resolve, "image/png"));
const pictureName = (viewer) => `${viewer.scene.data.name.replace(/\.(png|jpe?g|webp|bmp|tiff?)$/i, "")}.png`;

function downloadLink(blob, name) {
  const size = blob.size > 1e6 ? `${(blob.size / 1e6).toFixed(1)} MB` : `${Math.ceil(blob.size / 1e3)} kB`;
  return element("a", { href: URL.createObjectURL(blob), download: name, className: "s2fpn-download" }, `Download ${name} (${size})`);
}
// The browser keeps the content of a link's address until the page is closed, unless the address is revoked
const release = (link) => URL.revokeObjectURL(link.href);
function downloadNow(blob, name) {
  const link = downloadLink(blob, name);
  link.click();
  setTimeout(release, 60_000, link); // the browser reads the content after the click
}
