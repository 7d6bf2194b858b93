"""Composition of a RoadScene: weather, camera, road, and what stands and moves along it, depending on the family."""

from numpy.random import Generator

from s2fpn_lib.data.roadscenes import furniture, objects, people
from s2fpn_lib.data.roadscenes.camera import Camera
from s2fpn_lib.data.roadscenes.draw import Canvas
from s2fpn_lib.data.roadscenes.families import FAMILY, Lens, weather
from s2fpn_lib.data.roadscenes.objects import BUILDING, TREE, between, jitter, pick
from s2fpn_lib.data.roadscenes.road import END, Road, RoadSurface
from s2fpn_lib.data.roadscenes.vehicles import PAINTS, VEHICLES, vehicle

PARKED = ("hatch", "sedan", "suv", "van")


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
    hood = between(rng, 0.05, 0.11) if rng.random() < 0.35 else 0.0
    exposure = between(rng, 0.86, 1.12)
    lens = Lens(
        tuple(exposure * between(rng, 0.96, 1.04) for _ in range(3)), between(rng, 0.02, 0.12), between(rng, 1.5, 5),
        between(rng, 0.15, 0.6), between(rng, 0.1, 0.3), between(rng, -0.08, 0.16), hood,
        jitter(rng, pick(rng, PAINTS)),
    )  # fmt: skip
    return canvas, lens


class _Scene(RoadSurface):
    """Everything that stands and moves along the road of one scene."""

    def backdrop(self) -> None:
        """Distant roofs and woods that close the view."""
        rng, canvas = self.rng, self.canvas
        wooded = rng.random() < (0.75 if self.family.tree_gap < 20 else 0.35)
        x = -260.0
        while x < 260:
            width = between(rng, 12, 34)
            y = END + between(rng, 0, 60)
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
        curb = self.fence_at[side] == "curb"
        s = self.edge(side, 0.35 if curb else self.pavement[side] + 0.3)
        style = self.fence_style[side]
        if curb and style[2] is None:
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
        for _ in range(3):  # up to three attempts to find room for a bicyclist
            s = self.edge(side, pick(rng, [-0.7, -0.7, 0.9]))  # near the curb on the road, or on the pavement
            y = between(rng, 5.5, 15)
            if self.claim(s, y, 0.4, 1.0):
                people.bicyclist(self.canvas, rng, y - 0.6, self.road.at(s, y)[0], y, between(rng, 0.05, 1.0))
                break

    def claim(self, s: float, y: float, half_width: float, half_length: float) -> bool:
        """Reserve a place on the road; False where it is occupied."""
        for other_s, other_y, w, length in self.taken:
            if abs(s - other_s) < w + half_width and abs(y - other_y) < length + half_length:
                return False
        self.taken.append((s, y, half_width, half_length))
        return True

    def drive(self, s: float, y: float, heading: int, kind: str) -> None:
        """A vehicle along the road (heading 1: away from the camera), if there is room for it."""
        length = VEHICLES[kind].length
        y = max(y, 5 + length / 2)  # the nearest end stays 5 m ahead of the camera
        if self.claim(s, y, 0.95, length / 2 + 0.5):
            tx, ty = self.road.direction(y)
            x, _ = self.road.at(s, y)
            vehicle(self.canvas, self.rng, y, x, y, heading * tx, heading * ty, kind, self.night)

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
