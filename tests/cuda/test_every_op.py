"""Every op has a kernel, and each of its sample calls agrees with its definition."""

import numpy as np
import pytest
from cuda_agreement import DTYPES, EVERYWHERE, agree, run
from numba_agreement import OPS, cast, same_bits
from op_table import normal

from refsd import examples, registry
from refsd.errors import UsageError
from refsd.numba_ops import cuda  # noqa: F401  declares the kernels
from refsd.numba_ops.cuda.fill import fill

# Fused ops (refsd/ops/fused.py) without a kernel of "cuda" so far: passes leave their ops as they
# are there. One that gets a kernel is to be taken out of this list.
NONE_YET = ("group_norm_silu", "linear_add", "linear_geglu", "conv2d_add", "upsample_conv2d")
HERE = [name for name in OPS if name not in NONE_YET]


def test_every_op_has_a_kernel():
    missing = [name for name in OPS if ("cuda", name) not in registry._kernels]
    assert missing == list(NONE_YET), f"{', '.join(missing)}: no kernel of \"cuda\""
    assert {OPS[name].family for name in NONE_YET} <= {"fused"}


@pytest.mark.parametrize("name", NONE_YET)
def test_an_op_without_a_kernel_says_so(name):
    inputs, options = examples.with_values(OPS[name], examples.calls(OPS[name])[0], 0)
    with pytest.raises(UsageError, match=f"{name} has no kernel on the backend 'cuda'; take one"):
        run(name, list(inputs.values()), options)


def test_every_kernel_reads_halves_itself():
    """NumPy cannot widen what lies on a device."""
    kernels = {name: registry._kernels["cuda", name] for name in HERE}
    assert [name for name, kernel in kernels.items() if kernel not in registry._reads_halves] == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", HERE)
def test_sample_calls(name, dtype):
    op = OPS[name]
    calls = examples.calls(op)
    for seed, call in enumerate(calls if dtype == "float32" else calls[:1]):
        inputs, options = examples.with_values(op, call, seed)
        if "dtype" in options:
            options = options | {"dtype": dtype}
        agree(name, list(inputs.values()), options, dtype)


@pytest.mark.parametrize("name", HERE)
def test_bits_do_not_depend_on_how_arrays_lie(name):
    op = OPS[name]
    inputs, options = examples.with_values(op, examples.calls(op)[0], 0)
    args = [cast(value, "float16") for value in inputs.values()]
    whole = run(name, args, options)
    for images in EVERYWHERE:
        same_bits(run(name, args, options, images), whole)


def test_a_kernel_that_changes_its_input_is_seen(monkeypatch):
    real = registry._kernels["cuda", "silu"]

    def kernel(x):
        y = real(x)
        fill(x, np.ones(1))
        return y

    monkeypatch.setitem(registry._kernels, ("cuda", "silu"), kernel)
    with pytest.raises(AssertionError, match="silu changed an input"):
        agree("silu", [normal((33,), 1)], {})
