"""A kernel for each instruction of the package, which a GPU and Python can both run.

A probe is a kernel of a warp, or of a warpgroup, that takes its operands from x (words of 32 bits)
and h (halves), and writes what the instruction gave to y and z. intrinsics.py compares.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from refsd.numba_ops.cuda.plan import AMPERE, HOPPER, TURING, Factory, Plan

WARP, WARPGROUP = 32, 128


class Probe(NamedTuple):
    """What makes a kernel. x: the kind of numbers there; ulp: how far float32 may be off."""

    make: Callable[..., Callable]
    since: int = TURING
    x: str = "bits"
    ulp: float = 0
    sums: bool = False  # of products: TERMS of the sums of absolute values are allowed
    only: str = ""  # as Factory.only
    threads: int = WARP
    shared: int = 0  # bytes of dynamic memory


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


def made(gpu: Any, name: str) -> Plan:
    """The plan of a probe."""
    taken = [getattr(gpu, part, None) or getattr(gpu.cuda, part) for part in name.split(".")]
    about = PROBES[name]
    kernel = about.make(gpu, *taken)
    words, halves = gpu.array("uint32"), gpu.array("float16")
    return Plan(kernel, (words, halves, words, halves), about.threads, about.shared)


def factories() -> list[tuple[Factory, tuple]]:
    """A variant each, as plan.FACTORIES has those of ops."""
    return [(Factory(made, ((name,),), found.since, found.only), (name,))
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


@probe("wgmma.wgmma_fence.wgmma_commit.wgmma_wait0.fence_async",
       "wgmma.wgmma_fence.wgmma_commit.wgmma_wait1.fence_async", x="float32", sums=True,
       since=HOPPER, only="a", threads=WARPGROUP, shared=2 * 64 * (64 + 8))
def _wgmma(gpu, wgmma, fence, commit, wait, fence_async):
    """A (64, 16) and B (8, 16) of h, in rows of 64 halves whose pieces of 8 are turned."""
    cuda, uint32, bits_of, float_of = gpu.cuda, gpu.uint32, gpu.bits_of, gpu.float_of
    float16, float32, product, rest = gpu.float16, gpu.float32, wgmma(8, "f16"), gpu.wgmma_wait0

    def kernel(x, h, y, z):
        tile = cuda.shared.array(0, float16, 1024)
        sums = cuda.local.array(4, float32)
        t = uint32(cuda.threadIdx.x)
        for i in range(t, 2 * (64 + 8), WARPGROUP):
            row, piece = uint32(i) >> uint32(1), uint32(i) & uint32(1)
            at = uint32(row * uint32(64) + ((piece ^ (row & uint32(7))) << uint32(3)))
            for k in range(8):
                tile[at + uint32(k)] = h[uint32(i) * uint32(8) + uint32(k)]
        for k in range(4):
            sums[k] = float_of(x[t * uint32(4) + uint32(k)])
        fence_async()
        cuda.syncthreads()
        fence()
        product(sums, tile, uint32(0), tile, uint32(64 * 64))
        commit()
        wait()
        rest()
        for k in range(4):
            y[t * uint32(4) + uint32(k)] = bits_of(sums[k])
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
