"""How far rounding can take what a pipeline computes between the networks.

`PIPELINE_BOUNDS[op](inputs, options, truth, precision)` is the largest |error| of each element,
given the port's own inputs. Ports make these steps of several element-wise ops, each of which may
round to the port's format, the constants too; so every rounding counts with the format's unit.

    k roundings in a row, on terms of size M: |error| <= gamma(k) M,   gamma(k) = (1 - u)^-k - 1
"""

import math
from typing import Any

import numpy as np

from refsd.golden.recording.pipeline_ops import PIPELINE_OPS
from refsd.golden.recording.replay import raise_to_float64
from refsd.golden.tolerances.precision import PRECISIONS, gamma
from refsd.pipelines.sampling import Sampling
from refsd.pipelines.stages import make_schedule
from refsd.schedulers import from_config


def pipeline_bound(op: str, inputs: dict[str, Any], options: dict[str, Any], truth: np.ndarray,
                   format: str) -> np.ndarray:
    """The bound of a pipeline op for a port in a float format (int8 weights: float32 tensors)."""
    precision = PRECISIONS["float32" if format == "int8" else format]
    wide = {name: raise_to_float64(value) for name, value in inputs.items()}
    worst = PIPELINE_BOUNDS[op](wide, options, truth, precision)
    return np.broadcast_to(np.asarray(worst, "float64"), np.shape(truth))


def scaled(inputs, options, y, p):
    """One product or quotient; the constant takes up to 4 roundings: 1 / sqrt(sigma^2 + 1)."""
    return gamma(5, p) * abs(y) + p.tiny


def unscaled(inputs, options, y, p):
    """x / s + c: a quotient as in `scaled`, of at most |y| + |c|; c and the sum rounded once."""
    if not (shift := abs(options.get("shift_factor", 0))):
        return scaled(inputs, options, y, p)
    return gamma(7, p) * (abs(y) + shift) + p.tiny


def guide(inputs, options, y, p):
    """The scale, a difference, a product, a sum; and twice a deviation over all n if rescaled.

    A deviation is a root of n squares of differences to a mean of n: n + 4 roundings, and as many
    of the mean's, whose error is a part of the deviation itself.
    """
    u, c, s = abs(inputs["uncond"]), abs(inputs["cond"]), abs(options["scale"])
    size = (1 + s) * u + s * c
    if not options.get("rescale"):
        return gamma(4, p) * size + p.tiny
    n = math.prod(y.shape[1:])
    grown = np.maximum(1, _ratio(abs(y).max(), size.max()))
    return gamma(4 * n + 24, p) * size * grown + p.tiny


def _ratio(a, b):
    return a / b if b else 1.0


def scheduler_step(inputs, options, y, p):
    """x0 from x and the prediction, then a combination of all that is known, and noise.

    Every path from an input to the result has at most 20 roundings, those of its constants
    included. The terms are as large as `_paths` says.
    """
    noise = inputs.get("noise")
    size = _paths(inputs, options) + (0 if noise is None else abs(noise))
    return gamma(20, p) * size + 20 * p.tiny


def _paths(inputs, options):
    """The sum of |terms|, from x_t = a x0 + n eps with a^2 + n^2 = 1, or x = x0 + sigma eps."""
    scheduler = from_config(options["scheduler"])
    shift = {key: options[key] for key in ("mu",) if key in options}
    timesteps = make_schedule(scheduler, options["steps"], **shift)
    index, outputs, samples = options["index"], inputs["model_output"], inputs["sample"]
    if isinstance(outputs, list):
        # Multistep rules weigh up to 4 predictions by at most 59 / 24 each, and start anew often.
        terms = [3 * _x0(scheduler, timesteps[i], *pair, i) for i, pair in
                 enumerate(zip(outputs, samples))]
        return sum(terms) + sum(abs(x) for x in samples)
    alpha_bars = scheduler.alpha_bars_of_step(int(timesteps[index]))
    if alpha_bars is None:
        return 2 * _x0(scheduler, timesteps[index], outputs, samples, index) + abs(samples)
    return _straight(*alpha_bars, scheduler.config.prediction_type, abs(outputs), abs(samples))


def _straight(alpha_bar, target, kind, e, x):
    """b x0 + d eps, where x0 and eps are made as the prediction's kind says."""
    a, n = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    b, d = math.sqrt(target), math.sqrt(1 - target)
    if kind == "v_prediction":
        return b * (a * x + n * e) + d * (a * e + n * x)
    if kind == "sample":
        return b * e + d * (x + a * e) / n
    return b * (x + n * e) / a + d * e


def _x0(scheduler, t, e, x, index):
    """|terms| of x0 and of eps, whichever is the larger."""
    e, x = abs(e), abs(x)
    if hasattr(scheduler, "sigmas"):
        return (1 + float(scheduler.sigmas[index])) * (e + x)
    alpha_bars = scheduler.alphas_cumprod  # x0 is never made by dividing by 0
    return (e + x) / math.sqrt(max(float(alpha_bars[int(t)]),
                                   float(alpha_bars[alpha_bars > 0].min())))


def to_picture(inputs, options, y, p):
    """x / 2 is exact, the sum is rounded; clipping brings errors no further apart."""
    x = inputs["x"].transpose(0, 2, 3, 1)
    return gamma(2, p) * np.minimum(abs(x) / 2 + 0.5, 1) + p.tiny


def to_bytes(inputs, options, y, p):
    """255 x is rounded once: only near the middle of two bytes may the other be taken."""
    exact = 255 * inputs["x"]
    to_middle = abs(exact - np.floor(exact) - 0.5)
    return np.where(to_middle <= gamma(1, p) * abs(exact) + p.tiny, 1.0, 0.0)


def next_token(inputs, options, y, p):
    """An id is right or wrong, but where another token comes within rounding of being chosen.

    Of log(e^s / noise), |s| <= M: penalty, temperature and the distance from the largest s round
    once each, by at most 2 M; exp, its sum and two quotients by some of 1. What a cut leaves out
    hangs on sums that round too: where the cut decides, any id will do.
    """
    how = Sampling(options["temperature"], repetition_penalty=options["repetition_penalty"])
    scores = np.float64(how.scores(inputs["logits"].reshape(-1), inputs["ids"]))
    size = abs(scores[np.isfinite(scores)]).max()
    if inputs.get("noise") is not None:
        scores = scores - np.log(inputs["noise"].reshape(-1))
    *_, second, first = [-math.inf, *np.sort(scores)]
    apart = first - second > gamma(4, p) * 2 * size + gamma(scores.size + 16, p)
    return 0.0 if apart and scores.argmax() == y.item() else math.inf


def attention_scores(inputs, options, y, p):
    """d products, their sum, and the scale."""
    d = inputs["q"].shape[-1] // options["heads"]
    size = PIPELINE_OPS["attention_scores"](abs(inputs["q"]), abs(inputs["k"]), **options)
    return gamma(d + 3, p) * size + d * p.tiny


def attention_probabilities(inputs, options, y, p):
    """An error e of the scores changes a share by at most e^(2 e); exp, the sum and a quotient.

    x - max is rounded too, by u (max - x), which is at most twice the largest |score|; so is the
    sum with a mask, by u times what it is at most.
    """
    heads, mask = {"heads": options["heads"]}, inputs.get("mask")
    error = attention_scores(inputs, heads, y, p).max(axis=-1, keepdims=True)
    size = abs(PIPELINE_OPS["attention_scores"](inputs["q"], inputs["k"], **heads))
    roundings = 2
    if mask is not None:  # where it is infinite a key is not seen: its share is 0 in any case
        size, roundings = size + np.where(np.isfinite(mask), abs(mask), 0), 4
    shift = 2 * error + gamma(roundings, p) * size.max(axis=-1, keepdims=True)
    return y * (np.expm1(shift) + gamma(y.shape[-1] + 10, p) * np.exp(shift)) + 4 * p.tiny


PIPELINE_BOUNDS = {
    "initial_latents": scaled, "scale_model_input": scaled, "guide": guide,
    "scheduler_step": scheduler_step, "unscale_latents": unscaled, "to_picture": to_picture,
    "to_bytes": to_bytes, "next_token": next_token, "attention_scores": attention_scores,
    "attention_probabilities": attention_probabilities,
}  # fmt: skip
