"""Arrays on a device: strict, in no silence; their parts; and for other libraries."""

import gc
import re
from types import SimpleNamespace

import numpy as np
import pytest
from op_table import normal

from refsd import functional as F
from refsd.errors import ResourceError, UsageError
from refsd.half import HALVES
from refsd.leaf import Weight
from refsd.numba_ops.cuda import device, exchange
from refsd.numba_ops.cuda.array import CHANNELS_LAST, DeviceArray, copies, empty, to_device
from refsd.numba_ops.cuda.weights import DeviceWeight
from refsd.registry import trace, use


def test_nothing_becomes_numpy_unasked():
    """Each refusal says what to do, and nothing was copied."""
    x = to_device(normal((2, 3), 1))
    before = dict(copies)
    for call in (lambda: np.asarray(x), lambda: np.add(np.ones((2, 3), "f4"), x), lambda: bool(x),
                 lambda: np.float32(2) * np.asarray(x), lambda: np.stack([x, x])):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(TypeError, match=r"on the GPU: \.numpy\(\) copies it"):
        np.asarray(x)
    assert copies == before


@pytest.mark.parametrize("backend, wanted", [
    ("numpy", r"lies on a device, wanted on the host: copy it by \.numpy\(\)"),
    ("cuda", "lies on the host, wanted on the GPU: .*to_device")])
def test_ops_take_floats_where_their_backend_computes(backend, wanted):
    """Judged on each backend anew, whatever another one accepted; and nothing is copied."""
    there, here = to_device(normal((2, 3), 1)), normal((2, 3), 1)
    leaf = DeviceWeight(there, "w") if backend == "numpy" else Weight(here, "w")
    good, bad, other = (here, there, "cuda") if backend == "numpy" else (there, here, "numpy")
    before, traced = dict(copies), []
    with use(other):
        F.silu(bad)
    with use(backend):
        F.silu(good)
        for name, call in {"silu: x": lambda: F.silu(bad), "add: b": lambda: F.add(good, bad),
                           "concat: arrays[1]": lambda: F.concat([good, bad], axis=0),
                           "linear: weight": lambda: F.linear(good, leaf)}.items():
            for _ in range(2):
                with pytest.raises(UsageError, match=f"^{re.escape(name)} {wanted}"):
                    call()
        with trace(lambda *event: traced.append(event)):
            F.silu(bad)
    assert copies == before and len(traced) == 1


def test_ids_and_times_may_lie_on_the_host():
    ids, host = np.array([1, 0]), normal((2, 3), 1)
    with use("cuda"):
        np.testing.assert_array_equal(F.embedding(ids, to_device(host)).numpy(), host[ids])
        assert F.timestep_embedding(np.ones(2, "f4"), dim=4, flip_sin_to_cos=True, freq_shift=0,
                                    dtype="float32").shape == (2, 4)


def test_copies_are_counted():
    host, before = normal((2, 3), 1), dict(copies)
    tree = to_device({"a": host, "b": [host, None]})
    assert copies == {**before, "to_device": before["to_device"] + 2}
    assert to_device(tree["a"]) is tree["a"] and tree["b"][1] is None
    np.testing.assert_array_equal(tree["a"].numpy(), host)
    assert copies == {"to_device": before["to_device"] + 2, "to_host": before["to_host"] + 1}


def test_more_elements_than_kernels_count_are_refused():
    """Before any memory is asked for."""
    for shape in [(2**16, 2**16), (4, 256, 2048, 2048)]:
        with pytest.raises(ResourceError, match="has 4294967296 elements"):
            empty(shape, "float16")


def test_parts_are_views():
    host = normal((3, 4, 5), 1)
    x = to_device(host)
    for part, of in [(x[1:], host[1:]), (x[:0], host[:0]), (x[-2:-1], host[-2:-1]),
                     (x.part(2, 1, 4), host[:, :, 1:4]), (x.transpose((2, 0, 1)),
                                                          host.transpose(2, 0, 1)),
                     (x.reshape(12, 5), host.reshape(12, 5)), *zip(x, host)]:
        assert part.block is x.block and part.shape == of.shape
        np.testing.assert_array_equal(part.numpy(), of)
    assert len([*x]) == len(x) == 3
    for bad in (0, slice(None, None, 2), (slice(1), 0)):
        with pytest.raises(TypeError, match="is cut like"):
            x[bad]
    with pytest.raises(ValueError, match="cannot be seen as"):
        x.transpose((2, 0, 1)).reshape(60)


def test_operators_have_the_bits_of_numpys():
    host = normal((2, 3), 1)
    x = to_device(host)
    results = [x + x, x - 0.5, 0.5 - x, 2 * x, x / x, -x, 1.0 + x]
    expected = [host + host, host - 0.5, 0.5 - host, 2 * host, host / host, -host, 1 + host]
    for result, wanted in zip(results, expected):
        assert result.numpy().tobytes() == wanted.tobytes()


@pytest.fixture
def gpu(monkeypatch):
    """Python's memory, said to be a GPU's."""
    here = device.current()
    monkeypatch.setattr(here, "stream", SimpleNamespace(handle=7), raising=False)
    return here


def test_the_interface_says_where_elements_are(gpu):
    x = to_device(normal((2, 8, 3, 4), 1), CHANNELS_LAST).part(1, 2, 7)
    assert x.__cuda_array_interface__ == {
        "shape": (2, 5, 3, 4), "strides": (384, 4, 128, 32), "typestr": "<f4", "version": 3,
        "data": (x.block.address + 8, True), "stream": 7}
    assert empty((0, 3), "float16").__cuda_array_interface__["data"] == (0, True)
    assert to_device(np.zeros(3, "i8")).__cuda_array_interface__["typestr"] == "<i8"
    with pytest.raises(AttributeError, match="no bfloat16; DLPack has"):
        empty((3,), HALVES["bfloat16"]).__cuda_array_interface__  # noqa: B018


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "uint8"])
def test_dlpack_there_and_back(gpu, dtype):
    """The same memory; it is given back when both sides have let go of it."""
    x = to_device(np.arange(24).reshape(2, 3, 4).astype(HALVES.get(dtype, dtype)))
    view = x.transpose((2, 0, 1)).part(0, 1, 3)
    assert x.__dlpack_device__() == (2, 0)
    theirs = SimpleNamespace(__dlpack__=view.__dlpack__, __dlpack_device__=view.__dlpack_device__)
    given = len(exchange._given)
    y = to_device(theirs)
    assert (y.shape, y.strides, y.dtype) == (view.shape, view.strides, view.dtype)
    assert (y.block.address, y.offset) == (x.block.address, view.offset)  # kernels see that
    assert len(exchange._given) == given + 1
    del y
    gc.collect()
    assert len(exchange._given) == given


def test_the_structures_are_those_of_others():
    """As NumPy, which is none of ours, fills them in."""
    x = np.zeros((2, 3, 5), np.float16)[:, ::2]
    capsule = x.__dlpack__()
    pointer = exchange._python.PyCapsule_GetPointer(id(capsule), exchange.NAME)
    t = exchange.Managed.from_address(pointer).tensor
    assert (t.data + t.byte_offset, tuple(t.device), t.ndim) == (x.ctypes.data, (1, 0), 3)
    assert (t.code, t.bits, t.lanes) == (exchange.CODES["f"], 16, 1)
    assert (t.shape[:3], t.strides[:3]) == ([2, 2, 5], [15, 10, 1])


def test_a_capsule_that_nobody_took_is_freed(gpu):
    x, given = to_device(normal((3,), 1)), len(exchange._given)
    capsule = x.__dlpack__()
    assert len(exchange._given) == given + 1
    del capsule
    gc.collect()
    assert len(exchange._given) == given


def test_memory_that_is_no_gpus_is_not_given_out():
    x = to_device(normal((3,), 1))
    assert not hasattr(x, "__cuda_array_interface__")
    for call in (x.__dlpack__, x.__dlpack_device__):
        with pytest.raises(BufferError, match=r"not on a GPU: take \.numpy\(\)"):
            call()
    with pytest.raises((BufferError, TypeError)):
        np.from_dlpack(x)


def test_what_cannot_be_taken_is_refused(gpu):
    x = to_device(normal((3,), 1))
    elsewhere = SimpleNamespace(__dlpack__=x.__dlpack__, __dlpack_device__=lambda: (2, 1))
    with pytest.raises(BufferError, match=r"on the device \(2, 1\), kernels run on \(2, 0\)"):
        to_device(elsewhere)
    assert isinstance(to_device(np.zeros(3)), DeviceArray)  # NumPy has DLPack too, on the CPU
