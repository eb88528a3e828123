"""Formats bit for bit as ml_dtypes has them; torch's errors within the likely bounds, and near.

`make parity` runs this; -s prints how much of each bound torch uses.
"""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as TF
from agreement_bounds import CONVOLUTIONS
from agreement_cases import calls
from numba_agreement import truth_of

from refsd.golden.tolerances.bounds import bound
from refsd.golden.tolerances.formats import FORMATS, round_to

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16,
          "fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}


@pytest.mark.parametrize("name", DTYPES)
def test_every_bit_of_a_format(name):
    """All numbers of the format, their midpoints and their neighbours, and random bits."""
    dtype = np.dtype(DTYPES[name])
    with np.errstate(all="ignore"):
        held = np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}").view(dtype)
        held = np.sort(held.astype("f4"))
        middle = (held[1:].astype("f8") + held[:-1]) / 2
        middle = middle[np.isfinite(middle)].astype("f4")
        random = np.random.default_rng(1).integers(0, 2**32, 10**6, dtype="u4").view("f4")
        x = np.concatenate([held, middle, np.nextafter(middle, np.float32(np.inf)),
                            np.nextafter(middle, np.float32(-np.inf)), random])
        wanted, got = x.astype(dtype).astype("f4"), round_to(x, name)
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view("u4"), wanted[~nan].view("u4"))
    about = ml_dtypes.finfo(dtype)
    assert (float(about.max), float(about.smallest_subnormal)) == (
        FORMATS[name].largest, FORMATS[name].tiny)


def _norm(x, weight=None, bias=None, *, eps):
    return TF.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _attention(q, k, v, *, heads, mask=None, causal=False):
    N, L = q.shape[:2]
    q, k, v = (t.reshape(N, t.shape[1], heads, -1).swapaxes(1, 2) for t in (q, k, v))
    if mask is not None:
        mask = mask.expand(N, heads, L, k.shape[2])
    y = TF.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return y.swapaxes(1, 2).reshape(N, L, -1)


def _conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, **_):
    if not isinstance(padding, int):
        if not isinstance(padding[0], int):
            (top, bottom), (left, right) = padding
            x, padding = TF.pad(x, (left, right, top, bottom)), 0
        else:
            padding = tuple(padding)
    return TF.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _geglu(x):
    hidden, gate = x.chunk(2, dim=-1)
    return hidden * TF.gelu(gate)


TORCH = {
    "linear": TF.linear, "linear_add": lambda x, w, r, b=None: TF.linear(x, w, b) + r,
    "linear_geglu": lambda x, w, b=None: _geglu(TF.linear(x, w, b)),
    "conv2d_add": lambda x, w, z, b=None, **options: _conv2d(x, w, b, **options) + z,
    "upsample_conv2d": lambda x, w, b=None, *, height, width, **options: _conv2d(
        TF.interpolate(x, size=(height, width)), w, b, **options),
    "group_norm_silu": lambda x, w, b, *, groups, eps: TF.silu(TF.group_norm(x, groups, w, b, eps)),
    "matmul": torch.matmul, "conv2d": _conv2d, "attention": _attention,
    "group_norm": lambda x, w, b, *, groups, eps: TF.group_norm(x, groups, w, b, eps),
    "layer_norm": _norm,
    "rms_norm": lambda x, w, *, eps: TF.rms_norm(x, w.shape, w, eps),
    "silu": TF.silu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": TF.gelu,
    "gelu_tanh": lambda x: TF.gelu(x, approximate="tanh"), "geglu": _geglu,
    "softmax": lambda x, *, axis: torch.softmax(x, axis),
    "upsample_bilinear": lambda x, *, height, width, align_corners: TF.interpolate(
        x, size=(height, width), mode="bilinear", align_corners=align_corners),
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "exp": torch.exp,
    "sqrt": torch.sqrt, "tanh": torch.tanh,
}


def errors(name, dtype, format, **about):
    """The largest |error| / likely bound of each of the op's hard calls, in torch."""
    found = []
    cases = calls(name)
    for call in cases[::max(1, math.ceil(len(cases) / 12))]:
        args, options = call.build("float32")
        truth, _ = truth_of(name, args, options)
        tensors = [torch.from_numpy(np.array(a)).to(dtype) if isinstance(a, np.ndarray) else a
                   for a in args]
        if not truth.size:
            continue
        keywords = {k: torch.from_numpy(np.array(v)).to(dtype) if isinstance(v, np.ndarray) else v
                    for k, v in options.items()}
        y = TORCH[name](*tensors, **keywords).double().numpy()
        allowed = bound(name, args, options, truth, format=format,
                        algorithm="im2col" if name in CONVOLUTIONS else None, **about)
        # A query without keys is 0 here and NaN in torch; overflow is no matter of rounding.
        kept = np.isfinite(y) & np.isfinite(truth) & (abs(truth) < FORMATS[format].largest / 2)
        error = abs(y - truth)[kept]
        with np.errstate(all="ignore"):
            used = np.where(error > 0, error / allowed.likely[kept], 0)
        found.append(float(used.max(initial=0.0)))
        assert found[-1] <= 1, f"{name} {[np.shape(a) for a in args]} {options}: {found[-1]:.3g}"
    return found


def test_torch_in_float32():
    """1 % to 100 % of the likely bound for nine cases in ten, and never beyond."""
    near, rows = [], []
    for name in TORCH:
        found = errors(name, torch.float32, "float32")
        near += [share >= 0.01 for share in found]
        rows.append(f"{name:<20}{len(found):>4} cases{min(found):>9.3f}{np.median(found):>9.3f}"
                    f"{max(found):>9.3f}")
    print("\nshare of the likely bound: smallest, median, largest\n" + "\n".join(rows)
          + f"\n{np.mean(near):.1%} of {len(near)} cases between 1 % and 100 %")
    assert np.mean(near) >= 0.9


@pytest.mark.parametrize("format, dtype", [("float16", torch.float16),
                                           ("bfloat16", torch.bfloat16)])
@pytest.mark.parametrize("name", TORCH)
def test_torch_in_half_precision(name, format, dtype):
    errors(name, dtype, format)
