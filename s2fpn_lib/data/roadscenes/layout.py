"""How a RoadScene is composed: weather, camera, the road's course, and what stands and moves along it, family by
family.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from s2fpn_lib.data.roadscenes import furniture, objects, people
from s2fpn_lib.data.roadscenes.draw import Camera, Canvas, Color
from s2fpn_lib.data.roadscenes.families import FAMILY, Family, Lens, weather
from s2fpn_lib.data.roadscenes.objects import BUILDING, PAVEMENT, ROAD, TREE, between, jitter, pick
from s2fpn_lib.data.roadscenes.textures import ASPHALT, COBBLE, GRASS, SLABS
from s2fpn_lib.data.roadscenes.vehicles import PAINTS, VEHICLES, vehicle

PARKED = ("hatch", "sedan", "suv", "van")
_END = 170.0  # metres: the ground stops here, behind it only the backdrop


@dataclass(frozen=True)
class Road:
    """The course of the road: its centre line is x = offset + slope y + bend y^2, then straight from y = reach."""

    offset: float
    slope: float
    bend: float
    reach: float
    half: float

    def center(self, y: float) -> float:
        near = min(y, self.reach)
        far = max(0.0, y - self.reach)
        return self.offset + self.slope * y + self.bend * (near * near + 2 * self.reach * far)

    def at(self, s: float, y: float) -> tuple[float, float]:
        """The point `s` metres right of the centre line at distance y."""
        return self.center(y) + s, y

    def direction(self, y: float) -> tuple[float, float]:
        d = self.center(y + 0.5) - self.center(y - 0.5)
        length = (1 + d * d) ** 0.5
        return d / length, 1 / length


def compose(rng: Generator, family_name: str, size: tuple[int, int]) -> tuple[Canvas, Lens]:
    """Everything of one scene, ready to render."""
    family = FAMILY[family_name]
    light, night = weather(rng)
    focal = size[1] * between(rng, 0.82, 1.06)
    camera = Camera(
        size,
        focal,
        between(rng, 1.25, 1.9),
        between(rng, -0.03, 0.1),
        between(rng, -0.09, 0.09),
        between(rng, -0.035, 0.035),
    )
    canvas = Canvas(camera, light)
    half = between(rng, *family.road)
    traffic_side = pick(rng, [-1, 1])
    road = Road(
        -traffic_side * half * between(rng, 0.3, 0.6),
        between(rng, -0.05, 0.05),
        between(rng, -1, 1) * 0.0035,
        between(rng, 35, 80),
        half,
    )
    scene = _Scene(canvas, rng, family, road, traffic_side, night)
    scene.ground()
    scene.backdrop()
    scene.traffic()
    for side in (-1, 1):
        scene.houses(side)
        scene.fences(side)
        scene.trees(side)
        scene.furniture(side)
        scene.people(side)
    bonnet = between(rng, 0.05, 0.11) if rng.random() < 0.35 else 0.0
    exposure = between(rng, 0.86, 1.12)
    lens = Lens(
        tuple(exposure * between(rng, 0.96, 1.04) for _ in range(3)), between(rng, 0.02, 0.12), between(rng, 1.5, 5),
        between(rng, 0.15, 0.6), between(rng, 0.1, 0.3), between(rng, -0.08, 0.16), bonnet,
        jitter(rng, pick(rng, PAINTS)),
    )  # fmt: skip
    return canvas, lens


class _Scene:
    """The things of one scene, placed along its road; s is metres right of the centre line, y metres ahead."""

    def __init__(self, canvas: Canvas, rng: Generator, family: Family, road: Road, traffic_side: int, night: bool):
        self.canvas, self.rng, self.family, self.road = canvas, rng, family, road
        self.traffic_side, self.night = traffic_side, night
        self.pavement = {side: between(rng, *family.pavement) for side in (-1, 1)}
        self.verge = {side: between(rng, *family.verge) for side in (-1, 1)}
        start = between(rng, 14, 45)
        self.junction = (start, start + between(rng, 6, 10)) if rng.random() < 0.4 else (900.0, 900.0)
        self.junction_sides = pick(rng, [(-1,), (1,), (-1, 1)])
        self.post_color = jitter(rng, pick(rng, furniture.METALS))
        self.parks = {side: rng.random() < family.parked for side in (-1, 1)}
        self.taken: list[tuple[float, float, float, float]] = []  # s, y, half width, half length
        self.fence_style = {side: furniture.fence_style(rng, pick(rng, family.fences)) for side in (-1, 1)}
        self.fence_at = {side: pick(rng, ["kerb", "back"]) if self.verge[side] < 1 else "back" for side in (-1, 1)}

    def edge(self, side: int, beyond: float) -> float:
        """s of the line `beyond` metres outside the kerb of a side."""
        return side * (self.road.half + beyond)

    def in_junction(self, side: int, near: float, far: float) -> bool:
        return side in self.junction_sides and near < self.junction[1] + 1 and far > self.junction[0] - 1

    def _band(self, key, s0, s1, class_id, color, y0=0.2, y1=_END, steps=22, z=0.0, **look) -> None:
        """A ground strip between two lines along the road."""
        ys = [y0 + (y1 - y0) * (i / steps) ** 2 for i in range(steps + 1)]
        left = [(*self.road.at(s0, y), z) for y in ys]
        right = [(*self.road.at(s1, y), z) for y in reversed(ys)]
        self.canvas.ground(key, left + right, class_id, color, z=z, **look)

    def ground(self) -> None:
        rng, road, family, canvas = self.rng, self.road, self.family, self.canvas
        half = road.half
        cobbled = rng.random() < family.cobbles
        asphalt = jitter(rng, pick(rng, [(92, 92, 94), (112, 110, 108), (76, 78, 82), (134, 130, 124), (104, 96, 90)]))
        surface = (
            {"texture": COBBLE, "density": 90.0, "amplitude": 0.3}
            if cobbled
            else {"texture": ASPHALT, "density": 42.0, "amplitude": 0.22}
        )
        slabs = rng.random() < 0.6
        paving = pick(
            rng, [(142, 138, 132), (116, 116, 116), (98, 98, 100), (164, 156, 144), (150, 110, 92), (128, 122, 114)]
        )
        paving = jitter(rng, paving if rng.random() < 0.7 else asphalt)
        walk = (
            {"texture": SLABS, "density": 48.0, "amplitude": 0.25}
            if slabs
            else {"texture": ASPHALT, "density": 42.0, "amplitude": 0.2}
        )
        grass = jitter(rng, pick(rng, [(96, 120, 62), (120, 126, 70), (78, 104, 54), (136, 122, 78)]))
        kerb = jitter(rng, pick(rng, [(168, 166, 160), (132, 132, 130), (190, 186, 176)]))
        # beyond the verge: yards, grass where the place is green
        rural = max(self.verge.values()) > 1.5
        yard = (TREE, grass, GRASS) if rural else (PAVEMENT, paving, ASPHALT)
        canvas.ground(
            1000,
            [(-9, 0.2, 0), (9, 0.2, 0), (1200, 900, 0), (-1200, 900, 0)],
            yard[0],
            yard[1],
            texture=yard[2],
            density=30,
            amplitude=0.3,
        )
        if self.junction[0] < 800:
            x0 = -200 if -1 in self.junction_sides else road.center(self.junction[0])
            x1 = 200 if 1 in self.junction_sides else road.center(self.junction[0])
        for side in (-1, 1):
            pavement = self.pavement[side]
            self._band(999, self.edge(side, -0.2), self.edge(side, pavement), PAVEMENT, paving, z=0.1, **walk)
            if self.verge[side] > 0.4:
                self._band(
                    999,
                    self.edge(side, pavement),
                    self.edge(side, pavement + self.verge[side]),
                    TREE,
                    grass,
                    texture=GRASS,
                    density=36,
                    amplitude=0.35,
                )
            self._band(998, self.edge(side, -0.1), self.edge(side, 0.12), PAVEMENT, kerb, z=0.1)
        if self.junction[0] < 800:
            y0, y1 = self.junction
            canvas.ground(997, [(x0, y0, 0), (x1, y0, 0), (x1, y1, 0), (x0, y1, 0)], ROAD, asphalt, **surface)
        self._band(996, -half, half, ROAD, asphalt, **surface)
        self._markings(asphalt, cobbled)

    def _markings(self, asphalt: Color, cobbled: bool) -> None:
        rng, half = self.rng, self.road.half
        for _ in range(int(rng.integers(0, 4))):  # patches of newer or older asphalt
            s, y, length, width = (
                between(rng, -half, half - 1.2),
                between(rng, 4, 30),
                between(rng, 1.5, 9),
                between(rng, 0.8, 1.8),
            )
            self._band(
                995,
                s,
                min(s + width, half),
                ROAD,
                jitter(rng, asphalt, 22),
                y,
                y + length,
                3,
                texture=ASPHALT,
                density=42,
                amplitude=0.22,
            )
        white = jitter(rng, pick(rng, [(214, 214, 210), (230, 228, 220), (188, 186, 180)]))
        yellow = jitter(rng, (206, 170, 70))
        paint = {"texture": ASPHALT, "density": 42.0, "amplitude": 0.22}
        if not cobbled and rng.random() < 0.85:
            lines = [0.0] if half < 5.4 else [-half / 2, 0.0, half / 2]
            dash, gap = pick(rng, [(2.0, 4.0), (3.0, 3.0), (1.0, 2.5), (60.0, 1.0)])
            phase = between(rng, 0, dash + gap)
            for line in lines:
                y = 1.5 - phase
                while y < 70:
                    self._band(
                        994,
                        line - 0.07,
                        line + 0.07,
                        ROAD,
                        white,
                        max(y, 0.3),
                        max(y + dash, 0.4),
                        8 if dash > 9 else 2,
                        **paint,
                    )
                    y += dash + gap
        style = pick(rng, ["none", "none", "white", "double", "yellow"])
        if style != "none" and not cobbled:
            for side in (-1, 1):
                for inset in (0.35, 0.6) if style == "double" else (0.4,):
                    self._band(
                        994,
                        self.edge(side, -inset - 0.1),
                        self.edge(side, -inset),
                        ROAD,
                        white if style == "white" else yellow,
                        0.3,
                        90,
                        **paint,
                    )
        if rng.random() < 0.3:  # a zebra crossing
            y, s = between(rng, 7, 26), -half + 0.3
            while s < half - 0.5:
                self._band(994, s, s + 0.5, ROAD, white, y, y + 2.6, 2, **paint)
                s += 1.05
        for _ in range(int(rng.integers(0, 3))):
            x, y = self.road.at(between(rng, -half * 0.8, half * 0.8), between(rng, 5, 22))
            cover = [(x + 0.34 * c, y + 0.34 * d, 0) for c, d in objects.CIRCLE]
            self.canvas.ground(994, cover, ROAD, objects.shade(asphalt, 0.62))

    def backdrop(self) -> None:
        """Distant roofs and woods that close the view."""
        rng, canvas = self.rng, self.canvas
        wooded = rng.random() < (0.75 if self.family.tree_gap < 20 else 0.35)
        x = -260.0
        while x < 260:
            width = between(rng, 12, 34)
            y = _END + between(rng, 0, 60)
            if wooded or rng.random() < 0.3:
                outline, steps = [(x - 6, y, 0)], 9
                top = between(rng, 7, 13)
                outline += [
                    (x - 6 + (width + 12) * i / steps, y, top * between(rng, 0.7, 1.15)) for i in range(steps + 1)
                ]
                outline.append((x + width + 6, y, 0))
                canvas.shape(900 + y, outline, TREE, jitter(rng, pick(rng, objects.GREENS)), normal=(0, -0.5, 0.8))
            else:
                wall = jitter(rng, pick(rng, [c for colors in objects.WALLS.values() for c in colors]))
                style = objects.facade_style(rng, "office", top := between(rng, 8, 26))
                outline = [(x, y, 0), (x + width, y, 0), (x + width, y, top), (x, y, top)]
                canvas.wall(900 + y, outline, BUILDING, wall, (0, -1), facade=style, u0=x)
            x += width * 0.8

    def houses(self, side: int) -> None:
        rng, family = self.rng, self.family
        line = self.pavement[side] + self.verge[side]
        y = between(rng, -12, 3)
        if family.house_gap[1] > 15:
            y += between(rng, 0, 25)
        while y < 120:
            kind = pick(rng, family.kinds)
            length = between(rng, 7, 13) if kind in ("house", "terrace") else between(rng, 9, 20)
            height = between(rng, *family.height)
            setback = self.edge(
                side, line + (between(rng, 0, 0.8) if family.house_gap[1] < 3 else between(rng, 0.3, 4))
            )
            y0, y1 = max(y, 0.4), y + length
            if y1 > 2 and not self.in_junction(side, y0, y1):
                near, far = self.road.at(setback, y0), self.road.at(setback, y1)
                objects.building(self.canvas, rng, y1, near, far, side, between(rng, 8, 12), height, kind)
                if kind == "shop" and y1 - 2 > 5:
                    x, at = self.road.at(setback, max(y0 + 1, 5) + 0.4 * (y1 - max(y0 + 1, 5)))
                    furniture.shop_sign(self.canvas, rng, at, x, at, side)
            y += length + between(rng, *family.house_gap)

    def fences(self, side: int) -> None:
        rng = self.rng
        if rng.random() > self.family.fence_share:
            return
        kerb = self.fence_at[side] == "kerb"
        s = self.edge(side, 0.35 if kerb else self.pavement[side] + 0.3)
        style = self.fence_style[side]
        if kerb and style[2] is None:
            style = furniture.fence_style(rng, "railing")
        y, stop = between(rng, 3, 10), between(rng, 35, 75)
        while y < stop:
            run = between(rng, 9, 26)
            end = min(y + run, stop)
            while y < end - 0.5:
                next_y = min(y + 2.5, end)
                if not self.in_junction(side, y, next_y):
                    furniture.fence(
                        self.canvas, (y + next_y) / 2, self.road.at(s, y), self.road.at(s, next_y), side, style
                    )
                y = next_y
            y += between(rng, 2, 7)

    def trees(self, side: int) -> None:
        rng = self.rng
        gap = self.family.tree_gap
        form = pick(rng, [None, None, "broad"])
        color = jitter(rng, pick(rng, objects.GREENS)) if rng.random() < 0.5 else None
        y = between(rng, 5, 5 + gap)
        while y < 110:
            verge = self.verge[side]
            off = self.pavement[side] + between(rng, 0.8, verge) if verge > 1 else 0.7
            x, _ = self.road.at(self.edge(side, off), y)
            if not self.in_junction(side, y, y):
                size = between(rng, 4, 6.5) if verge < 1 else between(rng, 4, 10)
                objects.tree(self.canvas, rng, y + (1.3 if verge > 1 else -1.2), x, y, size, color=color, form=form)
            y += gap * between(rng, 0.5, 1.6)
        if self.verge[side] > 1.5:
            for _ in range(int(rng.integers(0, 6))):
                y = between(rng, 6, 45)
                x, _ = self.road.at(self.edge(side, self.pavement[side] + between(rng, 0.9, self.verge[side])), y)
                objects.bush(self.canvas, rng, y + 1.3, x, y, between(rng, 0.8, 2), between(rng, 0.6, 1.6))

    def furniture(self, side: int) -> None:
        rng, canvas, road = self.rng, self.canvas, self.road
        kind = pick(rng, ["lamp", "lamp", "utility", "none"])
        height, spacing = between(rng, 5.5, 8.5), between(rng, 15, 26)
        y = between(rng, 7, 7 + spacing * 0.6)
        while y < 100 and kind != "none":
            x, _ = road.at(self.edge(side, 0.55), y)
            if not self.in_junction(side, y, y):
                if kind == "lamp":
                    furniture.lamp(canvas, rng, y - 1.3, x, y, side, self.post_color, height, self.night)
                else:
                    furniture.utility_pole(canvas, rng, y - 1.3, x, y, height)
            y += spacing * between(rng, 0.9, 1.1)
        for _ in range(int(rng.integers(1, 4))):
            y = between(rng, 8, 34)
            x, _ = road.at(self.edge(side, between(rng, 0.4, 0.8)), y)
            shape = pick(rng, ["round", "triangle", "board", "direction", "lights"])
            furniture.sign(canvas, rng, y - 1.3, x, y, shape)
        if rng.random() < 0.3:  # a row of bollards
            y, count = between(rng, 6, 14), int(rng.integers(3, 8))
            for i in range(count):
                x, at = road.at(self.edge(side, 0.3), y + 1.6 * i)
                furniture.post(canvas, at - 1.3, objects.Board(x, at), 1.0, 0.2, self.post_color)
        if rng.random() < 0.35:
            y = between(rng, 6, 20)
            x, _ = road.at(self.edge(side, between(rng, 0.5, 1.0)), y)
            furniture.litter_bin(canvas, rng, y - 1.2, x, y)
        if side == 1 and rng.random() < self.family.gantry:
            y = between(rng, 18, 50)
            furniture.gantry(
                canvas, rng, y - 1.3, road.at(self.edge(-1, 0.6), y)[0], road.at(self.edge(1, 0.6), y)[0], y
            )

    def people(self, side: int) -> None:
        rng = self.rng
        for _ in range(int(rng.integers(1, 5))):
            y = 5.5 + 20 * between(rng, 0, 1) * between(rng, 0.3, 1)
            x, _ = self.road.at(self.edge(side, between(rng, 0.5, max(0.7, self.pavement[side] - 0.3))), y)
            people.pedestrian(self.canvas, rng, y - 0.5, x, y)
        if rng.random() < 0.16:  # someone crosses the road
            s, y = self.road.half * between(rng, -0.9, 0.9), between(rng, 8, 20)
            if self.claim(s, y, 0.5, 0.5):
                people.pedestrian(self.canvas, rng, y, self.road.at(s, y)[0], y)
        for _ in range(3):  # up to three tries to find room for a bicyclist
            s = self.edge(side, pick(rng, [-0.7, -0.7, 0.9]))  # near the kerb on the road, or on the pavement
            y = between(rng, 5.5, 15)
            if self.claim(s, y, 0.4, 1.0):
                people.bicyclist(self.canvas, rng, y - 0.6, self.road.at(s, y)[0], y, between(rng, 0.05, 1.0))
                break

    def claim(self, s: float, y: float, half_width: float, half_length: float) -> bool:
        """Reserve a place on the road; False where something stands already."""
        for other_s, other_y, w, length in self.taken:
            if abs(s - other_s) < w + half_width and abs(y - other_y) < length + half_length:
                return False
        self.taken.append((s, y, half_width, half_length))
        return True

    def drive(self, s: float, y: float, way: int, kind: str) -> None:
        """A vehicle along the road (way 1: away from the camera), if there is room for it."""
        length = VEHICLES[kind].length
        y = max(y, 5 + length / 2)  # the nearest end stays 5 m ahead of the camera
        if self.claim(s, y, 0.95, length / 2 + 0.5):
            tx, ty = self.road.direction(y)
            x, _ = self.road.at(s, y)
            vehicle(self.canvas, self.rng, y, x, y, way * tx, way * ty, kind, self.night)

    def traffic(self) -> None:
        rng, half, keep = self.rng, self.road.half, self.traffic_side
        for side in (-1, 1):
            y = between(rng, 6, 22)
            while y < 70 and self.parks[side]:
                if rng.random() < 0.7 and not self.in_junction(side, y - 2, y + 2):
                    self.drive(self.edge(side, -0.95), y, 1 if side == keep else -1, pick(rng, PARKED))
                y += between(rng, 5.6, 8)
        for sign in (keep, -keep):  # own direction, oncoming
            y = between(rng, 8, 26)
            while y < 90:
                lane = half * (0.5 if half < 5.4 else pick(rng, [0.25, 0.75]))
                if self.parks[sign]:
                    lane = max(0.9, (half - 1.9) / 2)
                kind = pick(rng, self.family.traffic)
                self.drive(sign * lane + between(rng, -0.2, 0.2), y, 1 if sign == keep else -1, kind)
                y += between(rng, 10, 45)
