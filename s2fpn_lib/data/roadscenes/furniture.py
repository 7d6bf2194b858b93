"""Street furniture of a RoadScene: poles and lamps, traffic signs, sign bridges, fences, litter bins."""

import math

from numpy.random import Generator

from s2fpn_lib.data.roadscenes.camera import Color
from s2fpn_lib.data.roadscenes.draw import Bars
from s2fpn_lib.data.roadscenes.objects import (
    FENCE,
    POLE,
    SIGN,
    UNLABELED,
    Board,
    between,
    box,
    contact_shadow,
    disc,
    jitter,
    limb,
    pick,
    shade,
)
from s2fpn_lib.data.roadscenes.textures import PLANKS

METALS = [(104, 108, 110), (70, 74, 76), (150, 152, 150), (62, 78, 66), (190, 188, 180), (110, 84, 60), (44, 48, 60)]


def post(canvas, key, board: Board, height: float, width: float, color: Color, *, lean: float = 0.0) -> None:
    """A pole with a sunlit edge and its shadow."""
    canvas.cast(board.place(box(-width / 2, 0, width / 2, height)))
    canvas.shape(key, board.place(limb((0, 0), (lean, height), width, width * 0.8)), POLE, shade(color, 0.9))
    if board.y > 40:
        return
    edge = 0.25 * width * (1 if canvas.light.sun[0] > 0 else -1)
    canvas.shape(
        key, board.place(limb((edge, 0), (lean + edge, height), width * 0.35, width * 0.3)), POLE, shade(color, 1.2)
    )


def lamp(canvas, rng, key, x, y, side: int, color: Color, height: float, night: bool) -> None:
    """A street lamp whose arm reaches over the road."""
    board = Board(x, y)
    post(canvas, key, board, height, 0.2, color)
    canvas.shape(key, board.place(box(-0.2, 0, 0.2, 1.0)), POLE, color)
    reach = -side * between(rng, 1.2, 2.2)
    canvas.shape(key, board.place(limb((0, height), (reach, height + 0.35), 0.16, 0.12)), POLE, color)
    head = limb((reach * 0.85, height + 0.3), (reach * 1.3, height + 0.32), 0.26, 0.2)
    if night:
        canvas.glow(key, board.place(head), POLE, (255, 224, 160))
    else:
        canvas.shape(key, board.place(head), POLE, shade(color, 1.2))


def utility_pole(canvas, rng, key, x, y, height: float) -> None:
    wood = jitter(rng, (104, 84, 66))
    board = Board(x, y)
    post(canvas, key, board, height, 0.26, wood, lean=between(rng, -0.15, 0.15))
    for z in (height - 0.5, height - 1.2):
        canvas.shape(key, board.place(box(-1.0, z, 1.0, z + 0.16)), POLE, shade(wood, 0.8))


def sign(canvas, rng, key, x, y, kind: str) -> None:
    """A sign on its post: round, triangle, board, direction, lights."""
    board = Board(x, y)
    gray = jitter(rng, (132, 134, 136))
    white, red, blue, dark = (236, 236, 232), (196, 40, 44), (36, 74, 160), (40, 42, 46)
    scale = between(rng, 0.8, 1.1)

    def plate(outline, color):
        canvas.shape(key, board.place([(u * scale, z0 + (z - z0) * scale) for u, z in outline]), SIGN, color)

    z0 = between(rng, 2.2, 2.9)
    if kind == "lights":
        post(canvas, key, board, 3.6, 0.18, dark)
        canvas.shape(key, board.place(box(-0.27, 2.5, 0.27, 3.9)), SIGN, dark)
        lit = int(rng.integers(3))
        for i, color in enumerate([(70, 220, 110), (250, 180, 40), (240, 50, 40)]):
            paint = canvas.glow if i == lit else canvas.shape
            paint(key, board.place(disc(0, 2.78 + 0.43 * i, 0.17)), SIGN, color if i == lit else shade(color, 0.3))
        return
    post(canvas, key, board, z0 + 0.4, 0.14, gray)
    back = rng.random() < 0.2  # seen from behind: plain gray
    if kind == "round":
        color, inner = pick(rng, [(red, white), (blue, blue), (white, white), (red, red)])
        plate(disc(0, z0, 0.44), gray if back else color)
        if not back:
            plate(disc(0, z0, 0.32), inner)
            plate(box(-0.2, z0 - 0.07, 0.2, z0 + 0.07), dark if inner is white else white)
    elif kind == "triangle":
        plate([(-0.52, z0 - 0.4), (0.52, z0 - 0.4), (0, z0 + 0.52)], gray if back else red)
        if not back:
            plate([(-0.34, z0 - 0.3), (0.34, z0 - 0.3), (0, z0 + 0.3)], white)
            plate(box(-0.05, z0 - 0.2, 0.05, z0 + 0.1), dark)
    elif kind == "board":
        color = pick(rng, [blue, white, (240, 196, 60), (60, 120, 80), red])
        plate(box(-0.5, z0 - 0.6, 0.5, z0 + 0.6), color)
        plate(box(-0.36, z0 + 0.1, 0.36, z0 + 0.4), pick(rng, [white, dark]))
    else:
        color = pick(rng, [(34, 96, 70), blue, white, (92, 70, 52)])
        text = dark if color is white else white
        post(canvas, key, Board(x + 1.5, y), z0 + 1.2, 0.16, gray)
        plate(box(-0.3, z0 - 0.4, 1.7, z0 + 0.8), color)
        for z in (z0 - 0.15, z0 + 0.15, z0 + 0.45):
            plate(box(-0.15, z, between(rng, 0.6, 1.5), z + 0.13), text)


def gantry(canvas, rng, key, x0, x1, y) -> None:
    """A sign bridge over the road."""
    steel = jitter(rng, (138, 142, 146))
    post(canvas, key, Board(x0, y), 6.6, 0.4, steel)
    post(canvas, key, Board(x1, y), 6.6, 0.4, steel)
    canvas.shape(key, [(x0, y, 6.2), (x1, y, 6.2), (x1, y, 6.7), (x0, y, 6.7)], POLE, steel)
    color = pick(rng, [(30, 84, 160), (28, 110, 76)])
    for share in (0.28, 0.72):
        middle = x0 + (x1 - x0) * share
        board = Board(middle, y)
        canvas.shape(key, board.place(box(-1.9, 5.3, 1.9, 7.5)), SIGN, color)
        for z in (5.7, 6.3, 6.9):
            canvas.shape(key, board.place(box(-1.5, z, between(rng, 0, 1.5), z + 0.28)), SIGN, (236, 236, 236))


def shop_sign(canvas, rng, key, x, y, side: int) -> None:
    """A sign that hangs from a facade over the pavement."""
    color = jitter(
        rng, pick(rng, [(180, 44, 40), (40, 80, 140), (230, 226, 214), (46, 110, 70), (226, 170, 50), (60, 50, 48)])
    )
    out, z = -side * between(rng, 0.9, 1.4), between(rng, 3.0, 3.8)
    tall = between(rng, 0.7, 1.4)
    canvas.shape(key, Board(x, y).place(box(0, z, out, z + tall)), SIGN, color)
    canvas.shape(
        key, Board(x, y).place(box(out * 0.2, z + tall * 0.4, out * 0.8, z + tall * 0.6)), SIGN, (240, 238, 230)
    )


def fence_style(rng: Generator, kind: str):
    """(color, height, bars or None for closed boards) of one kind of fence."""
    if kind == "panel":
        return (
            jitter(rng, pick(rng, [(126, 94, 66), (142, 136, 128), (92, 98, 82), (168, 150, 124)])),
            between(rng, 1.6, 2.2),
            None,
        )
    height = {"railing": 1.25, "mesh": 2.1, "picket": 1.15, "guard": 0.95, "rail": 1.3}[kind] * between(rng, 0.95, 1.15)
    paint = pick(rng, [(38, 42, 46), (40, 70, 56), (196, 196, 192), (116, 120, 122), (96, 76, 58), (222, 220, 212)])
    h = height
    bars = {
        "railing": Bars(0.16, 0.035, ((0.15, 0.05), (h - 0.06, 0.07))),
        "mesh": Bars(2.5, 0.09, ((h - 0.05, 0.06),), 1.0),
        "picket": Bars(0.16, 0.10, ((0.3, 0.08), (h - 0.3, 0.08))),
        "guard": Bars(2.0, 0.12, ((h - 0.22, 0.34), (h - 0.62, 0.1))),
        "rail": Bars(2.2, 0.14, ((0.35, 0.12), (0.75, 0.12), (h - 0.12, 0.12))),
    }[kind]
    return jitter(rng, (172, 176, 178) if kind == "guard" else paint), height, bars


def fence(canvas, key, near, far, side: int, style) -> None:
    """One panel of fence from `near` to `far`, both (x, y)."""
    color, height, bars = style
    (x0, y0), (x1, y1) = near, far
    length = math.hypot(x1 - x0, y1 - y0)
    nx, ny = -side * (y1 - y0) / length, side * (x1 - x0) / length
    outline = [(x0, y0, 0), (x1, y1, 0), (x1, y1, height), (x0, y0, height)]
    u0 = nx * y0 - ny * x0
    if bars is None:
        canvas.wall(key, outline, FENCE, color, (nx, ny), texture=PLANKS, density=70, amplitude=0.35, u0=u0)
        canvas.cast(outline)
    else:
        canvas.overlay(key, outline, FENCE, color, (nx, ny), bars, u0=u0)


def litter_bin(canvas, rng, key, x, y) -> None:
    color = jitter(rng, pick(rng, [(48, 74, 58), (60, 62, 66), (150, 40, 36)]))
    contact_shadow(canvas, x, y, 0.4, 0.3)
    canvas.shape(key, Board(x, y).place(box(-0.28, 0, 0.28, 0.95)), UNLABELED, color)
    canvas.shape(key, Board(x, y).place(box(-0.32, 0.85, 0.32, 1.0)), UNLABELED, shade(color, 1.3))
