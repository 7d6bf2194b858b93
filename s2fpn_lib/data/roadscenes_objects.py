"""What stands in a RoadScene: buildings, trees, street furniture, cars, people. Each function paints one thing on a canvas.

All take the canvas, a random generator, and a painter's `key` (larger = painted earlier = farther). Upright things that are
not boxes are drawn as boards: 2-D outlines in metres (u along the board, z up), placed by a `Board`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from numpy.random import Generator

from s2fpn_lib.data.roadscenes_draw import (
    BRICK,
    FLAT,
    FOLIAGE,
    METAL,
    PLANKS,
    PLASTER,
    ROOF,
    Bars,
    Canvas,
    Color,
    Facade,
)

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST, UNLABELLED = range(12)
CIRCLE = [(math.cos(i * math.pi / 7), math.sin(i * math.pi / 7)) for i in range(14)]
_FINE_CIRCLE = [(math.cos(i * math.pi / 15), math.sin(i * math.pi / 15)) for i in range(30)]


def pick(rng: Generator, options):
    return options[int(rng.integers(len(options)))]


def between(rng: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def jitter(rng: Generator, color: Color, amount: float = 18) -> Color:
    """The colour, a little brighter or darker and a little off in hue, inside 0..255."""
    common = between(rng, -amount, amount)
    return tuple(min(250.0, max(8.0, c + common + between(rng, -amount, amount) * 0.35)) for c in color)


def shade(color: Color, factor: float) -> Color:
    return tuple(min(255.0, c * factor) for c in color)


@dataclass(frozen=True)
class Board:
    """A vertical plane through (x, y) whose u axis has the ground direction (ux, uy)."""

    x: float
    y: float
    ux: float = 1.0
    uy: float = 0.0

    def place(self, outline):
        """[(u, z)] -> [(x, y, z)]."""
        return [(self.x + u * self.ux, self.y + u * self.uy, z) for u, z in outline]


def disc(u: float, z: float, ru: float, rz: float | None = None):
    return [(u + ru * c, z + (rz or ru) * s) for c, s in CIRCLE]


def box(u0: float, z0: float, u1: float, z1: float):
    return [(u0, z0), (u1, z0), (u1, z1), (u0, z1)]


def limb(a, b, width_a: float, width_b: float):
    """A tapered bar from a to b, both (u, z)."""
    du, dz = b[0] - a[0], b[1] - a[1]
    length = math.hypot(du, dz) or 1.0
    pu, pz = -dz / length / 2, du / length / 2
    return [
        (a[0] + pu * width_a, a[1] + pz * width_a),
        (b[0] + pu * width_b, b[1] + pz * width_b),
        (b[0] - pu * width_b, b[1] - pz * width_b),
        (a[0] - pu * width_a, a[1] - pz * width_a),
    ]


def contact_shadow(canvas: Canvas, x: float, y: float, rx: float, ry: float) -> None:
    canvas.shadow([(x + rx * c, y + ry * s, 0.0) for c, s in CIRCLE])


# --------------------------------------------------------------------------------------------------------- buildings
WALLS = {  # grey as asphalt, warm as skin, white as cloud: colour must not tell
    BRICK: [(150, 82, 62), (172, 112, 84), (120, 84, 74), (186, 168, 138), (112, 110, 108), (94, 66, 58)],
    PLASTER: [
        (206, 198, 182),
        (228, 226, 220),
        (128, 128, 130),
        (178, 174, 168),
        (196, 160, 116),
        (150, 166, 172),
    ]
    + [(104, 106, 112), (176, 134, 124), (142, 156, 130), (86, 88, 94)],
    METAL: [(150, 156, 162), (110, 124, 140), (176, 172, 160), (92, 112, 96), (200, 202, 204)],
    FLAT: [(96, 104, 114), (142, 146, 150), (186, 190, 194), (70, 78, 90)],
}
ROOFS = [(112, 62, 50), (86, 82, 84), (132, 92, 72), (66, 66, 72), (120, 112, 104)]


def facade_style(rng: Generator, kind: str, height: float) -> Facade:
    storey = between(rng, 2.8, 3.4)
    glass = pick(rng, [(46, 56, 68), (70, 84, 98), (34, 38, 42), (112, 130, 146), (88, 92, 92)])
    trim = pick(
        rng, [(226, 224, 216), (182, 176, 164), (92, 88, 84), (150, 60, 50), (54, 84, 72), (60, 76, 110)]
    )
    shop = kind == "shop"
    base = between(rng, 3.4, 4.2) if shop else storey
    if kind == "office":
        cell, window = (between(rng, 1.4, 2.4), storey), (between(rng, 0.7, 0.92), between(rng, 0.5, 0.75))
    elif kind == "shed":
        cell, window = (between(rng, 5, 7), 9.0), (between(rng, 0.3, 0.6), 0.12)
        base = between(rng, 4.2, 5)
    else:
        cell, window = (between(rng, 2.0, 3.2), storey), (between(rng, 0.34, 0.52), between(rng, 0.42, 0.6))
    return Facade(cell, window, base, height - 0.5, glass, trim, shop)


def building(canvas, rng, key, near, far, side: int, depth: float, height: float, kind: str) -> None:
    """A block whose street front runs from `near` to `far` (both (x, y)) on `side` (-1 left, +1 right)."""
    material = {"office": pick(rng, [FLAT, PLASTER]), "shed": pick(rng, [METAL, BRICK])}.get(
        kind, pick(rng, [BRICK, PLASTER])
    )
    color = jitter(rng, pick(rng, WALLS[material]))
    look = {"texture": material, "density": {METAL: 30.0, BRICK: 46.0}.get(material, 24.0)}
    look["amplitude"] = {METAL: 0.22, BRICK: 0.34, PLASTER: 0.16, FLAT: 0.0}[material]
    (x0, y0), (x1, y1) = near, far
    length = math.hypot(x1 - x0, y1 - y0)
    tx, ty = (x1 - x0) / length, (y1 - y0) / length
    nx, ny = -side * ty, side * tx  # of the front: towards the street
    style = facade_style(rng, kind, height)
    bx, by = x0 - nx * depth, y0 - ny * depth  # rear corner of the near end wall
    end = [(x0, y0, 0), (bx, by, 0), (bx, by, height), (x0, y0, height)]
    front = [(x0, y0, 0), (x1, y1, 0), (x1, y1, height), (x0, y0, height)]
    roof = jitter(rng, pick(rng, ROOFS))
    gable = kind == "house" or (kind == "terrace" and rng.random() < 0.6)
    ridge = height + depth * between(rng, 0.28, 0.42) * 0.5 if gable else height
    if gable:
        mx, my = x0 - nx * depth / 2, y0 - ny * depth / 2
        fx, fy = mx + tx * length, my + ty * length
        over = [(x0 + nx * 0.3, y0 + ny * 0.3, height - 0.1), (x1 + nx * 0.3, y1 + ny * 0.3, height - 0.1)]
        slope = [*over, (fx, fy, ridge), (mx, my, ridge)]
        canvas.wall(
            key, slope, BUILDING, shade(roof, 1.15), (nx, ny), texture=ROOF, density=40, amplitude=0.3
        )
        if rng.random() < 0.7:
            share = between(rng, 0.15, 0.8)
            stack = Board(mx + tx * length * share, my + ty * length * share)
            canvas.shape(key, stack.place(box(-0.4, ridge - 0.9, 0.4, ridge + 0.9)), BUILDING, color)
        end = [(x0, y0, 0), (bx, by, 0), (bx, by, height), (mx, my, ridge), (x0, y0, height)]
    blind = kind in ("shed", "terrace") or rng.random() < 0.5
    u0 = nx * y0 - ny * x0
    end_style = None if blind else style
    canvas.wall(key, end, BUILDING, color, (-tx, -ty), facade=end_style, u0=-tx * y0 + ty * x0 + 0.3, **look)
    canvas.wall(key, front, BUILDING, shade(color, 0.97), (nx, ny), facade=style, u0=u0, **look)
    if not gable:
        cap = height + between(rng, 0.2, 0.6)
        ledge = [(x0, y0, height), (x1, y1, height), (x1, y1, cap), (x0, y0, cap)]
        canvas.wall(key, ledge, BUILDING, shade(color, 0.82), (nx, ny))
        canvas.wall(
            key,
            [(x0, y0, height), (bx, by, height), (bx, by, cap), (x0, y0, cap)],
            BUILDING,
            shade(color, 0.82),
            (-tx, -ty),
        )
    canvas.cast(front)
    canvas.cast([(bx, by, 0), (x0, y0, 0), (x0, y0, ridge), (bx, by, ridge)])
    canvas.cast(
        [
            (bx, by, 0),
            (bx + tx * length, by + ty * length, 0),
            (bx + tx * length, by + ty * length, ridge),
            (bx, by, ridge),
        ]
    )


# --------------------------------------------------------------------------------------------------------- vegetation
GREENS = [
    (74, 104, 48),
    (92, 118, 58),
    (58, 86, 50),
    (108, 122, 64),
    (84, 98, 72),
    (138, 116, 54),
    (150, 96, 50),
]


def tree(canvas, rng, key, x, y, size: float, *, color=None, form=None) -> None:
    """A tree `size` metres high: broad, conifer, or bare."""
    board = Board(x, y)
    color = color or jitter(rng, pick(rng, GREENS))
    form = form or pick(rng, ["broad", "broad", "broad", "conifer", "bare"])
    bark = jitter(rng, pick(rng, [(84, 70, 58), (108, 100, 92), (62, 54, 48)]))
    look = {"texture": FOLIAGE, "density": 34.0, "amplitude": 0.55}
    trunk = 0.035 * size + 0.08
    if form == "bare":
        canvas.shape(key, board.place(limb((0, 0), (0, size * 0.5), trunk, trunk * 0.7)), TREE, bark)
        tips = [((0, size * 0.3), math.pi / 2, size * 0.3, trunk * 0.6)]
        for _ in range(4 if y < 25 else 3):
            grown = []
            for start, angle, length, width in tips:
                for turn in (between(rng, -0.75, -0.2), between(rng, 0.2, 0.75)):
                    a = angle + turn
                    end = (start[0] + length * math.cos(a), start[1] + length * math.sin(a))
                    canvas.shape(key, board.place(limb(start, end, width, width * 0.6)), TREE, bark)
                    grown.append((end, a, length * 0.74, max(width * 0.6, 0.035)))
            tips = grown
        return
    canvas.cast(board.place(box(-size * 0.22, size * 0.3, size * 0.22, size * 0.9)))
    canvas.cast(board.place(box(-trunk / 2, 0, trunk / 2, size * 0.5)))
    canvas.shape(key, board.place(limb((0, 0), (0, size * 0.6), trunk, trunk * 0.7)), TREE, bark)
    if form == "conifer":
        for i in range(5):
            z, half = size * (0.12 + 0.17 * i), size * (0.21 - 0.036 * i)
            teeth = [(-half + half * k / 3, z + (k % 2) * size * 0.03) for k in range(7)]
            tier = [*teeth, (0.0, min(size, z + size * 0.34))]
            canvas.shape(
                key, board.place(tier), TREE, shade(color, 0.8 + 0.06 * i), normal=(0, -0.8, 0.6), **look
            )
        return
    middle, radius = size * 0.66, size * 0.29
    rim = _FINE_CIRCLE if y < 30 else CIRCLE
    left = -1 if canvas.light.sun[0] < 0 else 1
    for i in range(11 if y < 45 else 5):  # from the shaded underside to the sunlit crown
        angle, away = between(rng, 0, 2 * math.pi), radius * between(rng, 0.25, 0.75)
        if i == 0:
            away = 0
        u, z, r = away * math.cos(angle), middle + away * math.sin(angle), radius * between(rng, 0.42, 0.62)
        r = radius * 0.85 if i == 0 else r
        tone = 0.78 + 0.28 * (z - middle) / radius + 0.1 * left * u / radius
        ragged = 0.85 + 0.3 * rng.random(len(rim))
        blob = [(u + r * c * f, z + r * s * f) for (c, s), f in zip(rim, ragged.tolist(), strict=True)]
        canvas.shape(key, board.place(blob), TREE, shade(color, tone), normal=(0, -0.6, 0.8), **look)


def bush(canvas, rng, key, x, y, width, height) -> None:
    color = jitter(rng, pick(rng, GREENS))
    for i in range(3):
        u, r = between(rng, -0.3, 0.3) * width, width * between(rng, 0.3, 0.45)
        outline = [
            (u + r * c * between(rng, 0.88, 1.1), max(0, height * (0.45 + 0.55 * s))) for c, s in CIRCLE
        ]
        canvas.shape(
            key,
            Board(x, y).place(outline),
            TREE,
            shade(color, 0.8 + 0.12 * i),
            texture=FOLIAGE,
            density=40,
            amplitude=0.5,
        )


# --------------------------------------------------------------------------------------------------------- furniture
METALS = [
    (104, 108, 110),
    (70, 74, 76),
    (150, 152, 150),
    (62, 78, 66),
    (190, 188, 180),
    (110, 84, 60),
    (44, 48, 60),
]


def post(canvas, key, board: Board, height: float, width: float, color: Color, *, lean: float = 0.0) -> None:
    """A pole with a sunlit edge and its shadow."""
    canvas.cast(board.place(box(-width / 2, 0, width / 2, height)))
    canvas.shape(key, board.place(limb((0, 0), (lean, height), width, width * 0.8)), POLE, shade(color, 0.9))
    if board.y > 40:
        return
    edge = 0.25 * width * (1 if canvas.light.sun[0] > 0 else -1)
    canvas.shape(
        key,
        board.place(limb((edge, 0), (lean + edge, height), width * 0.35, width * 0.3)),
        POLE,
        shade(color, 1.2),
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
    grey = jitter(rng, (132, 134, 136))
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
            paint(
                key,
                board.place(disc(0, 2.78 + 0.43 * i, 0.17)),
                SIGN,
                color if i == lit else shade(color, 0.3),
            )
        return
    post(canvas, key, board, z0 + 0.4, 0.14, grey)
    back = rng.random() < 0.2  # seen from behind: plain grey
    if kind == "round":
        color, inner = pick(rng, [(red, white), (blue, blue), (white, white), (red, red)])
        plate(disc(0, z0, 0.44), grey if back else color)
        if not back:
            plate(disc(0, z0, 0.32), inner)
            plate(box(-0.2, z0 - 0.07, 0.2, z0 + 0.07), dark if inner is white else white)
    elif kind == "triangle":
        plate([(-0.52, z0 - 0.4), (0.52, z0 - 0.4), (0, z0 + 0.52)], grey if back else red)
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
        post(canvas, key, Board(x + 1.5, y), z0 + 1.2, 0.16, grey)
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
            canvas.shape(
                key, board.place(box(-1.5, z, between(rng, 0, 1.5), z + 0.28)), SIGN, (236, 236, 236)
            )


def shop_sign(canvas, rng, key, x, y, side: int) -> None:
    """A sign that hangs from a facade over the pavement."""
    color = jitter(
        rng,
        pick(
            rng, [(180, 44, 40), (40, 80, 140), (230, 226, 214), (46, 110, 70), (226, 170, 50), (60, 50, 48)]
        ),
    )
    out, z = -side * between(rng, 0.9, 1.4), between(rng, 3.0, 3.8)
    tall = between(rng, 0.7, 1.4)
    canvas.shape(key, Board(x, y).place(box(0, z, out, z + tall)), SIGN, color)
    canvas.shape(
        key,
        Board(x, y).place(box(out * 0.2, z + tall * 0.4, out * 0.8, z + tall * 0.6)),
        SIGN,
        (240, 238, 230),
    )


FENCE_STYLES = ("railing", "mesh", "picket", "guard", "rail", "panel")


def fence_style(rng: Generator, kind: str):
    """(colour, height, bars or None for closed boards) of one kind of fence."""
    if kind == "panel":
        return (
            jitter(rng, pick(rng, [(126, 94, 66), (142, 136, 128), (92, 98, 82), (168, 150, 124)])),
            between(rng, 1.6, 2.2),
            None,
        )
    height = {"railing": 1.25, "mesh": 2.1, "picket": 1.15, "guard": 0.95, "rail": 1.3}[kind] * between(
        rng, 0.95, 1.15
    )
    paint = pick(
        rng, [(38, 42, 46), (40, 70, 56), (196, 196, 192), (116, 120, 122), (96, 76, 58), (222, 220, 212)]
    )
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
    canvas.shape(key, Board(x, y).place(box(-0.28, 0, 0.28, 0.95)), UNLABELLED, color)
    canvas.shape(key, Board(x, y).place(box(-0.32, 0.85, 0.32, 1.0)), UNLABELLED, shade(color, 1.3))
