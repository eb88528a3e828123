"""Arrays on a device that other libraries read, and theirs that refsd reads, without a copy.

DLPack both ways (torch.from_dlpack(x), from_dlpack(tensor)), and __cuda_array_interface__ for who
reads that. https://dmlc.github.io/dlpack/latest/c_api.html has the structures. Nobody writes to an
array of refsd that he has not made.
"""

import ctypes
from typing import Any

import numpy as np

from refsd.half import HALVES
from refsd.numba_ops.cuda.array import DeviceArray, contiguous_strides
from refsd.numba_ops.cuda.device import Block, current

HOST, GPU = 1, 2  # DLPack's numbers of devices; lockstep's memory is the host's
CODES = {"i": 0, "u": 1, "f": 2}
BFLOAT = 4
BFLOAT16 = HALVES["bfloat16"]
ALIGNMENT = 256  # of what kernels are given
NAME, USED = b"dltensor", b"used_dltensor"


class Tensor(ctypes.Structure):
    """DLTensor, and what DLManagedTensor has beside it."""

    _fields_ = [("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("offset", ctypes.c_uint64),
                ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_Freed = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_api.PyCapsule_IsValid.argtypes = [ctypes.c_void_p, ctypes.c_char_p]  # an object that dies
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api))
_pointer_of_dying = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api))
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_SetName", _api))
_given: dict[int, tuple] = {}  # address of a Tensor -> what lives until its reader lets it go


@_Freed
def _let_go(address):
    _given.pop(address, None)


@_Freed
def _never_read(capsule):
    if _api.PyCapsule_IsValid(capsule, NAME):
        _given.pop(_pointer_of_dying(capsule, NAME), None)


def capsule_of(x: DeviceArray) -> Any:
    """What __dlpack__ gives, after all work: its reader need not wait."""
    device = x.block.device
    device.synchronize()
    axes = ctypes.c_int64 * max(x.ndim, 1)
    shape, strides = axes(*x.shape), axes(*x.strides)
    code = BFLOAT if x.dtype == BFLOAT16 else CODES[x.dtype.kind]
    tensor = Tensor(address_of(x), (ctypes.c_int32 * 2)(*device.dlpack), x.ndim, code,
                    8 * x.dtype.itemsize, 1, shape, strides, 0, None,
                    ctypes.cast(_let_go, ctypes.c_void_p))
    address = ctypes.addressof(tensor)
    _given[address] = tensor, shape, strides, x.block
    return _api.PyCapsule_New(address, NAME, ctypes.cast(_never_read, ctypes.c_void_p))


def interface_of(x: DeviceArray) -> dict[str, Any]:
    """What __cuda_array_interface__ gives; AttributeError where there is no such thing."""
    device = x.block.device
    if device.dlpack[0] != GPU or x.dtype == BFLOAT16:
        raise AttributeError(f"{x!r} has no __cuda_array_interface__: it is for NumPy's dtypes on "
                             "a GPU; take __dlpack__")
    return {"shape": x.shape, "strides": tuple(s * x.dtype.itemsize for s in x.strides),
            "typestr": x.dtype.str, "data": (address_of(x), True), "version": 3,
            "stream": int(device.stream.handle)}


def address_of(x: DeviceArray) -> int:
    """Of its first element."""
    return x.block.address + x.offset * x.dtype.itemsize


def from_dlpack(other: Any) -> DeviceArray:
    """Another library's array on this device, as it lies there. It lives as long as the result."""
    device, where = current(), tuple(map(int, other.__dlpack_device__()))
    if where != device.dlpack:
        raise ValueError(f"the array is on DLPack's device {where}, refsd computes on "
                         f"{device.dlpack}: copy it there, or take to_device(array)")
    stream = {"stream": int(device.stream.handle)} if where[0] == GPU else {}
    capsule = other.__dlpack__(**stream)
    address = _pointer(capsule, NAME)
    tensor = Tensor.from_address(address)
    held = _Held(tensor, address)
    _rename(capsule, USED)
    shape = tuple(tensor.shape[:tensor.ndim])
    strides = tuple(tensor.strides[:tensor.ndim]) if tensor.strides else contiguous_strides(shape)
    data = (tensor.data or 0) + tensor.offset
    if data % ALIGNMENT or min(strides, default=0) < 0:
        raise ValueError(f"the array begins at {data:#x} with strides {strides}: copy it, so that "
                         f"it begins at a multiple of {ALIGNMENT} and runs forwards")
    dtype = _dtype(tensor)
    span = 1 + sum((n - 1) * s for n, s in zip(shape, strides)) if 0 not in shape else 0
    block = Block(device, data, span * dtype.itemsize, device.borrowed(data, span * dtype.itemsize,
                                                                       held))
    return DeviceArray(shape, strides, dtype, block)


def _dtype(tensor: Tensor) -> np.dtype:
    if (tensor.code, tensor.bits, tensor.lanes) == (BFLOAT, 16, 1):
        return BFLOAT16
    kinds = {code: kind for kind, code in CODES.items()}
    if tensor.lanes != 1 or tensor.code not in kinds or tensor.bits not in (8, 16, 32, 64):
        raise ValueError(f"the array's type is DLPack's ({tensor.code}, {tensor.bits}, "
                         f"{tensor.lanes}): convert it to a float, an integer or bfloat16")
    return np.dtype(f"{kinds[tensor.code]}{tensor.bits // 8}")


class _Held:
    """Somebody else's memory, until nobody here has it any more."""

    def __init__(self, tensor: Tensor, address: int):
        self._free = _Freed(tensor.deleter) if tensor.deleter else None
        self._address = address

    def give(self, address: int, size: int) -> None:
        """It is not the pool's."""

    def __del__(self):
        if self._free is not None:
            self._free(self._address)
