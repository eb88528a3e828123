"""Resizing images: feature maps, latents, pixels."""

import numpy as np

from refsd.kinds import Movement, call
from refsd.options import Flag, Integer
from refsd.registry import op

PIXELS = {"H > 0 and W > 0": "x {x} has no pixels"}


@op("x (N C H W) -> (N C height width)", Movement(), height=Integer(1), width=Integer(1),
    rules=PIXELS, examples=[call((1, 2, 3, 4), height=6, width=8),
                            call((1, 2, 5, 3), height=9, width=7)])
def upsample_nearest(x, *, height, width):
    """y[i, j] = x[floor(i H / height), floor(j W / width)].   (N, C, H, W) -> (N, C, height, width)

    The ratio and its product with i are float32, as in torch: for odd ratios that decides pixels.

    >>> upsample_nearest(np.array([[[[1.0, 2.0]]]]), height=1, width=4)
    array([[[[1., 1., 2., 2.]]]])
    """
    rows, columns = source_pixels(x.shape[2], height), source_pixels(x.shape[3], width)
    return x[:, :, rows[:, None], columns]


def source_pixels(size, new_size):
    """For each new position: the source's index."""
    scale = np.float32(size) / np.float32(new_size)
    index = np.floor(np.arange(new_size, dtype="float32") * scale).astype("int64")
    return np.minimum(index, size - 1)


@op("x (N C H W) -> (N C height width)", flops="11 * size", height=Integer(1), width=Integer(1),
    align_corners=Flag(), rules=PIXELS,
    examples=[call((1, 2, 3, 4), height=6, width=8, align_corners=False),
              call((1, 2, 3, 4), height=5, width=7, align_corners=True)])
def upsample_bilinear(x, *, height, width, align_corners):
    """Linear interpolation along both axes.   (N, C, H, W) -> (N, C, height, width)

    `align_corners` maps the centres of the corner pixels onto each other: source = i (H - 1) /
    (height - 1). Without it the images' edges meet: source = (i + 1/2) H / height - 1/2, at least
    0 (the half-pixel rule of torch and OpenCV).

    >>> row = np.array([[[[0.0, 4.0]]]])
    >>> upsample_bilinear(row, height=1, width=3, align_corners=True)
    array([[[[0., 2., 4.]]]])
    >>> upsample_bilinear(row, height=1, width=4, align_corners=False)
    array([[[[0., 1., 3., 4.]]]])
    """
    top, bottom, down = source_pairs(x.shape[2], height, align_corners, x.dtype)
    left, right, across = source_pairs(x.shape[3], width, align_corners, x.dtype)
    rows = x[:, :, top] * (1 - down)[:, None] + x[:, :, bottom] * down[:, None]
    return rows[..., left] * (1 - across) + rows[..., right] * across


def source_pairs(size, new_size, align_corners, dtype):
    """For each new position: the two source indices and the weight of the second."""
    i = np.arange(new_size, dtype="float64")
    if align_corners:
        source = i * ((size - 1) / max(new_size - 1, 1))
    else:
        source = np.maximum((i + 0.5) * (size / new_size) - 0.5, 0)
    first = np.minimum(source.astype("int64"), size - 1)
    return first, np.minimum(first + 1, size - 1), (source - first).astype(dtype)
