"""Ancestral sampling: an Euler step past sigma_next down to sigma_down, then noise back up.

    sigma_up^2   = sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2
    sigma_down^2 = sigma_next^2 - sigma_up^2
    x_next       = x + (sigma_down - sigma) (x - x0) / sigma + sigma_up z

sigma_up^2 is DDPM's posterior variance in the variables of sigma_space.py. The step is that of
k-diffusion's sample_euler_ancestral (Katherine Crowson).
"""

from typing import Any

import numpy as np

from refsd.schedulers.config import BETAS
from refsd.schedulers.scheduler import Step
from refsd.schedulers.sigma_space import SigmaSpaceScheduler
from refsd.schedulers.sigma_tables import interpolate


class EulerAncestralDiscreteScheduler(SigmaSpaceScheduler):
    """Euler ancestral; draws noise at every step, also at the last, where sigma_up is 0."""

    DEFAULTS = {
        **BETAS,
        "prediction_type": "epsilon",
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }
    CHOICES = {"prediction_type": ("epsilon", "v_prediction")}

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the sigmas and timesteps of a run, and start it."""
        timesteps = self._spaced(self._check_steps(num_inference_steps))
        sigmas = interpolate(timesteps, self.training_sigmas)
        self._set_sigmas(sigmas, timesteps, last=0)
        self.num_inference_steps = len(timesteps)

    def step(
        self, model_output: Any, timestep: float, sample: Any, *, generator: Any = None
    ) -> Step:
        """x at one sigma -> x at the next.   (N, ...), (), (N, ...) -> Step

        z is drawn from `generator`.
        """
        model_output, sample = self._pair(model_output, sample)
        self._check_float(timestep)
        i = self._enter(timestep)
        sigma, sigma_next = self.sigmas[i], self.sigmas[i + 1]
        variance, variance_next = np.square(sigma), np.square(sigma_next)
        sigma_up = np.sqrt(variance_next * (variance - variance_next) / variance)
        sigma_down = np.sqrt(variance_next - np.square(sigma_up))

        x0 = self._to_x0(model_output, sample, sigma, sigma)
        slope = (sample - x0) / float(sigma)
        x_next = sample + slope * float(sigma_down - sigma)
        x_next = x_next + self._draw(sample, generator) * float(sigma_up)
        self.step_index += 1
        return Step(x_next, x0)
