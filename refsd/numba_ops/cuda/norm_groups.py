"""group_norm by pieces of whole pixels, channels last: moments, their merge, one more pass.

A group of 10 halves is 20 bytes, so pixels are read whole, 8 channels a thread, and the groups told
apart in shared memory. For each piece and group there are a mean m, and the means of d = x - m and
of d^2. All pieces' are merged by

    m = sum n_i m_i / n        v = sum n_i (v_i + (m_i - m)^2) / n        n = sum n_i

the formula of Chan, Golub and LeVeque 1983 for many parts, where m itself is in two parts: what is
left of it once it was rounded is found as the mean of all deviations from it.
"""

import math
from typing import Any

from refsd.numba_ops.cuda.array import DeviceArray, empty
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.eights import load_eight, store_eight
from refsd.numba_ops.cuda.numbers import reader
from refsd.numba_ops.cuda.plan import Plan, factory
from refsd.numba_ops.cuda.warp import warp_sum

# 8 channels a thread: up to those of Stable Diffusion's widest concatenation, whose widths (320 to
# 2560; 128 to 512 in the VAE) all leave few threads of a block without work.
THREADS = 320
CHANNELS = 8 * THREADS
GROUPS = THREADS
WARPS = THREADS // 32
AHEAD = 4  # pixels of a thread on the way from memory at once
MERGING = 4  # warps of a block that merges, a group each
NUMBERS = 10240  # of a piece, unless an image has more than 1024 such
DTYPES = ("float32", "float16", "bfloat16")


def by_pieces(x: DeviceArray, weight: DeviceArray, bias: DeviceArray, y: DeviceArray, N: int,
              P: int, C: int, groups: int, eps: float) -> None:
    """y = group_norm(x), both (N, P, C) in memory."""
    dtype, tall = (str(x.dtype),), max(NUMBERS // C, 1, -(-P // 1024))
    pieces = -(-P // tall)
    moments = empty((N, groups, 3, pieces), "float32")
    lines = empty((3, N, C), "float32")
    launch(moments_kernel, dtype, (pieces, N), x, moments, P, C, groups, tall)
    launch(lines_kernel, dtype, (-(-N * groups // MERGING),), moments, weight, bias, lines, N, P, C,
           groups, tall, pieces, eps)
    launch(apply_kernel, dtype, (pieces, N), x, lines, y, P, C, tall)


def _spot(gpu):
    """spot(t, C) -> phases, phase, c: a thread has 8 channels from c on, every so many pixels"""
    uint32 = gpu.uint32

    def spot(t, C):
        columns = C // uint32(8)
        phase = t // columns
        return uint32(THREADS) // columns, phase, (t - phase * columns) * uint32(8)

    return gpu.device(spot)


def _pixels(gpu, dtype):
    """load(x, first, p, phases, count, C, v): 8 channels of AHEAD pixels from p on, 0 beyond."""
    uint32, float32, eight = gpu.uint32, gpu.float32, load_eight(gpu, dtype)

    def load(x, first, p, phases, count, C, v):
        for k in range(AHEAD):
            pixel = p + uint32(k) * phases
            if pixel < count:
                eight(x, first + pixel * C, v, 8 * k)
            else:
                for j in range(8):
                    v[8 * k + j] = float32(0)

    return gpu.device(load)


def _passes(gpu, dtype):
    """add: s += the pixels of a thread; deviate: s += d and q += d^2, d = a pixel's number - m."""
    uint32, load = gpu.uint32, _pixels(gpu, dtype)

    def add(x, first, phase, phases, count, C, v, s):
        for p in range(phase, count, uint32(AHEAD) * phases):
            load(x, first, uint32(p), phases, count, C, v)
            for k in range(AHEAD):
                for j in range(8):
                    s[j] += v[8 * k + j]

    def deviate(x, first, phase, phases, count, C, v, m, s, q):
        for p in range(phase, count, uint32(AHEAD) * phases):
            load(x, first, uint32(p), phases, count, C, v)
            for k in range(AHEAD):
                if uint32(p) + uint32(k) * phases < count:
                    for j in range(8):
                        d = v[8 * k + j] - m[j]
                        s[j] += d
                        q[j] += d * d

    return gpu.device(add), gpu.device(deviate)


def _sums(gpu):
    """put(sums, at, v): eight sums of a thread; total: those of a group, of all phases, by a warp.

    sums (phases, C) in shared memory.
    """
    uint32, float32, store4, of_warp = gpu.uint32, gpu.float32, gpu.store4, warp_sum(gpu)

    def put(sums, at, v):
        store4(sums, uint32(at), (v[0], v[1], v[2], v[3]))
        store4(sums, uint32(at + uint32(4)), (v[4], v[5], v[6], v[7]))

    def total(sums, g, phases, C, width, lane):
        part = float32(0)
        for i in range(lane, phases * width, uint32(32)):
            phase = uint32(i) // width
            part += sums[uint32(phase * C + g * width + uint32(i) - phase * width)]
        return of_warp(part)

    return gpu.device(put), gpu.device(total)


@factory(each=[(dtype,) for dtype in DTYPES])
def moments_kernel(gpu: Any, dtype: str) -> Plan:
    """Of each group in a piece: a mean m, and the means of d = x - m and of d^2.

    Block (piece, n); x (N, P, C) -> out (N, groups, 3, pieces).
    """
    cuda, uint32, float32, spot = gpu.cuda, gpu.uint32, gpu.float32, _spot(gpu)
    (add, deviate), (put, total), several = _passes(gpu, dtype), _sums(gpu), 8 * AHEAD

    def moments(x, out, P, C, groups, tall):
        sums = cuda.shared.array(CHANNELS, float32, 16)
        squares = cuda.shared.array(CHANNELS, float32, 16)
        means = cuda.shared.array(GROUPS, float32)
        v = cuda.local.array(several, float32)
        m = cuda.local.array(8, float32)
        s = cuda.local.array(8, float32)
        q = cuda.local.array(8, float32)
        t, piece, n = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x), uint32(cuda.blockIdx.y)
        lane, warp, width = t & uint32(31), t >> uint32(5), C // groups
        phases, phase, c = spot(t, C)
        start = piece * tall
        count = tall if start + tall < P else P - start
        first = (n * P + start) * C + c
        share = float32(1) / float32(count * width)

        if phase < phases:
            for j in range(8):
                s[j] = float32(0)
            add(x, first, phase, phases, count, C, v, s)
            put(sums, phase * C + c, s)
        cuda.syncthreads()
        for g in range(warp, groups, uint32(WARPS)):
            mean = total(sums, uint32(g), phases, C, width, lane) * share
            if lane == uint32(0):
                means[uint32(g)] = mean
        cuda.syncthreads()

        if phase < phases:
            for j in range(8):
                s[j], q[j] = float32(0), float32(0)
                m[j] = means[(c + uint32(j)) // width]
            deviate(x, first, phase, phases, count, C, v, m, s, q)
            put(sums, phase * C + c, s)
            put(squares, phase * C + c, q)
        cuda.syncthreads()
        pieces = uint32(cuda.gridDim.x)
        for g in range(warp, groups, uint32(WARPS)):
            d = total(sums, uint32(g), phases, C, width, lane) * share
            square = total(squares, uint32(g), phases, C, width, lane) * share
            if lane == uint32(0):
                at = (n * groups + uint32(g)) * uint32(3) * pieces + piece
                out[at] = means[uint32(g)]
                out[at + pieces] = d
                out[at + uint32(2) * pieces] = square

    return Plan(moments, (gpu.array(dtype), gpu.array("float32"), *(gpu.uint32,) * 4), THREADS)


@factory(each=[(dtype,) for dtype in DTYPES])
def lines_kernel(gpu: Any, dtype: str) -> Plan:
    """Of each image's channels: centre, scale and shift, so that y = (x - centre) scale + shift.

    A warp a group. moments (N, groups, 3, pieces), weight and bias (C,) -> lines (3, N, C).
    """
    cuda, uint32, float32, sqrt = gpu.cuda, gpu.uint32, gpu.float32, gpu.sqrt
    read, total, array = reader(gpu, dtype), warp_sum(gpu), gpu.array(dtype)
    infinite = math.inf

    def merge(moments, weight, bias, lines, N, P, C, groups, tall, pieces, eps):
        t = uint32(cuda.threadIdx.x)
        task = uint32(cuda.blockIdx.x) * uint32(MERGING) + (t >> uint32(5))
        if task >= N * groups:
            return
        lane, first = t & uint32(31), task * uint32(3) * pieces
        full = float32(tall) / float32(P)
        last = float32(P - (pieces - uint32(1)) * tall) / float32(P)

        part = float32(0)
        for i in range(lane, pieces, uint32(32)):
            share = last if uint32(i) == pieces - uint32(1) else full
            part += share * moments[first + uint32(i)]
        mean = total(part)
        part = float32(0)
        for i in range(lane, pieces, uint32(32)):
            share = last if uint32(i) == pieces - uint32(1) else full
            at = first + uint32(i)
            part += share * (moments[at] - mean + moments[at + pieces])
        off = total(part)
        part = float32(0)
        for i in range(lane, pieces, uint32(32)):
            share = last if uint32(i) == pieces - uint32(1) else full
            at = first + uint32(i)
            d = moments[at + pieces]
            own = moments[at + uint32(2) * pieces] - d * d
            own = float32(0) if own < float32(0) else own
            between = moments[at] - mean + d - off
            part += share * (own + between * between)
        deviation = sqrt(total(part) + eps)

        centre = mean + off
        rest = mean - centre + off
        n, g, width = task // groups, task % groups, C // groups
        for i in range(lane, width, uint32(32)):
            c = g * width + uint32(i)
            scale = read(weight, c) / deviation
            at = n * C + c
            lines[at] = centre
            lines[at + N * C] = scale
            # Beside an infinite weight the rest does not count, and 0 times it would be NaN.
            small = abs(scale) < float32(infinite)
            lines[at + uint32(2) * N * C] = read(bias, c) - (rest * scale if small else float32(0))

    floats = gpu.array("float32")
    return Plan(merge, (floats, array, array, floats, *(gpu.uint32,) * 6, gpu.float32),
                32 * MERGING)


@factory(each=[(dtype,) for dtype in DTYPES])
def apply_kernel(gpu: Any, dtype: str) -> Plan:
    """y = (x - centre) scale + shift.   Block (piece, n); x and y (N, P, C), lines (3, N, C)"""
    cuda, uint32, float32, array = gpu.cuda, gpu.uint32, gpu.float32, gpu.array(dtype)
    load, line, store = _pixels(gpu, dtype), load_eight(gpu, "float32"), store_eight(gpu, dtype)
    spot, several = _spot(gpu), 8 * AHEAD

    def apply(x, lines, y, P, C, tall):
        v = cuda.local.array(several, float32)
        centre = cuda.local.array(8, float32)
        scale = cuda.local.array(8, float32)
        shift = cuda.local.array(8, float32)
        t, n = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.y)
        start = uint32(cuda.blockIdx.x) * tall
        count = tall if start + tall < P else P - start
        phases, phase, c = spot(t, C)
        if phase < phases:
            planes = uint32(cuda.gridDim.y) * C
            line(lines, n * C + c, centre, 0)
            line(lines, planes + n * C + c, scale, 0)
            line(lines, uint32(2) * planes + n * C + c, shift, 0)
            first = (n * P + start) * C + c
            for p in range(phase, count, uint32(AHEAD) * phases):
                load(x, first, uint32(p), phases, count, C, v)
                for k in range(AHEAD):
                    pixel = uint32(p) + uint32(k) * phases
                    if pixel < count:
                        for j in range(8):
                            d = v[8 * k + j] - centre[j]
                            v[8 * k + j] = d * scale[j] + shift[j]
                        store(y, first + pixel * C, v, 8 * k)

    return Plan(apply, (array, gpu.array("float32"), array, *(gpu.uint32,) * 3), THREADS)
