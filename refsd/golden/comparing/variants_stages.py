"""Wrong versions of what happens between the networks: guidance, sampling, scaling, pixels."""

import math
from collections.abc import Iterator

import numpy as np

from refsd.errors import RefsdError
from refsd.golden.comparing.fits import Triple
from refsd.golden.recording.pipeline_ops import PIPELINE_OPS


def guide(inputs, options, truth, got) -> Iterator[Triple]:
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


def scheduler_step(inputs, options, truth, got) -> Iterator[Triple]:
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


def unscale(inputs, options, truth, got) -> Iterator[Triple]:
    """Latents that were not divided by the VAE's factor."""
    latents, factor = inputs["latents"], options["scaling_factor"]
    yield ("missing_scaling_factor", f"the scaling factor {factor:g} was left out", latents)
    yield ("missing_scaling_factor", f"multiplied by the scaling factor {factor:g}, not divided",
           latents * factor)


def to_picture(inputs, options, truth, got) -> Iterator[Triple]:
    """(x + 1) / 2 left out, not clipped, or channels in another order."""
    x = inputs["x"].transpose(0, 2, 3, 1)
    yield "missing_clip", "it is not clipped to 0 .. 1", x * 0.5 + 0.5
    yield "missing_half", "(x + 1) / 2 was left out", x
    yield "missing_half", "(x + 1) / 2 was left out before clipping", np.clip(x, 0, 1)
    yield "swapped_inputs", "red and blue are swapped", truth[..., ::-1]


def to_bytes(inputs, options, truth, got) -> Iterator[Triple]:
    """255 x cut off, or rounded in another way."""
    x = inputs["x"]
    yield "truncated", "255 x is cut off, not rounded to the nearest", np.floor(x * 255)
    yield "truncated", "256 x is cut off", np.minimum(np.floor(x * 256), 255)
    yield "rounding", "halves are rounded up, not to even", np.floor(x * 255 + 0.5)
    if x.ndim == 4 and not math.isnan(float(got.sum())):
        yield "swapped_inputs", "red and blue are swapped", truth[..., ::-1]
