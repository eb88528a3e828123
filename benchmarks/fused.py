"""Fused ops beside the ops that they stand for: python benchmarks/fused.py [TURNS]

Shapes of Stable Diffusion 1.5 at 512 x 512, batch 2, as its UNet has them. Both sides take turns,
so that what else the machine does falls on both; a row shows the medians, and that of the ratios.
"""

import statistics
import sys
import time

import numpy as np

from refsd import functional as F
from refsd.half import to_half
from refsd.leaf import Weight
from refsd.numba_ops.weights import pack_all
from refsd.registry import use

SIZES = ((320, 64), (640, 32), (1280, 16))


def sides(channels, size, dtype):
    """name: (ops one by one, fused)"""
    def draw(*shape):
        x = np.random.default_rng(len(shape)).standard_normal(shape).astype("f4")
        return x if dtype == "float32" else to_half(x, dtype)

    def picture(*shape):
        return np.moveaxis(draw(shape[0], *shape[2:], shape[1]), -1, 1)

    x, h = picture(2, channels, size, size), picture(2, channels, size, size)
    time_of, line = draw(2, channels, 1, 1), draw(channels)
    layer = {"a.weight": Weight(draw(channels, channels, 3, 3)), "a.bias": Weight(line)}
    pack_all(layer)
    conv, twice = tuple(layer.values()), {"height": 2 * size, "width": 2 * size}
    norm = {"groups": 32, "eps": 1e-5}

    def block(x, time_of):
        y = F.silu(F.group_norm(x, line, line, **norm))
        y = F.add(F.conv2d(y, *conv, padding=1), time_of)
        y = F.silu(F.group_norm(y, line, line, **norm))
        return F.add(x, F.conv2d(y, *conv, padding=1))

    def fused(x, time_of):
        y = F.group_norm_silu(x, line, line, **norm)
        y = F.conv2d_add(y, conv[0], time_of, conv[1], padding=1)
        y = F.group_norm_silu(y, line, line, **norm)
        return F.conv2d_add(y, conv[0], x, conv[1], padding=1)

    return {
        "group_norm, silu": (lambda: F.silu(F.group_norm(x, line, line, **norm)),
                             lambda: F.group_norm_silu(x, line, line, **norm)),
        "conv2d, + residual": (lambda: F.add(F.conv2d(x, *conv, padding=1), h),
                               lambda: F.conv2d_add(x, conv[0], h, conv[1], padding=1)),
        "conv2d, + time": (lambda: F.add(F.conv2d(x, *conv, padding=1), time_of),
                           lambda: F.conv2d_add(x, conv[0], time_of, conv[1], padding=1)),
        "resnet": (lambda: block(x, time_of), lambda: fused(x, time_of)),
        "upsample, conv2d": (
            lambda: F.conv2d(F.upsample_nearest(x, **twice), *conv, padding=1),
            lambda: F.upsample_conv2d(x, *conv, **twice, padding=1))}


def measure(pair, turns):
    """The median seconds of each side, and the median of their ratios."""
    seconds = []
    for _ in range(turns):
        row = []
        for side in pair:
            begun = time.perf_counter()
            side()
            row.append(time.perf_counter() - begun)
        seconds.append(row)
    return (*(statistics.median(side) for side in zip(*seconds)),
            statistics.median(after / before for before, after in seconds))


def main(turns):
    """A row for each chain, size and dtype."""
    print(f"{'':<34}{'ops, ms':>10}{'fused, ms':>11}{'ratio':>8}")
    with use("numba"):
        for dtype in ("float32", "bfloat16"):
            for channels, size in SIZES:
                for name, pair in sides(channels, size, dtype).items():
                    measure(pair, 2)  # compiled, and in the caches
                    before, after, ratio = measure(pair, turns)
                    print(f"{f'{name} {channels}@{size} {dtype}':<42}{before * 1e3:>9.1f}"
                          f"{after * 1e3:>10.1f}{ratio:>8.3f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
