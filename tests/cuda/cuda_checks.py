"""What ops that work number by number have to pass on a device."""

import numpy as np
from agreement_checks import SPECIALS
from cuda_agreement import DTYPES, VIEWS, agree, run
from numba_agreement import OPS, cast
from op_table import normal, options_of, within

from refsd.half import HALVES, through_float32
from refsd.kinds import Pair

# A last block that is not full, sixteen bytes that are, images, nothing at all, one number.
SHAPES = [(257,), (2, 8, 3, 4), (2, 3, 5, 7), (0, 3), ()]


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
    """NaN, infinities, and the ends of the range, to the bit where the definition is exact."""
    specials = np.resize(SPECIALS, 32)
    args = [np.repeat(specials, specials.size), np.tile(specials, specials.size)]
    calls = [args[-2 if isinstance(OPS[name].kind, Pair) else -1:]]
    if len(calls[0]) == 2:
        calls.append([specials[:, None], specials])  # broadcast, which takes another way
    for dtype in DTYPES:
        for few in calls:
            with np.errstate(all="ignore"):
                few, options = [cast(a, dtype) for a in few], options_of(OPS[name])
                definition = OPS[name].definition
                if dtype in HALVES:
                    definition = through_float32(definition, dtype)
                expected = definition(*few, **options).astype("f8")
                got = run(name, few, options).astype("f8")
            what = f"{name} {dtype}"
            np.testing.assert_array_equal(np.isnan(got), np.isnan(expected), err_msg=what)
            near = np.isfinite(expected) & np.isfinite(got)  # exp(88.8) may be infinite or not
            infinite = ~near & ~np.isnan(expected)
            largest = {"float16": 65504, "float64": 1.7e308}.get(dtype, 3.3e38)
            assert (abs(np.where(infinite, got, np.inf)) >= largest * 0.99).all(), what
            assert (np.sign(got) == np.sign(expected))[infinite].all(), what
            small = np.finfo({"bfloat16": "float32"}.get(dtype, dtype)).tiny
            eps = {"bfloat16": 2**-7, "float16": 2**-9}.get(dtype, 2**-18)
            np.testing.assert_allclose(got[near], expected[near], eps, small * 2, err_msg=what)


def parts(name, dtype):
    """An image alone has the bits that it has in a batch."""
    count = 2 if isinstance(OPS[name].kind, Pair) else 1
    images = [cast(abs(normal((3, 8, 3, 5), seed)), dtype) for seed in range(count)]
    options = options_of(OPS[name])
    together = run(name, images, options)
    for n in range(3):
        alone = run(name, [x[n:n + 1] for x in images], options)
        assert alone.tobytes() == together[n:n + 1].tobytes(), (name, dtype, n)
