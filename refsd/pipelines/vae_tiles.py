"""A VAE tile by tile, the tiles overlapping and blended: less memory, and a picture of its own.

Each tile has its own statistics and looks at itself only, so the picture differs from the whole
one's. Tiles, overlaps and ramps are those of diffusers' AutoencoderKL.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refsd import functional as F
from refsd.arguments import as_integer, as_number, shown
from refsd.errors import UsageError
from refsd.half import is_half, to_float32, to_half
from refsd.places import beside, on_host


class Tiles(NamedTuple):
    """Squares of `size`, one every `step`; their results blend over `extent`, and end at `limit`.

    The first two in what is read, the others in what is made.
    """

    size: int
    step: int
    extent: int
    limit: int

    def needed(self, x: Any) -> bool:
        """Whether x (N, C, H, W) is larger than one tile."""
        return max(x.shape[2:]) > self.size


def tiles(vae: Any, read: str) -> Tiles:
    """The tiles of what a VAE reads, "latent" or "sample", by its attributes, named as diffusers'.

    UsageError for sizes of which no step is left.
    """
    sizes = {}
    for name in ("tile_latent_min_size", "tile_sample_min_size"):
        sizes[name] = as_integer(getattr(vae, name))
        if sizes[name] is None or sizes[name] < 2:
            raise UsageError(f"vae.{name} is {shown(getattr(vae, name))}; give at least 2, or "
                             "tiling=\"exact\"")
    overlap = as_number(vae.tile_overlap_factor)
    if overlap is None or not 0 <= overlap <= 0.5:
        raise UsageError(f"vae.tile_overlap_factor is {shown(vae.tile_overlap_factor)}; give a "
                         "number from 0 to 0.5")
    size = sizes.pop(f"tile_{read}_min_size")
    made, = sizes.values()
    extent = int(made * overlap)
    return Tiles(size, int(size * (1 - overlap)), extent, made - extent)


def blend(network: Callable[[Any], Any], x: Any, tiles: Tiles) -> Any:
    """network(x), tile by tile, each tile's first rows and columns a mean with its neighbours'.

    x (N, C, H, W) -> as network gives it, joined on the host and put beside x.
    """
    (_, _, H, W), above, rows = x.shape, [], []
    for i in range(0, H, tiles.step):
        row = []
        for j in range(0, W, tiles.step):
            tile = F.slice(x, axis=2, start=i, stop=min(i + tiles.size, H))
            made = network(F.slice(tile, axis=3, start=j, stop=min(j + tiles.size, W)))
            dtype = made.dtype
            made = np.array(to_float32(on_host(made)))
            if above:
                _ramp(above[len(row)], made, tiles.extent, 2)
            if row:
                _ramp(row[-1], made, tiles.extent, 3)
            row.append(made)
        cut = [made[:, :, :tiles.limit, :tiles.limit] for made in row]
        rows.append(np.concatenate(cut, axis=3))
        above = row
    joined = np.concatenate(rows, axis=2)
    return beside(x, to_half(joined, dtype) if is_half(dtype) else joined)


def _ramp(before, after, extent, axis):
    """after's first k rows (axis 2) or columns (3) = (1 - i / k) before's last k + i / k its own"""
    k = min(before.shape[axis], after.shape[axis], extent)
    share = (np.arange(k) / max(k, 1)).reshape((-1, 1) if axis == 2 else (1, -1))
    first = (slice(None),) * axis + (slice(k),)
    last = (slice(None),) * axis + (slice(before.shape[axis] - k, None),)
    dtype = after.dtype
    after[first] = (before[last] * (1 - share).astype(dtype)
                    + after[first] * share.astype(dtype))
