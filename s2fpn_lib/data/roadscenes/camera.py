"""Camera and light of a RoadScene.

World coordinates are in meters: x to the right, y forward, z up, with the camera above the origin.
"""

import math
from dataclasses import dataclass

import numpy as np

Point = tuple[float, float, float]
Color = tuple[float, float, float]


@dataclass(frozen=True)
class Light:
    """Sun, sky, and air of one scene.

    `sun` is the unit vector from the scene to the sun. `direct` and `ambient` are factors of the albedo; `haze`,
    `zenith`, `horizon`, and `cloud` are colors in 0..255. At the distance `visibility` (meters), half of the color is
    haze.
    """

    sun: Point
    direct: Color
    ambient: Color
    haze: Color
    visibility: float
    zenith: Color
    horizon: Color
    cloud: Color
    cloudiness: float
    lit_windows: float

    def on(self, color: Color, nx: float, ny: float, nz: float = 0.0) -> Color:
        """Color of an albedo on a face with this unit normal, by Lambert's cosine law."""
        cosine = max(0.0, nx * self.sun[0] + ny * self.sun[1] + nz * self.sun[2])
        ambient = 0.82 + 0.18 * nz
        (r, g, b), (ar, ag, ab), (dr, dg, db) = color, self.ambient, self.direct
        return r * (ar * ambient + dr * cosine), g * (ag * ambient + dg * cosine), b * (ab * ambient + db * cosine)


class Camera:
    """Pinhole camera at (0, 0, height). Angles are in radians, `focal` is in pixels; a positive pitch looks down."""

    def __init__(self, size: tuple[int, int], focal: float, height: float, pitch: float, yaw: float, roll: float):
        self.size, self.focal, self.height = size, focal, height
        cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
        self.forward = (sy * cp, cy * cp, -sp)
        right, up = (cy, -sy, 0.0), (sy * sp, cy * sp, cp)
        c, s = math.cos(roll), math.sin(roll)
        self.right = tuple(c * r + s * u for r, u in zip(right, up, strict=True))
        self.up = tuple(c * u - s * r for r, u in zip(right, up, strict=True))

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World points (N, 3) -> camera coordinates (N, 3): right, up, depth."""
        x, y, z = points[:, 0], points[:, 1], points[:, 2] - self.height
        return np.stack([x * a[0] + y * a[1] + z * a[2] for a in (self.right, self.up, self.forward)], axis=1)

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Camera coordinates (N, 3) in front of the camera -> pixel coordinates (N, 2): column, row."""
        h, w = self.size
        factor = self.focal / points[:, 2]
        return np.stack([w / 2 + factor * points[:, 0], h / 2 - factor * points[:, 1]], axis=1)

    def rays(self) -> np.ndarray:
        """Directions (3, H, W) through the pixel centers, scaled so that a ray's parameter is its depth in meters."""
        h, w = self.size
        u = ((np.arange(w) + 0.5 - w / 2) / self.focal)[None, :]
        v = ((np.arange(h) + 0.5 - h / 2) / self.focal)[:, None]
        rays = [f + r * u - q * v for f, r, q in zip(self.forward, self.right, self.up, strict=True)]
        return np.stack(rays).astype(np.float32)
