"""Weights as their files have them: converted where they are laid out, with the bits of refsd.half.
"""

import pickle
import threading

import numpy as np
import pytest
from offload_samples import draw, load, small_blocks  # noqa: F401  a fixture

from refsd import quantized
from refsd.half import HALVES, as_dtype, to_float32
from refsd.leaf import Weight
from refsd.numba_ops import packing
from refsd.numba_ops.weights import is_packed, pack_all, pack_weight
from refsd.quantized import W8A8, AsRead, Quantized, quantize
from refsd.weights import streaming

NAME = "unet.layer.weight"


@pytest.fixture(params=[0, 2**60], ids=["past caches", "through caches"])
def large(monkeypatch, request):
    """From how many bytes on a packed weight is written past the caches."""
    monkeypatch.setattr(packing, "LARGE", request.param)


def packed(leaf):
    pack_all(found := {NAME: leaf}, passing=True)
    return found[NAME]


def as_bits(array):
    return np.ascontiguousarray(array).view({2: "u2", 4: "u4"}[array.itemsize])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_float16_is_packed_as_it_is_rounded_elsewhere(dtype, large):
    """All 65,536, in order and in rows of no whole vectors: once from the exact value."""
    every = np.arange(2**16, dtype="u2").view("f2")
    for x in (every.reshape(256, 256), np.ascontiguousarray(every.reshape(2, -1).T),
              every[:255 * 257].reshape(255, -1)):
        with np.errstate(invalid="ignore"):
            wanted = x.astype("f4").astype(HALVES.get(dtype, dtype))
        found = pack_weight(x, dtype=wanted.dtype)
        assert found.dtype == wanted.dtype and is_packed(found)
        sure = ~np.isnan(x) | (dtype == "bfloat16")  # processors make a float32's NaN quiet
        np.testing.assert_array_equal(as_bits(found)[sure], as_bits(wanted)[sure])
        np.testing.assert_array_equal(np.isnan(to_float32(found)), np.isnan(x))


@pytest.mark.parametrize("dtype", HALVES)
def test_float32_is_rounded_to_nearest_with_ties_to_even(dtype):
    wide = to_float32(np.arange(2**16, dtype="u2").view(HALVES[dtype]))
    finite = np.sort(wide[np.isfinite(wide)])
    between = (finite[1:] / 2 + finite[:-1] / 2).astype("f4")  # exact: ties
    x = np.resize(np.concatenate([between, np.nextafter(between, np.float32(np.inf)),
                                  np.nextafter(between, np.float32(-np.inf)), wide]), (500, 512))
    with np.errstate(all="ignore"):
        wanted = as_dtype(x, dtype)
    found = pack_weight(x, dtype=HALVES[dtype])
    sure = ~np.isnan(x)
    np.testing.assert_array_equal(as_bits(found)[sure], as_bits(wanted)[sure])
    np.testing.assert_array_equal(np.isnan(to_float32(found)), ~sure)


def drawn(shape, stored, seed=0):
    array = np.random.default_rng(seed).standard_normal(shape).astype("f4")
    return as_dtype(array * np.float32(3), stored)


@pytest.mark.parametrize("stored, dtype, kind", [
    ("float16", "bfloat16", None), ("float16", "float32", None), ("float32", "bfloat16", None),
    ("bfloat16", "float16", None), ("float32", "float64", None),
    ("float16", "bfloat16", Quantized), ("float16", "float32", Quantized),
    ("float32", "float32", W8A8), ("bfloat16", "float16", Quantized),
    ("float32", "float64", Quantized)])
def test_what_is_packed_is_what_it_would_be_made(stored, dtype, kind, large):
    for shape in ((40, 24, 3, 3), (33, 5, 1, 1), (7, 3), (70, 64)):
        values = drawn(shape, stored)
        for leaf in (AsRead(values, dtype, NAME, kind),
                     AsRead(values.transpose(1, 0, *range(2, values.ndim)), dtype, NAME, kind)):
            found, wanted = packed(leaf), leaf.made()
            assert type(found) is type(wanted) is (kind or Weight)
            assert found.name == NAME and found.dtype == wanted.dtype == leaf.dtype
            np.testing.assert_array_equal(found.dense(), wanted.dense())
            np.testing.assert_array_equal(leaf.dense(), wanted.dense())
            if kind is None:
                assert is_packed(found.dense())
            else:
                np.testing.assert_array_equal(found.values, wanted.values)
                np.testing.assert_array_equal(found.scale, wanted.scale)
                assert found.values.strides[0] == 1
    again = pickle.loads(pickle.dumps(leaf))
    assert again.kind is kind and again.nbytes == values.nbytes
    np.testing.assert_array_equal(again.dense(), leaf.dense())


def test_int8_is_of_what_was_rounded():
    """A number that bfloat16 rounds over the middle between two integers, and a largest one."""
    x = np.zeros((3, 40), "f4")
    x[0, :2] = 127, 2.5078125  # 2.515625 in bfloat16; x[1]: 1.998 is 2, and so the scale
    x[1, 3], x[2, 39] = 1.998, -5
    for stored in ("float16", "float32"):
        leaf = AsRead(x.astype(stored), "bfloat16", NAME, Quantized)
        values, scale = quantize(as_dtype(x.astype(stored), "bfloat16"))
        assert scale[1] == quantized.scale_of(np.float32([2]))[0]
        np.testing.assert_array_equal(packed(leaf).values, values)
        np.testing.assert_array_equal(packed(leaf).scale, scale)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, 2.0**127, -2.0**127,
                                 np.nextafter(np.float32(2**127), np.float32(0))])
@pytest.mark.parametrize("at", [0, 15, 16, 36])
def test_what_int8_cannot_stand_for_is_packed_as_it_is(bad, at):
    x = drawn((35, 37), "float32")
    x[20, at] = bad
    for dtype in ("float32", "bfloat16"):  # in which the last is 2^127
        with np.errstate(all="ignore"):
            leaf = AsRead(x, dtype, NAME, Quantized)
            found, wanted = packed(leaf), leaf.made()
        assert type(found) is type(wanted)
        np.testing.assert_array_equal(*(to_float32(leaf.dense()) for leaf in (found, wanted)))


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"weights": "int8"}], ids=str)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_thread_converts_nothing(tiny_model, monkeypatch, backend, options):
    """Nor does anything but the packing kernel, where there is one: tables are looked up."""
    made, real = [], AsRead.made

    def noted(self, *empty):
        if len(self.shape) > 1:
            made.append((threading.current_thread().name, self.name))
        return real(self)

    pipe = load(tiny_model, backend=backend, offload="block", **options)
    monkeypatch.setattr(streaming, "warn_nonfinite", lambda *_: None)  # of the numbers, once
    monkeypatch.setattr(AsRead, "made", noted)
    draw(pipe)
    assert made and all(thread != "refsd weights" for thread, _ in made)
    assert backend == "numpy" or all("embeddings" in name for _, name in made), made
