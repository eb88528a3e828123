"""Likenesses between a candidate and the golden tensor that need nothing but the two.

Each guess is (reason, sentence, what the candidate would then be), and, where that is not exact,
how many numbers of it were fitted, and a mask of the elements that are the candidate's own.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from refsd.golden.comparing.layouts import LAYOUTS, layout, to_layout

Triple = tuple[Any, ...]  # reason, sentence, array[, fitted[, own]]

# The factors of the VAEs that are in use.
SCALING_FACTORS = (0.18215, 0.13025)
NEAR = 0.1  # a known factor so near to the fitted one is tried; whether it is it, the error says
BATCH = 8  # samples; more than this many are rows of something
OF_LAYOUT = {"NHWC": "nhwc", "ROWS": "nhwc", "ROWS32": "tile_padding", "TILE32": "tile_padding",
             "FACE16": "tile_padding", "NC4HW4": "nc4hw4", "HWIO": "transposed",
             "TRANSPOSED": "transposed"}


def nonfinite(truth: np.ndarray, got: np.ndarray) -> Iterator[tuple[str, str, float]]:
    """NaN and infinity that do not meet their like: (reason, sentence, 1.0)."""
    with np.errstate(all="ignore"):
        nan = np.isnan(got) & ~np.isnan(truth)
        masked = np.isfinite(got) & ~np.isfinite(truth)
        sign = np.isinf(got) & np.isinf(truth) & (got != truth)
        inf = np.isinf(got) & np.isfinite(truth)
    for bad, reason, sentence in (
            (nan, "nan", "NaN where the golden number is none"),
            (masked, "nan_masked", "a finite number where the golden one is NaN or infinite"),
            (sign, "inf_sign", "an infinity of the other sign"),
            (inf, "overflow", "infinite where the golden number is finite: it overflowed")):
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            yield reason, f"{sentence}, in {places(bad.sum())}, the first at {first}", 1.0


def bits(golden: np.ndarray, got: np.ndarray) -> Iterator[tuple[str, str, float]]:
    """Integers that are the bits of floating-point numbers near the golden ones."""
    if got.dtype.kind not in "iu" or got.dtype.itemsize != 2 or golden.dtype.kind != "f":
        return
    words = np.ascontiguousarray(got).view(np.uint16)
    for name, ending, floats in (
            ("bfloat16", "bf16", (words.astype(np.uint32) << 16).view(np.float32)),
            ("float16", "f16", words.view(np.float16))):
        with np.errstate(all="ignore"):
            error = float(np.sum((floats.astype("float64") - golden) ** 2))
            share = 1 - error / float(np.sum((got.astype("float64") - golden) ** 2))
            near = error < 0.1 * float(np.sum(golden.astype("float64") ** 2))
        if near:
            yield ("raw_bits", f"these integers are the bits of {name} numbers: write them to a "
                   f".{ending} file, or give an index.json with \"dtype\": \"{name}\"", share)


def places(count: int) -> str:
    """1 place, 2 places: for messages."""
    return f"{int(count):,} place{'' if count == 1 else 's'}"


def same_shape(entry: Any, truth: np.ndarray, got: np.ndarray,
               factors: Iterable[float] = ()) -> Iterator[Triple]:
    """Guesses for a candidate of the golden shape, the most specific first.

    factors: scaling factors that the model is known to have.
    """
    yield "sign", "every sign is the other one", -truth
    if "int" in entry.dtype:
        yield from filled(truth, got)
    yield from masked(truth, got)
    yield from laid_out(truth)
    yield from permuted(truth)
    yield from halves(entry, truth)
    yield from heads(truth)
    if truth.ndim > 1 and len(truth) == 2:
        yield ("swapped_guidance", "its two samples are swapped: the conditional and the "
               "unconditional one", truth[::-1])
    yield from repeated(truth)
    yield from scaled(truth, got, (*factors, *SCALING_FACTORS))
    yield from offset(truth, got)
    yield from shifted(truth, got)


def repeated(truth: np.ndarray) -> Iterator[Triple]:
    """Every sample is the same one of the golden ones."""
    for i in range(len(truth) if truth.ndim > 1 and 2 <= len(truth) <= BATCH else 0):
        yield ("repeated_batch", f"all its samples are sample {i} of the golden {len(truth)}",
               np.broadcast_to(truth[i], truth.shape))


def masked(truth: np.ndarray, got: np.ndarray) -> Iterator[Triple]:
    """Some elements are exactly 0 and all others right: a NaN or an infinity was replaced."""
    zero = (got == 0) & (truth != 0)
    count = int(zero.sum())
    if 0 < count <= truth.size // 4:
        first = tuple(int(i) for i in np.argwhere(zero)[0])
        yield ("nan_masked", f"{count:,} of {truth.size:,} numbers are exactly 0, the first at "
               f"{first}, and the rest are right: a NaN or an infinity was replaced by zero",
               np.where(zero, 0, truth), count)


def filled(truth: np.ndarray, got: np.ndarray) -> Iterator[Triple]:
    """Ids that are right up to the end of the text, and another one after it."""
    other = got != truth
    after = np.logical_or.accumulate(other, axis=-1) if truth.ndim else other
    theirs, right = np.unique(got[other]), np.unique(truth[other])
    if np.array_equal(other, after) and len(theirs) == len(right) == 1 and (
            other.sum(axis=-1).max() > 1):
        yield ("padding_token", f"the text is filled up with {theirs[0]:g}, not with {right[0]:g}",
               np.where(other, theirs[0], truth), 1)


def laid_out(truth: np.ndarray) -> Iterator[Triple]:
    """The bytes of another layout under the golden shape."""
    if truth.ndim == 4:
        for name in ("NHWC", "NC4HW4"):
            if math.prod(layout(name).physical(truth.shape)) == truth.size:
                yield (OF_LAYOUT[name], f"it looks like {name} that was dumped as if it were NCHW "
                       f"(give --layout {name})", to_layout(truth, name).reshape(truth.shape))
        transposed = truth.transpose(0, 3, 1, 2)
        yield ("nhwc", "it looks like NCHW that was read as NHWC",
               np.ascontiguousarray(transposed).reshape(truth.shape))


def permuted(truth: np.ndarray) -> Iterator[Triple]:
    """Axes of equal length swapped, or the bytes of a transposed matrix."""
    if not 2 <= truth.ndim <= 4:
        return
    for axes in itertools.permutations(range(truth.ndim)):
        if axes != tuple(range(truth.ndim)) and truth.transpose(axes).shape == truth.shape:
            yield "transposed", f"its axes are in the order {axes}", truth.transpose(axes)
    transposed = truth.swapaxes(-1, -2)
    if transposed.shape != truth.shape:
        yield ("transposed", "its last two axes are swapped in memory",
               np.ascontiguousarray(transposed).reshape(truth.shape))


def halves(entry: Any, truth: np.ndarray) -> Iterator[Triple]:
    """The two halves of the features swapped."""
    axis = 1 if truth.ndim == 4 else truth.ndim - 1
    if truth.ndim and truth.shape[axis] % 2 == 0 and truth.shape[axis]:
        waves = entry.op == "timestep_embedding" or entry.name.endswith("timestep_embedding")
        reason = "sincos_order" if waves else "swapped_inputs"
        yield (reason, "sines and cosines have changed places" if waves else
               "the two halves of the channels have changed places",
               np.roll(truth, truth.shape[axis] // 2, axis=axis))


def heads(truth: np.ndarray) -> Iterator[Triple]:
    """Features interleaved instead of head after head: (h, d) -> (d, h), for every h."""
    if truth.ndim == 3:
        N, L, C = truth.shape
        for h in (h for h in range(2, C // 2 + 1) if C % h == 0):
            yield ("head_order", f"the features lie as {C // h} x {h} instead of {h} x {C // h}: "
                   f"the {h} heads are interleaved",
                   truth.reshape(N, L, h, C // h).swapaxes(-1, -2).reshape(truth.shape))


def scaled(truth: np.ndarray, got: np.ndarray,
           factors: tuple[float, ...] = SCALING_FACTORS) -> Iterator[Triple]:
    """One factor for all elements, by least squares; named where it is a known one."""
    good = np.isfinite(truth) & np.isfinite(got)
    size = float(truth[good] @ truth[good])
    factor = float(truth[good] @ got[good]) / size if size else math.nan
    if not math.isfinite(factor) or factor == 0:
        return
    for known in factors:
        for value, how in ((known, "multiplied by it once too often"),
                           (1 / known, "not multiplied by it"),
                           (known**2, "multiplied by it where it should be divided"),
                           (known**-2, "divided by it where it should be multiplied")):
            if abs(factor / value - 1) < NEAR:
                yield ("missing_scaling_factor", f"it is {value:.6g} times the golden tensor: the "
                       f"VAE's scaling factor {known} is missing or extra ({how})", value * truth)
    yield "scale", f"it is {factor:.6g} times the golden tensor", factor * truth, 1


def offset(truth: np.ndarray, got: np.ndarray) -> Iterator[Triple]:
    """One constant for all elements, or one a channel, which is what a bias is."""
    error = np.where(np.isfinite(truth) & np.isfinite(got), got - truth, 0)
    mean = float(error.mean())
    yield "offset", f"it is the golden tensor and {mean:+.6g} everywhere", truth + mean, 1
    if truth.ndim >= 2:
        axes = (0, 2, 3) if truth.ndim == 4 else tuple(range(truth.ndim - 1))
        if math.prod(truth.shape[a] for a in axes) >= 4:
            bias = error.mean(axis=axes, keepdims=True)
            yield ("missing_bias", "the error is one constant for each channel: a bias is missing "
                   "or extra", truth + bias, bias.size)


def shifted(truth: np.ndarray, got: np.ndarray) -> Iterator[Triple]:
    """Moved by one or two along an axis; what was moved in from outside is not judged."""
    if truth.ndim < 2:
        return
    error = np.nan_to_num(got - truth) ** 2
    for axis in range(max(1, truth.ndim - 3), truth.ndim) if truth.ndim > 2 else range(2):
        n = truth.shape[axis]
        for by in (p for p in (1, -1, 2, -2) if n >= 4 * abs(p)):
            moved = np.roll(truth, by, axis=axis)
            edge = slice(0, by) if by > 0 else slice(n + by, n)
            outside = (slice(None),) * axis + (edge,)
            if 2 * error[outside].sum() > error.sum():  # then the rest says little
                continue
            own = np.zeros(truth.shape, bool)
            own[outside] = True
            yield ("off_by_one", f"it is moved by {by:+d} along axis {axis}", moved, 0, own)


def other_shape(golden: np.ndarray, got: np.ndarray) -> Iterator[Triple]:
    """Guesses in the candidate's shape, which is not the golden one."""
    yield from batches(golden, got)
    for axes in itertools.permutations(range(golden.ndim)) if golden.ndim <= 4 else ():
        if tuple(golden.shape[a] for a in axes) == got.shape:
            name = "nhwc" if axes == (0, 2, 3, 1) else "transposed"
            yield (name, f"its axes are in the order {axes}" + (
                " (NHWC; give --layout NHWC)" if name == "nhwc" else ""), golden.transpose(axes))
    for name in LAYOUTS:
        physical = layout(name).physical(golden.shape)
        if math.prod(physical) == got.size and name != "NCHW":
            yield (OF_LAYOUT[name], f"it lies as {name}: {' x '.join(map(str, physical))} "
                   f"(give --layout {name})", to_layout(golden, name).reshape(got.shape))
    if golden.size == got.size:
        yield "reshaped", "it has the golden numbers under another shape", golden.reshape(got.shape)
    if golden.ndim == got.ndim:
        yield from _cropped(golden, got)
        yield from _grown(golden, got)


def batches(golden: np.ndarray, got: np.ndarray) -> Iterator[Triple]:
    """More or fewer samples than the golden batch has: it is there again, or in parts."""
    if golden.ndim < 2 or not got.ndim or golden.shape[1:] != got.shape[1:]:
        if golden.ndim > 1 and got.shape == golden.shape[1:]:
            yield from ((*guess[:2], guess[2][0]) for guess in _parts(golden, got[None]))
        return
    times, rest = divmod(len(got), max(len(golden), 1))
    if times > 1 and not rest:
        yield ("repeated_batch", f"the batch is repeated: the golden samples are there {times} "
               "times, one batch after the other", np.concatenate([golden] * times))
        yield ("repeated_batch", f"the batch is repeated: each golden sample is there {times} "
               "times", np.repeat(golden, times, axis=0))
    yield from _parts(golden, got)


def _parts(golden: np.ndarray, got: np.ndarray) -> Iterator[Triple]:
    """Some of the golden samples alone: for guidance, a network may be run once for each prompt."""
    n = len(got)
    for start in range(len(golden) - n + 1 if len(golden) <= BATCH else 0):
        samples = f"sample {start}" if n == 1 else f"samples {start} to {start + n - 1}"
        sentence = f"it is {samples} of the golden {len(golden)} alone: dump the whole batch as one"
        if len(golden) == 2 * n and start in (0, n):
            half, whose = ("second half", "the prompt's") if start else (
                "first half", "the negative prompt's")
            if np.array_equal(golden[:n], golden[n:], equal_nan=True):  # no text has come in yet
                half, whose = "first or the second half", "a prompt's"
            sentence = (f"it is the {half} of the golden batch alone (with guidance {whose}): join "
                        "both passes by a name map, as [\"uncond\", \"cond\"], or make the pack "
                        "with --cfg-scale 1, of the prompt alone")
        yield "split_batch", sentence, golden[start:start + n]


def _grown(golden: np.ndarray, got: np.ndarray) -> Iterator[Triple]:
    """The golden tensor with something after its end: a tile that was not cut off."""
    if all(n >= m for n, m in zip(got.shape, golden.shape)):
        larger = [(n, m) for n, m in zip(got.shape, golden.shape) if n != m]
        inside = tuple(slice(m) for m in golden.shape)
        padded, own = np.array(got), np.ones(got.shape, bool)
        padded[inside], own[inside] = golden, False
        tiles = all(n % 16 == 0 for n, _ in larger)
        few = all(n - m <= 2 for n, m in larger)
        yield ("tile_padding" if tiles else "off_by_one" if few else "padded",
               f"it is the golden tensor filled up to {got.shape}"
               + ("" if got[own].any() else " with zeros")
               + (": the padding of the tiles was left in" if tiles else ""), padded, 0, own)


def _cropped(golden: np.ndarray, got: np.ndarray) -> Iterator[Triple]:
    """A part of the golden tensor, up to two elements shorter along each axis.

    Samples that are missing are no crop: `batches` has them.
    """
    if golden.ndim > 1 and len(golden) <= BATCH and got.shape[1:] == golden.shape[1:]:
        return
    less = [m - n for n, m in zip(got.shape, golden.shape)]
    if all(0 <= n <= 2 for n in less):
        for start in itertools.product(*(range(n + 1) for n in less)):
            part = golden[tuple(slice(s, s + n) for s, n in zip(start, got.shape))]
            yield "off_by_one", f"it is a crop of the golden tensor that begins at {start}", part
