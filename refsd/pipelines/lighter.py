"""What else could be drawn where memory is short, and how much that takes."""

from collections.abc import Iterator
from copy import copy
from types import SimpleNamespace
from typing import Any

from refsd.backends import find_backend
from refsd.pipelines.memory import offloaded_bytes, weight_bytes, working_bytes
from refsd.tree import flatten
from refsd.weights.lighter import Choice
from refsd.weights.streaming import MODES


def smaller(vae: Any, width: int, height: int, pictures: int) -> Iterator[tuple[dict, dict]]:
    """Options of a drawing that takes less, what changes least first, each as a Request has them.
    """
    if vae.tiling == "off" and "exact" in vae.TILINGS:
        yield {"vae.tiling": "exact"}, {"tiling": "exact"}
    if pictures > 1:
        yield {"num_images_per_prompt": 1}, {"pictures": 1}
    for part in (4, 2, 1):
        sides = [max(64, side * part // 512 * 64) for side in (width, height)]
        options = dict(zip(("width", "height"), sides))
        yield options, {**options, "pictures": 1}


def lighter(pipe: Any, width: int, height: int, batch: int) -> Iterator[Choice]:
    """What else could be drawn, and what that would take; what changes least first."""
    asked = {"width": width, "height": height, "pictures": batch, "tiling": pipe.vae.tiling}
    for options, changed in smaller(pipe.vae, width, height, batch):
        *request, tiling = {**asked, **changed}.values()
        decoder = copy(pipe.coder("decoder"))
        decoder.tiling = tiling
        other = SimpleNamespace(vae=pipe.vae, denoiser=pipe.denoiser, networks=pipe.networks,
                                copies=pipe.copies, coder=lambda part, vae=decoder: vae)
        yield Choice(options, working_bytes(other, *request))


def offloaded(pipe: Any, needed: int, available: int) -> Choice | None:
    """The first way of having weights in memory with which a drawing fits, and what it saves.

    None if none does. It changes no bit, and comes with loading the model anew.
    """
    leaves = {part: [*flatten(network.tree).values()] for part, network in pipe.networks.items()}
    here = weight_bytes(pipe)
    saved = [Choice({"offload": mode}, here - offloaded_bytes(leaves, mode)) for mode in MODES]
    fits = [choice for choice in saved if needed - choice.bytes <= available]
    return fits[0] if fits and find_backend(pipe.denoiser.backend).device == "cpu" else None
