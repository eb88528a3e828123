"""What every op has to pass on the CPU backend: `CHECKS[check](op)` raises AssertionError if not.

Each check runs calls of agreement_cases.py through the registry.
"""

import itertools
import math

import agreement_bounds
import numba
import numpy as np
import pytest
from agreement_bounds import CONVOLUTIONS
from agreement_cases import calls, laid_out
from agreement_tables import FAIR, REFUSALS, SMALL, WEIGHTED, batches
from bounds import PRECISIONS, assert_within, rms
from numba_agreement import (
    DTYPES,
    KERNELS,
    OPS,
    agree,
    cast,
    halves_of,
    masked,
    poisoned,
    run,
    same_bits,
    truth_of,
)
from op_table import LAYOUTS, arrays_in, is_float, normal, options_of

from refsd import registry
from refsd.half import HALVES, to_float32
from refsd.kinds import Map, Pair
from refsd.numba_ops.weights import pack_all
from refsd.quantized import Quantized

P = PRECISIONS["float32"]


def cases(name):
    """Within the bound, in poisoned memory between guards; the inputs in another layout each."""
    for dtype in (*DTYPES, *halves_of(name)):
        for i, hard in enumerate(calls(name)):
            if dtype in ("float32", "bfloat16") or i % 3 == 0:
                agree(name, *laid_out(hard, LAYOUTS[i % len(LAYOUTS)]).build(dtype), dtype)


def _some(name, count):
    """So many of the op's calls, from the first to the last."""
    return calls(name)[::-(-len(calls(name)) // count)]


def layouts(name):
    """One call with its arrays in every layout."""
    for layout in LAYOUTS:
        agree(name, *laid_out(calls(name)[0], layout).build("float32"))


def not_numbers(name):
    """A NaN or an infinity spoils what it spoils in the reference, and not a bit elsewhere."""
    for dtype, hard in itertools.product(("float32", *halves_of(name)[:1]), _some(name, 9)):
        args, options = hard.build(dtype)
        clean, (clean_truth, _) = run(name, args, options).copy(), truth_of(name, args, options)
        for i, target in enumerate(arrays_in((args, options))):
            if not is_float(target.dtype) or target.size == 0:
                continue
            for bad in (math.nan, math.inf, -math.inf):
                positions = normal((2,), i).view("u4") % target.size
                before = target.flat[positions]
                target.flat[positions] = bad
                got, (truth, _) = run(name, args, options).copy(), truth_of(name, args, options)
                target.flat[positions] = before
                what = f"{name} argument {i} with {bad}"
                if _spreads(name, args, options, truth):
                    _spoils_tiles(got, truth, bad, what)
                    continue
                np.testing.assert_array_equal(np.isnan(got), np.isnan(truth), err_msg=what)
                infinite = np.isinf(truth)
                np.testing.assert_array_equal(got[infinite], truth[infinite], err_msg=what)
                assert np.isfinite(got[np.isfinite(truth)]).all(), what
                untouched = truth == clean_truth
                same_bits(got[untouched], clean[untouched], what)


def _spreads(name, args, options, truth):
    """Winograd and the FFT compute outputs together: a NaN spoils a whole tile."""
    chosen = name in CONVOLUTIONS and agreement_bounds.algorithm(args, options, truth.shape)
    return chosen and chosen != "im2col"


def _spoils_tiles(got, truth, bad, what):
    assert not np.isfinite(got[~np.isfinite(truth)]).any(), what
    # The image that the bad numbers are not in, if there is one, is as before.
    if len(got) > 1 and np.isfinite(truth[0]).all() and not np.isfinite(truth[1]).all():
        assert np.isfinite(got[0]).all(), what


# Element-wise ops take any number at all.
SPECIALS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 3e38, -3e38,
                     88.7, 88.8, 89, -87.4, -103.9, -104.1, -87.5, 1e4, -1e4, 0.5, 5.6, -5.7, 1,
                     -1], "float32")
# Of the numbers that ops are tried with, as powers of 2. Products of float16 are then subnormal.
POWERS = {"float32": (-140, -70, 20, 40, 60), "bfloat16": (-140, -70, -65, 20, 40, 60),
          "float16": (-10,)}
# The scale of these arguments alone may change: a score of 10^18 leaves no bound to speak of.
SCALED = {"attention": (2,), "softmax": ()}


def extremes(name):
    """Numbers as large as the reference can take in float32, and below the normal ones of each."""
    kind = OPS[name].kind
    if isinstance(kind, (Map, Pair)):
        _any_numbers(name, 2 if isinstance(kind, Pair) else 1, options_of(OPS[name]))
    if isinstance(kind, Map) and kind.high < math.inf:
        return
    for dtype, hard in itertools.product(("float32", *halves_of(name)), _some(name, 5)):
        for power in POWERS[dtype]:
            args, options = _scaled(name, hard, 2.0**power)
            args, options = cast(list(args), dtype), {k: cast(v, dtype) for k, v in options.items()}
            try:
                with np.errstate(over="raise", invalid="raise"):
                    OPS[name].definition(*to_float32(args), **_wide(options))
            except FloatingPointError:
                continue
            agree(name, args, options, dtype)


def _wide(options):
    return {name: "float32" if name == "dtype" else to_float32(v) for name, v in options.items()}


def _scaled(name, hard, factor):
    args, options = hard.build("float32")
    for i in SCALED.get(name, range(len(args))):
        if isinstance(args[i], np.ndarray) and args[i].dtype.kind == "f":
            args = (*args[:i], np.asarray(args[i] * np.float32(factor)), *args[i + 1:])
    return args, options


def _any_numbers(name, count, options):
    args = [np.repeat(SPECIALS, SPECIALS.size), np.tile(SPECIALS, SPECIALS.size)][-count:]
    with np.errstate(all="ignore"):
        expected = OPS[name].definition(*args, **options)
        truth, wide = truth_of(name, args, options)
        got = run(name, args, options)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected), err_msg=name)
        infinite = np.isinf(expected) | np.isinf(got)
        np.testing.assert_array_equal(got[infinite], expected[infinite], err_msg=name)
        finite = np.isfinite(expected) & np.all([np.isfinite(a) for a in args], axis=0)
        exact = [a[finite] for a in wide[0]]
        bound = agreement_bounds.worst(name, exact, options, truth[finite], P)
        assert_within(got[finite], truth[finite], bound, name)


def bits(name):
    """The same for any number of threads, and for a image alone or with one or two others."""
    for whole, batched in batches(name):
        for dtype in ("float32", *halves_of(name)[:1]):
            _same_in_parts(name, *whole.build(dtype), batched)


def _same_in_parts(name, args, options, batched):
    expected = run(name, args, options)
    for part in (slice(0, 3), slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 2), slice(1, 3)):
        few = [_part(a, part) if i in batched else a for i, a in enumerate(args)]
        some = {k: _part(v, part) if k in batched else v for k, v in options.items()}
        for threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            with masked(threads):
                y = run(name, few, some)
            same_bits(y, expected[part], f"{name} of images {part}, {threads} threads")


def _part(value, part):
    return [a[part] for a in value] if isinstance(value, list) else value[part]


def fair_errors(name):
    """Errors look like roundings: as large as random ones are, and not to one side.

    The mean of the errors, and the mean of the errors towards larger |y|, are 0 within 5 standard
    errors of the mean: one in a million fair draws is further off. Errors of one row may hang
    together (attention's do), so a row counts as one draw.
    """
    for fair in FAIR[name]():
        args, options = fair.build("float32")
        y = run(name, args, options)
        truth, (wide, _) = truth_of(name, args, options)
        error = y - truth
        allowed = agreement_bounds.typical(name, wide, options, truth, P)
        assert rms(error) <= allowed, (
            f"{name} {options}: errors of {rms(error):.3g}, random ones are of {allowed:.3g}")
        for direction, toward in (("up", 1.0), ("away from 0", np.sign(truth))):
            rows = np.moveaxis(error * toward, 1, -1) if y.ndim == 4 else error * toward
            means = rows.reshape(-1, rows.shape[-1]).mean(axis=-1)
            standard = means.std() / math.sqrt(means.size)
            common = agreement_bounds.common(name, wide, options, truth, P)
            assert abs(means.mean()) <= 5 * standard + common, (
                f"{name} {options}: errors go {direction} by {means.mean():.3g}, "
                f"chance makes {standard:.3g}")


def changed_weights(name):
    """A weight that changed in place counts as it is now, whatever was made of it before."""
    for weighted in WEIGHTED[name]():
        args, options = weighted.build("float32")
        agree(name, args, options)
        args[1][...] *= -2
        args[1].flat[-1] += 3
        agree(name, args, options)
        args[1].flags.writeable = False
        agree(name, args, options)


def small_weights(name):
    """Weights in int8 and in two bytes: the bits of the array that they stand for, which agrees."""
    few = (*calls(name)[::2], *(whole for whole, _ in batches(name)), *SMALL.get(name, tuple)())
    for dtype in (*DTYPES, *halves_of(name)):
        for i, hard in enumerate(few):
            if dtype not in ("float32", "bfloat16") and i % 3:
                continue
            (x, weight, *bias), options = hard.build(dtype)
            leaf = leaf_of(weight, ("int8", "bfloat16", "int8", "float16")[i % 4], dtype)
            expected = agree(name, (x, leaf.dense(), *bias), options, dtype)
            tensors = {"layer.weight": leaf}
            if i % 3:
                pack_all(tensors)
            with masked(1 + i % numba.config.NUMBA_NUM_THREADS), poisoned():
                got = run(name, (x, *tensors.values(), *bias), options)
            same_bits(got, expected, f"{name} {dtype} {leaf} {options}")


def leaf_of(array, form, dtype):
    """A leaf that reads as dtype, of values like the array's; scales have all of float32's bits."""
    if form != "int8":
        return Quantized(array.astype(HALVES[form]), None, dtype)
    values = np.clip(np.rint(40 * array.astype("f4")), -128, 127).astype(np.int8)
    return Quantized(values, (1 + np.arange(len(array), dtype="f4")) / np.float32(730), dtype)


def refusals(name):
    """What depends on the data is refused in the same words (shapes: test_contracts.py)."""
    for args, options in REFUSALS[name]:
        with pytest.raises(Exception) as of_reference:
            OPS[name].definition(*args, **options)
        try:
            run(name, args, options)
        except type(of_reference.value) as refusal:
            assert str(refusal) == str(of_reference.value)
        else:
            raise AssertionError(f"{name} accepted {args}")


CHECKS = {check.__name__: check for check in
          (cases, layouts, not_numbers, extremes, bits, fair_errors, changed_weights, small_weights,
           refusals)}
# Those that are for some ops only.
ONLY = {"fair_errors": FAIR, "changed_weights": WEIGHTED, "refusals": REFUSALS,
        "small_weights": [name for name in OPS if KERNELS[name] in registry._reads_leaves]}
