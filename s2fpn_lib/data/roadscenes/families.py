"""Scene families (kinds of places), weather, and lens of RoadScenes."""

from dataclasses import dataclass

from numpy.random import Generator

from s2fpn_lib.data.roadscenes.camera import Color, Light
from s2fpn_lib.data.roadscenes.objects import between, pick


@dataclass(frozen=True)
class Family:
    """The parameters of a kind of place.

    Widths are in meters, `*_gap` are mean distances in meters between such objects (0: none), and shares are in 0..1.
    """

    road: tuple[float, float]  # half width of the roadway
    pavement: tuple[float, float]
    verge: tuple[float, float]  # grass between pavement and house fronts
    kinds: tuple[str, ...]
    height: tuple[float, float]
    house_gap: tuple[float, float]  # meters between neighbors
    tree_gap: float
    fences: tuple[str, ...]
    fence_share: float
    cobbles: float
    parked: float
    gantry: float
    traffic: tuple[str, ...] = ("hatch", "sedan", "suv", "hatch", "van")


_MIXED = ("hatch", "sedan", "suv", "hatch", "van", "bus", "truck")
FAMILY = {
    "town": Family(
        (3.2, 5.0),
        (2.2, 4.0),
        (0, 0),
        ("shop", "shop", "terrace", "office"),
        (7, 17),
        (0, 0.6),
        26,
        ("railing", "guard", "mesh"),
        0.55,
        0.1,
        0.6,
        0,
        _MIXED,
    ),
    "suburb": Family(
        (2.8, 3.8),
        (1.6, 2.4),
        (3, 7),
        ("house", "house", "terrace"),
        (4.5, 7),
        (3, 9),
        15,
        ("picket", "panel", "rail", "railing"),
        0.75,
        0,
        0.5,
        0,
    ),
    "highway": Family(
        (5.5, 8.0),
        (1.8, 2.6),
        (4, 9),
        ("office", "shed"),
        (6, 16),
        (16, 40),
        11,
        ("guard", "mesh", "guard", "panel"),
        0.95,
        0,
        0,
        0.75,
        (*_MIXED, "truck"),
    ),
    "alley": Family(
        (2.3, 3.0),
        (1.0, 1.7),
        (0, 0.5),
        ("terrace", "shop", "house"),
        (6, 12),
        (0, 2.5),
        34,
        ("railing", "panel", "picket"),
        0.6,
        0.6,
        0.35,
        0,
        ("hatch", "van", "hatch", "suv"),
    ),
    "park": Family(
        (2.8, 4.2),
        (2.0, 3.4),
        (4, 9),
        ("house", "office", "terrace"),
        (6, 14),
        (22, 60),
        7,
        ("railing", "rail", "picket", "mesh"),
        0.85,
        0.2,
        0.35,
        0,
    ),
    "harbour": Family(
        (3.6, 6.0),
        (1.5, 3.0),
        (1, 4),
        ("shed", "shed", "office"),
        (6, 11),
        (4, 16),
        45,
        ("mesh", "guard", "mesh", "panel"),
        0.85,
        0.15,
        0.3,
        0.15,
        (*_MIXED, "truck", "truck"),
    ),
}
FAMILIES = tuple(FAMILY)
HELD_OUT = "harbour"  # occurs in the test split only


def family_of(seed: int) -> str:
    """The scene family of a seed."""
    return FAMILIES[seed % len(FAMILIES)]


@dataclass(frozen=True)
class Lens:
    """Effects of the camera on the image; see `_through_lens` in roadscenes/dataset.py."""

    gain: Color
    vignette: float
    noise: float
    blur: float
    shoulder: float
    contrast: float
    hood: float
    hood_color: Color


def weather(rng: Generator) -> tuple[Light, bool]:
    """Sun, sky, and air, and whether lamps are lit."""
    kind = pick(rng, ["clear", "clear", "fair", "fair", "overcast", "overcast", "evening", "fog", "dusk"])
    across, ahead = between(rng, -1, 1), between(rng, -1, 0.7)
    up = {"evening": between(rng, 0.22, 0.4), "dusk": 0.35}.get(kind, between(rng, 0.6, 1.4))
    length = (across * across + ahead * ahead + up * up) ** 0.5
    sun = (across / length, ahead / length, up / length)
    cool, warm = between(rng, 0.95, 1.12), between(rng, 0.95, 1.1)
    looks = {  # direct, ambient, haze, visibility, zenith, horizon, cloud, cloudiness, lit windows
        "clear": (
            (0.72, 0.68, 0.6),
            (0.5, 0.53, 0.58),
            (188, 204, 220),
            900,
            (72, 128, 204),
            (184, 208, 228),
            (250, 250, 250),
            0.12,
            0,
        ),
        "fair": (
            (0.6, 0.57, 0.52),
            (0.54, 0.56, 0.6),
            (200, 208, 216),
            600,
            (96, 146, 208),
            (206, 218, 228),
            (248, 246, 244),
            0.52,
            0,
        ),
        "overcast": (
            (0.12, 0.12, 0.12),
            (0.74, 0.75, 0.77),
            (204, 206, 208),
            420,
            (168, 174, 180),
            (218, 220, 222),
            (232, 232, 232),
            0.6,
            0.08,
        ),
        "evening": (
            (0.86, 0.6, 0.36),
            (0.46, 0.45, 0.52),
            (236, 200, 160),
            480,
            (104, 136, 188),
            (248, 212, 166),
            (252, 214, 186),
            0.4,
            0.12,
        ),
        "fog": (
            (0.05, 0.05, 0.05),
            (0.76, 0.77, 0.78),
            (206, 208, 208),
            75,
            (200, 203, 205),
            (212, 213, 213),
            (210, 211, 212),
            0.3,
            0.15,
        ),
        "dusk": (
            (0.14, 0.12, 0.12),
            (0.5, 0.49, 0.58),
            (128, 118, 136),
            380,
            (62, 72, 118),
            (206, 150, 128),
            (120, 104, 124),
            0.45,
            0.4,
        ),
    }
    direct, ambient, haze, visibility, zenith, horizon, cloud, cloudiness, lit = looks[kind]
    tint = (warm, 1.0, cool)
    air = between(rng, 0.75, 1.35)

    def tinted(color):
        return tuple(min(255.0, c * t) for c, t in zip(color, tint, strict=True))

    light = Light(
        sun, direct, tuple(a * t for a, t in zip(ambient, tint, strict=True)), tinted(haze), visibility * air,
        tinted(zenith),
        tinted(horizon), cloud, cloudiness + between(rng, -0.1, 0.1), lit,
    )  # fmt: skip
    return light, kind == "dusk"
