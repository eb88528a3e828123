"""A profile as tables: rows of plain values, the slowest first."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from refsd.algorithms import chosen
from refsd.profiling.record import Call, Profile, Span
from refsd.registry import ops, use


class Cost(NamedTuple):
    """What the contract counts for a call, and the algorithm where its op has several."""

    flops: int
    bytes: int
    algorithm: str | None


class Costs:
    """The costs of a profile's calls; those of equal shapes and options are asked for once."""

    def __init__(self, profile: Profile):
        self._profile, self._known = profile, {}

    def __call__(self, call: Call) -> Cost:
        key = f"{call.op} {call.inputs} {call.options}"
        if key not in self._known:
            output = ops()[call.op].contract(**call.inputs, **call.options)
            with use(self._profile.backend, exact=self._profile.exact):
                algorithm = chosen(call.op, call.inputs, call.options)
            self._known[key] = Cost(output.flops, output.bytes, algorithm)
        return self._known[key]


def tables(profile: Profile) -> dict[str, Any]:
    """Everything, as JSON can hold it. Times are seconds; shares are of the whole time.

    `stages` and `steps` tell their time outside of ops apart: `outside` is what neither an op nor
    this profiler took, the work of Python between the ops.
    """
    costs = Costs(profile)
    return {
        "seconds": profile.nanoseconds / 1e9,
        "stages": [_span(profile, span) for span in profile.stages],
        "steps": [_span(profile, span) for span in profile.steps],
        "ops": group(profile, costs, lambda call: {"op": call.op}),
        "blocks": group(profile, costs, lambda call: {"block": block(call.layer)}),
        "layers": group(profile, costs, lambda call: {"layer": call.layer, "op": call.op}),
        "calls": group(profile, costs, lambda call: {
            "op": call.op, "call": describe(call), "algorithm": costs(call).algorithm}),
    }


def group(profile: Profile, costs: Costs, key: Callable[[Call], dict]) -> list[dict[str, Any]]:
    """The calls that `key` names alike, added up; the slowest group first.

    The rates are those of the definition's operations and of the least possible traffic: Winograd
    may so exceed what the processor can multiply, and caches what its memory can deliver.
    """
    groups: dict[str, dict[str, Any]] = {}
    for call in profile.calls:
        name = key(call)
        row = groups.setdefault(json.dumps(name), {**name, "nanoseconds": 0, "calls": 0,
                                                   "flops": 0, "bytes": 0,
                                                   "layout_copies": 0})
        row["nanoseconds"] += call.nanoseconds
        row["calls"] += 1
        row["flops"] += costs(call).flops
        row["bytes"] += costs(call).bytes
        row["layout_copies"] += call.copies
    rows = sorted(groups.values(), key=lambda row: -row["nanoseconds"])
    for row in rows:
        time = row.pop("nanoseconds")
        row |= {"seconds": time / 1e9, "share": time / profile.nanoseconds,
                "gflop_per_second": row["flops"] / max(time, 1),
                "gb_per_second": row["bytes"] / max(time, 1)}
    return rows


def _span(profile: Profile, span: Span) -> dict[str, Any]:
    inside = [call for call in profile.calls if span.begun <= call.begun < span.ended]
    computing = sum(call.nanoseconds for call in inside)
    watching = sum(call.watched for call in inside)
    return {"name": span.name, "seconds": span.nanoseconds / 1e9,
            "share": span.nanoseconds / profile.nanoseconds, "calls": len(inside),
            "in_ops": computing / 1e9, "profiling": watching / 1e9,
            "outside": (span.nanoseconds - computing - watching) / 1e9,
            "layout_copies": sum(call.copies for call in inside)}


def block(layer: str) -> str:
    """The large part of a model that a layer is in: unet.down_blocks.0, vae.decoder.mid_block."""
    names = layer.split(".")
    end = 3 if names[1:2] in (["encoder"], ["decoder"]) else 2
    if names[end:end + 1] and names[end].isdigit():
        end += 1
    return ".".join(names[:end])


def describe(call: Call) -> str:
    """The shapes of a call, vectors and defaults left out: "2x64x16x16 64x64x3x3 padding=1"."""
    arrays = [shape for value in call.inputs.values() for shape in _shapes(value)]
    large = [shape for shape in arrays if len(shape) > 1] or arrays
    parameters = ops()[call.op].signature.parameters
    options = [f"{name}={_shown(value)}" for name, value in call.options.items()
               if value != parameters[name].default]
    return " ".join(["x".join(map(str, shape)) for shape in large] + options)


def _shapes(value: Any) -> list[tuple[int, ...]]:
    if hasattr(value, "shape"):
        return [value.shape]
    several = value if isinstance(value, (list, tuple)) else ()
    return [shape for element in several for shape in _shapes(element)]


def _shown(value: Any) -> str:
    shapes = _shapes(value)
    return "x".join(map(str, shapes[0])) if shapes else str(value).replace(" ", "")
