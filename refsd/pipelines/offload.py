"""Weights that are away while they are not used: refsd.weights.streaming for a pipeline."""

from collections.abc import Iterator, Mapping
from typing import Any

from refsd.backends import find_backend
from refsd.errors import UsageError
from refsd.leaf import Away
from refsd.pipelines.planned import calls, sized
from refsd.tree import flatten
from refsd.weights.streaming import Streamer, check_offload, order_of_use


def streaming(offload: str, backend: str) -> Streamer | None:
    """Where a model's weights are to come from; None where they are to stay in memory."""
    mode = check_offload(offload)
    if mode is not None and find_backend(backend).device != "cpu":
        raise UsageError(f"offload: the backend {backend!r} keeps weights on its device; leave it "
                         "out, or take the backend numba")
    return None if mode is None else Streamer(mode, find_backend(backend))


def arrange(streamer: Streamer, networks: Mapping[str, Any]) -> None:
    """Have the weights in the order in which a drawing of the model's own size uses them."""
    found = calls(networks, sized(networks))
    read = [[*planned.inputs.values()] for _, plan, _ in found.values() for planned in plan]
    for part, network in networks.items():
        leaves = [leaf for leaf in flatten(network.tree).values()
                  if isinstance(leaf, Away) and leaf.source is streamer]
        if leaves:
            streamer.arrange(part, order_of_use(read, leaves))


def streamers(pipe: Any) -> Iterator[Streamer]:
    """Those of a pipeline's networks, each once."""
    leaves = (leaf for network in pipe.networks.values() for leaf in flatten(network.tree).values())
    yield from {leaf.source: None for leaf in leaves if isinstance(leaf, Away)}
