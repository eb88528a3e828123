"""A profile as a Chrome trace, which chrome://tracing and ui.perfetto.dev show.

Format: "Trace Event Format", complete events ("X") that lie inside each other on one thread. Times
are microseconds from the beginning; three decimals hold every nanosecond.
"""

from collections.abc import Iterator
from typing import Any

from refsd.profiling.record import Call, Profile, Span
from refsd.profiling.tables import Costs, describe

PROCESS = {"pid": 1, "tid": 1}
READING = {"pid": 1, "tid": 2}  # of weights, beside the kernels
DEEPEST = 100  # below all layers: the order of spans that have the same times


def trace(profile: Profile, *, about: dict[str, Any] | None = None) -> dict[str, Any]:
    """The trace as JSON can hold it: generation, stages, steps, layers, ops, the outer first.

    `about` is kept under otherData. An op's args say its shapes, what its contract counts, and the
    algorithm where it has several. Weights that are read while they are used are spans of a thread
    beside it, and of the kernels' own where they had to wait for them.
    """
    start, costs = profile.stages[0].begun, Costs(profile)
    whole = Span("generation", start, profile.stages[-1].ended)
    spans = [(whole, "generation", 0, {})]
    spans += [(span, "stage", 1, {}) for span in profile.stages]
    spans += [(span, "step", 2, {}) for span in profile.steps]
    spans += [(span, "layer", 2 + depth, {"path": path})
              for span, depth, path in layers(profile.calls)]
    spans += [(Span(call.op, call.begun, call.ended), "op", DEEPEST, _args(call, costs))
              for call in profile.calls]
    spans.sort(key=lambda entry: (entry[0].begun, -entry[0].ended, entry[2]))
    names = [("process_name", "refsd", PROCESS), ("thread_name", "generation", PROCESS)]
    if profile.reads:
        names.append(("thread_name", "reading weights", READING))
    return {
        "traceEvents": [
            *({"ph": "M", "name": name, "ts": 0, **thread, "args": {"name": value}}
              for name, value, thread in names),
            *({"ph": "X", "name": span.name, "cat": category, "ts": (span.begun - start) / 1e3,
               "dur": span.nanoseconds / 1e3, **PROCESS, "args": args}
              for span, category, _, args in spans),
            *({"ph": "X", "name": read.layer, "cat": "read", "ts": (read.begun - start) / 1e3,
               "dur": (read.ended - read.begun) / 1e3, **(READING if read.ahead else PROCESS),
               "args": {"bytes": read.bytes}} for read in profile.reads),
        ],
        "displayTimeUnit": "ms",
        "otherData": {**(about or {}), "backend": profile.backend, "exact": profile.exact},
    }


def layers(calls: list[Call]) -> Iterator[tuple[Span, int, str]]:
    """A span, its depth and its path for every level of layers: over calls in a row within it."""
    open_levels: list[list] = []  # name, begun, ended so far
    stage = None
    for call in calls:
        levels = _levels(call.layer)
        same = 0
        while same < min(len(levels), len(open_levels)) and call.stage == stage and (
                levels[same] == open_levels[same][0]):
            same += 1
        yield from _close(open_levels, same)
        open_levels += [[name, call.begun, call.ended] for name in levels[same:]]
        for level in open_levels:
            level[2] = call.ended
        stage = call.stage
    yield from _close(open_levels, 0)


def _close(open_levels: list[list], keep: int) -> Iterator[tuple[Span, int, str]]:
    while len(open_levels) > keep:
        depth, path = len(open_levels), ".".join(level[0] for level in open_levels)
        yield Span(*open_levels.pop()), depth, path


def _levels(layer: str) -> list[str]:
    """ "unet.down_blocks.0.conv1" -> unet, down_blocks.0, conv1: a number belongs to its list"""
    levels: list[str] = []
    for name in layer.split(".") if layer else []:
        if name.isdigit() and levels:
            levels[-1] += f".{name}"
        else:
            levels.append(name)
    return levels


def _args(call: Call, costs: Costs) -> dict[str, Any]:
    cost = costs(call)
    return {"shapes": describe(call), "layer": call.layer, "flops": cost.flops,
            "bytes": cost.bytes, "gflop_per_second": cost.flops / max(call.nanoseconds, 1),
            **({"algorithm": cost.algorithm} if cost.algorithm else {}),
            **({"layout_copies": call.copies} if call.copies else {})}
