"""What a pipeline computes between the networks, as functions of arrays: entries like any op.

Each takes the arrays of an entry's inputs and the values of its options, so that a stage can be
replayed from a pack alone. The samplers are those of refsd.schedulers, from their full options.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refsd.ops.activation import softmax
from refsd.pipelines import guidance, stages
from refsd.pipelines.sampling import Sampling
from refsd.schedulers import from_config


class FixedNoise:
    """A generator that gives noise which was drawn before."""

    def __init__(self, noise: np.ndarray):
        self.noise = noise

    def randn(self, shape: tuple[int, ...], dtype: Any = "float32") -> np.ndarray:
        """That noise, as it is."""
        return self.noise.reshape(shape).astype(dtype)

    def exponential(self, shape: tuple[int, ...]) -> np.ndarray:
        """That noise, of float32."""
        return self.noise.reshape(shape).astype(np.float32)


def initial_latents(noise: np.ndarray, *, init_noise_sigma: float) -> np.ndarray:
    """noise init_noise_sigma, rounded to float32: where a run starts.   any shape -> the same"""
    return (noise * init_noise_sigma).astype(np.float32).astype(noise.dtype)


def scale_model_input(sample: np.ndarray, *, scheduler: Mapping[str, Any], steps: int,
                      index: int, mu: float | None = None) -> np.ndarray:
    """What the model sees of the latents at step `index` of `steps`.   (N, 4, h, w) -> the same

    mu: the shift of the sigmas that a picture's size asks for.
    """
    sampler, timesteps = _at(scheduler, steps, index, mu)
    return sampler.scale_model_input(sample, timesteps[index])


def scheduler_step(model_output: Any, sample: Any, noise: np.ndarray | None = None, *,
                   scheduler: Mapping[str, Any], steps: int, index: int,
                   eta: float = 0.0, mu: float | None = None) -> np.ndarray:
    """The latents at the next timestep.   (N, 4, h, w), (N, 4, h, w) -> the same

    Samplers with a history are given lists: the model's outputs and the latents of the steps
    0 .. index. noise is what the sampler draws at this step, if it draws any.
    """
    if isinstance(model_output, Sequence):
        sampler, timesteps = _at(scheduler, steps, 0, mu)
        for t, output, x in zip(timesteps, model_output, sample, strict=False):
            # Of earlier steps only what was predicted counts: any noise does.
            any_noise = FixedNoise(np.zeros_like(x) if noise is None else noise)
            stepped = sampler.step(output, t, x, generator=any_noise)
        return stepped.prev_sample
    sampler, timesteps = _at(scheduler, steps, index, mu)
    options = {} if noise is None else {"generator": FixedNoise(noise)}
    if "eta" in inspect.signature(sampler.step).parameters:
        options["eta"] = eta
    return sampler.step(model_output, timesteps[index], sample, **options).prev_sample


def _at(config, steps, index, mu):
    """A scheduler with the timesteps of a run, at step `index` of it, and its timesteps."""
    sampler = from_config(config)
    timesteps = stages.make_schedule(sampler, steps, **({} if mu is None else {"mu": mu}))
    sampler.set_begin_index(index)
    return sampler, timesteps


def guide(uncond: np.ndarray, cond: np.ndarray, *, scale: float,
          rescale: float = 0.0) -> np.ndarray:
    """uncond + scale (cond - uncond), rescaled as in refsd.pipelines.guidance.   -> the same"""
    guided = uncond + scale * (cond - uncond)
    return guidance.rescale(guided, cond, rescale) if rescale > 0 else guided


def unscale_latents(latents: np.ndarray, *, scaling_factor: float,
                    shift_factor: float = 0.0) -> np.ndarray:
    """latents / scaling_factor + shift_factor, what the VAE decodes.   any shape -> the same

    A pack says no shift where its model has none.
    """
    unscaled = latents / scaling_factor
    return unscaled + shift_factor if shift_factor else unscaled


def to_picture(x: np.ndarray) -> np.ndarray:
    """clip(x / 2 + 1/2, 0, 1), channels last.   (N, 3, H, W), about [-1, 1] -> (N, H, W, 3)"""
    return np.clip(x * 0.5 + 0.5, 0, 1).transpose(0, 2, 3, 1)


def to_bytes(x: np.ndarray) -> np.ndarray:
    """round(255 x), halves to even.   (N, H, W, 3) in [0, 1] -> uint8"""
    return stages.to_bytes(x)


def next_token(logits: np.ndarray, ids: np.ndarray, noise: np.ndarray | None = None, *,
               temperature: float, top_k: int | None, top_p: float | None,
               repetition_penalty: float) -> np.ndarray:
    """What refsd.pipelines.sampling chooses.   (..., V), all tokens so far (L,) -> (1,) int64

    noise (V,): exponential numbers, where temperature is not 0.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    scores = sampling.scores(logits.reshape(-1), ids)
    return np.array([sampling.choose(scores, noise is not None and FixedNoise(noise))])


def attention_scores(q: np.ndarray, k: np.ndarray, *, heads: int) -> np.ndarray:
    """q k^T / sqrt(d) in each head, before any mask.   (N, L, C), (N, S, C) -> (N, heads, L, S)

    Computed in q's dtype and kept in float32: they are the largest arrays of a model by far.
    """
    result = np.empty((len(q), heads, q.shape[1], k.shape[1]), np.float32)
    for n, h, scores in _scores(q, k, heads):
        result[n, h] = scores
    return result


def attention_probabilities(q: np.ndarray, k: np.ndarray, mask: np.ndarray | None = None, *,
                            heads: int, causal: bool = False) -> np.ndarray:
    """softmax over the keys of the scores.   (N, L, C), (N, S, C) -> (N, heads, L, S) float32

    mask, which broadcasts to the result, is added to the scores; `causal` lets query i see the keys
    0..i only.
    """
    result = np.empty((len(q), heads, q.shape[1], k.shape[1]), np.float32)
    mask = mask if mask is None else np.broadcast_to(mask, result.shape)
    for n, h, scores in _scores(q, k, heads):
        if mask is not None:
            scores = scores + mask[n, h]
        if causal:
            scores[np.triu_indices(len(scores), 1)] = -math.inf
        result[n, h] = softmax(scores, axis=-1)
    return result


def _scores(q, k, heads):
    """One sample and head after the other: its two numbers and its scores (L, S)"""
    d = q.shape[2] // heads
    for n in range(len(q)):
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            yield n, h, (q[n, :, part] * (1 / math.sqrt(d))) @ k[n, :, part].T


PIPELINE_OPS = {f.__name__: f for f in (
    initial_latents, scale_model_input, guide, scheduler_step, unscale_latents, to_picture,
    to_bytes, next_token, attention_scores, attention_probabilities)}
