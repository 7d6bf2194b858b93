// The viewer in a notebook, with what needs the kernel: other images and models, saving, and exporting.
const SYNC_AFTER = 150; // ms without a change, after which the kernel learns the state
const FILE_LIMIT = 5e7; // bytes of an upload

function render({ model, el }) {
  const root = element("div", { className: "s2fpn-viewer" }), messages = element("div");
  const host = element("div", { className: "s2fpn-inspector s2fpn-host" });
  let timer;
  const sync = () => {
    clearTimeout(timer);
    if (!viewer.scene) return;
    model.set("shown", savedState(viewer.scene.state));
    model.save_changes();
  };
  const viewer = new Viewer(root, () => {
    clearTimeout(timer);
    timer = setTimeout(sync, SYNC_AFTER);
  });
  const say = (text, ...more) => {
    messages.querySelectorAll(".s2fpn-download").forEach(release);
    messages.replaceChildren(...(text ? [message("status", text, ...more)] : []));
  };
  // Asks the kernel for something; it answers with one of `answers`
  const ask = (request, waiting = "", files = []) => {
    if (waiting) say(waiting);
    sync();
    model.send(request, undefined, files);
  };
  const files = element("span", { className: "s2fpn-group" }), images = imageBar(ask, say, files), strip = thumbStrip(ask);
  const save = button("Save", "Write the still picture (PNG) and its numbers (JSON) into the results folder", () => ask({ do: "save" }, "Saving …"));
  const page = button("Export", "Make a page that works without kernel and network", () => ask({ do: "export" }, "Exporting the page …"));
  const picture = button("PNG", "Download the first model's picture as it is shown", async () =>
    downloadNow(await pictureOf(viewer), pictureName(viewer)));

  files.append(save, page, picture);

  const answers = {
    async data(content, [bytes]) {
      const first = !viewer.scene;
      viewer.show(await openScene(new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength)));
      if (first) host.replaceChildren(images.node, strip.node, messages, root);
      images.show(content);
      strip.show(content);
      say("");
      if (first) arrive(model, host);
    },
    thumbs: (content, buffers) => strip.add(content, buffers),
    score: (content) => strip.score(content),
    say: ({ text }) => say(text),
    error: (content) => {
      say("");
      messages.replaceChildren(failure(content));
      images.reset();
    },
    file: ({ name, text }, [bytes]) => say(`${text} `, downloadLink(new Blob([bytes], { type: "text/html" }), name)),
  };
  const receive = (content, buffers) => answers[content.kind]?.(content, buffers);
  const restore = () => {
    const values = model.get("shown");
    if (viewer.scene && JSON.stringify(values) !== JSON.stringify(savedState(viewer.scene.state))) viewer.restore(values);
  };
  host.append(element("p", { className: "s2fpn-muted" }, "The inspector waits for its kernel. Without one, run the notebook; a still picture of the first view is below."));
  el.append(host);
  model.on("msg:custom", receive);
  model.on("change:shown", restore);
  model.send({ do: "show" });
  return () => {
    model.off("msg:custom", receive);
    model.off("change:shown", restore);
    viewer.close();
  };
}
// After Run All the widget is in view, once, also where the notebook scrolls to its last cell meanwhile
function arrive(model, host) {
  if (!model.get("fresh")) return;
  model.set("fresh", false);
  model.save_changes();
  for (const wait of [0, 300, 1000]) setTimeout(() => host.scrollIntoView({ block: "start" }), wait);
}
// What failed and what to do, for each request to the kernel
const DAMAGED = "Choose an index inside the dataset; the notebook 01_data lists damaged files.";
const DISK = "Free disk space, or give the notebook another folder for its results.";
const FAILURES = {
  show: ["Showing the image", "Run the notebook's cell again."],
  thumbs: ["Reading the thumbnails", DAMAGED],
  score: ["Scoring the images", DAMAGED],
  index: ["Opening the image", DAMAGED],
  path: ["Opening the image", "Check the path of the image (PNG, JPEG, ...)."],
  upload: ["Opening the upload", "Upload an image (PNG, JPEG, ...)."],
  upload_label: ["Opening the label", "Upload a PNG of train ids or of the protocol's colors, of the image's own size."],
  model: ["Opening the model", "Give a released name, a run folder, or a .safetensors file of a network with these classes."],
  save: ["Saving", DISK],
  export: ["Exporting", DISK],
};
function failure({ request, error, details }) {
  const [action, remedy] = FAILURES[request];
  return message("error", element("b", {}, `${action} failed. `), error, element("br"), element("b", {}, "What to do: "), remedy,
    element("details", {}, element("summary", {}, "Details"), element("pre", {}, details)));
}

// Which image and which models are open, and the user's own files
function imageBar(ask, say, files) {
  let content;
  const pick = (which, text) => select([], "", (path) => ask({ do: "model", which, path }, `Opening ${path || "one model"} …`), { title: text });
  const first = pick(0, "The model that is shown"), second = pick(1, "A model to compare it with");
  const index = element("input", { type: "number", min: 0 }), range = element("span", { className: "s2fpn-muted" });
  index.addEventListener("change", () => {
    if (Number.isInteger(index.valueAsNumber)) ask({ do: "index", index: index.valueAsNumber }, `Opening image ${index.value} …`);
    else reset();
  });
  const text = (placeholder) => element("input", { type: "text", placeholder, ariaLabel: placeholder });
  const path = text("path of an image"), label = text("path of its label PNG, if any"), weights = text("run folder or weights file");
  const upload = (what, accept, text) => {
    const input = element("input", { type: "file", accept });
    input.addEventListener("change", async () => {
      const [file] = input.files;
      input.value = "";
      if (file?.size > FILE_LIMIT) say(`${file.name} is larger than 50 MB: give its path instead.`);
      else if (file) ask({ do: what, name: file.name }, `Opening ${file.name} …`, [await file.arrayBuffer()]);
    });
    return labeled(text, input);
  };
  const use = (which) => button(which ? "Compare" : "Use", which ? "Show this model next to the first" : "Show this model", () =>
    ask({ do: "model", which, path: weights.value }, `Opening ${weights.value} …`));
  const more = element("div", { className: "s2fpn-more", hidden: true },
    element("div", { className: "s2fpn-row" }, path, label, button("Open", "Open the image at this path", () =>
      ask({ do: "path", path: path.value, label: label.value }, `Opening ${path.value} …`))),
    element("div", { className: "s2fpn-row" }, upload("upload", "image/*", "upload an image"), upload("upload_label", ".png", "upload its label")),
    element("div", { className: "s2fpn-row" }, weights, use(0), use(1)));
  for (const field of [index, path, label, weights]) field.addEventListener("keydown", (event) => event.stopPropagation());
  const own = button("Own files", "Open your own image, label, or model", () => {
    more.hidden = !more.hidden;
    own.ariaExpanded = String(!more.hidden);
  }, { ariaExpanded: "false" });
  const node = element("div", {}, element("div", { className: "s2fpn-row" }, labeled("model", first),
    labeled("second model", second), labeled("image", index), range, own, files), more);
  const reset = () => {
    if (!content) return;
    const others = content.chosen.filter((path) => path && !content.choices.some(([each]) => each === path));
    const choices = [...content.choices, ...others];
    fill(first, choices, content.chosen[0]);
    fill(second, [["", "none"], ...choices], content.chosen[1]);
    index.max = content.last;
    index.value = content.index ?? "";
    range.textContent = `of 0 to ${content.last}`;
  };
  return { node, reset, show: (shown) => { content = shown; reset(); } };
}

// Small pictures of the split with the first model's mIoU, worst first
function thumbStrip(ask) {
  const list = element("div", { className: "s2fpn-strip", role: "group", ariaLabel: "Images of the split" });
  const title = element("div", { className: "s2fpn-muted" });
  const node = element("div", { hidden: true }, title, list);
  let thumbs = [], scores = {}, of, about = "", name = "";
  const draw = () => {
    const order = [...thumbs].sort((a, b) => (scores[a.index] ?? 2) - (scores[b.index] ?? 2) || a.index - b.index);
    const places = order.map((each) => each.node);
    if (places.some((place, i) => list.children[i] !== place)) list.replaceChildren(...places);
    for (const each of thumbs) {
      const score = scores[each.index];
      each.text.textContent = score === undefined ? "…" : score === null ? "no label" : percent(score);
      each.node.title = `image ${each.index}, ${each.name}`;
      each.node.ariaLabel = `image ${each.index}, ${score == null ? "no score" : `mIoU ${percent(score)}`}`;
    }
    const left = thumbs.filter((each) => scores[each.index] === undefined).length;
    title.textContent = `Open: ${name}. ${about}${left ? ` Scoring: ${thumbs.length - left} of ${thumbs.length} …` : ""}`;
  };
  const next = () => { // the kernel scores one image at a time, so that other requests come between
    const missing = thumbs.find((each) => scores[each.index] === undefined);
    if (missing) ask({ do: "score", index: missing.index });
  };
  return {
    node,
    show(content) {
      const others = content.of !== of;
      of = content.of;
      about = content.about;
      name = content.name;
      scores = content.scores;
      if (!thumbs.length) ask({ do: "thumbs" });
      for (const each of thumbs) each.node.ariaPressed = String(each.index === content.index);
      node.dataset.index = content.index ?? "";
      draw();
      if (others) next();
    },
    add({ images }, buffers) {
      thumbs = images.map(({ index, name }, i) => {
        const url = URL.createObjectURL(new Blob([buffers[i]], { type: "image/jpeg" })), text = element("span");
        const open = button("", "", () => ask({ do: "index", index }, `Opening image ${index} …`), { className: "s2fpn-thumb" });
        open.append(element("img", { src: url, alt: "", onload: () => URL.revokeObjectURL(url) }), text);
        open.ariaPressed = String(String(index) === node.dataset.index);
        return { index, name, text, node: open };
      });
      node.hidden = !thumbs.length;
      draw();
      next();
    },
    score({ index, score, of: model }) {
      if (model !== of) return; // of a model that was shown before
      scores[index] = score;
      draw();
      next();
    },
  };
}
export default { render };
