"""The inspector's pictures, RGB arrays and a still figure; they only index what `inspect` kept, and run no network."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure, SubFigure
from PIL import Image, ImageDraw

from s2fpn_lib.inspector import numbers
from s2fpn_lib.inspector.numbers import SCALES, Scale
from s2fpn_lib.inspector.state import LABEL_VIEWS, OTHER, Inspection, State, available_views
from s2fpn_lib.viz.images import ERROR_COLOR, as_array, colorize, legend_patches
from s2fpn_lib.viz.style import BAD, INK, styled

CROSSHAIR, PIN = (255, 255, 255), (255, 221, 0)
DIFFERENT, GRAY = (0, 114, 178), (205, 211, 217)  # where two models disagree; where nothing is wrong
LEVEL_OPACITY = 0.6  # of the colors of a level over the gray photograph
FADED = (60, 0.7)  # gray of a level's photograph: 60 + 0.7 times the mean of red, green, and blue
WIDTH = 11  # of the still figure, in inches


def render(state: State, inspection: Inspection, other: Inspection | None = None) -> np.ndarray:
    """The image with the view's colors, the chosen pixel, and the pins: (h, w, 3) uint8.

    other: the second model of the same image, which the views of `PAIR_VIEWS` and the wipe between two models need.
    """
    s, picture = inspection.stride, _blended(state, inspection, other)
    if state.before:
        shown, others = (other, inspection) if state.before == OTHER else (inspection, other)
        view = state.view if state.before == OTHER else state.before
        if shown is not None:
            end = round(state.wipe * picture.shape[1])
            picture[:, :end] = _blended(replace(state, view=view), shown, others)[:, :end]
    for y, x in state.pins:
        picture = _with_cross(picture, y // s, x // s, PIN, arm=6)
    return _with_cross(picture, state.y // s, state.x // s, CROSSHAIR, arm=11)


def render_level(state: State, inspection: Inspection, index: int) -> np.ndarray:
    """The gray image in colors of level `index` (0: apf1) at the chosen pixel, by `level_scale`: (h, w, 3) uint8."""
    s, level = inspection.stride, inspection.levels[index]
    image = as_array(inspection.drawn(inspection.picture.image)).astype(np.float32)
    picture = FADED[0] + FADED[1] * np.repeat(image.mean(-1, keepdims=True), 3, -1)
    if level.gates is not None:
        rows = level.strip_axis == "width"
        length = picture.shape[0 if rows else 1]
        values = level.strip_values(*inspection.on_level(level, state.y, state.x))[0].numpy()
        colors = numbers.level_scale(inspection).paint(values)[np.arange(length) * len(values) // length]
        spread = colors[:, None] if rows else colors[None]
        picture = (1 - LEVEL_OPACITY) * picture + LEVEL_OPACITY * spread
    return _with_cross(picture.astype(np.uint8), state.y // s, state.x // s, CROSSHAIR, arm=20, thick=1)


@styled
def inspection_figure(state: State, inspections: Sequence[Inspection]) -> Figure:
    """One block per inspection of the same image: the picture with its readout, and the four levels below it."""
    state = state.at(state.y, state.x, inspections[0].size, inspections[0].stride)
    height, width, _ = render(state, inspections[0]).shape
    rest = 2.1 + 0.55 * len({state.view, state.before} & {*SCALES})  # inches of a block besides its pictures
    high = WIDTH * (0.5 + 0.25) * height / width + rest
    patches = legend_patches(inspections[0].protocol, ignored=False)
    columns = max(1, min(6, 120 // (6 + max(len(patch.get_label()) for patch in patches))))
    figure = plt.figure(figsize=(WIDTH, high * len(inspections) + 0.4 * len(patches) / columns), layout="constrained")
    figure.legend(handles=patches, ncols=columns, loc="outside lower center", fontsize=10)
    blocks = figure.subfigures(len(inspections), squeeze=False)[:, 0]
    for block, inspection, other in zip(blocks, inspections, [*inspections[1:], inspections[0]], strict=True):
        _draw_block(block, state, inspection, other if len(inspections) > 1 else None)
    return figure


def _blended(state: State, inspection: Inspection, other: Inspection | None) -> np.ndarray:
    """(h, w, 3) uint8: the view's colors over the image, over the gray image where a color stands for a number."""
    image = as_array(inspection.drawn(inspection.picture.image)).astype(np.float32)
    colors, drawn = _layer(state, inspection, other)
    if state.view in SCALES and drawn is not None:
        image = image.mean(-1, keepdims=True)
    alpha = 0 if drawn is None else (state.opacity * drawn)[..., None]
    return np.broadcast_to((1 - alpha) * image + alpha * colors, colors.shape).astype(np.uint8)


def _layer(state: State, inspection: Inspection, other: Inspection | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The view's colors (h, w, 3), and a mask (h, w) of the pixels where they are drawn, None for the image alone."""
    protocol, view = inspection.protocol, state.view
    ids = shown = inspection.drawn(inspection.ids)
    if view == "image" or view not in available_views([inspection, *([other] if other else [])]):
        return np.zeros((*ids.shape, 3)), None
    if view in LABEL_VIEWS:
        shown = inspection.drawn(inspection.picture.label)
    drawn = (shown < protocol.num_classes).numpy() & ~np.isin(shown.numpy(), list(state.hidden))
    if view in SCALES:
        values = numbers.view_values(state, inspection, other)
        return SCALES[view].paint(values), values >= state.threshold if view == "class probability" else drawn
    if view == "errors":
        return np.where((ids != shown).numpy()[..., None], ERROR_COLOR, GRAY), drawn
    if view == "disagreement":
        return np.where((ids != other.drawn(other.ids)).numpy()[..., None], DIFFERENT, GRAY), drawn
    return colorize(shown, protocol), drawn


def _with_cross(picture: np.ndarray, y: int, x: int, color: tuple[int, ...], arm: int, thick: int = 0) -> np.ndarray:
    """A copy with a dark-rimmed cross around (y, x); the pixel itself and its neighbors stay visible."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for fill, rim in (((0, 0, 0), 1), (color, 0)):
        for start, end in ((-arm - rim, -4 + rim), (4 - rim, arm + rim)):
            draw.rectangle((x + start, y - thick - rim, x + end, y + thick + rim), fill)
            draw.rectangle((x - thick - rim, y + start, x + thick + rim, y + end), fill)
    return np.asarray(image)


def _draw_block(block: SubFigure, state: State, inspection: Inspection, other: Inspection | None) -> None:
    """Draws the picture, the readout, and the levels of one inspection."""
    found, protocol, scale = numbers.readout(state, inspection), inspection.protocol, numbers.level_scale(inspection)
    names = [level.name for level in found.levels]
    rows = [[*["main"] * 2, *["bars"] * 2], [*["main"] * 2, *["text"] * 2], names]
    axes = block.subplot_mosaic(rows, height_ratios=[0.15, 0.35, 0.25])
    for axis in axes.values():
        axis.grid(visible=False)
    _show(axes["main"], render(state, inspection, other))
    what = f"probability of {protocol.classes[state.shown_class]}" if state.view == "class probability" else state.view
    axes["main"].set_title(f"{inspection.model.name} on {inspection.picture.name}: {what}", fontsize=10.5)
    for view in sorted({state.view, state.before} & {*SCALES}):
        _color_bar(SCALES[view], axes["main"], shrink=0.7)
    shares = dict([(found.prediction, found.confidence), *found.others][::-1])
    colors = [np.array(protocol.palette[protocol.classes.index(name)]) / 255 for name in shares]
    bars = axes["bars"].barh(range(len(shares)), list(shares.values()), color=colors, edgecolor=INK, linewidth=0.5)
    axes["bars"].bar_label(bars, [f"{p:.1%}" for p in shares.values()], padding=3)
    axes["bars"].set_yticks(range(len(shares)), [name if len(name) <= 16 else f"{name[:15]}…" for name in shares])
    axes["bars"].set(xlim=(0, 1.2), xticks=[], title=f"row {found.y}, column {found.x}: {found.prediction:.24}")
    texts = [f"True class: {found.truth_words()}. Entropy {found.entropy:.2f} bits, margin {found.margin:.2f}."]
    texts.append(numbers.revision_note(inspection))
    pins = [numbers.readout(replace(state, y=y, x=x), inspection) for y, x in state.pins]
    pinned = "; ".join(f"{pin.y}, {pin.x}: {pin.prediction} {pin.confidence:.0%}" for pin in pins)
    texts += [f"Pinned (row, column): {pinned}"] if pins else []
    axes["text"].set_axis_off()
    warning = textwrap.wrap(inspection.warning, 58)
    below = [""] * (len(warning) + bool(warning)) + [textwrap.fill(each, 58) for each in texts]
    for lines, color in ((warning, BAD), (below, INK)):
        axes["text"].text(0, 1, "\n".join(lines), va="top", fontsize=9.5, color=color, linespacing=1.4)
    for index, level in enumerate(found.levels):
        _show(axes[level.name], render_level(state, inspection, index))
        axes[level.name].set_title(f"{level.name}  {level.size[0]}x{level.size[1]}", fontsize=10)
        caption = "\n".join(textwrap.fill(fact, 36) for fact in level.facts())
        axes[level.name].set_xlabel(caption, fontsize=9, loc="left")
    if found.levels[0].gates:
        _color_bar(scale, [axes[name] for name in names], shrink=0.5)


def _show(axis: Axes, picture: np.ndarray) -> None:
    axis.set(xticks=[], yticks=[], frame_on=False)
    axis.imshow(picture, interpolation="auto")


def _color_bar(scale: Scale, axes: Axes | Sequence[Axes], shrink: float) -> None:
    shown = ScalarMappable(scale.norm, scale.cmap)
    bar = plt.colorbar(shown, ax=axes, location="bottom", shrink=shrink, aspect=40, pad=0.06, ticks=scale.ticks)
    bar.ax.set_xticklabels(scale.labels, fontsize=9)
    bar.set_label(scale.title, fontsize=9.5)
