"""Enlarged images in lockstep."""

import numpy as np
import pytest
from cuda_agreement import DTYPES, VIEWS, agree, run
from op_table import normal

from refsd import functional as F
from refsd.half import HALVES
from refsd.numba_ops.cuda.array import CHANNELS_LAST, to_device
from refsd.registry import ops, use

SIZES = [((2, 8, 3, 4), (6, 8)), ((1, 3, 5, 3), (9, 7)), ((2, 4, 3, 3), (2, 1)),
         ((1, 1, 1, 1), (3, 2)), ((0, 2, 3, 3), (6, 6)), ((1, 2, 7, 3), (49, 41))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("images", [CHANNELS_LAST, None, *VIEWS])
def test_sizes(images, dtype):
    for shape, (height, width) in SIZES[:5 if dtype != "float16" else None]:
        x = normal(shape, 1)
        agree("upsample_nearest", [x], {"height": height, "width": width}, dtype, images)
        for align_corners in (True, False) if height < 49 else ():
            agree("upsample_bilinear", [x], {"height": height, "width": width,
                                             "align_corners": align_corners}, dtype, images)


def test_no_ratio_takes_another_pixel():
    """float32's ratio and product decide: sizes at which a division would take another pixel."""
    x = np.arange(41, dtype="f4").reshape(1, 1, 1, 41)
    for width in (2, 3, 40, 41, 49, 61, 82, 83, 107, 123, 205, 287):
        agree("upsample_nearest", [x], {"height": 1, "width": width})


def test_not_numbers():
    """They spoil what they spoil in the reference; what is moved keeps its bits."""
    x = normal((2, 8, 3, 4), 1)
    x[0, 3, 1, 2], x[1, 0, 0, 0] = np.nan, np.inf
    options = {"height": 6, "width": 7, "align_corners": False}
    with np.errstate(all="ignore"):
        expected = ops()["upsample_bilinear"].definition(x, **options)
    np.testing.assert_array_equal(np.isfinite(run("upsample_bilinear", [x], options)),
                                  np.isfinite(expected))
    bits = np.arange(0x7F80, 0x7FC0, dtype="u2").reshape(1, 4, 4, 4).view(HALVES["bfloat16"])
    options = {"height": 8, "width": 8}
    expected = ops()["upsample_nearest"].definition(bits, **options)
    assert run("upsample_nearest", [bits], options).tobytes() == expected.tobytes()


def test_channels_are_last():
    with use("cuda"):
        y = F.upsample_nearest(to_device(normal((1, 8, 3, 4), 1)), height=6, width=8)
    assert y.is_contiguous(CHANNELS_LAST)
