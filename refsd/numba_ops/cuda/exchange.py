"""Arrays of a GPU for other libraries and from them, without a copy: DLPack, the CUDA interface.

DLPack: dmlc/dlpack, dlpack.h of version 0. The interface: version 3, in Numba's documentation.
Strides count elements in the former, bytes in the latter.
"""

import ctypes
from typing import Any

import numpy as np

from refsd.half import HALVES
from refsd.numba_ops.cuda.array import DeviceArray, contiguous_strides
from refsd.numba_ops.cuda.device import Block, current

CUDA = 2  # kDLCUDA
CODES = {"i": 0, "u": 1, "f": 2}
BFLOAT = 4
ALIGNMENT = 256  # of where a block begins: by the offset kernels know what they may load at once
NAME, USED = b"dltensor", b"used_dltensor"


class Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = [("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


class Managed(ctypes.Structure):
    """DLManagedTensor, whose deleter is called by who took it, once."""


DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(Managed))
DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
Managed._fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", DELETER)]
_python = ctypes.PyDLL(None)
_python.PyCapsule_New.restype = ctypes.py_object
_python.PyCapsule_New.argtypes = ctypes.c_void_p, ctypes.c_char_p, DESTRUCTOR
for _name, _result in (("IsValid", ctypes.c_int), ("GetPointer", ctypes.c_void_p)):
    getattr(_python, f"PyCapsule_{_name}").argtypes = ctypes.c_void_p, ctypes.c_char_p
    getattr(_python, f"PyCapsule_{_name}").restype = _result
_python.PyCapsule_SetName.argtypes = ctypes.c_void_p, ctypes.c_char_p
_given: dict[int, tuple] = {}  # what others have: the structure's address, and what it needs


def interface(x: DeviceArray) -> dict[str, Any]:
    """x by the CUDA array interface. Its work may be on the way: in `stream`."""
    stream = _stream(x.block.device, AttributeError)
    if x.dtype.name == "bfloat16":
        raise AttributeError("the CUDA array interface has no bfloat16; DLPack has: from_dlpack")
    steps = tuple(s * x.dtype.itemsize for s in x.strides)
    return {"shape": x.shape, "strides": steps, "typestr": x.dtype.str, "version": 3,
            "data": (_address(x) if x.size else 0, True), "stream": stream}


def capsule(x: DeviceArray) -> Any:
    """x by DLPack, after all work on it."""
    _stream(x.block.device, BufferError)
    x.block.device.synchronize()
    sizes = ctypes.c_int64 * x.ndim
    shape, strides = sizes(*x.shape), sizes(*x.strides)
    code = BFLOAT if x.dtype.name == "bfloat16" else CODES[x.dtype.kind]
    long = ctypes.POINTER(ctypes.c_int64)
    managed = Managed(Tensor(
        _address(x), (CUDA, 0), x.ndim, code, 8 * x.dtype.itemsize, 1, ctypes.cast(shape, long),
        ctypes.cast(strides, long), 0), None, _forget)
    address = ctypes.addressof(managed)
    _given[address] = managed, shape, strides, x
    return _python.PyCapsule_New(address, NAME, _unused)


def where(x: DeviceArray) -> tuple[int, int]:
    """The device by DLPack: a GPU, the first."""
    _stream(x.block.device, BufferError)
    return CUDA, 0


@DELETER
def _forget(managed):
    _given.pop(ctypes.addressof(managed.contents), None)


@DESTRUCTOR
def _unused(capsule):
    """A capsule that nobody took."""
    if _python.PyCapsule_IsValid(capsule, NAME):
        _given.pop(_python.PyCapsule_GetPointer(capsule, NAME), None)


class Borrowed(Block):
    """Memory of another library, which is told when nobody here has it any more."""

    __slots__ = ()

    def __del__(self):
        self.memory.contents.deleter(self.memory)


def is_foreign(value: Any) -> bool:
    """Whether a value is an array that another library has on a GPU."""
    where = getattr(value, "__dlpack_device__", None)
    return where is not None and not isinstance(value, DeviceArray) and where()[0] == CUDA


def from_dlpack(value: Any) -> DeviceArray:
    """The array of another library on the same GPU, its own memory. Nobody may write to it."""
    device = current()
    stream = _stream(device, BufferError)
    if (where := value.__dlpack_device__()) != (CUDA, 0):
        raise BufferError(f"an array is on the device {tuple(where)}, kernels run on (2, 0), the "
                          "first GPU: copy it there")
    capsule = value.__dlpack__(stream=stream)
    pointer = _python.PyCapsule_GetPointer(id(capsule), NAME)
    managed = ctypes.cast(pointer, ctypes.POINTER(Managed))
    _python.PyCapsule_SetName(id(capsule), USED)
    t = managed.contents.tensor
    start = (t.data or 0) + t.byte_offset
    block = Borrowed(device, start - start % ALIGNMENT, 0, managed)
    codes = {number: kind for kind, number in CODES.items()}
    if (t.code, t.bits) == (BFLOAT, 16):
        dtype = HALVES["bfloat16"]
    elif t.code in codes and t.lanes == 1:
        dtype = np.dtype(f"{codes[t.code]}{t.bits // 8}")
    else:
        raise BufferError(f"an array has DLPack's type {t.code} of {t.bits} bits, {t.lanes} at a "
                          "place: give one of floats or integers")
    shape = tuple(t.shape[:t.ndim])
    strides = tuple(t.strides[:t.ndim]) if t.strides else contiguous_strides(shape)
    if any(s < 0 for s in strides):
        raise BufferError(f"an array runs backwards, strides {strides}: give a copy of it")
    if start % dtype.itemsize:
        raise BufferError(f"an array of {dtype} begins at {start:#x}: give a copy of it")
    return DeviceArray(shape, strides, dtype, block, start % ALIGNMENT // dtype.itemsize)


def _address(x):
    return x.block.address + x.offset * x.dtype.itemsize


def _stream(device, error):
    """The number of the stream that a GPU's work is in."""
    stream = getattr(device, "stream", None)
    if stream is None:
        raise error(f"this array is on {device.name}, not on a GPU: take .numpy()")
    return int(stream.handle)
