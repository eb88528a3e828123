"""Number formats, and rounding to them: what a port stores, emulated in float64.

A number of a format with p significant bits is m 2^e with |m| < 2^p; below 2^least the spacing no
longer shrinks (subnormal numbers). bfloat8_b and int8 are blocks that share one scale.
"""

from typing import NamedTuple

import numpy as np

from refsd.errors import UsageError


class Format(NamedTuple):
    """A number format.

    unit: the largest relative error of rounding a normal number to nearest (of a block format:
    relative to the largest magnitude of the block). largest: the largest finite number. tiny: the
    smallest above 0. bits: significant bits, the leading one included. least: the exponent of the
    smallest normal number. overflow: what numbers that round beyond the largest become ("inf",
    "nan", or "largest"). block: how many numbers share a scale (0: each has its own exponent;
    -1: all of an output channel).
    """

    name: str
    unit: float
    largest: float
    tiny: float
    bits: int
    least: int
    overflow: str = "inf"
    block: int = 0


def _ieee(name: str, bits: int, exponent: int) -> Format:
    """A format as IEEE 754 makes them: significant bits, and bits of the exponent."""
    bias = 2 ** (exponent - 1) - 1
    return Format(name, 2.0**-bits, (2 - 2.0 ** (1 - bits)) * 2.0**bias,
                  2.0 ** (2 - bias - bits), bits, 1 - bias)


FORMATS = {f.name: f for f in (
    _ieee("float64", 53, 11), _ieee("float32", 24, 8), _ieee("tf32", 11, 8),
    _ieee("float16", 11, 5), _ieee("bfloat16", 8, 8), _ieee("fp8_e5m2", 3, 5),
    # Open Compute's 8 bits (OFP8 1.0): no infinity, and the largest exponent holds numbers; only
    # the largest mantissa of it is NaN, so the largest number is 1.75 * 2^8.
    Format("fp8_e4m3", 2.0**-4, 448.0, 2.0**-9, 4, -6, overflow="nan"),
    # 16 numbers share an exponent of 8 bits; each has a sign and 7 bits of magnitude.
    Format("bfloat8_b", 2.0**-7, 127 * 2.0**121, 2.0**-132, 7, -126, "largest", 16),
    # Weights: 127 steps either way, the last of which is the largest weight of the channel.
    Format("int8", 1 / 254, float(np.finfo("float32").max), 0.0, 7, -126, "largest", -1),
)}
ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}


def format_named(name: str) -> Format:
    """The Format of a name or of its short form (bf16, fp16); UsageError for others."""
    found = FORMATS.get(ALIASES.get(name, name))
    if found is None:
        raise UsageError(f"format is {name!r}; give one of {', '.join(FORMATS)}")
    return found


def round_to(x: np.ndarray, format: str | Format, *, generator: np.random.Generator | None = None,
             axis: int | None = None) -> np.ndarray:
    """The nearest numbers of a format, ties to even, in the dtype of x (float32 or float64).

    x itself where that is the format: a matrix product of a copy that lies otherwise in memory may
    have other bits.
    With a generator: one of the two neighbours, the nearer the likelier, so that the mean is x
    (stochastic rounding). Infinities and NaNs stay. Numbers that round beyond the largest become
    what the format's `overflow` says. bfloat8_b: blocks of 16 along `axis` (default: axis 1 of four
    axes, the last of others). int8: one scale for each index of `axis` (default 0, the output
    channels of a weight), max / 127. float32 cannot hold what float64 can: such values overflow.
    """
    format = format_named(format) if isinstance(format, str) else format
    x = np.asarray(x)
    if format.name == str(x.dtype):
        return x
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        if format.name == "float32" and generator is None:
            return x.astype("float32").astype(x.dtype)
        wide = x.astype("float64")
        step = _steps(wide, format, axis)
        rounded = np.asarray(wide / step)
        if generator is None:
            np.rint(rounded, out=rounded)
        else:  # up with the probability of what is above the lower neighbour
            rounded += generator.random(rounded.shape)
            np.floor(rounded, out=rounded)
        if format.block:
            rounded = np.where(np.isinf(wide), rounded, np.clip(rounded, -127, 127))
        rounded *= step
        np.copysign(rounded, wide, out=rounded)  # a product with 0 may have lost the sign
        beyond = ~(np.abs(rounded) <= format.largest)
        if beyond.any():
            over = {"inf": np.inf, "nan": np.nan, "largest": format.largest}[format.overflow]
            # Without a code for infinity it is one more number beyond the largest.
            stays = ~np.isfinite(wide) if format.overflow != "nan" else np.isnan(wide)
            rounded = np.where(stays, wide, np.where(beyond, np.copysign(over, wide), rounded))
        return rounded.astype(x.dtype)


def uncertainty(x: np.ndarray, format: str | Format, *, axis: int | None = None) -> np.ndarray:
    """The most that rounding to nearest moves x: half a step of the format (float64, as x).

    The largest numbers of a bfloat8_b block are cut off at 127 steps and move by up to a whole one.
    0 where x is a number of the format.
    """
    format = format_named(format) if isinstance(format, str) else format
    wide = np.asarray(x, "float64")
    if format.name == "float64":
        return np.zeros(wide.shape)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        step = np.broadcast_to(_steps(wide, format, axis), wide.shape)
        scaled = np.abs(wide / step)
        exact = (scaled == np.rint(scaled)) | ~np.isfinite(wide)
        moved = np.where(scaled > 127, step, step / 2) if format.block else step / 2
        return np.where(exact & ((scaled <= 127) | (format.block == 0)), 0.0, moved)


def rounding(x: np.ndarray, format: Format, *, axis: int | None = None) -> np.ndarray:
    """The most that rounding moves a result of about x: as `uncertainty`, without exceptions."""
    step = _steps(x, format, axis)
    return np.where(np.abs(x) > 126.5 * step, step, step / 2) if format.block else step / 2


def _steps(x, format, axis):
    """The spacing of the format's numbers around each x."""
    if format.name == "int8":
        axis = 0 if axis is None else axis % max(1, x.ndim)
        others = tuple(i for i in range(x.ndim) if i != axis)
        largest = np.max(np.abs(x), axis=others, keepdims=True, initial=0.0,
                         where=np.isfinite(x))
        return np.where(largest > 0, largest / 127, 1.0)
    if format.block:
        return np.ldexp(1.0, np.maximum(_block_exponents(x, format, axis), format.least) - 6)
    # The exponent of a float64 lies in its bits 52 to 62; a power of two has no others.
    exponents = np.ascontiguousarray(x).view("int64") & (0x7FF << 52)
    exponents -= (format.bits - 1) << 52
    lowest = max(0, format.least - (format.bits - 1) + 1023)
    return np.maximum(exponents, lowest << 52).view("float64").reshape(x.shape)


def _block_exponents(x, format, axis):
    """floor(log2) of the largest magnitude of each block, for each of its numbers"""
    axis = (1 if x.ndim == 4 else -1) if axis is None else axis
    if x.ndim == 0 or x.size == 0:
        return np.frexp(x)[1] - 1
    moved = np.moveaxis(np.where(np.isfinite(x), np.abs(x), 0.0), axis, -1)
    count = moved.shape[-1]
    padded = np.pad(moved, [(0, 0)] * (x.ndim - 1) + [(0, -count % format.block)])
    blocks = padded.reshape(*moved.shape[:-1], -1, format.block)
    largest = np.repeat(blocks.max(axis=-1), format.block, axis=-1)[..., :count]
    return np.moveaxis(np.frexp(largest)[1] - 1, -1, axis)
