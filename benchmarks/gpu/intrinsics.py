"""Each instruction of ptx.py against its meaning in Python, on random bits, by one warp.

Everything that is shown without a GPU rests on meaning.py, which is a reading of the manual: so
this is what a GPU is asked first. A probe is a kernel of 32 threads that takes its operands from
x (words of 32 bits) and h (halves), and writes what the instruction gave to y and z.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from refsd.numba_ops.cuda import lockstep
from refsd.numba_ops.cuda.array import to_device
from refsd.numba_ops.cuda.device import current, launch
from refsd.numba_ops.cuda.plan import AMPERE, TURING, Factory, Plan

WARP, WORDS, HALVES = 32, 512, 768  # of a block, and of the arrays: room for all that a probe does
UNSET = 0x7F  # every byte of y and z before
# Tensor cores add the exact products of 16 and the sum before in an order and a form of their own,
# which keep at least float32's bits of the largest term and may truncate (Fasi et al. 2021): 17
# terms lose less than a unit of the last place of the largest sum each, and so does the result.
TERMS = 18 * 2.0**-23


class Probe(NamedTuple):
    """What makes a kernel. x: the kind of numbers there; ulp: how far float32 may be off."""

    make: Callable[..., Callable]
    since: int = TURING
    x: str = "bits"
    ulp: float = 0
    sums: bool = False  # of products: TERMS of the sums of absolute values are allowed


PROBES: dict[str, Probe] = {}


def probe(*names: str, **about: Any) -> Callable:
    """Declare what makes a kernel of these instructions: make(gpu, instruction, ...).

    "copy16.wait1" is two of them.
    """
    def declare(make):
        for name in names:
            PROBES[name] = Probe(make, **about)
        return make
    return declare


def _made(gpu: Any, name: str) -> Plan:
    taken = [getattr(gpu, part, None) or getattr(gpu.cuda, part) for part in name.split(".")]
    kernel = PROBES[name].make(gpu, *taken)
    words, halves = gpu.array("uint32"), gpu.array("float16")
    return Plan(kernel, (words, halves, words, halves), WARP)


def factories() -> list[tuple[Factory, tuple]]:
    """A variant each, as plan.FACTORIES has those of ops."""
    return [(Factory(_made, ((name,),), found.since, ""), (name,))
            for name, found in PROBES.items()]


# CUDA's own table of its functions' errors allows at most two units of the last place.
@probe("exp", "tanh", "erf", "sin", "cos", x="small", ulp=2)
@probe("exp2", x="small", ulp=2)
@probe("sqrt", x="small")
def _function(gpu, function):
    cuda, uint32, bits_of, float_of = gpu.cuda, gpu.uint32, gpu.bits_of, gpu.float_of

    def kernel(x, h, y, z):
        i = uint32(cuda.threadIdx.x)
        y[i] = bits_of(function(float_of(x[i])))
    return kernel


@probe("bits_of.float_of")
def _bits(gpu, bits_of, float_of):
    cuda, uint32 = gpu.cuda, gpu.uint32

    def kernel(x, h, y, z):
        i = uint32(cuda.threadIdx.x)
        y[i] = bits_of(float_of(x[i]))
    return kernel


@probe("fma", x="small")
def _fma(gpu, fma):
    cuda, uint32, bits_of, float_of = gpu.cuda, gpu.uint32, gpu.bits_of, gpu.float_of

    def kernel(x, h, y, z):
        i = uint32(cuda.threadIdx.x)
        y[i] = bits_of(fma(float_of(x[i]), float_of(x[i + uint32(32)]),
                           float_of(x[i + uint32(64)])))
    return kernel


@probe("larger", x="finite")
def _larger(gpu, larger):
    cuda, uint32, bits_of, float_of = gpu.cuda, gpu.uint32, gpu.bits_of, gpu.float_of

    def kernel(x, h, y, z):
        i = uint32(cuda.threadIdx.x)
        y[i] = bits_of(larger(float_of(x[i]), float_of(x[i + uint32(32)])))
    return kernel


@probe("pack_f16", x="finite")
@probe("pack_f16_ampere", x="finite", since=AMPERE)
@probe("pack_bf16", x="bits", since=AMPERE)
def _pack(gpu, pack):
    cuda, uint32, float_of = gpu.cuda, gpu.uint32, gpu.float_of

    def kernel(x, h, y, z):
        i = uint32(cuda.threadIdx.x)
        y[i] = pack(float_of(x[i]), float_of(x[i + uint32(32)]))
    return kernel


@probe("load4")
def _load4(gpu, load4):
    cuda, uint32 = gpu.cuda, gpu.uint32

    def kernel(x, h, y, z):
        i = uint32(cuda.threadIdx.x)
        words, halves = load4(x, i * uint32(4)), load4(h, i * uint32(8))
        for k in range(4):
            y[i * uint32(4) + uint32(k)] = words[k]
        for k in range(8):
            z[i * uint32(8) + uint32(k)] = halves[k]
    return kernel


@probe("store4")
def _store4(gpu, store4):
    cuda, uint32 = gpu.cuda, gpu.uint32

    def kernel(x, h, y, z):
        i = uint32(cuda.threadIdx.x)
        a, b = i * uint32(4), i * uint32(8)
        one, two = uint32(1), uint32(2)
        store4(y, a, (x[a], x[a + one], x[a + two], x[a + uint32(3)]))
        store4(z, b, (h[b], h[b + one], h[b + two], h[b + uint32(3)], h[b + uint32(4)],
                      h[b + uint32(5)], h[b + uint32(6)], h[b + uint32(7)]))
    return kernel


@probe("store_pair")
def _store_pair(gpu, store_pair):
    cuda, uint32 = gpu.cuda, gpu.uint32

    def kernel(x, h, y, z):
        i = uint32(cuda.threadIdx.x)
        store_pair(z, i * uint32(2), x[i] & uint32(0x3FFF3FFF))
    return kernel


@probe("store_pairs")
def _store_pairs(gpu, store_pairs):
    cuda, uint32 = gpu.cuda, gpu.uint32

    def kernel(x, h, y, z):
        i = uint32(cuda.threadIdx.x)
        finite = uint32(0x3FFF3FFF)
        store_pairs(z, i * uint32(4), x[i] & finite, x[i + uint32(32)] & finite)
    return kernel


@probe("mma_f16_turing", x="float16", sums=True)
@probe("mma_f16", x="float16", sums=True, since=AMPERE)
@probe("mma_bf16", x="bfloat16", sums=True, since=AMPERE)
def _mma(gpu, mma):
    cuda, uint32, bits_of, float_of = gpu.cuda, gpu.uint32, gpu.bits_of, gpu.float_of

    def kernel(x, h, y, z):
        i = uint32(cuda.threadIdx.x) * uint32(10)
        one, two, three = uint32(1), uint32(2), uint32(3)
        a = (x[i], x[i + one], x[i + two], x[i + three])
        b = (x[i + uint32(4)], x[i + uint32(5)])
        c = (float_of(x[i + uint32(6)]), float_of(x[i + uint32(7)]), float_of(x[i + uint32(8)]),
             float_of(x[i + uint32(9)]))
        sums = mma(a, b, c)
        for k in range(4):
            y[uint32(cuda.threadIdx.x) * uint32(4) + uint32(k)] = bits_of(sums[k])
    return kernel


@probe("ldmatrix", "ldmatrix_t")
def _ldmatrix(gpu, ldmatrix):
    cuda, uint32, float16 = gpu.cuda, gpu.uint32, gpu.float16

    def kernel(x, h, y, z):
        tile = cuda.shared.array(256, float16, 128)
        i = uint32(cuda.threadIdx.x)
        for k in range(8):
            tile[i * uint32(8) + uint32(k)] = h[i * uint32(8) + uint32(k)]
        cuda.syncthreads()
        # The rows in another order than they lie in, so that addresses matter.
        words = ldmatrix(tile, ((i * uint32(5)) % uint32(32)) * uint32(8))
        for k in range(4):
            y[i * uint32(4) + uint32(k)] = words[k]
    return kernel


@probe("shfl_sync", "shfl_xor_sync", "shfl_up_sync", "shfl_down_sync")
def _shuffle(gpu, shuffle):
    cuda, uint32, bits_of, float_of = gpu.cuda, gpu.uint32, gpu.bits_of, gpu.float_of

    def kernel(x, h, y, z):
        i = uint32(cuda.threadIdx.x)
        y[i] = bits_of(shuffle(0xFFFFFFFF, float_of(x[i]), 5))
    return kernel


@probe("copy16.commit.wait0.nothing", "copy16.commit.wait1", "copy16.commit.wait2", since=AMPERE)
def _copy16(gpu, copy16, commit, wait, *_):
    """Three groups; as many as have arrived after `wait` are read, then the others."""
    early = 3 - [gpu.wait0, gpu.wait1, gpu.wait2].index(wait)
    return _copied(gpu, copy16, commit, wait, gpu.wait0, early)


@probe("copy16_turing.nothing")
def _copy16_turing(gpu, copy16, nothing):
    return _copied(gpu, copy16, nothing, nothing, nothing, 3)


def _copied(gpu, copy16, commit, wait, rest, early):
    cuda, uint32, float16 = gpu.cuda, gpu.uint32, gpu.float16
    size, early = uint32(256), early * 256

    def kernel(x, h, y, z):
        tile = cuda.shared.array(768, float16, 128)
        i = uint32(cuda.threadIdx.x)
        for group in range(3):
            at = uint32(group) * size + i * uint32(8)
            copy16(tile, at, h, at, (i + uint32(group)) % uint32(3) != uint32(0))
            commit()
        wait()
        cuda.syncthreads()
        for k in range(0, early, 32):
            z[uint32(k) + i] = tile[uint32(k) + i]
        rest()
        cuda.syncthreads()
        for k in range(early, 768, 32):
            z[uint32(k) + i] = tile[uint32(k) + i]
    return kernel


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
    lockstep.run(_made(lockstep, name), (1,), [x, h, *results])
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
        absolute = x.copy()
        absolute[:10 * WARP].reshape(WARP, 10)[:] &= np.array([0x7FFF7FFF] * 6 + [0x7FFFFFFF] * 4,
                                                              np.uint32)
        allowed = TERMS * meaning(name, absolute, h)[0].view(np.float32)
    share = float(np.max(abs(got - true) / allowed))
    return row | {"share": share} | ({} if share <= 1 else {"red": f"{share:.3g} of what it may"})


def section(work: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """A row an instruction."""
    for name, about in PROBES.items():
        if about.since > current().capability:
            yield name, {"skipped": f"needs compute capability {about.since / 10}"}
        else:
            yield name, work.guarded(lambda name=name: judge(name, on_device(name, *inputs(name)),
                                                             *inputs(name)))
