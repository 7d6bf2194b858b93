"""The road of a RoadScene: its course, surface, pavements, verges, junction, and markings."""

from dataclasses import dataclass

from numpy.random import Generator

from s2fpn_lib.data.roadscenes import furniture, objects
from s2fpn_lib.data.roadscenes.camera import Color
from s2fpn_lib.data.roadscenes.draw import Canvas
from s2fpn_lib.data.roadscenes.families import Family
from s2fpn_lib.data.roadscenes.objects import PAVEMENT, ROAD, TREE, between, jitter, pick
from s2fpn_lib.data.roadscenes.textures import ASPHALT, COBBLE, GRASS, SLABS

END = 170.0  # meters: the ground stops here, behind it only the backdrop


@dataclass(frozen=True)
class Road:
    """The course of the road: its center line is x = offset + slope y + bend y^2, straight from y = reach on."""

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
        """The point `s` meters right of the center line at distance y."""
        return self.center(y) + s, y

    def direction(self, y: float) -> tuple[float, float]:
        d = self.center(y + 0.5) - self.center(y - 0.5)
        length = (1 + d * d) ** 0.5
        return d / length, 1 / length


class RoadSurface:
    """The road of one scene with its pavements, and the state that everything along it shares.

    Positions are s meters to the right of the center line and y meters ahead.
    """

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
        self.fence_at = {side: pick(rng, ["curb", "back"]) if self.verge[side] < 1 else "back" for side in (-1, 1)}

    def edge(self, side: int, beyond: float) -> float:
        """s of the line `beyond` meters outside the curb of a side."""
        return side * (self.road.half + beyond)

    def in_junction(self, side: int, near: float, far: float) -> bool:
        return side in self.junction_sides and near < self.junction[1] + 1 and far > self.junction[0] - 1

    def _band(self, key, s0, s1, class_id, color, y0=0.2, y1=END, steps=22, z=0.0, **look) -> None:
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
        curb = jitter(rng, pick(rng, [(168, 166, 160), (132, 132, 130), (190, 186, 176)]))
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
            self._band(998, self.edge(side, -0.1), self.edge(side, 0.12), PAVEMENT, curb, z=0.1)
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
