"""Row norms of a warp a row: all of a row is in its registers, memory is read once."""

from typing import Any

from refsd.numba_ops.cuda.eights import load_eight, store_eight
from refsd.numba_ops.cuda.plan import Plan, factory
from refsd.numba_ops.cuda.warp import warp_sum

WARPS = 4  # of a block, a row each
# Eights a lane holds: rows of up to 512, which the first levels have, and of up to 1280.
EACH = [(dtype, eights) for dtype in ("float32", "float16", "bfloat16") for eights in (2, 5)]


def _row(gpu, dtype, eights):
    """load(x, first, K, lane, v): a lane's numbers of a row, the rest 0."""
    uint32, float32, eight = gpu.uint32, gpu.float32, load_eight(gpu, dtype)

    def load(x, first, K, lane, v):
        for e in range(eights):
            at = lane * uint32(8) + uint32(256 * e)
            if at < K:
                eight(x, first + at, v, 8 * e)
            else:
                for j in range(8):
                    v[8 * e + j] = float32(0)

    return gpu.device(load)


@factory(each=EACH)
def layer_norm_kernel(gpu: Any, dtype: str, eights: int) -> Plan:
    """y = weight d / sqrt(mean d^2 + eps) + bias, d = x - mean twice.   K at most 256 eights"""
    cuda, uint32, float32, sqrt = gpu.cuda, gpu.uint32, gpu.float32, gpu.sqrt
    load, total, numbers = _row(gpu, dtype, eights), warp_sum(gpu), 8 * eights
    eight, store, array = load_eight(gpu, dtype), store_eight(gpu, dtype), gpu.array(dtype)

    def layer_norm(x, weight, bias, y, rows, K, eps):
        v = cuda.local.array(numbers, float32)
        w = cuda.local.array(8, float32)
        b = cuda.local.array(8, float32)
        t = uint32(cuda.threadIdx.x)
        row = uint32(cuda.blockIdx.x) * uint32(WARPS) + (t >> uint32(5))
        if row >= rows:
            return
        lane, first, count = t & uint32(31), row * K, float32(K)
        load(x, first, K, lane, v)
        part = float32(0)
        for i in range(numbers):
            part += v[i]
        mean = total(part) / count
        part = float32(0)
        for e in range(eights):
            if lane * uint32(8) + uint32(256 * e) < K:
                for j in range(8):
                    v[8 * e + j] -= mean
                    part += v[8 * e + j]
        off = total(part) / count
        part = float32(0)
        for e in range(eights):
            if lane * uint32(8) + uint32(256 * e) < K:
                for j in range(8):
                    v[8 * e + j] -= off
                    part += v[8 * e + j] * v[8 * e + j]
        scale = float32(1) / sqrt(total(part) / count + eps)
        for e in range(eights):
            at = lane * uint32(8) + uint32(256 * e)
            if at < K:
                eight(weight, at, w, 0)
                eight(bias, at, b, 0)
                for j in range(8):
                    v[8 * e + j] = v[8 * e + j] * scale * w[j] + b[j]
                store(y, first + at, v, 8 * e)

    return Plan(layer_norm, (array,) * 4 + (gpu.uint32,) * 2 + (gpu.float32,), 32 * WARPS)


@factory(each=EACH)
def rms_norm_kernel(gpu: Any, dtype: str, eights: int) -> Plan:
    """y = weight x / sqrt(mean x^2 + eps).   K at most 256 eights"""
    cuda, uint32, float32, sqrt = gpu.cuda, gpu.uint32, gpu.float32, gpu.sqrt
    load, total, numbers = _row(gpu, dtype, eights), warp_sum(gpu), 8 * eights
    eight, store, array = load_eight(gpu, dtype), store_eight(gpu, dtype), gpu.array(dtype)

    def rms_norm(x, weight, y, rows, K, eps):
        v = cuda.local.array(numbers, float32)
        w = cuda.local.array(8, float32)
        t = uint32(cuda.threadIdx.x)
        row = uint32(cuda.blockIdx.x) * uint32(WARPS) + (t >> uint32(5))
        if row >= rows:
            return
        lane, first = t & uint32(31), row * K
        load(x, first, K, lane, v)
        part = float32(0)
        for i in range(numbers):
            part += v[i] * v[i]
        scale = float32(1) / sqrt(total(part) / float32(K) + eps)
        for e in range(eights):
            at = lane * uint32(8) + uint32(256 * e)
            if at < K:
                eight(weight, at, w, 0)
                for j in range(8):
                    v[8 * e + j] = v[8 * e + j] * scale * w[j]
                store(y, first + at, v, 8 * e)

    return Plan(rms_norm, (array,) * 3 + (gpu.uint32,) * 2 + (gpu.float32,), 32 * WARPS)
