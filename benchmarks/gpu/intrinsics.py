"""Each instruction of the package against its meaning in Python, on random bits.

Everything that is shown without a GPU rests on meaning.py, which is a reading of the manual: so
this is what a GPU is asked first.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.gpu.probes import PROBES, WARP, factories, made
from refsd.numba_ops.cuda import lockstep
from refsd.numba_ops.cuda.array import to_device
from refsd.numba_ops.cuda.device import current, launch
from refsd.numba_ops.cuda.plan import Factory

WORDS, HALVES = 512, 1280  # of the arrays: room for all that a probe does
UNSET = 0x7F  # every byte of y and z before
# Tensor cores add the exact products of 16 and the sum before in an order and a form of their own,
# which keep at least float32's bits of the largest term and may truncate (Fasi et al. 2021): 17
# terms lose less than a unit of the last place of the largest sum each, and so does the result.
TERMS = 18 * 2.0**-23


def inputs(name: str, seed: int = 0) -> list[np.ndarray]:
    """x and h: random bits, of what the instruction takes."""
    random = np.random.default_rng(seed)
    x = random.integers(0, 2**32, WORDS, dtype=np.uint32)
    kind = PROBES[name].x
    if kind == "finite":
        x &= np.uint32(0xBFFFFFFF)
    elif kind == "small":
        x = (random.standard_normal(WORDS) * 4).astype(np.float32)
        x = (abs(x) if name == "sqrt" else x).view(np.uint32)
    elif kind == "float32":
        x = random.standard_normal(WORDS).astype(np.float32).view(np.uint32)
    elif PROBES[name].sums:
        numbers = random.standard_normal((WARP, 16)).astype(np.float32)
        halves = numbers.astype(np.float16).view(np.uint16)
        if kind == "bfloat16":
            halves = (numbers.view(np.uint32) >> 16).astype(np.uint16)
        pairs = np.ascontiguousarray(halves[:, :12]).view(np.uint32)
        x[:10 * WARP] = np.hstack([pairs, numbers[:, 12:].view(np.uint32)]).reshape(-1)
    h = random.standard_normal(HALVES).astype(np.float16)
    return [x, h]


def meaning(name: str, x: np.ndarray, h: np.ndarray) -> list[np.ndarray]:
    """y and z as Python has them."""
    results = [np.full(4 * WORDS, UNSET, np.uint8).view(np.uint32),
               np.full(2 * HALVES, UNSET, np.uint8).view(np.float16)]
    lockstep.run(made(lockstep, name), (1,), [x, h, *results])
    return results


def on_device(name: str, x: np.ndarray, h: np.ndarray) -> list[np.ndarray]:
    """y and z as the device gives them."""
    results = [to_device(np.full(n, UNSET, np.uint8).view(kind))
               for n, kind in ((4 * WORDS, np.uint32), (2 * HALVES, np.float16))]
    variant = next(f for f, constants in factories() if constants == (name,))
    launch(variant, (name,), (1,), to_device(x), to_device(h), *results)
    return [result.numpy() for result in results]


def judge(name: str, found: list[np.ndarray], x: np.ndarray, h: np.ndarray) -> dict[str, Any]:
    """How far results are off, as a share of what is allowed; "red" where it is more."""
    wanted, about = meaning(name, x, h), PROBES[name]
    differ = sum(int((a.view(np.uint8) != b.view(np.uint8)).sum()) for a, b in zip(found, wanted))
    row: dict[str, Any] = {"bytes_that_differ": differ}
    if not about.ulp and not about.sums:
        return row | {"red": f"{differ} bytes differ"} if differ else row
    got, true = (y[0].view(np.float32).astype(np.float64) for y in (found, wanted))
    allowed = about.ulp * np.spacing(abs(wanted[0].view(np.float32)))
    if about.sums:
        absolute = x & np.uint32(0x7FFFFFFF)
        if about.x != "float32":  # a thread's halves lie beside its sums
            absolute[:10 * WARP].reshape(WARP, 10)[:, :6] &= np.uint32(0x7FFF7FFF)
        allowed = TERMS * meaning(name, absolute, abs(h))[0].view(np.float32)
    share = float(np.max(abs(got - true) / allowed))
    return row | {"share": share} | ({} if share <= 1 else {"red": f"{share:.3g} of what it may"})


def section(work: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """A row an instruction."""
    for name, about in PROBES.items():
        if not Factory(made, (), about.since, about.only).serves(current().capability):
            yield name, {"skipped": f"needs compute capability {about.since / 10}{about.only}"}
        else:
            yield name, work.guarded(lambda name=name: judge(name, on_device(name, *inputs(name)),
                                                             *inputs(name)))
