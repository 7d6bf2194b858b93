// The data of the exported page, and the same numbers as in the notebook, computed from it.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [H, W] = data.size, [h, w] = data.drawn, s = data.stride;
const state = { ...data.state, hidden: new Set(data.state.hidden) };

const percent = (p) => (100 * p).toFixed(1) + "%";
const short = (value) => String(Number(value.toPrecision(2)));
const color = (id) => `rgb(${data.palette[id].join(",")})`;

// Decodes a base64 zlib stream
async function unpacked(text, type = Uint8Array) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new type(await new Response(stream).arrayBuffer());
}
async function unpackAll() {
  if (data.label) data.label = await unpacked(data.label);
  for (const model of data.models) {
    model.ranked = await unpacked(model.ranked);
    model.shares = await unpacked(model.shares, Uint16Array);
    for (const level of model.levels) {
      for (const [name, type] of [["gates", Float32Array], ["query", Int16Array], ["keys", Int16Array]])
        if (level[name]) level[name] = await unpacked(level[name], type);
      if (level.decides) level.decides = await unpacked(level.decides);
    }
  }
}
function photograph() {
  return new Promise((resolve, reject) => {
    const photo = new Image();
    photo.onload = () => resolve(photo);
    photo.onerror = () => reject(new Error("the picture in this page is damaged"));
    photo.src = data.image;
  });
}

// Numbers at the chosen pixel, as readout of numbers.py returns them
const drawnPixel = () => Math.min(Math.floor(state.y / s), h - 1) * w + Math.min(Math.floor(state.x / s), w - 1);
const onLevel = ([high, wide]) => [Math.floor((state.y * high) / H), Math.floor((state.x * wide) / W)];

function attention(level) {
  const [y, x] = onLevel(level.size).map((place) => Math.floor(place / level.step));
  const [high, wide] = level.kept, channels = level.keys.length / level.length, scores = new Float64Array(level.length);
  for (let c = 0; c < channels; c++) {
    const q = level.query[(c * high + y) * wide + x] * level.query_scale * level.keys_scale;
    for (let i = 0; i < level.length; i++) scores[i] += q * level.keys[c * level.length + i];
  }
  const largest = Math.max(...scores), powers = scores.map((score) => Math.exp(score - largest));
  const total = powers.reduce((sum, value) => sum + value, 0);
  return powers.map((value) => value / total);
}
function gatesAt(level) {
  const [y, x] = onLevel(level.size), [high, wide] = level.size;
  if (level.own_distribution) return [level.gates[y * wide + x], level.gates[(high + y) * wide + x]];
  const entry = level.entries === "rows" ? y : x;
  return [level.gates[entry], level.gates[level.length + entry]];
}
function values(level) {
  if (level.own_distribution) return attention(level);
  return Float64Array.from({ length: level.length }, (_, i) => level.gates[i] - level.gates[level.length + i]);
}
function describe(level) {
  if (!level.gates) return [level.weight];
  const strengths = Array.from(values(level), Math.abs), size = level.entries === "rows" ? H : W;
  const top = strengths.map((_, i) => i).sort((a, b) => strengths[b] - strengths[a]).slice(0, 3);
  const places = top.map((entry) => {
    const first = Math.ceil((entry * size) / level.length), last = Math.ceil(((entry + 1) * size) / level.length) - 1;
    return `${first}-${last} (${short(strengths[entry])})`;
  }).join(", ");
  const [one, two] = gatesAt(level).map(short);
  return [level.weight, level.own_distribution
    ? `attends most to ${level.entries} ${places}; gates ${one} and ${two}`
    : `gates of this ${level.entries.slice(0, -1)}: average ${one}, maximum ${two}; they differ most at ${level.entries} ${places}`];
}
function ranked(model) {
  const places = [...Array(model.ranked.length / (h * w)).keys()].map((k) => k * h * w + drawnPixel());
  return places.map((i) => [model.ranked[i], model.shares[i] / 65535]);
}
function truth(model) {
  if (!data.label) return "";
  const id = data.label[drawnPixel()];
  const name = id < data.classes.length ? data.classes[id] : "not labeled";
  return name + (model.seen ? " (trained on)" : "");
}
function sentence(model) {
  const [[id, p]] = ranked(model), known = truth(model);
  return `Row ${state.y}, column ${state.x}: ${data.classes[id]}, ${Math.round(100 * p)}% sure${known && `, true class ${known}`}.`;
}
