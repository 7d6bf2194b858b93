"""Buildings and trees of a RoadScene, and the helpers that paint its objects.

Each function paints one object on a canvas. It takes the canvas, a random generator, and a `key` (larger is farther and
painted earlier). Upright objects other than boxes are boards: 2-D outlines in meters (u along the board, z up), placed
by a `Board`.
"""

import math
from dataclasses import dataclass

from numpy.random import Generator

from s2fpn_lib.data.roadscenes.camera import Color
from s2fpn_lib.data.roadscenes.draw import Canvas, Facade
from s2fpn_lib.data.roadscenes.textures import BRICK, FLAT, FOLIAGE, METAL, PLASTER, ROOF

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST, UNLABELED = range(12)
CIRCLE = [(math.cos(i * math.pi / 7), math.sin(i * math.pi / 7)) for i in range(14)]
_FINE_CIRCLE = [(math.cos(i * math.pi / 15), math.sin(i * math.pi / 15)) for i in range(30)]


def pick(rng: Generator, options):
    return options[int(rng.integers(len(options)))]


def between(rng: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def jitter(rng: Generator, color: Color, amount: float = 18) -> Color:
    """The color with a small random change of brightness and hue, within 0..255."""
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


WALLS = {  # gray like asphalt, warm like skin, white like clouds: the color must not reveal the class
    BRICK: [(150, 82, 62), (172, 112, 84), (120, 84, 74), (186, 168, 138), (112, 110, 108), (94, 66, 58)],
    PLASTER: [
        (206, 198, 182),
        (228, 226, 220),
        (128, 128, 130),
        (178, 174, 168),
        (196, 160, 116),
        (150, 166, 172),
        (104, 106, 112),
        (176, 134, 124),
        (142, 156, 130),
        (86, 88, 94),
    ],
    METAL: [(150, 156, 162), (110, 124, 140), (176, 172, 160), (92, 112, 96), (200, 202, 204)],
    FLAT: [(96, 104, 114), (142, 146, 150), (186, 190, 194), (70, 78, 90)],
}
ROOFS = [(112, 62, 50), (86, 82, 84), (132, 92, 72), (66, 66, 72), (120, 112, 104)]


def facade_style(rng: Generator, kind: str, height: float) -> Facade:
    storey = between(rng, 2.8, 3.4)
    glass = pick(rng, [(46, 56, 68), (70, 84, 98), (34, 38, 42), (112, 130, 146), (88, 92, 92)])
    trim = pick(rng, [(226, 224, 216), (182, 176, 164), (92, 88, 84), (150, 60, 50), (54, 84, 72), (60, 76, 110)])
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
    nx, ny = -side * ty, side * tx  # of the front: toward the street
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
        canvas.wall(key, slope, BUILDING, shade(roof, 1.15), (nx, ny), texture=ROOF, density=40, amplitude=0.3)
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


GREENS = [(74, 104, 48), (92, 118, 58), (58, 86, 50), (108, 122, 64), (84, 98, 72), (138, 116, 54), (150, 96, 50)]


def tree(canvas, rng, key, x, y, size: float, *, color=None, form=None) -> None:
    """A tree `size` meters high: broad, conifer, or bare."""
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
            canvas.shape(key, board.place(tier), TREE, shade(color, 0.8 + 0.06 * i), normal=(0, -0.8, 0.6), **look)
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
        outline = [(u + r * c * between(rng, 0.88, 1.1), max(0, height * (0.45 + 0.55 * s))) for c, s in CIRCLE]
        canvas.shape(
            key,
            Board(x, y).place(outline),
            TREE,
            shade(color, 0.8 + 0.12 * i),
            texture=FOLIAGE,
            density=40,
            amplitude=0.5,
        )
