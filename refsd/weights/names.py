"""Older names of the same tensors, brought to the names that refsd.models takes apart."""

import re
from collections.abc import Iterable

from refsd.errors import ModelError
from refsd.networks import Network, Shape

# The projections of the VAE's attention are 1x1 convolutions in the first checkpoints, and matrices
# in the later ones.
_PIXEL_PROJECTION = re.compile(r"\.mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight$")


def canonical_names(network: Network, names: Iterable[str], where: str) -> dict[str, str]:
    """Today's name -> the name in the file; ModelError when two tensors claim one name."""
    found: dict[str, str] = {}
    for name in names:
        new = network.today(name)
        if new in found:
            raise ModelError(f"{where}: {ascii(name)[:200]} and {found[new]!r} are the same "
                             "tensor. Leave one out")
        if new is not None:
            found[new] = name
    return found


def is_pixel_projection(name: str) -> bool:
    """Whether a tensor is a projection of the VAE's attention: a 1x1 kernel in old files."""
    return _PIXEL_PROJECTION.search(name) is not None


def without_kernel(name: str, shape: Shape) -> Shape:
    """(O, I, 1, 1) -> (O, I) for the projections of the VAE's attention; anything else as it is."""
    return shape[:2] if is_pixel_projection(name) and shape[2:] == (1, 1) else shape
