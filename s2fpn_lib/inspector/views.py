"""The inspector's pictures, RGB arrays and a still figure; they only index what `inspect` kept, and run no network."""

import io
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from s2fpn_lib.inspector.numbers import pin_readouts, readout, revision_note
from s2fpn_lib.inspector.state import LABEL_VIEWS, Inspection, State
from s2fpn_lib.viz.images import as_array, colorize, legend_patches
from s2fpn_lib.viz.style import BAD, INK, MUTED, styled

JPEG = {"quality": 92, "subsampling": 0}
PROFILE_HEIGHT = 56  # pixels of the plot below the picture of a level
CROSSHAIR, PIN = (255, 255, 255), (255, 221, 0)
BLUE, VERMILION, GRAY = (0, 114, 178), (213, 94, 0), (205, 211, 217)
CONFIDENCE = (255 * plt.colormaps["viridis"](np.arange(256))[:, :3]).round().astype(np.uint8)  # (256, 3)

# Widths in inches: the figure, a model's picture, one of its levels, the margin, the gap between levels
WIDTH, MAIN, LEVEL, MARGIN, GAP = 11, 6.38, 2.54, 0.12, 0.2
HEAD, CAPTION, LEGEND = 0.32, 0.95, 0.5  # heights: a title, a level's text, the legend


def render(state: State, inspection: Inspection) -> np.ndarray:
    """The image with the view's colors, the chosen pixel, and the pins: (h, w, 3) uint8."""
    s = inspection.stride
    colors, drawn = _layer(state, inspection)
    alpha = (state.opacity * drawn)[..., None]
    picture = ((1 - alpha) * _image(inspection) + alpha * colors).astype(np.uint8)
    for y, x in state.pins:
        picture = _with_cross(picture, y // s, x // s, PIN, arm=6)
    return _with_cross(picture, state.y // s, state.x // s, CROSSHAIR, arm=11)


def render_level(state: State, inspection: Inspection, index: int) -> np.ndarray:
    """What level `index` (0 is apf1) does at the chosen pixel: (h + PROFILE_HEIGHT, w, 3) uint8.

    v2: the image, bright where the pixel's distribution over columns is large, and a plot of the distribution. v1: the
    gray image, tinted blue where the gate of the average strip is larger and vermilion where that of the maximum strip
    is, and a plot of both gates. Each plot is scaled to its largest value; a gray bar marks the pixel's own column.
    Without SSAM: the gray image and an empty plot.
    """
    s, level, image = inspection.stride, inspection.levels[index], _image(inspection)
    height, width = image.shape[:2]
    gray = image.mean(-1, keepdims=True)
    picture = 128 + 0.5 * gray
    plot = np.full((PROFILE_HEIGHT, width, 3), 255, np.uint8)
    if level.gates is not None:
        own, length, across = state.x // s, width, (1, -1, 1)  # across: shape that spreads strips over the image
        if level.strip_axis == "width":
            own, length, across = state.y * width // inspection.size[0], height, (-1, 1, 1)
        plot[:, max(own - 1, 0) : own + 2] = GRAY
        values = inspection.strips(level, state.y, state.x).numpy()
        values = values / max(np.abs(values).max(), 1e-12)
        strength = _stretched(values, length).reshape(across)
        if level.query is not None:
            picture = 0.35 * gray * (1 - strength) + image * strength
            heights = (_stretched(values, width) * (PROFILE_HEIGHT - 4)).astype(int)
            plot[np.arange(PROFILE_HEIGHT)[::-1, None] < heights] = BLUE
        else:
            color = np.where(strength > 0, np.float32(BLUE), np.float32(VERMILION))
            picture = (1 - 0.7 * np.abs(strength)) * gray + 0.7 * np.abs(strength) * color
            gates = level.gates[0].numpy()  # (2, L)
            for values, line_color in zip(gates / max(gates.max(), 1e-12), (BLUE, VERMILION), strict=True):
                _plot_line(plot, _stretched(values, width), line_color)
    picture = np.broadcast_to(picture, (height, width, 3)).astype(np.uint8)
    return np.concatenate([_with_cross(picture, state.y // s, state.x // s, CROSSHAIR, arm=11), plot])


@styled
def inspection_figure(state: State, inspections: Sequence[Inspection]) -> Figure:
    """One block per inspection of the same image: the picture with its readout, and the four levels below it."""
    height, width, _ = render(state, inspections[0]).shape
    main_height, level_height = MAIN * height / width, LEVEL * (height + PROFILE_HEIGHT) / width
    block = HEAD + main_height + HEAD + level_height + CAPTION
    total = block * len(inspections) + LEGEND
    figure = plt.figure(figsize=(WIDTH, total))

    def place(left: float, top: float, wide: float, high: float, picture: np.ndarray | None = None) -> Axes:
        axis = figure.add_axes([left / WIDTH, (total - top - high) / total, wide / WIDTH, high / total])
        axis.set_axis_off()
        if picture is not None:
            axis.imshow(picture, aspect="auto", interpolation="auto")
        return axis

    for i, inspection in enumerate(inspections):
        top, beside = i * block + HEAD, MARGIN + MAIN + 0.25
        axis = place(MARGIN, top, MAIN, main_height, render(state, inspection))
        axis.set_title(f"{inspection.model.name}  on  {inspection.picture.name}")
        _write(place(beside, top, WIDTH - beside - MARGIN, main_height), state, inspection)
        top += main_height + HEAD
        for index, level in enumerate(readout(state, inspection).levels):
            picture = render_level(state, inspection, index)
            axis = place(MARGIN + index * (LEVEL + GAP), top, LEVEL, level_height, picture)
            axis.set_title(level.name)
            axis.set_title(level.shape(), loc="right", fontsize=8.2, fontweight="normal", color=MUTED)
            text = "\n".join(textwrap.fill(fact, int(LEVEL * 17)) for fact in level.facts())
            axis.text(0, -0.03, text, transform=axis.transAxes, va="top", fontsize=7.3, color=INK, linespacing=1.3)
    patches = legend_patches(inspections[0].protocol, ignored=False)
    figure.legend(handles=patches, ncols=8, loc="lower center", fontsize=8.5)
    return figure


def jpeg(pixels: np.ndarray) -> bytes:
    """(h, w, 3) uint8 as JPEG: a third of the time and bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **JPEG)
    return buffer.getvalue()


def _image(inspection: Inspection) -> np.ndarray:
    """(h, w, 3) float32."""
    return as_array(inspection.drawn(inspection.picture.image)).astype(np.float32)


def _layer(state: State, inspection: Inspection) -> tuple[np.ndarray, np.ndarray]:
    """The view's colors (h, w, 3) and a mask (h, w) of the pixels where they are drawn."""
    protocol = inspection.protocol
    ids = shown = inspection.drawn(inspection.ids)
    if state.view == "image" or state.view not in inspection.views:
        return np.zeros((*ids.shape, 3)), np.zeros(ids.shape, bool)
    if state.view in LABEL_VIEWS:
        shown = inspection.drawn(inspection.picture.label)
    drawn = (shown < protocol.num_classes).numpy() & ~np.isin(shown.numpy(), list(state.hidden))
    if state.view == "errors":
        return np.where((ids != shown).numpy()[..., None], VERMILION, GRAY), drawn
    if state.view == "confidence":
        confidence = inspection.drawn(inspection.probabilities).amax(0).numpy()
        return CONFIDENCE[(255 * confidence).round().astype(np.uint8)], drawn
    return colorize(shown, protocol), drawn


def _stretched(values: np.ndarray, length: int) -> np.ndarray:
    """(L,) -> (length,), each entry repeated over the pixels that it stands for."""
    return values[np.arange(length) * len(values) // length].astype(np.float32)


def _plot_line(plot: np.ndarray, values: np.ndarray, color: tuple[int, int, int]) -> None:
    rows = len(plot) - 3 - (values * (len(plot) - 6)).astype(int)
    previous = np.concatenate([rows[:1], rows[:-1]])
    every = np.arange(len(plot))[:, None]
    plot[(every >= np.minimum(rows, previous)) & (every <= np.maximum(rows, previous) + 1)] = color


def _with_cross(picture: np.ndarray, y: int, x: int, color: tuple[int, int, int], *, arm: int) -> np.ndarray:
    """A copy with a dark-rimmed cross around (y, x); the pixel itself and its neighbors stay visible."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for fill, rim in (((0, 0, 0), 1), (color, 0)):
        for start, end in ((-arm - rim, -4 + rim), (4 - rim, arm + rim)):
            draw.rectangle((x + start, y - rim, x + end, y + rim), fill)
            draw.rectangle((x - rim, y + start, x + rim, y + end), fill)
    return np.asarray(image)


def _write(axis: Axes, state: State, inspection: Inspection) -> None:
    """Writes the readout of the chosen pixel; the axes' unit is an inch, from the upper left corner."""
    found, protocol = readout(state, inspection), inspection.protocol
    box = axis.get_window_extent().transformed(axis.figure.dpi_scale_trans.inverted())
    axis.set(xlim=(0, box.width), ylim=(box.height, 0))
    axis.text(0, 0.02, found.prediction, fontsize=17, weight="bold", va="top")
    where = f"row {found.y}, column {found.x}; true class {found.truth_words()}; view: {state.view}"
    axis.text(0, 0.40, where, va="top", fontsize=9, color=MUTED)
    y = 0.82
    for name, p in ((found.prediction, found.confidence), *found.others):
        color = np.array(protocol.palette[protocol.classes.index(name)]) / 255
        length = box.width * 0.55 * p
        axis.barh(y, length, left=1.05, height=0.16, color=color, edgecolor=INK, linewidth=0.5)
        axis.text(0.98, y, name, ha="right", va="center", fontsize=8.5)
        axis.text(1.12 + length, y, f"{p:.1%}", va="center", fontsize=8.5)
        y += 0.24
    y += 0.1
    pins = [f"{pin.y}, {pin.x}: {pin.prediction} {pin.confidence:.0%}" for pin in pin_readouts(state, inspection)]
    pinned = f"Pinned (row, column): {'; '.join(pins)}" if pins else ""
    texts = {inspection.warning: (BAD, "bold"), revision_note(inspection): (MUTED, "normal"), pinned: (INK, "normal")}
    for text, (color, weight) in texts.items():
        if text:
            lines = textwrap.fill(text, int(box.width * 14.5))
            axis.text(0, y, lines, va="top", fontsize=8.2, color=color, weight=weight, linespacing=1.35)
            y += 0.16 * (len(lines.splitlines()) + 0.8)
