"""The same bits, no copies, what a launch costs, and float32 inside its bounds at full size."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import agreement
from benchmarks.calls import make_arrays
from benchmarks.gpu.networks import Network, Ours, light
from benchmarks.gpu.ops import calls, placed
from refsd import functional as F
from refsd.backends import BACKENDS
from refsd.numba_ops.cuda import array
from refsd.numba_ops.cuda.array import to_device
from refsd.numba_ops.cuda.device import current
from refsd.registry import use

Rows = Iterator[tuple[str, dict[str, Any]]]


def determinism(work: Any) -> Rows:
    """Twice, and the first of two samples alone, to the bit: a whole step, then each op."""
    with light(work):
        yield "step", work.guarded(lambda: _same_step(work))
    for call in calls(work.rehearse, 2):
        for dtype in ("float16", "float32"):
            yield f"{call.name} {dtype}", work.guarded(
                lambda call=call, dtype=dtype: _same(call, dtype))


def _same(call, dtype):
    arrays = {name: None if a is None else a.astype(dtype)
              for name, a in make_arrays(call.inputs).items()}
    function, samples = getattr(F, call.op), {"x", "q", "k", "v"}
    with use("cuda"):
        first, again = (function(**placed(arrays), **call.options).numpy() for _ in range(2))
        alone = function(**placed({name: a[:1] if name in samples else a
                                   for name, a in arrays.items()}), **call.options).numpy()
    return _differing({"twice": (first, again), "alone": (first[:1], alone)})


def _differing(pairs):
    row = {name: int((a.view(np.uint8) != b.view(np.uint8)).sum())
           for name, (a, b) in pairs.items()}
    red = {name: count for name, count in row.items() if count}
    return row | ({"red": f"bytes that differ: {red}"} if red else {})


def _same_step(work):
    network = Network("float16", work.rehearse)
    ours = Ours(network)
    replayed = BACKENDS["cuda"].replayed(ours.step, ours.tree)
    inputs = ours.inputs["sample"], ours.inputs["timesteps"]
    results = [ours.step().numpy(), ours.step().numpy(), *(replayed(*inputs).numpy()
                                                           for _ in range(3))]
    single = Network.__new__(Network)
    single.__dict__ |= network.__dict__ | {"inputs": {k: x[:1] for k, x in network.inputs.items()}}
    alone = Ours(single).step().numpy()
    return _differing({"twice": results[:2], "replayed": (results[0], results[4]),
                       "alone": (results[0][:1], alone)})


def copies(work: Any) -> Rows:
    """Of a replayed step none; op by op the timesteps alone."""
    def counted():
        ours = Ours(Network("float16", work.rehearse))
        replayed = BACKENDS["cuda"].replayed(ours.step, ours.tree)
        inputs = ours.inputs["sample"], ours.inputs["timesteps"]
        row = {}
        for name in ("by op", "captured", "replayed"):
            before = dict(array.copies)
            replayed(*inputs)
            row[name] = {key: array.copies[key] - before[key] for key in before}
        red = any(row["replayed"].values())
        return row | ({"red": f"a replayed step copied {row['replayed']}"} if red else {})

    with light(work):
        yield "copies of a step", work.guarded(counted)


def launches(work: Any) -> Rows:
    """Seconds of Python that asking for an op takes, and of all until it is done, a launch."""
    count = 5 if work.rehearse else 2000

    def timed(run):
        run()
        current().synchronize()
        begun = time.perf_counter()
        for _ in range(count):
            run()
        asked = time.perf_counter() - begun
        current().synchronize()
        return {"asked": asked / count, "done": (time.perf_counter() - begun) / count}

    x = to_device(np.ones(32, "float32"))
    with use("cuda"):
        yield "silu of 32 numbers", work.guarded(lambda: timed(lambda: F.silu(x)))
        yield "contract and look-up alone", work.guarded(lambda: _dispatch(count, x))


def _dispatch(count, x):
    from refsd.registry import trace

    with trace(lambda *call: None):
        begun = time.perf_counter()
        for _ in range(count):
            F.silu(x)
        return {"asked": (time.perf_counter() - begun) / count}


def float32(work: Any) -> Rows:
    """A sample of each result against the reference in float64, in shares of the derived bound."""
    for call in calls(work.rehearse, 4):
        yield call.name, work.guarded(lambda call=call: _within(call))


def _within(call):
    arrays = make_arrays(call.inputs)
    with use("cuda"):
        result = getattr(F, call.op)(**placed(arrays), **call.options).numpy()
    try:
        return agreement.check(call.op, arrays, call.options, result)
    except AssertionError as problem:
        return {"red": str(problem)[:500]}
