"""What the attention inspector shows: pure functions from a state and an inspection to RGB pictures.

Both only index what `inspect` has kept.
"""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
from torch import Tensor

from s2fpn_lib.inspector.state import Inspection, State
from s2fpn_lib.viz.images import as_picture, colorize

PROFILE_HEIGHT = 56  # pixels under the picture of a level
CROSSHAIR, PIN = (255, 255, 255), (255, 221, 0)
FIRST, SECOND = (0, 114, 178), (213, 94, 0)  # of two gates; the house's blue and vermilion
WRONG, RIGHT = (213, 94, 0), (205, 211, 217)
OWN = (205, 211, 217)  # marks the pixel's own column in a profile
CONFIDENCE = (255 * matplotlib.colormaps["viridis"](np.arange(256))[:, :3]).round().astype(np.uint8)  # (256, 3)


def render(state: State, inspection: Inspection) -> np.ndarray:
    """The image with the view's colours, the chosen pixel and the pins: (h, w, 3) uint8."""
    s = inspection.stride
    picture = as_picture(inspection.image[:, ::s, ::s]).astype(np.float32)
    colors, drawn = _layer(state, inspection)
    alpha = (state.opacity * drawn)[..., None]
    picture = ((1 - alpha) * picture + alpha * colors).astype(np.uint8)
    for y, x in state.pins:
        _cross(picture, y // s, x // s, PIN, arm=6)
    _cross(picture, state.y // s, state.x // s, CROSSHAIR, arm=11)
    return picture


def render_level(state: State, inspection: Inspection, index: int) -> np.ndarray:
    """What level `index` (0 is apf1) does at the chosen pixel: (h + PROFILE_HEIGHT, w, 3) uint8.

    v2: the image, lit where the pixel's distribution over columns is, and that distribution as a profile below. v1: the
    image tinted by the gate that is larger in a column, blue for the average strip's and vermilion for the maximum's;
    below, both gates. The scale of a profile is its own largest value; grey marks the pixel's own column. Without SSAM:
    the image in grey.
    """
    s = inspection.stride
    level = inspection.levels[index]
    image = as_picture(inspection.image[:, ::s, ::s]).astype(np.float32)
    height, width = image.shape[:2]
    gray = image.mean(-1, keepdims=True)
    profile = np.full((PROFILE_HEIGHT, width, 3), 255, np.uint8)
    if level.gates is None:
        picture = 128 + 0.5 * gray
    else:
        along_rows = level.strip_axis == "width"
        own = state.y * width // inspection.size[0] if along_rows else state.x // s
        profile[:, max(own - 1, 0) : own + 2] = OWN
        across = (slice(None), None, None) if along_rows else (None, slice(None), None)  # (L,) -> (L, 1, 1), (1, L, 1)
        length = height if along_rows else width
        if level.query is not None:
            p = level.column_attention(*inspection.on_level(level, state.y, state.x))[0].numpy()
            p = p / p.max()
            lit = _stretched(p, length)[across]
            picture = 0.35 * gray * (1 - lit) + image * lit
            _bars(profile, _stretched(p, width), FIRST)
        else:
            gates = level.gates[0].numpy()  # (2, L)
            difference = gates[0] - gates[1]
            tint = _stretched(difference / max(np.abs(difference).max(), 1e-12), length)[across]
            color = np.where(tint > 0, np.float32(FIRST), np.float32(SECOND))
            picture = (1 - 0.7 * np.abs(tint)) * gray + 0.7 * np.abs(tint) * color
            for values, line in zip(gates / max(gates.max(), 1e-12), (FIRST, SECOND), strict=True):
                _line(profile, _stretched(values, width), line)
    picture = np.broadcast_to(picture, (height, width, 3)).astype(np.uint8)
    _cross(picture, state.y // s, state.x // s, CROSSHAIR, arm=11)
    return np.concatenate([picture, profile])


def _layer(state: State, inspection: Inspection) -> tuple[np.ndarray, np.ndarray]:
    """Colours (h, w, 3) of the view and where they are drawn (h, w), bool."""
    s, protocol = inspection.stride, inspection.protocol
    ids = inspection.ids[::s, ::s]
    label = None if inspection.label is None else inspection.label[::s, ::s]
    if state.view == "confidence":
        sure = (255 * inspection.confidence[::s, ::s]).round().to(torch.uint8).numpy()
        return CONFIDENCE[sure], _shown(ids, state)
    if state.view == "prediction":
        return colorize(ids, protocol), _shown(ids, state)
    if state.view == "image" or label is None:
        return np.zeros((*ids.shape, 3)), np.zeros(ids.shape, bool)
    known = (label < protocol.num_classes).numpy()
    if state.view == "true classes":
        return colorize(label, protocol), _shown(label, state) & known
    wrong = (ids != label).numpy()[..., None]
    return np.where(wrong, np.uint8(WRONG), np.uint8(RIGHT)), _shown(label, state) & known


def _shown(ids: Tensor, state: State) -> np.ndarray:
    table = np.ones(256, bool)
    table[list(state.hidden)] = False
    return table[ids.numpy()]


def _stretched(values: np.ndarray, length: int) -> np.ndarray:
    """(L,) -> (length,), each entry over the pixels that it stands for."""
    return values[np.arange(length) * len(values) // length].astype(np.float32)


def _bars(canvas: np.ndarray, values: np.ndarray, color: tuple[int, int, int]) -> None:
    heights = (values * (len(canvas) - 4)).astype(int)
    rows = np.arange(len(canvas))[::-1, None]
    canvas[rows < heights] = color


def _line(canvas: np.ndarray, values: np.ndarray, color: tuple[int, int, int]) -> None:
    rows = len(canvas) - 3 - (values * (len(canvas) - 6)).astype(int)
    previous = np.concatenate([rows[:1], rows[:-1]])
    low, high = np.minimum(rows, previous), np.maximum(rows, previous)
    every = np.arange(len(canvas))[:, None]
    canvas[(every >= low) & (every <= high + 1)] = color


def _cross(picture: np.ndarray, y: int, x: int, color: tuple[int, int, int], *, arm: int) -> None:
    """A cross with a dark rim and an open middle: what is under the pixel stays visible."""
    for tone, rim in (((0, 0, 0), 1), (color, 0)):
        for reach in (slice(-arm - rim, -3 + rim), slice(4 - rim, arm + 1 + rim)):
            across = slice(max(y - rim, 0), y + rim + 1), slice(max(x + reach.start, 0), max(x + reach.stop, 0))
            along = slice(max(y + reach.start, 0), max(y + reach.stop, 0)), slice(max(x - rim, 0), x + rim + 1)
            picture[across] = tone
            picture[along] = tone
