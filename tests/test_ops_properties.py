"""What holds for every op, for any shape, place in memory and dtype: driven by op_table.OPS."""

import numpy as np
import pytest
from agreement_cases import calls, laid_out
from bounds import BOUNDS, PRECISIONS, assert_within
from hypothesis import given
from hypothesis import strategies as st
from op_table import LAYOUTS, OPS, arrays_in, memory_of, normal, with_layout

from refsd import functional as F
from refsd import registry
from refsd.backends import BACKENDS
from refsd.contracts import Spec

DTYPES = ("float32", "float64")


def to_specs(value):
    if isinstance(value, np.ndarray):
        return Spec(value.shape, str(value.dtype))
    return [to_specs(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", sorted(OPS))
@given(data=st.data())
def test_op(name, data):
    """dtype in = dtype out, the inferred shape, inputs untouched, no warning, within the bound."""
    call = data.draw(OPS[name])
    op = registry.ops()[name]
    results = {}
    for dtype in DTYPES:
        args, options = call.build(dtype)
        buffers = [memory_of(a) for a in arrays_in((args, options))]
        before = [b.tobytes() for b in buffers]

        inferred = op.contract(*args, **options)
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            y = getattr(F, name)(*args, **options)

        assert (y.shape, str(y.dtype)) == (inferred.shape, inferred.dtype)
        assert y.dtype == dtype
        assert [b.tobytes() for b in buffers] == before, "an input was changed"
        specs = {k: to_specs(v) for k, v in options.items()}
        assert op.contract(*map(to_specs, args), **specs) == inferred
        results[dtype] = y

    truth = results["float64"]
    assert np.isfinite(truth).all()
    bound = BOUNDS[name](*call.build("float64"), truth, PRECISIONS["float32"])
    assert_within(results["float32"], truth, bound, name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (0, 3), (2, 0, 3)])
def test_layouts_keep_the_values(layout, shape):
    data = normal(shape, 1)
    laid = with_layout(data, layout)
    if layout == "broadcast" and data.ndim and len(data):
        data = np.repeat(data[:1], len(data), axis=0)
    assert laid.shape == data.shape
    assert np.array_equal(laid, data)


def test_layouts_are_what_they_say():
    data = normal((2, 3, 4, 5), 1)
    laid = {layout: with_layout(data, layout) for layout in LAYOUTS}
    assert laid["fortran"].flags.f_contiguous
    assert laid["channels_last"].strides == (4 * 4 * 5 * 3, 4, 4 * 5 * 3, 4 * 3)
    assert laid["strided"].strides[-1] == 8 and np.isnan(memory_of(laid["strided"])).any()
    assert all(s < 0 for s in laid["reversed"].strides)
    assert np.isnan(memory_of(laid["window"])[0]).all()
    assert not laid["readonly"].flags.writeable
    assert not laid["unaligned"].flags.aligned
    assert laid["broadcast"].strides[0] == 0


VIEWS = {"to_tokens", "to_image", "slice", "transpose", "reshape"}


@pytest.mark.parametrize("name", sorted(OPS))
@pytest.mark.parametrize("backend", [name for name in BACKENDS
                                     if BACKENDS[name].device == "cpu"])
def test_only_these_may_give_a_view(name, backend):
    """Wherever the inputs lie; also where an op has nothing to do, such as joining one array."""
    nothing_to_do = {"concat": ([normal((2, 3), 1)], {"axis": 0}),
                     "pad": (normal((2, 3), 1), {"widths": ((0, 0), (0, 0))}),
                     "upsample_nearest": (normal((1, 4, 2, 3), 1), {"height": 2, "width": 3}),
                     "upsample_bilinear": (normal((1, 4, 2, 3), 1), {
                         "height": 2, "width": 3, "align_corners": False}),
                     "clamp": (normal((2, 3), 1), {"low": -9.0, "high": 9.0})}
    cases = [laid_out(calls(name)[0], layout).build("float32") for layout in LAYOUTS]
    if name in nothing_to_do:
        x, options = nothing_to_do[name]
        cases.append(((x,), options))
    with registry.use(backend):
        for args, options in cases:
            result = getattr(F, name)(*args, **options)
            shared = any(np.shares_memory(result, x) for x in arrays_in((args, options)))
            assert not shared or name in VIEWS
    assert (name in VIEWS) == ("may be a view of x" in registry.ops()[name].definition.__doc__)
