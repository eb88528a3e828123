"""8-bit floats as the float32 numbers that they stand for: a table of 256.

Source: Micikevicius et al. 2022, FP8 Formats for Deep Learning; safetensors' F8_E4M3 is torch's
float8_e4m3fn (no infinities), F8_E5M2 its float8_e5m2.
"""

import numpy as np


def widen(codes: np.ndarray, dtype: str) -> np.ndarray:
    """float32 of the uint8 codes of an F8_E4M3 or F8_E5M2 tensor, exact."""
    return TABLES[dtype][codes]


def _e4m3() -> np.ndarray:
    """(-1)^s 2^(e - 7) (1 + m / 8), and (-1)^s 2^-6 m / 8 where e = 0; all ones are NaN."""
    codes = np.arange(256)
    s, e, m = codes >> 7, (codes >> 3) & 15, codes & 7
    value = np.ldexp(np.where(e == 0, m, 8 + m), np.maximum(e, 1) - 10)
    value = np.where(s == 1, -value, value)
    return np.where(codes & 127 == 127, np.nan, value).astype(np.float32)


def _e5m2() -> np.ndarray:
    """The upper byte of a float16; its NaNs quiet, so that no later cast complains."""
    value = (np.arange(256, dtype=np.uint16) << 8).view(np.float16)
    return np.where(np.isnan(value), np.nan, value.astype(np.float32)).astype(np.float32)


TABLES = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2()}
