"""The periodic brightness patterns of RoadScenes (asphalt, bricks, foliage, clouds, ...), made once per process."""

from functools import cache

import numpy as np

FLAT, ASPHALT, BRICK, PLASTER, FOLIAGE, COBBLE, PLANKS, CLOUDS, SLABS, ROOF, GRASS, METAL = range(12)
TILE = 256  # texels per side


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Periodic value noise in -1..1 (256, 256): `cells` random values per side with smooth interpolation."""
    values = rng.random((cells, cells)) * 2 - 1
    position = np.arange(TILE) * cells / TILE
    low = position.astype(int)
    f = position - low
    f = f * f * (3 - 2 * f)
    high = (low + 1) % cells
    rows = values[low] * (1 - f)[:, None] + values[high] * f[:, None]
    return rows[:, low] * (1 - f) + rows[:, high] * f


@cache
def tiles() -> np.ndarray:
    """Textures as int8 (levels 5, tiles 12, 256, 256): level k is averaged over 2^k x 2^k texels."""
    rng = np.random.Generator(np.random.PCG64(20220614))
    fine, small, medium, coarse = (sum(_noise(rng, c) for _ in range(2)) / 2 for c in (256, 64, 24, 6))
    y, x = np.mgrid[0:TILE, 0:TILE]

    def blocks(height: int, width: int, joint: int, jitter: float) -> np.ndarray:
        row = y // height
        shifted = (x + (row % 2) * (width // 2)) % TILE
        tone = rng.random((TILE // height, TILE // width))[row, shifted // width] * 2 - 1
        seam = (y % height < joint) | (shifted % width < joint)
        return np.where(seam, -0.8, tone * jitter)

    clumps = 0.45 * _noise(rng, 32) + 0.35 * _noise(rng, 64) + 0.35 * _noise(rng, 12)
    planks = np.where(x % 16 < 2, -0.8, 0.4 * (rng.random(16) * 2 - 1)[x // 16])
    patterns = {
        FLAT: 0 * fine,
        ASPHALT: 0.45 * fine + 0.2 * small + 0.25 * medium + 0.45 * coarse,
        BRICK: blocks(8, 16, 2, 0.5) + 0.2 * fine,
        PLASTER: 0.3 * medium + 0.4 * coarse + 0.2 * fine,
        FOLIAGE: 1.1 * clumps + 0.4 * fine,
        COBBLE: blocks(16, 16, 3, 0.6) + 0.2 * fine,
        PLANKS: planks + 0.15 * small,
        CLOUDS: 0.9 * coarse + 0.45 * medium + 0.5 * _noise(rng, 12) + 0.12 * small,
        SLABS: blocks(32, 32, 2, 0.35) + 0.2 * fine + 0.15 * coarse,
        ROOF: blocks(16, 16, 4, 0.4) + 0.1 * fine,
        GRASS: 0.5 * fine + 0.35 * small + 0.3 * coarse,
        METAL: np.where(x % 16 < 8, 0.3, -0.3) + 0.15 * coarse,
    }
    base = np.clip(np.stack([patterns[i] for i in range(12)]), -1, 1)
    levels = [base]
    for k in range(1, 5):
        s = 2**k
        mean = base.reshape(12, TILE // s, s, TILE // s, s).mean(axis=(2, 4))  # (12, 256/s, 256/s)
        levels.append(mean.repeat(s, axis=1).repeat(s, axis=2))
    return np.rint(np.stack(levels) * 127).astype(np.int8)
