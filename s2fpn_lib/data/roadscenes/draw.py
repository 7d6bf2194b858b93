"""The renderer of RoadScenes: a canvas of polygons and one deferred shading pass.

Polygons are painted from far to near into an *id buffer* at twice the image's resolution. One table row per id holds
its class, color, plane, and texture. Shading then runs once over all pixels: the plane under a pixel gives its depth
and its texture coordinates, so bricks, windows, slabs, and haze are in true perspective. See-through objects (railings,
bicycle wheels) are painted into a second buffer, the *overlay*. Its pixels carry the overlay's label, as in manual
annotations, and show what is behind between the bars.

The pixels are the same bytes on every machine: they depend only on + - * / and comparisons, which IEEE 754 rounds
exactly, and on no transcendental function.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from PIL import Image, ImageDraw

from s2fpn_lib.data.roadscenes.camera import Camera, Color, Light, Point
from s2fpn_lib.data.roadscenes.textures import CLOUDS, FLAT, TILE, tiles

_SKY_KIND, _GROUND_KIND, _WALL_KIND = range(3)
_NEAR = 0.8  # meters: polygons are cut here, nearer than any ground or wall in view
_FAR_OUT = 200_000  # subpixels: beyond it PIL's edge arithmetic would lose precision


@dataclass(frozen=True)
class Facade:
    """Windows of a wall, in meters: a grid of cells `cell` = (width, height) above a ground floor of height `base`."""

    cell: tuple[float, float]
    window: tuple[float, float]  # shares of the cell
    base: float
    top: float  # no windows above
    glass: Color
    trim: Color
    shop: bool


@dataclass(frozen=True)
class Bars:
    """See-through pattern of an overlay: vertical bars, horizontal rails (height, thickness), and a mesh, in meters."""

    spacing: float = 1.0
    width: float = 0.0
    rails: tuple[tuple[float, float], ...] = ()
    mesh: float = 0.0


class Canvas:
    """Collects polygons in any order; `render` sorts them by `key` (distance), paints them, and shades them."""

    def __init__(self, camera: Camera, light: Light):
        self.camera, self.light = camera, light
        self._polygons: list[tuple[float, Sequence[Point], int, bool]] = []
        self._shadows: list[Sequence[Point]] = []
        # (class, r, g, b, kind, nx, ny, k, texture, texels per meter, amplitude, facade or bars, u0); row 0 is the sky
        self._rows: list[tuple] = [(0, 0, 0, 0, _SKY_KIND, 0, 1, 1e4, FLAT, 1, 0, -1, 0)]
        self._facades: list[Facade] = []
        self._bars: list[Bars] = []

    def ground(self, key, points, class_id, color, *, z=0.0, texture=FLAT, density=40.0, amplitude=0.0) -> None:
        """A horizontal polygon at height z."""
        lit = self.light.on(color, 0, 0, 1)
        row = (class_id, *lit, _GROUND_KIND, 0, 0, self.camera.height - z, texture, density, amplitude, -1, 0)
        self._add(key, points, row, False)

    def wall(
        self, key, points, class_id, color, normal, *, texture=FLAT, density=40.0, amplitude=0.0, facade=None, u0=0.0
    ) -> None:
        """A vertical polygon with horizontal unit `normal` (nx, ny); u0: where along the wall its texture starts."""
        nx, ny = normal
        k = nx * points[0][0] + ny * points[0][1]
        index = -1
        if facade is not None:
            index = len(self._facades)
            self._facades.append(facade)
        lit = self.light.on(color, nx, ny)
        row = (class_id, *lit, _WALL_KIND, nx, ny, k, texture, density, amplitude, index, u0)
        self._add(key, points, row, False)

    def shape(self, key, points, class_id, color, *, normal=None, texture=FLAT, density=40.0, amplitude=0.0) -> None:
        """A polygon shaded as a camera-facing board at its first point's distance, lit by `normal` (or half lit)."""
        lit = self.light.on(color, *normal) if normal else self.light.on(color, *self._facing)
        row = (class_id, *lit, _WALL_KIND, 0, -1, -max(points[0][1], 0.5), texture, density, amplitude, -1, 0)
        self._add(key, points, row, False)

    def overlay(self, key, points, class_id, color, normal, bars: Bars, *, u0=0.0) -> None:
        """A see-through vertical polygon, labeled as a whole and painted only where its bars are."""
        nx, ny = normal
        k = nx * points[0][0] + ny * points[0][1]
        self._bars.append(bars)
        row = (class_id, *self.light.on(color, nx, ny), _WALL_KIND, nx, ny, k, FLAT, 1, 0, len(self._bars) - 1, u0)
        self._add(key, points, row, True)

    def glow(self, key, points, class_id, color) -> None:
        """A light source (lamp, tail light), whose color does not depend on the scene's light."""
        row = (class_id, *color, _WALL_KIND, 0, -1, -max(points[0][1], 0.5), FLAT, 1, 0, -1, 0)
        self._add(key, points, row, False)

    def shadow(self, points) -> None:
        """A polygon on the ground that the sun does not reach."""
        self._shadows.append(points)

    def cast(self, outline: Sequence[Point]) -> None:
        """The shadow of a vertical quad (bottom left, bottom right, top right, top left) on the ground."""
        sx, sy, sz = self.light.sun
        self.shadow([(x - sx / sz * z, y - sy / sz * z, 0.0) for x, y, z in outline])

    @property
    def _facing(self) -> Point:
        return (0.0, -0.8, 0.6)

    def _add(self, key, points, row, see_through) -> None:
        self._polygons.append((key, points, len(self._rows), see_through))
        self._rows.append(row)

    def _pixels(self, polygons: list[Sequence[Point]]) -> list[list[int] | None]:
        """Polygons -> flat integer coordinates on the doubled grid; None for those behind the camera."""
        if not polygons:
            return []
        ends = np.cumsum([len(p) for p in polygons])
        flat_points = chain.from_iterable(chain.from_iterable(polygons))
        points = self.camera.to_camera(np.fromiter(flat_points, np.float64, 3 * int(ends[-1])).reshape(-1, 3))
        behind = points[:, 2] < _NEAR
        screen = self.camera.to_pixels(np.where(behind[:, None], 1.0, points))
        screen = np.clip(np.rint(screen * 2 - 0.5), -_FAR_OUT, _FAR_OUT).astype(np.int64)
        flat, cut = screen.reshape(-1).tolist(), np.logical_or.reduceat(behind, np.r_[0, ends[:-1]]).tolist()
        result: list[list[int] | None] = []
        start = 0
        for end, is_cut in zip(ends.tolist(), cut, strict=True):
            result.append(self._clipped(points[start:end]) if is_cut else flat[2 * start : 2 * end])
            start = end
        return result

    def _clipped(self, points: np.ndarray) -> list[int] | None:
        """Sutherland-Hodgman against the near plane. points (n, 3) in camera coordinates."""
        kept = []
        for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
            if a[2] >= _NEAR:
                kept.append(a)
            if (a[2] >= _NEAR) != (b[2] >= _NEAR):
                kept.append(a + (b - a) * ((_NEAR - a[2]) / (b[2] - a[2])))
        if len(kept) < 3:
            return None
        screen = self.camera.to_pixels(np.array(kept)) * 2 - 0.5
        return np.clip(np.rint(screen), -_FAR_OUT, _FAR_OUT).astype(np.int64).reshape(-1).tolist()

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """The image (3, H, W) float32 in 0..255 without lens effects, and the label (H, W) uint8."""
        h, w = self.camera.size
        order = sorted(self._polygons, key=lambda polygon: -polygon[0])  # stable: parts keep their order
        solid, overlay = Image.new("I", (2 * w, 2 * h)), Image.new("I", (2 * w, 2 * h))
        solid_draw, overlay_draw = ImageDraw.Draw(solid), ImageDraw.Draw(overlay)
        overlaid = False
        for (_, _, index, see_through), pixels in zip(order, self._pixels([p[1] for p in order]), strict=True):
            if pixels is None:
                continue
            if see_through:
                overlay_draw.polygon(pixels, fill=index)
                overlaid = True
                continue
            solid_draw.polygon(pixels, fill=index)
            if overlaid:  # what is nearer hides the overlay
                overlay_draw.polygon(pixels, fill=0)
        shadow = Image.new("L", (2 * w, 2 * h))
        shadow_draw = ImageDraw.Draw(shadow)
        for pixels in self._pixels(self._shadows):
            if pixels is not None:
                shadow_draw.polygon(pixels, fill=1)
        return self._shade(np.asarray(solid), np.asarray(overlay), np.asarray(shadow))

    def _shade(self, ids2: np.ndarray, overlay2: np.ndarray, shadow2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = chain.from_iterable(self._rows)
        table = np.fromiter(rows, np.float32, 13 * len(self._rows)).reshape(-1, 13).T.copy()  # (13, rows)
        rays = self.camera.rays()
        h, w = self.camera.size
        ids, over = (buffer[::2, ::2].reshape(-1).astype(np.intp) for buffer in (ids2, overlay2))  # (H*W,)
        # three 20-bit fields in one integer: one gather and one 2x2 sum serve all channels
        colors = np.rint(table[1:4] * 16).astype(np.int64)
        packed = (colors[0] + (colors[1] << 20) + (colors[2] << 40))[ids2.astype(np.intp)]
        packed = packed[::2] + packed[1::2]
        packed = (packed[:, ::2] + packed[:, 1::2]).reshape(-1)
        image = np.stack([packed & 0xFFFFF, packed >> 20 & 0xFFFFF, packed >> 40]).astype(np.float32)
        image *= np.float32(1 / 64)
        dx, dy, dz = rays.reshape(3, -1)
        kind = table[4].astype(np.int8)[ids]
        depth = np.full(h * w, 1e4, dtype=np.float32)

        sky = np.flatnonzero(kind == _SKY_KIND)
        image[:, sky] = _sky(self.light, dx[sky], dy[sky], dz[sky])

        ground = np.flatnonzero(kind == _GROUND_KIND)
        of = ids[ground]
        t = table[7][of] / np.maximum(-dz[ground], 1e-3)
        depth[ground] = t
        factor = _texture(table, of, t * dx[ground], t * dy[ground], t / self.camera.focal)
        dark = shadow2[::2] + shadow2[1::2]
        dark = (dark[:, ::2] + dark[:, 1::2]).reshape(-1)[ground].astype(np.float32) * 0.25  # share in shadow
        for channel in range(3):
            lit, ambient = self.light.direct[channel] * self.light.sun[2], self.light.ambient[channel]
            image[channel, ground] *= factor * (1 - dark * np.float32(lit / (lit + ambient)))

        walls = np.flatnonzero(kind == _WALL_KIND)
        of = ids[walls]
        t, u, v = self._on_wall(table, of, dx[walls], dy[walls], dz[walls])
        depth[walls] = t
        image[:, walls] *= _texture(table, of, u, v, t / self.camera.focal)
        with_windows = np.flatnonzero(table[11][of] >= 0)
        if len(with_windows):
            at, of = walls[with_windows], of[with_windows]
            u, v, footprint = u[with_windows], v[with_windows], t[with_windows] / self.camera.focal
            image[:, at] = self._windows(image[:, at], table[11][of].astype(np.intp), u, v, footprint, dy[at])

        see_through = np.flatnonzero(over)
        if len(see_through):
            of = over[see_through]
            t, u, v = self._on_wall(table, of, dx[see_through], dy[see_through], dz[see_through])
            alpha = self._alpha(table[11][of].astype(np.intp), u, v, t / self.camera.focal)
            image[:, see_through] += alpha * (table[1:4][:, of] - image[:, see_through])
            depth[see_through] += alpha * (t - depth[see_through])

        haze = depth / (depth + np.float32(self.light.visibility))
        haze[sky] = 0
        for channel in range(3):
            image[channel] += haze * (np.float32(self.light.haze[channel]) - image[channel])
        label = table[0].astype(np.uint8)[np.where(over > 0, over, ids)]
        return image.reshape(3, h, w), label.reshape(h, w)

    def _on_wall(self, table, of, dx, dy, dz):
        """Depth and wall coordinates (meters along, meters up) where rays meet the vertical planes of rows `of`."""
        nx, ny = table[5][of], table[6][of]
        facing = nx * dx + ny * dy
        t = np.clip(table[7][of] / np.where(np.abs(facing) < 1e-4, np.float32(1e-4), facing), 0.3, 2000)
        return t, t * (nx * dy - ny * dx) - table[12][of], np.float32(self.camera.height) + t * dz

    def _windows(self, image, index, u, v, footprint, dy):
        """Paint glass and trim on facade pixels. image (3, n); index, u, v, footprint (n,)."""
        rows = [
            (*f.cell, *f.window, f.base, f.top, *f.glass, *f.trim, f.shop, 17.0 * i)
            for i, f in enumerate(self._facades)
        ]
        table = np.array(rows, dtype=np.float32).T
        width, height, share_w, share_h, base, top = (table[i][index] for i in range(6))
        shop = table[12][index] > 0
        low = v < base  # ground floor: doors or shop windows
        cell_w = np.where(low & shop, width * 1.5, width)
        cu, cv = u / cell_w, np.where(low, v / base, (v - base) / height)
        iu, iv = np.floor(cu), np.floor(cv) + np.where(low, -1, 0)
        half_w = np.where(low & shop, np.float32(0.43), share_w / 2) * cell_w
        middle = np.where(low & shop, np.float32(0.44), np.float32(0.5))
        half_h = np.where(low, np.where(shop, np.float32(0.30), share_h / 2) * base, share_h / 2 * height)
        away_u = np.abs(cu - iu - np.float32(0.5)) * cell_w - half_w  # meters outside the pane, negative inside
        away_v = np.abs(cv - np.floor(cv) - middle) * np.where(low, base, height) - half_h
        away = np.maximum(away_u, away_v)
        valid = (v < top).astype(np.float32)
        glass = np.clip(np.float32(0.5) - away / footprint, 0, 1) * valid
        trim = np.clip(np.float32(0.5) - (away - np.float32(0.13)) / footprint, 0, 1) * valid
        code = np.mod(iu * 37 + iv * 101 + table[13][index], 23)  # a number in 0..22, fixed per window
        lit = (code * np.float32(1 / 23) < self.light.lit_windows) & (glass > 0)
        tone = np.float32(0.75) + code * np.float32(0.022)
        cross = np.clip(1 - np.abs(away_u + half_w) / np.maximum(footprint, 0.04), 0, 1) * np.float32(0.5)
        fascia = np.clip(np.float32(0.5) + (v - base * np.float32(0.8)) / footprint, 0, 1) * (low & shop)
        for channel in range(3):
            pane = table[6 + channel][index] * tone
            pane = np.where(lit, np.float32((250, 205, 130)[channel]) * (tone * np.float32(0.8)), pane)
            frame = table[9 + channel][index]
            row = image[channel]
            row += np.maximum(trim, fascia) * (frame - row)
            row += glass * (1 - cross) * (pane - row)
        return image

    def _alpha(self, index, u, v, footprint):
        """Coverage (n,) of the bars, rails and mesh of overlays `index` at wall coordinates u, v."""
        rails = [[b.rails[i] if i < len(b.rails) else (-9.0, 0.0) for i in range(3)] for b in self._bars]
        rows = [
            (b.spacing, b.width, b.mesh, *(x for rail in r for x in rail))
            for b, r in zip(self._bars, rails, strict=True)
        ]
        table = np.array(rows, dtype=np.float32).T
        spacing, width, mesh = (table[i][index] for i in range(3))

        def stripe(distance, thickness):
            cover = np.clip((thickness + footprint) * np.float32(0.5) - distance, 0, footprint) / footprint
            return cover * np.minimum(1, thickness / footprint * np.float32(1.3))

        def periodic(position, period):
            cell = position / period
            return np.abs(cell - np.floor(cell + np.float32(0.5))) * period

        alpha = stripe(periodic(u, spacing), width)
        average = np.minimum(1, width / spacing)  # bars finer than a pixel blend
        alpha = np.where(spacing < 2 * footprint, average, alpha)
        for i in range(3):
            alpha = np.maximum(alpha, stripe(np.abs(v - table[3 + 2 * i][index]), table[4 + 2 * i][index]))
        wire = np.minimum(periodic(u + v, np.float32(0.12)), periodic(u - v, np.float32(0.12)))
        net = np.where(footprint < 0.03, stripe(wire, np.float32(0.02)), np.float32(0.42)) * mesh
        return np.maximum(alpha, net)


def _sky(light: Light, dx, dy, dz) -> np.ndarray:
    """Sky colors (3, n) for ray directions: gradient, cloud layer in perspective, glow around the sun."""
    up = np.clip(dz * np.float32(1.6), 0, 1)
    up = up * (2 - up)
    t = 8 / np.maximum(dz + np.float32(0.08), 0.04)
    tile = tiles()[1, CLOUDS]
    noise = tile[(t * dy * 5).astype(np.int32) & 255, (t * dx * 5).astype(np.int32) & 255].astype(np.float32) / 127
    cover = np.clip(noise * np.float32(1.5) + np.float32(2 * light.cloudiness - 1), 0, 1) * np.clip(dz * 9, 0, 1)
    sx, sy, sz = light.sun
    toward = np.clip((dx * sx + dy * sy + dz * sz) / np.sqrt(dx * dx + dy * dy + dz * dz), 0, 1)
    glow = toward * toward
    glow = glow * glow * glow * np.float32(40 * max(light.direct))
    sky = np.empty((3, len(dx)), dtype=np.float32)
    for channel in range(3):
        low, high = np.float32(light.horizon[channel]), np.float32(light.zenith[channel])
        row = low + up * (high - low)
        sky[channel] = row + cover * (np.float32(light.cloud[channel]) - row) + glow * np.float32(light.direct[channel])
    return sky


def _texture(table, of, u, v, footprint) -> np.ndarray:
    """Brightness factors (n,) of the rows' textures at meters (u, v); footprint: meters that a pixel covers."""
    density = table[9][of]
    size = footprint * density  # texels per pixel
    level = (size > 1.5).astype(np.intp)
    for bound in (3, 6, 12):
        level += size > bound
    tile = table[8].astype(np.intp)[of]
    row, column = (v * density).astype(np.int32) & 255, (u * density).astype(np.int32) & 255
    index = ((level * 12 + tile) * TILE + row) * TILE + column
    return 1 + table[10][of] * tiles().reshape(-1)[index] * np.float32(1 / 127)
