"""Arrays handed to other libraries and back: NumPy reads lockstep's memory, for it is the host's.

On a GPU's driver: standin/cases.py.
"""

import gc
import weakref

import numpy as np
import pytest
from op_table import normal

from refsd.half import HALVES
from refsd.numba_ops.cuda import interchange
from refsd.numba_ops.cuda.array import CHANNELS_LAST, to_device
from refsd.numba_ops.cuda.device import current
from refsd.numba_ops.cuda.interchange import from_dlpack

BFLOAT16 = HALVES["bfloat16"]


def aligned(x):
    """A copy that begins where kernels want it."""
    memory = np.empty(x.nbytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    y = memory[start:start + x.nbytes].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32, np.uint8])
def test_numpy_reads_an_array_without_a_copy(dtype):
    x = (normal((2, 3, 4, 5), 1) * 9).astype(dtype)
    there = to_device(x, CHANNELS_LAST)
    seen = np.from_dlpack(there)
    np.testing.assert_array_equal(seen, x)
    assert seen.ctypes.data == there.block.address and seen.strides[1] == seen.itemsize
    np.testing.assert_array_equal(np.from_dlpack(there[1:]), x[1:])


def test_memory_lives_as_long_as_its_readers():
    there = to_device(normal((300,), 1))
    before = len(interchange._given)
    seen, expected = np.from_dlpack(there), there.numpy()
    capsule = there.__dlpack__()
    assert len(interchange._given) == before + 2
    del there, capsule  # which nobody has read
    gc.collect()
    assert len(interchange._given) == before + 1
    np.testing.assert_array_equal(seen, expected)
    del seen
    gc.collect()
    assert len(interchange._given) == before


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.transpose(2, 0, 1), lambda x: x[:, ::2],
                                  lambda x: x[:0], lambda x: x[0, 0, 0]])
def test_an_array_of_numpy_is_read_without_a_copy(view):
    whole = aligned(normal((3, 4, 5), 1))
    x = view(whole) if view(whole).ndim else whole[:1, 0, 0]
    there = from_dlpack(x)
    np.testing.assert_array_equal(there.numpy(), x)
    assert there.shape == x.shape and there.block.address == (x.ctypes.data if x.size else
                                                              there.block.address)
    if x.size:
        whole += 1
        np.testing.assert_array_equal(there.numpy(), x)


def test_it_lives_as_long_as_its_array_here():
    class Owner(np.ndarray):
        pass

    gone = []
    x = aligned(normal((100,), 1)).view(Owner)
    expected = np.array(x)
    there = from_dlpack(x)
    weakref.finalize(x, gone.append, True)
    del x
    gc.collect()
    assert not gone
    part = there[50:]
    del there
    np.testing.assert_array_equal(part.numpy(), expected[50:])
    del part
    gc.collect()
    assert gone


def test_bfloat16_there_and_back():
    x = to_device(normal((3, 5), 1).astype(BFLOAT16))
    again = from_dlpack(x)
    assert again.dtype == x.dtype and again.block.address == x.block.address
    np.testing.assert_array_equal(again.numpy(), x.numpy())


def test_refusals():
    x = aligned(normal((300,), 1))
    with pytest.raises(ValueError, match="begins at 0x.*copy it, so that"):
        from_dlpack(x[1:])
    with pytest.raises(ValueError, match=r"strides \(-1,\): copy it, so that"):
        from_dlpack(aligned(normal((65,), 1))[64::-1])
    with pytest.raises(ValueError, match="type is DLPack's.*convert it to a float"):
        from_dlpack(aligned(np.zeros(3, np.complex64)))
    current().dlpack = 2, 0
    with pytest.raises(ValueError, match=r"device \(1, 0\), refsd computes on \(2, 0\): copy"):
        from_dlpack(x)
    assert not hasattr(to_device(x.astype(BFLOAT16)), "__cuda_array_interface__")


def test_lockstep_has_no_cuda_array_interface():
    assert not hasattr(to_device(np.zeros(3)), "__cuda_array_interface__")
