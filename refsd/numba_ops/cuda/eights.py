"""Eight neighbours at once between memory and registers: 16 bytes of halves, 32 of float32."""

from typing import Any

from refsd.numba_ops.cuda.numbers import narrower, widener


def load_eight(gpu: Any, dtype: str) -> Any:
    """load(array, i, v, at): v[at:at + 8] = array[i:i + 8], widened.   i a multiple of 8"""
    uint32, load4, widen = gpu.uint32, gpu.load4, widener(gpu, dtype)

    def load_halves(array, i, v, at):
        x = load4(array, uint32(i))
        for j in range(8):
            v[at + j] = widen(x[j])

    def load_floats(array, i, v, at):
        x, y = load4(array, uint32(i)), load4(array, uint32(i + uint32(4)))
        for j in range(4):
            v[at + j] = x[j]
            v[at + 4 + j] = y[j]

    return gpu.device(load_floats if dtype == "float32" else load_halves)


def store_eight(gpu: Any, dtype: str) -> Any:
    """store(array, i, v, at): array[i:i + 8] = v[at:at + 8], rounded.   i a multiple of 8"""
    uint32, store4, narrow = gpu.uint32, gpu.store4, narrower(gpu, dtype)

    def store_halves(array, i, v, at):
        store4(array, uint32(i), (
            narrow(v[at]), narrow(v[at + 1]), narrow(v[at + 2]), narrow(v[at + 3]),
            narrow(v[at + 4]), narrow(v[at + 5]), narrow(v[at + 6]), narrow(v[at + 7])))

    def store_floats(array, i, v, at):
        store4(array, uint32(i), (v[at], v[at + 1], v[at + 2], v[at + 3]))
        store4(array, uint32(i + uint32(4)), (v[at + 4], v[at + 5], v[at + 6], v[at + 7]))

    return gpu.device(store_floats if dtype == "float32" else store_halves)
