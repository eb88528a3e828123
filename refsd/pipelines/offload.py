"""Weights that are away while they are not used: refsd.weights.streaming for a pipeline."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from refsd.backends import find_backend
from refsd.errors import UsageError
from refsd.leaf import Away
from refsd.pipelines.planned import calls, sized
from refsd.pipelines.request import check_integer, free_bytes
from refsd.tree import flatten
from refsd.weights.lighter import gib
from refsd.weights.streaming import Streamer, check_offload

logger = logging.getLogger(__name__)


def streaming(place: Path, offload: str | None, budget: int | None, backend: str,
              **options: Any) -> tuple[Streamer | None, int | None]:
    """Where a model's weights are to come from; None where they are to stay in memory.

    Also what a budget leaves for the decoder.
    """
    if budget is not None:
        check_integer("memory_budget", budget, 1, 2**60)
        if offload not in (None, "auto"):
            raise UsageError(f"memory_budget lets refsd choose, and offload is {offload!r}; give "
                             "one of them")
        offload = "auto"
    mode, room = (fitting(place, budget, backend=backend, **options) if offload == "auto" else
                  (check_offload(offload), None))
    if mode is not None and find_backend(backend).device != "cpu":
        raise UsageError(f"offload: the backend {backend!r} keeps weights on its device; leave it "
                         "out, or take the backend numba")
    return None if mode is None else Streamer(mode, find_backend(backend)), room


def fitting(place: Path, budget: int | None, **options: Any) -> tuple[str | None, int | None]:
    """The fastest of the ways that fits into the budget, or what is free; the least, if none does.

    options: of refsd.pipelines.asked.Request. A drawing of the model's own size is counted, whose
    decoder goes in bands where that makes it fit; also what a budget leaves for it.
    """
    from refsd.pipelines.asked import Request, decoding_room, offloads
    from refsd.pipelines.outline import outline

    free = free_bytes(options["backend"]) if budget is None else budget
    found, request = outline(str(place)), Request(**options)
    ways = [*offloads(found, request, free)]
    fits = [way for way in ways if free is None or way.bytes <= free]
    chosen = fits[0] if fits else ways[-1]
    mode = chosen.options["offload"]
    say = logger.info if fits else logger.warning
    say("offload: %s, with which a picture takes about %s%s", mode or "none", gib(chosen.bytes),
        "" if free is None else f" of {gib(free)}")
    if budget is None or "vae" not in found.configs:
        return mode, None
    return mode, decoding_room(found, replace(request, offload=mode), budget)


def arrange(streamer: Streamer, networks: Mapping[str, Any]) -> None:
    """Have the weights in the order in which a drawing of the model's own size uses them."""
    found = calls(networks, sized(networks))
    read = [[*planned.inputs.values()] for _, plan, _ in found.values() for planned in plan]
    for part, network in networks.items():
        leaves = [leaf for leaf in flatten(network.tree).values()
                  if isinstance(leaf, Away) and leaf.source is streamer]
        if leaves:
            streamer.arrange(part, order_of_use(read, leaves))


def order_of_use(calls: Iterable[Iterable[Any]], leaves: Iterable[Any]) -> list[Any]:
    """The leaves as ops, each the values that it reads, first use them; others come last."""
    mine = {leaf.name: leaf for leaf in leaves}
    names = (getattr(value, "name", None) for values in calls for value in values)
    first = {name: mine[name] for name in names if name in mine}
    return [*({**first, **mine}).values()]


def streamers(pipe: Any) -> Iterator[Streamer]:
    """Those of a pipeline's networks, each once."""
    leaves = (leaf for network in pipe.networks.values() for leaf in flatten(network.tree).values())
    yield from {leaf.source: None for leaf in leaves if isinstance(leaf, Away)}
