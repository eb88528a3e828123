"""Every op on the CPU backend agrees with the reference: for any call, and for hard ones.

The same is run again in other processes: with four threads, with vectors of 8 and of 4 lanes, and
with Numba's bounds checks. Kernels are compiled anew for the latter three, which takes most of the
time, so they run beside the other tests and in float32 only.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numba
import numpy as np
import pytest
import wrong_dense_kernels  # noqa: F401  declares more of them
import wrong_fused_kernels  # noqa: F401  and more
import wrong_half_kernels  # noqa: F401
import wrong_leaf_kernels  # noqa: F401
from agreement_checks import CHECKS, ONLY
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import prange
from numba_agreement import DTYPES, HALF, KERNELS, OPS, agree_on, planted
from op_table import OPS as CALLS
from wrong_kernels import WRONG

from refsd.numba_ops import jit as jit_module
from refsd.numba_ops import levels
from refsd.numba_ops.jit import jit

# The other processes: what is set in their environment, and which tests they run.
OTHERS = {
    "8 lanes": ({"REFSD_SIMD_BYTES": "32", "NUMBA_NUM_THREADS": "4"},
                "cases or not_numbers or bits or small_weights or wrong"),
    "4 lanes": ({"REFSD_SIMD_BYTES": "16", "NUMBA_NUM_THREADS": "4"},
                "cases or extremes or bits or small_weights"),
    # Little is optimised: checked indices are as right or wrong, and are compiled sooner.
    "bounds": ({"NUMBA_BOUNDSCHECK": "1", "NUMBA_OPT": "1"}, "cases or bounds_are_checked"),
    "threads": ({"NUMBA_NUM_THREADS": "4"}, "bits or small_weights"),
}
IN_OTHER = "REFSD_AGREEMENT" in os.environ


@pytest.fixture(scope="module", autouse=not IN_OTHER)
def others(request):
    """The other processes at work, one after the other; results by name."""
    wanted = {item.callspec.params["other"] for item in request.session.items
              if item.nodeid.startswith(request.node.nodeid)
              and getattr(item, "originalname", "") == "test_in_another_process"}

    def work(name):
        environment, tests = OTHERS[name]
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__,
             "-k", tests], env=os.environ | environment | {"REFSD_AGREEMENT": name},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    with ThreadPoolExecutor(1) as one_at_a_time:
        yield {name: one_at_a_time.submit(work, name) for name in OTHERS if name in wanted}


@pytest.mark.parametrize("name", sorted(CALLS))
@given(data=st.data())
@settings(max_examples=25)
def test_any_call(name, data):
    agree_on(name, data.draw(CALLS[name]))


@pytest.mark.parametrize("name", sorted(OPS))
@pytest.mark.parametrize("check", [c for c in CHECKS if c not in ONLY])
def test_every_op(check, name):
    CHECKS[check](name)


def test_no_layout_makes_a_kernel_compile_again():
    """Strides, order, alignment and read-only memory are no part of a kernel's types."""
    for name in OPS:
        CHECKS["layouts"](name)
    for entry in jit_module._entries:  # one for each dtype; attention's bfloat16 in pairs, and not
        most = len(DTYPES + HALF) + (entry.py_func.__name__ == "_attention")
        assert len(entry.signatures) <= most, (entry.py_func, entry.signatures)


@pytest.mark.parametrize("check, name", [(c, name) for c in ONLY for name in ONLY[c]])
def test_some_ops(check, name):
    CHECKS[check](name)


def test_every_kernel_has_a_wrong_version():
    missing = sorted(set(OPS) - {kernel.op for kernel in WRONG.values()})
    assert not missing, f"add a wrong kernel of {', '.join(missing)} to wrong_kernels.py"


@pytest.mark.parametrize("title", WRONG)
def test_a_wrong_kernel_is_rejected(title):
    """By the very check that the real one has passed above."""
    op, check, make = WRONG[title]
    if check == "bits" and numba.config.NUMBA_NUM_THREADS == 1:
        pytest.skip("one processor: the process with 8 lanes does it with four threads")
    with planted(op, make(KERNELS[op])), pytest.raises(AssertionError):
        CHECKS[check](op)


@pytest.mark.skipif(IN_OTHER, reason="with 8 lanes it is widen, with others float32 alone")
@pytest.mark.parametrize("level, why_not", [
    ("dot", "" if levels.BFLOAT16 == "dot" else levels.BFLOAT16_WHY),
    ("amx", "there is none for AMX tiles: it could not be tested so far")])
def test_levels_of_bfloat16(level, why_not):
    """What else than widen has passed the above here, and what has not, and why."""
    if why_not:
        pytest.skip(f"level {level}: {why_not}")
    assert "bfloat16" in HALF


@jit(parallel=True)
def _read_beyond(a, first, out):
    for i in prange(a.size):
        out[i] = a[first + i]


@pytest.mark.skipif("NUMBA_BOUNDSCHECK" not in os.environ, reason="for the process that checks")
def test_bounds_are_checked():
    """A bad index ends a parallel loop, with or without an error: what is left unwritten tells."""
    out = np.full(4, np.nan)
    with suppress(IndexError, SystemError):  # from the thread that called; others cannot raise
        _read_beyond(np.arange(4.0), 2, out)
    np.testing.assert_array_equal(out[:2], [2, 3])
    assert np.isnan(out[2:]).all()


@pytest.mark.skipif(IN_OTHER, reason="this is one of them")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("other", OTHERS)
def test_in_another_process(other, others):
    done = others[other].result()
    assert done.returncode == 0, done.stdout[-3000:]
