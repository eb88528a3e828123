"""How a VAE works: in one piece, in bands of rows, or in tiles; and what memory each takes."""

import logging
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

from refsd.backends import find_backend
from refsd.bands import compute
from refsd.contracts import itemsize
from refsd.memory_models import BAND, KEPT
from refsd.pipelines.memory import decoder_bytes, widest
from refsd.pipelines.request import check_choice, free_bytes
from refsd.pipelines.vae_tiles import blend, tiles
from refsd.registry import is_watched

logger = logging.getLogger(__name__)

BANDS = 24  # that a pass holds through the decoder's last level
TOKENS = 7  # arrays of attention: its input, q, k, v, two packed, and the output


def tiled(vae: Any, network: Callable[[Any], Any], part: str, x: Any,
          tiling: str) -> Callable[[Any], Any]:
    """network as a function of one picture, or latents, like those of x.

    auto is one piece where ops have a listener, which is to hear of whole ones.
    """
    tiling = check_choice("tiling", tiling, vae.TILINGS)
    if tiling == "auto" and not is_watched():
        factor = 1 if part == "decoder" else vae.config.downscale
        tiling = fitting_tiling(vae, part, *(n // factor for n in x.shape[2:]),
                                _room(vae))
    if tiling in ("off", "auto"):
        return network
    if tiling == "exact":
        return partial(compute, network)
    cut = tiles(vae, "latent" if part == "decoder" else "sample")
    return partial(blend, network, tiles=cut) if cut.needed(x) else network


def _room(vae):
    """What is free, or what the budget leaves, if that is less."""
    found = [room for room in (free_bytes(vae.backend), vae.room) if room is not None]
    return min(found, default=None)


def coding_bytes(vae: Any, part: str, height: int, width: int, tiling: str) -> int:
    """The peak of "decoder" or "encoder" for latents of this size, in a way of tiling."""
    size = itemsize(vae.dtype)
    whole = decoder_bytes(vae, height * width, size, part)
    if tiling == "blend":
        side = tiles(vae, "latent").size
        return decoder_bytes(vae, min(height, side) * min(width, side), size, part)
    bands = "exact" in vae.TILINGS and has_bands(find_backend(vae.backend))
    if tiling == "off" or (tiling == "auto" and not bands):
        return whole
    banded = _banded_bytes(vae, part, whole, height * width, width, size)
    return banded if tiling == "exact" else min(whole, banded)


def _banded_bytes(vae, part, whole, pixels, width, size):
    """In bands (refsd.bands): what is kept and the bands of a pass, or the tokens of attention.

    Of a block's three widest activations one and a half are kept.
    """
    model, mid = find_backend(vae.backend).memory, vae.tree[part]["mid_block"]["resnets"]
    levels = vae.tree[part]["up_blocks" if part == "decoder" else "down_blocks"]
    most = max(widest(level["resnets"], axis) for level in levels for axis in (0, 1))
    rows = 4 * width * vae.config.downscale * most * size // 2  # the widest are smaller
    passing = min(KEPT, whole // 2) + BANDS * min(max(BAND, rows), whole // 4)
    tokens = TOKENS * pixels * widest(mid, 0) * size
    return int((1 + model.gaps) * max(passing, tokens)) + model.workspace + model.transformed


def fitting_tiling(vae: Any, part: str, height: int, width: int, free: int | None) -> str:
    """"off", or "exact" where the whole does not fit into what is free, and bands take less."""
    whole, least = (coding_bytes(vae, part, height, width, how) for how in ("off", "auto"))
    if free is None or whole <= free or least == whole:
        return "off"
    logger.warning("the VAE's %s works in bands of rows: in one piece it takes about %.1f GiB, and "
                   "%.1f GiB are free. The bits are the same", part, whole / 2**30, free / 2**30)
    return "exact"


def has_bands(backend: Any) -> bool:
    """Whether a backend can compute in bands (refsd.bands)."""
    try:
        return find_spec(f"{backend.module}.bands") is not None
    except ModuleNotFoundError:  # the module is no package
        return False
