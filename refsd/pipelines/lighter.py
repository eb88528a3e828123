"""What else could be drawn where memory is short, and how much that takes."""

from collections.abc import Iterator
from copy import copy
from types import SimpleNamespace
from typing import Any

from refsd.pipelines.memory import working_bytes
from refsd.weights.lighter import Choice


def lighter(pipe: Any, width: int, height: int, batch: int) -> Iterator[Choice]:
    """What else could be drawn, and what that would take; what changes least first."""
    if pipe.vae.tiling == "off" and "exact" in pipe.vae.TILINGS:
        banded = copy(pipe.coder("decoder"))
        banded.tiling = "exact"
        other = SimpleNamespace(vae=pipe.vae, denoiser=pipe.denoiser, networks=pipe.networks,
                                copies=pipe.copies, coder=lambda part: banded)
        yield Choice({"vae.tiling": "exact"}, working_bytes(other, width, height, batch))
    if batch > 1:
        yield Choice({"num_images_per_prompt": 1}, working_bytes(pipe, width, height, 1))
    for part in (4, 2, 1):
        sides = [max(64, side * part // 512 * 64) for side in (width, height)]
        yield Choice(dict(zip(("width", "height"), sides)), working_bytes(pipe, *sides, 1))
