"""What ops that work number by number have to pass on a device."""

import agreement_bounds
import ml_dtypes
import numpy as np
from agreement_checks import SPECIALS
from bounds import assert_within
from cuda_agreement import DTYPES, VIEWS, agree, run
from numba_agreement import OPS, cast, truth_of
from op_table import normal, options_of, within

from refsd.half import HALVES, through_float32
from refsd.kinds import Pair

# A last block that is not full, sixteen bytes that are, images, nothing at all, one number.
SHAPES = [(257,), (2, 8, 3, 4), (2, 3, 5, 7), (0, 3), ()]
LARGEST = {dtype: float(ml_dtypes.finfo(HALVES.get(dtype, dtype)).max) for dtype in DTYPES}


def cases(name, dtype):
    """Ragged and even shapes, and views of all kinds."""
    op = OPS[name]
    scale = 2.0 if dtype == "float16" else 3.0 * op.kind.scale  # whose largest number is e^11
    for seed, shape in enumerate(SHAPES):
        x = within(op.kind, normal(shape, seed, scale))
        for images in ((0, 2, 3, 1), None, *VIEWS):
            agree(name, [x], options_of(op), dtype, images)


def pairs(name, dtype):
    """Broadcasting of either side, in sixteen bytes and one by one; Python's numbers."""
    whole = (2, 8, 3, 4)
    for images in ((0, 2, 3, 1), None, *VIEWS):
        for other in [whole, (2, 8, 1, 1), (8, 1, 1), (4,), (2, 1, 3, 1), ()]:
            a, b = normal(whole, 1), normal(other, 2, mean=9.0)
            agree(name, [a, b], {}, dtype, images)
            agree(name, [b, a + 9], {}, dtype, images)
    for a, b in [((7,), (3, 1)), ((2, 1, 3, 1, 2, 2), (3, 1, 2, 1, 2)), ((0, 4), (4,)), ((), ())]:
        agree(name, [normal(a, 1), normal(b, 2, mean=9.0)], {}, dtype)
    for number in (2, -3, 0.1, 1e-3):
        agree(name, [normal(whole, 1), number], {}, dtype)


def any_numbers(name):
    """NaN, infinities, and the ends of the range: what the definition gives, or within the bound.

    Of finite numbers; where a result may be too large for the dtype, it may be infinite.
    """
    specials = np.resize(SPECIALS, 32)
    args = [np.repeat(specials, specials.size), np.tile(specials, specials.size)]
    calls = [args[-2 if isinstance(OPS[name].kind, Pair) else -1:]]
    if len(calls[0]) == 2:
        calls.append([specials[:, None], specials])  # broadcast, which takes another way
    for dtype in DTYPES:
        for few in calls:
            with np.errstate(all="ignore"):
                few, options = [cast(a, dtype) for a in few], options_of(OPS[name])
                _any_numbers(name, few, options, dtype)


def _any_numbers(name, args, options, dtype):
    definition, what = OPS[name].definition, f"{name} {dtype}"
    if dtype in HALVES:
        definition = through_float32(definition, dtype)
    expected = definition(*args, **options).astype("f8")
    got = run(name, args, options).astype("f8")
    truth, (wide, _) = truth_of(name, args, options)

    wide = np.broadcast_arrays(*wide)
    finite = np.isfinite([truth, *wide]).all(axis=0)
    np.testing.assert_array_equal(got[~finite], expected[~finite], err_msg=what)

    got, truth = got[finite], truth[finite]
    bound = agreement_bounds.of_dtype(name, [a[finite] for a in wide], options, truth, dtype)
    large = np.isinf(got) & (abs(truth) + bound > LARGEST[dtype])
    assert (np.sign(got) == np.sign(truth))[large].all(), what
    assert_within(np.where(large, truth, got), truth, bound * (1 + (dtype == "float64")), what)


def parts(name, dtype):
    """An image alone has the bits that it has in a batch."""
    count = 2 if isinstance(OPS[name].kind, Pair) else 1
    images = [cast(abs(normal((3, 8, 3, 5), seed)), dtype) for seed in range(count)]
    options = options_of(OPS[name])
    together = run(name, images, options)
    for n in range(3):
        alone = run(name, [x[n:n + 1] for x in images], options)
        assert alone.tobytes() == together[n:n + 1].tobytes(), (name, dtype, n)
