"""python -m benchmarks.int8: linear layers with int8 activations beside float32 and bfloat16.

Milliseconds, medians of calls that take turns, for one thread and for all; each result is compared
with the definition first.
"""

import statistics
import time

import numba
import numpy as np

from refsd import functional as F
from refsd.half import to_half
from refsd.leaf import Weight
from refsd.numba_ops.weights import pack_all
from refsd.quantized import W8A8, quantize, round_tokens
from refsd.registry import use

SHAPES = [(2048, 640, 5120), (512, 1280, 10240), (512, 5120, 1280), (8192, 320, 2560),
          (8192, 320, 320), (2, 1280, 1280)]  # of Stable Diffusion 1.5
TURNS = 15


def calls(M, K, N):
    """{name: a call of linear}, the int8 one checked against the definition."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype("float32") for shape in ((M, K), (N, K)))
    weights = {"float32": Weight(w), "bfloat16": Weight(to_half(w, "bfloat16")),
               "int8": W8A8(*quantize(w))}
    packed = {f"{name}.weight": weight for name, weight in weights.items()}
    pack_all(packed)
    given = {"float32": x, "bfloat16": to_half(x, "bfloat16"), "int8": x}
    wanted = round_tokens(x[:50], -1).astype("f8") @ weights["int8"].dense().astype("f8").T
    found = F.linear(x, packed["int8.weight"])[:50]
    assert (np.abs(found - wanted) <= 4 * 2.0**-24 * np.abs(wanted)).all()
    return {name: lambda name=name: F.linear(given[name], packed[f"{name}.weight"])
            for name in weights}


def main():
    """Print a line for each shape and number of threads."""
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        for shape in SHAPES:
            times = {name: [] for name in ("float32", "bfloat16", "int8")}
            with use("numba"):
                todo = calls(*shape)
                for turn in range(TURNS + 1):
                    for name, call in todo.items():
                        begun = time.perf_counter()
                        call()
                        times[name] += [time.perf_counter() - begun] if turn else []
            found = {name: 1e3 * statistics.median(part) for name, part in times.items()}
            each = ", ".join(f"{name} {ms:.2f} ms" for name, ms in found.items())
            ratios = [found[name] / found["int8"] for name in ("float32", "bfloat16")]
            print(f"{threads} threads, {shape}: {each}; int8 is {ratios[0]:.1f} and "
                  f"{ratios[1]:.1f} times faster", flush=True)


if __name__ == "__main__":
    main()
