"""Heun's method: Euler's step, and again with the mean of the slopes at its two ends.

    d   = (x - x0(x, sigma)) / sigma                    x_e = x + (sigma_next - sigma) d
    d_e = (x_e - x0(x_e, sigma_next)) / sigma_next
    x_next = x + (sigma_next - sigma) (d + d_e) / 2

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models",
arXiv:2206.00364, algorithm 1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from refsd.schedulers.scheduler import Step, only_one
from refsd.schedulers.two_calls import TwoCallScheduler, every_twice


class HeunDiscreteScheduler(TwoCallScheduler):
    """Heun; two calls of the model a step, of which the last has one. Draws no noise."""

    DEFAULTS = {**TwoCallScheduler.DEFAULTS, "clip_sample": False, "clip_sample_range": 1.0}
    CHOICES = {"beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "exp")}

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Sequence[float] | None = None
    ) -> None:
        """Choose the sigmas and timesteps of a run, or take the caller's own, and start it."""
        only_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        sigmas, timesteps = self._sigmas_of_run(num_inference_steps, timesteps)
        self._set_sigmas(sigmas, timesteps.astype(np.float32), last=0)
        self.num_inference_steps = len(sigmas)

    def _set_sigmas(self, sigmas, timesteps, *, last):
        super()._set_sigmas(sigmas, timesteps, last=last)
        self.sigmas = every_twice(self.sigmas)[1:-1]
        self.timesteps = every_twice(timesteps)[1:]

    def step(
        self, model_output: Any, timestep: float, sample: Any, *, generator: Any = None
    ) -> Step:
        """A call of the model's worth of a step.   (N, ...), (), (N, ...) -> Step

        The first call goes from x at a sigma to x_e at the next, the second, from x_e, to x there.
        `generator` is not used.
        """
        model_output, sample = self._pair(model_output, sample)
        self._check_float(timestep)
        i = self._enter(timestep)
        x0 = self._to_x0(model_output, sample, self.sigmas[i], self.sigmas[i])
        if self.config.clip_sample:
            x0 = x0.clip(-self.config.clip_sample_range, self.config.clip_sample_range)
        return self._heun(i, sample, x0)
