"""Numbers from samples: medians, quartiles, rates, ratios. Nothing here is rounded or printed."""

from typing import NamedTuple

import numpy as np

from benchmarks.sections import BFLOAT16, HALVES, LAST, NHWC, OPENVINO, REFSD, TORCH

# A peer takes part in several forms; the faster one is the peer.
PEERS = {"PyTorch": (TORCH, LAST), "OpenVINO": (OPENVINO, NHWC)}
# The same in bfloat16. OpenVINO takes it by itself where the processor has it.
HALF_PEERS = {"PyTorch": [name for name in HALVES if name.startswith("PyTorch")],
              "OpenVINO": [name for name in HALVES if name.startswith("OpenVINO")]}
KINDS = ("conv 3x3", "conv 1x1", "linear", "attention", "norms", "activations")


class Spread(NamedTuple):
    """The middle of the samples, and the quarter below and above."""

    low: float
    median: float
    high: float


def spread(samples):
    return Spread(*(float(q) for q in np.percentile(samples, [25, 50, 75])))


def ours(row, name=REFSD):
    """Our own times of a row, or None."""
    samples = row.get("seconds", {}).get(name)
    return spread(samples) if samples else None


def peer(row, name, forms=PEERS):
    """The times of a peer's fastest form, or None."""
    found = [spread(row["seconds"][form]) for form in forms[name] if row["seconds"].get(form)]
    return min(found, key=lambda s: s.median, default=None)


def half(row):
    """A row in bfloat16: our time, and in units of our float32's and of each peer's best form's.

    None where something is missing; {"refsd": ..., "float32": ratio, peer: ratio}.
    """
    own = ours(row, BFLOAT16)
    others = {"float32": ours(row), **{name: peer(row, name, HALF_PEERS) for name in HALF_PEERS}}
    return None if own is None else {"refsd": own, **{
        name: other and own.median / other.median for name, other in others.items()}}


def int8(row, name):
    """Our median with int8 weights, and in units of our float32's; None where one is missing."""
    found, wide = ours(row, name), ours(row)
    return (found.median, found.median / wide.median) if found and wide else None


def ratio(row, name):
    """Our time in units of a peer's: below 1 is faster. None where one is missing."""
    own, their = ours(row), peer(row, name)
    return own.median / their.median if own and their else None


def limits(results):
    """{"fma": FLOP/s, "copy": bytes/s}: the best that was seen."""
    rows = results["sections"].get("peaks", {}).get("rows", {})
    units = {"fma": "flops", "copy": "bytes"}
    return {kind: row[units[kind]] / min(row["seconds"][REFSD]) for kind, row in rows.items()}


def is_product(row):
    """Whether arithmetic, not memory, is what a row is about."""
    return row.get("op") in ("conv2d", "linear", "attention", None)


def rate(row):
    """FLOPs or bytes a second of our own median, and which of the two."""
    own, kind = ours(row), "flops" if is_product(row) else "bytes"
    return (row[kind] / own.median if own and kind in row else None), kind


def share(row, results):
    """The rate as a share of the machine's peak of that kind."""
    found, kind = rate(row)
    peak = limits(results).get({"flops": "fma", "bytes": "copy"}[kind])
    return found / peak if found and peak else None


def kind(row):
    """The line of the summary that an op belongs to; None for a convolution of another size."""
    if row["op"] == "conv2d":
        size = "x".join(map(str, row["inputs"]["weight"][2:]))
        return f"conv {size}" if f"conv {size}" in KINDS else None
    return {"group_norm": "norms", "layer_norm": "norms", "silu": "activations",
            "geglu": "activations"}.get(row["op"], row["op"])


def totals(results, part):
    """{kind: {"seconds": {who: total}, "flops", "bytes", "calls"}} of one run of a part.

    Each op's median times how often it is run; a kind in which an op lacks a time is left out.
    """
    found, incomplete = {}, set()
    for row in results["sections"].get("ops", {}).get("rows", {}).values():
        count = row["count"].get(part, 0)
        if not count:
            continue
        name = kind(row)
        total = found.setdefault(name, {"seconds": dict.fromkeys((REFSD, *PEERS), 0.0),
                                        "flops": 0, "bytes": 0, "calls": 0})
        times = {REFSD: ours(row)} | {other: peer(row, other) for other in PEERS}
        if None in times.values():
            incomplete.add(name)
            continue
        for who, time in times.items():
            total["seconds"][who] += count * time.median
        total["flops"] += count * row["flops"]
        total["bytes"] += count * row["bytes"]
        total["calls"] += count
    return {name: found[name] for name in KINDS if name in found and name not in incomplete}
