"""The inspector's pictures: pure functions from a state and an inspection to RGB arrays.

They only index what `inspect` kept; no network runs.
"""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from s2fpn_lib.inspector.state import Inspection, State
from s2fpn_lib.viz.images import as_array, colorize

Color = tuple[int, int, int]

PROFILE_HEIGHT = 56  # pixels of the plot below the picture of a level
CROSSHAIR, PIN = (255, 255, 255), (255, 221, 0)
BLUE, VERMILION, GRAY = (0, 114, 178), (213, 94, 0), (205, 211, 217)
CONFIDENCE = (255 * matplotlib.colormaps["viridis"](np.arange(256))[:, :3]).round().astype(np.uint8)  # (256, 3)


def render(state: State, inspection: Inspection) -> np.ndarray:
    """The image with the view's colors, the chosen pixel, and the pins: (h, w, 3) uint8."""
    image = as_array(_strided(inspection.image, inspection)).astype(np.float32)
    colors, drawn = _layer(state, inspection)
    alpha = (state.opacity * drawn)[..., None]
    picture = ((1 - alpha) * image + alpha * colors).astype(np.uint8)
    s = inspection.stride
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
    s, level = inspection.stride, inspection.levels[index]
    image = as_array(_strided(inspection.image, inspection)).astype(np.float32)
    height, width = image.shape[:2]
    gray = image.mean(-1, keepdims=True)
    plot = np.full((PROFILE_HEIGHT, width, 3), 255, np.uint8)
    along_rows = level.strip_axis == "width"
    length = height if along_rows else width
    across = (-1, 1, 1) if along_rows else (1, -1, 1)  # shape that spreads strip entries over the image
    if level.gates is None:
        picture = 128 + 0.5 * gray
    else:
        own = state.y * width // inspection.size[0] if along_rows else state.x // s
        plot[:, max(own - 1, 0) : own + 2] = GRAY
        if level.query is not None:
            p = level.column_attention(*inspection.on_level(level, state.y, state.x))[0].numpy()
            p = p / p.max()
            bright = _stretched(p, length).reshape(across)
            picture = 0.35 * gray * (1 - bright) + image * bright
            heights = (_stretched(p, width) * (PROFILE_HEIGHT - 4)).astype(int)
            plot[np.arange(PROFILE_HEIGHT)[::-1, None] < heights] = BLUE
        else:
            gates = level.gates[0].numpy()  # (2, L)
            difference = gates[0] - gates[1]
            tint = _stretched(difference / max(np.abs(difference).max(), 1e-12), length).reshape(across)
            color = np.where(tint > 0, np.float32(BLUE), np.float32(VERMILION))
            picture = (1 - 0.7 * np.abs(tint)) * gray + 0.7 * np.abs(tint) * color
            for values, line_color in zip(gates / max(gates.max(), 1e-12), (BLUE, VERMILION), strict=True):
                _plot_line(plot, _stretched(values, width), line_color)
    picture = np.broadcast_to(picture, (height, width, 3)).astype(np.uint8)
    return np.concatenate([_with_cross(picture, state.y // s, state.x // s, CROSSHAIR, arm=11), plot])


def jpeg(pixels: np.ndarray) -> bytes:
    """(h, w, 3) uint8 as JPEG: a third of the time and bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _strided(maps: Tensor, inspection: Inspection) -> Tensor:
    return maps[..., :: inspection.stride, :: inspection.stride]


def _layer(state: State, inspection: Inspection) -> tuple[np.ndarray, np.ndarray]:
    """The view's colors (h, w, 3) and a mask (h, w) of the pixels where they are drawn."""
    protocol = inspection.protocol
    ids = _strided(inspection.ids, inspection)
    if state.view == "prediction":
        return colorize(ids, protocol), _is_shown(ids, state)
    if state.view == "confidence":
        confidence = _strided(inspection.probabilities, inspection).amax(0).numpy()
        return CONFIDENCE[(255 * confidence).round().astype(np.uint8)], _is_shown(ids, state)
    if state.view == "image" or inspection.label is None:
        return np.zeros((*ids.shape, 3)), np.zeros(ids.shape, bool)
    label = _strided(inspection.label, inspection)
    drawn = _is_shown(label, state) & (label < protocol.num_classes).numpy()
    if state.view == "true classes":
        return colorize(label, protocol), drawn
    return np.where((ids != label).numpy()[..., None], np.uint8(VERMILION), np.uint8(GRAY)), drawn


def _is_shown(ids: Tensor, state: State) -> np.ndarray:
    return ~np.isin(ids.numpy(), list(state.hidden))


def _stretched(values: np.ndarray, length: int) -> np.ndarray:
    """(L,) -> (length,), each entry repeated over the pixels that it stands for."""
    return values[np.arange(length) * len(values) // length].astype(np.float32)


def _plot_line(plot: np.ndarray, values: np.ndarray, color: Color) -> None:
    rows = len(plot) - 3 - (values * (len(plot) - 6)).astype(int)
    previous = np.concatenate([rows[:1], rows[:-1]])
    low, high = np.minimum(rows, previous), np.maximum(rows, previous)
    every = np.arange(len(plot))[:, None]
    plot[(every >= low) & (every <= high + 1)] = color


def _with_cross(picture: np.ndarray, y: int, x: int, color: Color, *, arm: int) -> np.ndarray:
    """A copy with a dark-rimmed cross around (y, x); the pixel itself and its neighbors stay visible."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for fill, rim in (((0, 0, 0), 1), (color, 0)):
        for start, end in ((-arm - rim, -4 + rim), (4 - rim, arm + rim)):
            draw.rectangle((x + start, y - rim, x + end, y + rim), fill)
            draw.rectangle((x - rim, y + start, x + rim, y + end), fill)
    return np.asarray(image)
