"""Attention whose weights are stored in a half format before they meet the values."""

from pathlib import Path

import numpy as np
import pytest
from golden_port_ops import ROUND
from golden_runs import Dump

from refsd.golden.comparing.bisect import bisect
from refsd.golden.packs.pack import Pack
from refsd.golden.recording.replay import arrays_of
from refsd.golden.tolerances.bounds import bound
from refsd.ops.attention import attention

ROOT = Path(__file__).parents[1]
HALVES = ("bfloat16", "float16")


def scaled(q, k, scale, mask, rounded):
    """transformers: the product, times the scale, and the mask, each stored"""
    return rounded(rounded(rounded(q @ k) * scale) + mask)


def at_once(q, k, scale, mask, rounded):
    """diffusers' AttnProcessor: one product with a factor and a summand (baddbmm)"""
    return rounded(q @ k * scale + mask)


def before(q, k, scale, mask, rounded):
    """torch's math kernel: both factors times the root of the scale"""
    root = np.float32(np.sqrt(scale))
    return rounded(rounded(rounded(q * root) @ rounded(k * root)) + mask)


def eager(q, k, v, *, heads, causal=False, mask=None, rounded, scores=scaled):
    """Scores, weights and the result in the format, sums in float32."""
    N, L, S = *q.shape[:2], k.shape[1]
    q, k, v = (x.reshape(N, x.shape[1], heads, -1).swapaxes(1, 2) for x in (q, k, v))
    mask = np.float32(0) if mask is None else mask
    if causal:
        mask = mask + np.where(np.arange(S) > np.arange(L)[:, None], np.float32(-np.inf), 0)
    with np.errstate(all="ignore"):
        found = scores(q, k.swapaxes(-1, -2), np.float32(q.shape[-1]**-0.5), mask, rounded)
        e = np.exp(found - found.max(axis=-1, keepdims=True))
        weights = rounded(e / e.sum(axis=-1, keepdims=True, dtype="f4"))
    return rounded((weights @ v).swapaxes(1, 2).reshape(N, L, -1))


@pytest.mark.parametrize("format", HALVES)
@pytest.mark.parametrize("scores", [scaled, at_once, before])
def test_weights_that_were_rounded_do_not_add_up_to_1(format, scores):
    """Monte Carlo, from flat rows to rows of one weight: largest error and its deviation."""
    rounded, used = ROUND[format], []
    for sharpness in (0.3, 2, 4, 8):
        random = np.random.default_rng(int(10 * sharpness))
        q, k, v = (rounded(random.standard_normal(shape)) for shape in ((2, 64, 80), (2, 77, 80),
                                                                        (2, 77, 80)))
        q, v = rounded(q * np.float32(sharpness)), rounded(v + np.float32(3))
        mask = rounded(random.standard_normal((2, 1, 64, 77)))
        options = {"heads": 8, "mask": mask.astype("f8"), "causal": False}
        truth = attention(*(x.astype("f8") for x in (q, k, v)), **options)
        error = np.abs(eager(q, k, v, heads=8, mask=mask, rounded=rounded, scores=scores) - truth)
        found = bound("attention", [q, k, v], options, truth, format=format, given=True)
        assert (error <= found.likely).all() and (error <= found.worst).all()
        assert np.sqrt(np.mean(error**2)) <= np.sqrt(np.mean(found.deviation**2))
        used.append((error / found.likely).max())
    assert max(used) > 0.4  # the bound is not idle


@pytest.mark.parametrize("format", HALVES)
def test_an_eager_port_passes_the_pack_of_ops(format):
    rounded = ROUND[format]
    with Pack.open(ROOT / "golden" / "ops" / "attention") as pack:
        mine = {}
        for entry in pack.entries.values():
            if entry.op == "attention":
                given = arrays_of(entry, tensor=pack.read, weight=None)
                given = {name: rounded(x) if getattr(x, "dtype", None) == np.float32 else x
                         for name, x in given.items()}
                mine[entry.name] = eager(**given, **entry.options, rounded=rounded)
        assert len(mine) > 5
        found = bisect(pack, Dump(mine), format=format, only=["ops/attention/*"])
    assert found.first is None, found.sentence
