"""What else could be drawn where memory is short, and how much that takes."""

from collections.abc import Callable, Iterator
from copy import copy
from types import SimpleNamespace
from typing import Any

from refsd.backends import find_backend
from refsd.pipelines.memory import offloaded_bytes, weight_bytes, working_bytes
from refsd.tree import flatten
from refsd.weights.lighter import Choice
from refsd.weights.streaming import MODES


def lighter(pipe: Any, width: int, height: int, batch: int,
            working: Callable[..., int] = working_bytes) -> Iterator[Choice]:
    """What else could be drawn, and what that would take; what changes least first.

    working says it, of a pipeline, width, height and pictures.
    """
    if pipe.vae.tiling == "off" and "exact" in pipe.vae.TILINGS:
        banded = copy(pipe.coder("decoder"))
        banded.tiling = "exact"
        other = SimpleNamespace(vae=pipe.vae, denoiser=pipe.denoiser, networks=pipe.networks,
                                copies=pipe.copies, coder=lambda part: banded)
        yield Choice({"vae.tiling": "exact"}, working(other, width, height, batch))
    if batch > 1:
        yield Choice({"num_images_per_prompt": 1}, working(pipe, width, height, 1))
    for part in (4, 2, 1):
        sides = [max(64, side * part // 512 * 64) for side in (width, height)]
        yield Choice(dict(zip(("width", "height"), sides)), working(pipe, *sides, 1))


def offloaded(pipe: Any, needed: int, available: int) -> Choice | None:
    """The first way of having weights in memory with which a drawing fits, and what it saves.

    None if none does. It changes no bit, and comes with loading the model anew.
    """
    leaves = {part: [*flatten(network.tree).values()] for part, network in pipe.networks.items()}
    here = weight_bytes(pipe)
    saved = [Choice({"offload": mode}, here - offloaded_bytes(leaves, mode)) for mode in MODES]
    fits = [choice for choice in saved if needed - choice.bytes <= available]
    return fits[0] if fits and find_backend(pipe.denoiser.backend).device == "cpu" else None
