"""The intrinsics of ptx_hopper.py in Python, by what PTX ISA 8.x, section 9.7.15 says they mean.

A product is asynchronous: its sums are NaN, and its operands must not change, until it is waited
for. It reads shared memory by another proxy, which sees what was copied there only after
`fence_async` of the thread that copied.
"""

import functools

import numpy as np

from refsd.numba_ops.cuda.meaning import current


def wgmma_fence():
    """Before the first product, and after other instructions touched its sums."""
    current().fenced = True


def fence_async():
    """What this thread has copied to shared memory may be read by products."""
    current().unseen = False


@functools.cache
def wgmma(columns, kind):
    """product(sums, a, a_index, b, b_index): sums += A (64, 16) B (columns, 16)^T."""
    def product(sums, a, a_index, b, b_index):
        me = current()
        if not me.fenced:
            raise RuntimeError("a product of a warpgroup without wgmma_fence before it")
        if sums.size != columns // 2:
            raise IndexError(f"{sums.size} sums of a thread, wanted {columns // 2}")
        if me.flying is None:
            me.flying = sums, sums.raw.copy()
            sums.raw[:] = np.nan
        me.asked.append((a, int(a_index), b, int(b_index), columns, kind))
    return product


def wgmma_commit():
    """The products since the last one are a group."""
    me = current()
    me.begun.append(me.asked)
    me.asked = []


def _wait(most):
    def wait():
        """Until at most so many groups of products are not done."""
        me = current()
        everyone = me.wait("warpgroup", me)
        if me.block.products is None or me.block.products[0] is not everyone:
            me.block.products = everyone, _finish(everyone, most)
        me.fenced = False
    return wait


wgmma_wait0, wgmma_wait1 = map(_wait, range(2))


def _finish(warpgroup, most):
    """What has been asked for by all threads is done, but for the last groups."""
    first = warpgroup[0]
    if any(thread.unseen for thread in first.block.threads):
        raise RuntimeError("a product reads what was copied without fence_async after it")
    if any(thread.begun != first.begun for thread in warpgroup):
        raise RuntimeError("threads of a warpgroup ask for different products")
    for group in first.begun[:max(0, len(first.begun) - most)]:
        for asked in group:
            _add(warpgroup, *asked)
    for thread in warpgroup:
        thread.begun = thread.begun[max(0, len(thread.begun) - most):]
        if not thread.begun and thread.flying is not None:
            sums, values = thread.flying
            sums.raw[:], thread.flying = values, None


def _add(warpgroup, a, a_index, b, b_index, columns, kind):
    """Thread t has rows t / 4 and that + 8 of its warp's 16, and columns t % 4 * 2 of each 8."""
    A, B = _operand(a, a_index, 64, kind), _operand(b, b_index, columns, kind)
    C = np.stack([thread.flying[1] for thread in warpgroup]).astype(np.float64)
    C = C.reshape(4, 8, 4, columns // 8, 2, 2).transpose(0, 4, 1, 3, 2, 5)
    D = (A @ B.T + C.reshape(64, columns)).astype(np.float32)
    D = D.reshape(4, 2, 8, columns // 8, 4, 2).transpose(0, 2, 4, 3, 1, 5).reshape(128, -1)
    for thread, values in zip(warpgroup, D):
        thread.flying[1][:] = values


def _operand(memory, index, rows, kind):
    """(rows, 16) of a tile from an element on: bits 4 to 6 of an address ^= bits 7 to 9."""
    pieces = 2 * index + 128 * np.arange(rows)[:, None] + 16 * np.arange(2)
    pieces = (pieces ^ (pieces >> 7 & 7) << 4) // 2
    if index % 8 or memory.alignment % 1024:
        raise IndexError(f"a product's operand at element {index} of memory that is aligned to "
                         f"{memory.alignment} bytes: wanted 8, and 1024")
    raw = np.stack([memory.vector(i, 16, "wgmma") for i in pieces.ravel().tolist()])
    values = raw if kind == "f16" else (raw.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(rows, 16).astype(np.float64)
