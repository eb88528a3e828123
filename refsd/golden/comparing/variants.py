"""Wrong versions of ops: what a port that makes a known mistake would have given.

`variants` computes them in float64 on the op's inputs. Each is (reason, sentence, array[, fitted]).
Layers with weights are in comparing.variants_layers; here are the others.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refsd.errors import RefsdError
from refsd.golden.comparing.fits import Triple
from refsd.golden.comparing.variants_layers import LAYERS
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.pipeline_ops import PIPELINE_OPS
from refsd.golden.recording.replay import replay
from refsd.ops import activation, resize

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu")


def variants(entry: Entry, inputs: Mapping[str, Any], truth: np.ndarray, got: np.ndarray,
             upstream: Mapping[str, tuple[Entry, Mapping[str, Any]]]) -> Iterator[Triple]:
    """The known wrong versions of an entry's op on these float64 inputs, likely ones first.

    Which ones may depend on what the candidate has got. upstream: as for `diagnose`.
    """
    find = VARIANTS.get(entry.op)
    if find is not None:
        yield from find(inputs, entry.options, truth, got)
    for name, (source, given) in upstream.items():
        if source.op in ACTIVATIONS and given["x"].shape == inputs[name].shape:
            yield (f"missing_{source.op}", f"{source.op} was left out before it",
                   replay(entry, {**inputs, name: given["x"]}))


def _activation(name):
    def find(inputs, options, truth, got):
        x = inputs["x"]
        yield f"missing_{name}", f"{name} was left out", x
        yield "sigmoid", "it is the sigmoid alone, without the factor x", _sigmoid(x)
        for other, reason, what in (
                ("gelu_tanh", "gelu_tanh", "tanh's approximation of GELU"),
                ("gelu", "gelu_erf", "GELU by erf"), ("silu", "silu", "silu"),
                ("quick_gelu", "quick_gelu", "GELU by sigmoid (quick_gelu)")):
            if other != name:
                yield reason, f"it is {what}, not {name}", getattr(activation, other)(x)
        yield "relu", "it is max(x, 0)", np.maximum(x, 0)

    return find


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def geglu(inputs, options, truth, got):
    hidden, gate = np.split(inputs["x"], 2, axis=-1)
    yield "geglu_swapped", "the gate is the first half, not the second", gate * activation.gelu(
        hidden)
    for other, reason in (("gelu_tanh", "gelu_tanh"), ("quick_gelu", "quick_gelu"),
                          ("silu", "silu")):
        function = getattr(activation, other)
        yield reason, f"the gate goes through {other}, not through GELU by erf", hidden * function(
            gate)
        yield ("geglu_swapped", f"the gate is the first half and goes through {other}",
               gate * function(hidden))
    yield "missing_gelu", "the gate does not go through GELU", hidden * gate
    x = inputs["x"]
    yield ("geglu_swapped", "the halves are interleaved: even features and odd ones",
           x[..., ::2] * activation.gelu(x[..., 1::2]))


def softmax(inputs, options, truth, got):
    x = inputs["x"]
    for axis in range(x.ndim):
        if axis != options["axis"] % x.ndim:
            yield "softmax_axis", f"it runs along axis {axis}", activation.softmax(x, axis=axis)


def add(inputs, options, truth, got):
    for name in ("b", "a"):
        other = inputs["a" if name == "b" else "b"]
        yield ("no_residual", f"{name} was not added: it is the other summand alone",
               np.broadcast_to(other, truth.shape))
    yield "sign", "b was subtracted", inputs["a"] - inputs["b"]


def _of_two(name, function):
    def find(inputs, options, truth, got):
        yield ("swapped_inputs", f"a and b have changed places in {name}",
               function(inputs["b"], inputs["a"]))

    return find


def concat(inputs, options, truth, got):
    arrays = inputs["arrays"]
    yield ("swapped_inputs", "the arrays are joined in the opposite order",
           np.concatenate(arrays[::-1], axis=options["axis"]))
    for i, array in enumerate(arrays):
        if options["axis"] != 0 and len(array) == 2:
            yield ("swapped_guidance", f"the two samples of array {i} have changed places",
                   np.concatenate([*arrays[:i], array[::-1], *arrays[i + 1:]],
                                  axis=options["axis"]))


def upsample_nearest(inputs, options, truth, got):
    x, sizes = inputs["x"], (options["height"], options["width"])
    rules = {
        "ceil(i s)": lambda i, n, m: np.ceil(i * n / m),
        "round(i s)": lambda i, n, m: np.floor(i * n / m + 0.5),
        "floor((i + 1/2) s)": lambda i, n, m: np.floor((i + 0.5) * n / m),
        "floor(i s - 1/2)": lambda i, n, m: np.floor(i * n / m - 0.5),
        "round(i (n - 1) / (m - 1))": lambda i, n, m: np.floor(
            i * (n - 1) / max(m - 1, 1) + 0.5),
    }
    for text, rule in rules.items():
        rows, columns = (np.clip(rule(np.arange(m), n, m), 0, n - 1).astype(int)
                         for n, m in zip(x.shape[2:], sizes))
        yield "half_pixel", f"it takes the pixel at {text}", x[:, :, rows[:, None], columns]
    for corners in (False, True):
        yield ("half_pixel", f"it interpolates (align_corners {corners})",
               resize.upsample_bilinear(x, height=sizes[0], width=sizes[1], align_corners=corners))


def upsample_bilinear(inputs, options, truth, got):
    yield ("half_pixel", "align_corners is the other way round", resize.upsample_bilinear(
        inputs["x"], **{**options, "align_corners": not options["align_corners"]}))
    yield from upsample_nearest(inputs, options, truth, got)


def to_tokens(inputs, options, truth, got):
    yield ("transposed", "the pixels are taken column by column", np.swapaxes(
        inputs["x"], 2, 3).reshape(*inputs["x"].shape[:2], -1).swapaxes(1, 2))


def guide(inputs, options, truth, got):
    """u + s (c - u) with the wrong s, or u and c swapped."""
    uncond, cond, scale = inputs["uncond"], inputs["cond"], options["scale"]
    yield ("swapped_guidance", "the conditional and the unconditional prediction are swapped",
           cond + scale * (uncond - cond))
    yield ("missing_guidance", "it is the conditional prediction alone, unguided", cond)
    yield ("missing_guidance", "it is the unconditional prediction alone", uncond)
    away = cond - uncond
    size = float((away * away).sum())
    if size > 0:
        other = float((np.nan_to_num(got - uncond) * away).sum()) / size
        yield ("guidance_scale", f"the guidance scale is {other:.6g}, not {scale:g}",
               uncond + other * away, 1)


def scheduler_step(inputs, options, truth, got):
    """The step of another time, or with another rule for what the model predicts."""
    step = PIPELINE_OPS["scheduler_step"]
    index, steps, config = options["index"], options["steps"], dict(options["scheduler"])
    for other in (index - 1, index + 1):
        if 0 <= other < steps:
            yield from _try("wrong_timestep", f"it is the step from timestep number {other}, not "
                            f"from {index}", lambda i=other: step(**inputs, **{
                                **options, "index": i}))
    for key, values in (("prediction_type", ("epsilon", "v_prediction", "sample")),
                        ("timestep_spacing", ("leading", "trailing", "linspace")),
                        ("beta_schedule", ("scaled_linear", "linear", "squaredcos_cap_v2")),
                        ("steps_offset", (0, 1)), ("set_alpha_to_one", (False, True))):
        for value in values:
            if key in config and config[key] != value:
                yield from _try("wrong_timestep" if key == "steps_offset" else key,
                                f"{key} is {value!r}, not {config[key]!r}",
                                lambda k=key, v=value: step(**inputs, **{
                                    **options, "scheduler": {**config, k: v}}))
    sample, output = inputs["sample"], inputs["model_output"]
    if isinstance(output, list | tuple):
        sample, output = sample[-1], output[-1]
    yield from _combined(sample, output, truth, got)


def _combined(sample, output, truth, got):
    """Any wrong alpha_bar leaves p x + q eps: both fitted, for the golden step and for this one."""
    basis = np.stack([sample.ravel(), output.ravel()], axis=1)
    if basis.shape[0] < 8 or np.linalg.matrix_rank(basis) < 2:
        return
    (p, q), _, _, _ = np.linalg.lstsq(basis, truth.ravel(), rcond=None)
    (a, b), _, _, _ = np.linalg.lstsq(basis, np.nan_to_num(got.ravel()), rcond=None)
    fitted = (basis @ (a, b)).reshape(truth.shape)
    yield ("wrong_timestep", f"it is {a:.6g} x {b:+.6g} eps, where {p:.6g} x {q:+.6g} eps is right:"
           " alpha_bar (or sigma) is that of another time", fitted, 2)


def _try(reason, sentence, compute):
    """A version that the sampler refuses is no guess."""
    try:
        yield reason, sentence, compute()
    except (RefsdError, IndexError, ZeroDivisionError):
        return


def unscale(inputs, options, truth, got):
    """Latents that were not divided by the VAE's factor, or not shifted back."""
    latents, factor = inputs["latents"], options["scaling_factor"]
    if shift := options.get("shift_factor"):
        yield ("missing_shift_factor", f"the shift factor {shift:g} was left out", latents / factor)
        yield ("missing_shift_factor", f"the shift factor {shift:g} was subtracted, not added",
               latents / factor - shift)
    yield ("missing_scaling_factor", f"the scaling factor {factor:g} was left out", latents)
    yield ("missing_scaling_factor", f"multiplied by the scaling factor {factor:g}, not divided",
           latents * factor)


def to_picture(inputs, options, truth, got):
    """(x + 1) / 2 left out, not clipped, or channels in another order."""
    x = inputs["x"].transpose(0, 2, 3, 1)
    yield "missing_clip", "it is not clipped to 0 .. 1", x * 0.5 + 0.5
    yield "missing_half", "(x + 1) / 2 was left out", x
    yield "missing_half", "(x + 1) / 2 was left out before clipping", np.clip(x, 0, 1)
    yield "swapped_inputs", "red and blue are swapped", truth[..., ::-1]


def to_bytes(inputs, options, truth, got):
    """255 x cut off, or rounded in another way."""
    x = inputs["x"]
    yield "truncated", "255 x is cut off, not rounded to the nearest", np.floor(x * 255)
    yield "truncated", "256 x is cut off", np.minimum(np.floor(x * 256), 255)
    yield "rounding", "halves are rounded up, not to even", np.floor(x * 255 + 0.5)
    if x.ndim == 4 and not math.isnan(float(got.sum())):
        yield "swapped_inputs", "red and blue are swapped", truth[..., ::-1]


VARIANTS = {
    **LAYERS, **{name: _activation(name) for name in ACTIVATIONS}, "geglu": geglu,
    "softmax": softmax, "add": add, "sub": _of_two("sub", np.subtract),
    "div": _of_two("div", np.divide), "matmul": _of_two("matmul", np.matmul), "concat": concat,
    "to_tokens": to_tokens, "upsample_nearest": upsample_nearest,
    "upsample_bilinear": upsample_bilinear, "guide": guide, "scheduler_step": scheduler_step,
    "unscale_latents": unscale, "to_picture": to_picture, "to_bytes": to_bytes,
}  # fmt: skip
