"""Cars, vans, trucks, and buses of a RoadScene: a side profile extruded to the vehicle's width, shaded per face."""

import math
from dataclasses import dataclass
from itertools import pairwise

from numpy.random import Generator

from s2fpn_lib.data.roadscenes.camera import Color, Point
from s2fpn_lib.data.roadscenes.draw import Canvas
from s2fpn_lib.data.roadscenes.objects import CAR, disc, jitter, pick

Profile = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Model:
    """A kind of vehicle.

    Profiles go from the rear (0) to the front (1) of the length, with heights in meters: the body up to the belt line,
    the cabin above it. `panes` are side windows as shares of the cabin's length; `roof` is the roof width as a share.
    """

    length: float
    width: float
    body: Profile
    cabin: Profile
    panes: tuple[tuple[float, float], ...]
    roof: float = 0.8
    wheel: float = 0.33
    glazed_rear: bool = True


_CAR_PANES = ((0.06, 0.46), (0.5, 0.92))
VEHICLES = {
    "hatch": Model(
        3.9,
        1.70,
        ((0, 0.3), (0, 0.95), (0.72, 0.92), (0.98, 0.74), (1, 0.3)),
        ((0.01, 0.93), (0.1, 1.46), (0.52, 1.46), (0.74, 0.92)),
        _CAR_PANES,
    ),
    "sedan": Model(
        4.5,
        1.76,
        ((0, 0.3), (0, 0.88), (0.16, 0.96), (0.7, 0.92), (0.98, 0.74), (1, 0.3)),
        ((0.12, 0.95), (0.27, 1.42), (0.54, 1.42), (0.72, 0.92)),
        _CAR_PANES,
    ),
    "suv": Model(
        4.5,
        1.86,
        ((0, 0.38), (0, 1.08), (0.74, 1.06), (0.99, 0.92), (1, 0.38)),
        ((0, 1.07), (0.05, 1.74), (0.56, 1.74), (0.76, 1.05)),
        _CAR_PANES,
    ),
    "van": Model(
        5.3,
        1.98,
        ((0, 0.35), (0, 1.2), (0.86, 1.18), (1, 0.95), (1, 0.35)),
        ((0, 1.19), (0.01, 2.3), (0.72, 2.3), (0.88, 1.17)),
        ((0.78, 0.93),),
        roof=0.96,
        glazed_rear=False,
    ),
    "truck": Model(
        8.2,
        2.4,
        ((0, 0.55), (0, 1.3), (1, 1.3), (1, 0.5)),
        ((0, 1.29), (0, 3.3), (0.96, 3.3), (1, 1.3)),
        ((0.86, 0.97),),
        roof=0.96,
        wheel=0.48,
        glazed_rear=False,
    ),
    "bus": Model(
        10.5,
        2.5,
        ((0, 0.4), (0, 1.25), (1, 1.25), (1, 0.4)),
        ((0, 1.24), (0, 3.05), (0.985, 3.05), (1, 1.25)),
        tuple((i / 7 + 0.02, (i + 1) / 7 - 0.02) for i in range(7)),
        roof=0.96,
        wheel=0.48,
    ),
}
PAINTS = [(196, 198, 200), (34, 36, 40), (120, 124, 128), (234, 234, 232), (150, 36, 36), (40, 62, 110), (60, 84, 74)]
PAINTS += [(156, 140, 116), (88, 92, 98), (172, 120, 70), (108, 72, 64), (206, 178, 70), (128, 150, 168)]
_GLASS = (46, 54, 62)
_UNDERSIDE = (34, 34, 36)


@dataclass(frozen=True)
class _Placed:
    """A model at (x, y) on the ground that drives toward (tx, ty)."""

    canvas: Canvas
    key: float
    model: Model
    x: float
    y: float
    tx: float
    ty: float

    def at(self, along: float, across: float, z: float) -> Point:
        """`along` 0..1 from rear to front, `across` meters to the right of the middle, height z -> world."""
        s = (along - 0.5) * self.model.length
        return (self.x + s * self.tx + across * self.ty, self.y + s * self.ty - across * self.tx, z)

    def seen(self, point: Point, nx: float, ny: float, nz: float = 0.0) -> bool:
        """Whether a face through `point` with this outward normal shows its front to the camera."""
        return -point[0] * nx - point[1] * ny + (self.canvas.camera.height - point[2]) * nz > 0

    def half_width(self, z: float) -> float:
        """Half the width at a height: full up to the belt line, narrowing to the roof."""
        belt, roof = self.model.cabin[0][1], self.model.cabin[1][1]
        share = min(max((z - belt) / (roof - belt), 0.0), 1.0)
        return self.model.width / 2 * (1 - (1 - self.model.roof) * share)

    def paint(self, points, color: Color, normal=None) -> None:
        self.canvas.shape(self.key, points, CAR, color, normal=normal)

    def across_faces(self, profile: Profile, color: Color):
        """Paint the visible faces across the vehicle, one per edge of the profile; yields the painted edges."""
        for (a, za), (b, zb) in pairwise(profile):
            run, rise = (b - a) * self.model.length, zb - za
            size = math.hypot(run, rise)
            normal = (-rise / size * self.tx, -rise / size * self.ty, run / size)
            wa, wb = self.half_width(za), self.half_width(zb)
            quad = [self.at(a, -wa, za), self.at(a, wa, za), self.at(b, wb, zb), self.at(b, -wb, zb)]
            if self.seen(quad[0], *normal):
                self.paint(quad, color, normal)
                yield (a, za), (b, zb)


def vehicle(canvas: Canvas, rng: Generator, key, x, y, tx: float, ty: float, kind: str, night: bool) -> None:
    """A vehicle of one kind centered at (x, y) that drives in the direction (tx, ty); at night its lamps shine."""
    model = VEHICLES[kind]
    car = _Placed(canvas, key, model, x, y, tx, ty)
    color = jitter(rng, pick(rng, PAINTS))
    upper = jitter(rng, pick(rng, PAINTS)) if kind == "truck" else color
    half, (_, roof) = model.width / 2, model.cabin[1]
    corners = ((-0.04, -1), (-0.04, 1), (1.04, 1), (1.04, -1))
    canvas.shadow([car.at(along, across * (half + 0.12), 0) for along, across in corners])
    for across in (-half, half):
        outline = ((0, 0), (1, 0), (0.75, roof), (0.15, roof))
        canvas.cast([car.at(along, across, z) for along, z in outline])
    # the dark underside, so that the road does not shine through between the wheels
    inner, floor = 0.94 * half, model.body[0][1]
    for a, b in (((0.04, -1), (0.04, 1)), ((0.96, -1), (0.96, 1)), ((0.04, -1), (0.96, -1)), ((0.04, 1), (0.96, 1))):
        ends = ((a, 0.16), (b, 0.16), (b, floor), (a, floor))
        car.paint([car.at(along, across * inner, z) for (along, across), z in ends], _UNDERSIDE)

    sides = [side for side in (-1, 1) if car.seen(car.at(0.5, side * half, 0.7), side * ty, -side * tx)]
    for _ in car.across_faces(model.body, color):
        pass
    for side in sides:  # none where the camera looks straight along the vehicle
        car.paint([car.at(a, side * half, z) for a, z in model.body], color, (side * ty, -side * tx, 0.0))
    for (a, za), (b, zb) in car.across_faces(model.cabin, upper):
        if abs(zb - za) > 0.2:  # not the roof: the rear window or the windshield
            glazed = model.glazed_rear or a > 0.5
            pane = []
            for share, way in ((0.12, -1), (0.12, 1), (0.88, 1), (0.88, -1)):
                z = za + (zb - za) * share
                pane.append(car.at(a + (b - a) * share, way * 0.88 * car.half_width(z), z))
            car.paint(pane, _GLASS if glazed else upper, (0, 0, 0.6) if glazed else None)
    for side in sides:
        _upper_side(car, side, upper)
    if y < 45:  # farther away wheels and lamps are less than a pixel
        for side in sides:
            for along in (0.18, 0.8):
                for radius, paint in ((model.wheel, (26, 26, 28)), (model.wheel * 0.55, (150, 152, 154))):
                    rim = disc(0, model.wheel, radius)
                    car.paint([car.at(along + u / model.length, side * (half + 0.01), z) for u, z in rim], paint)
        _lamps(car, night)


def _upper_side(car: _Placed, side: int, color: Color) -> None:
    """The cabin's flank with its windows."""
    (rear0, belt), (rear1, roof), (front1, _), (front0, _) = car.model.cabin
    normal = (side * car.ty, -side * car.tx, 0.0)
    car.paint([car.at(a, side * car.half_width(z), z) for a, z in car.model.cabin], color, normal)
    low, high = belt + 0.07, roof - (0.12 if car.model.roof < 0.9 else 0.35)
    for start, stop in car.model.panes:
        pane = []
        for share, z in ((start, low), (stop, low), (stop, high), (start, high)):
            f = (z - belt) / (roof - belt)
            rear, front = rear0 + (rear1 - rear0) * f, front0 + (front1 - front0) * f
            pane.append(car.at(rear + (front - rear) * share, side * (car.half_width(z) + 0.01), z))
        car.paint(pane, _GLASS, normal)


def _lamps(car: _Placed, night: bool) -> None:
    """Tail lamps or headlamps and the number plate, on the end that the camera sees."""
    half, body = car.model.width / 2, car.model.body
    rear = car.seen(car.at(0, 0, 0.6), -car.tx, -car.ty)
    end, z = (0.0, body[1][1] - 0.2) if rear else (1.0, body[-2][1] - 0.2)
    shine = car.canvas.glow if night else car.canvas.shape
    for across in (-half, half):
        corners = ((0.66, -0.11), (0.97, -0.11), (0.97, 0.11), (0.66, 0.11))
        lamp = [car.at(end, across * f, z + d) for f, d in corners]
        shine(car.key, lamp, CAR, (200, 28, 30) if rear else (240, 240, 226))
    corners = ((-0.28, -0.07), (0.28, -0.07), (0.28, 0.07), (-0.28, 0.07))
    car.paint([car.at(end, half * f, 0.55 + d) for f, d in corners], (226, 206, 90) if rear else (230, 230, 226))
