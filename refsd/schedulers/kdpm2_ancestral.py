"""DPM2 ancestral of k-diffusion: a step of DPM2 past sigma_next to sigma_down, then noise back up.

    sigma_up^2   = sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2
    sigma_down^2 = sigma_next^2 - sigma_up^2,     sigma_mid = sqrt(sigma sigma_down)
    x_next       = x + (sigma_down - sigma) d_mid + sigma_up z

d_mid is the slope at the midpoint, as in kdpm2.py; the noise is that of euler_ancestral.py. As
sigma_down is sigma_next^2 / sigma, sigma_mid is sigma_next, but for rounding.
Katherine Crowson's sample_dpm_2_ancestral.
"""

from typing import Any

import numpy as np

from refsd.schedulers.kdpm2 import KDPM2DiscreteScheduler
from refsd.schedulers.scheduler import Step
from refsd.schedulers.sigma_tables import exp32, log32


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    """DPM2 ancestral; draws noise with each step's second call, so none in the last step."""

    def _place_midpoints(self, sigmas):
        variance, variance_next = np.square(sigmas[:-1]), np.square(sigmas[1:])
        self.noises = np.sqrt(variance_next * (variance - variance_next) / variance)
        # Of a step to a sigma some 3000 times smaller (cosine betas, few steps) rounding leaves 0
        # for sigma_down, or a negative square; `_call` refuses it.
        with np.errstate(invalid="ignore"):
            self.targets = np.sqrt(variance_next - np.square(self.noises))
            start, end = log32(sigmas[:-2]), log32(self.targets[:-1])
            self.midpoints = np.append(exp32(end - (end - start) * 0.5), np.float32(0))

    def step(
        self, model_output: Any, timestep: float, sample: Any, *, generator: Any = None
    ) -> Step:
        """A call of the model's worth of a step.   (N, ...), (), (N, ...) -> Step

        The first call goes from x at a sigma to x_mid, the second, from x_mid, to x at the next; z
        is drawn from `generator` there.
        """
        x_next, x0 = self._call(model_output, timestep, sample)
        number, second = divmod(self.step_index - 1, 2)
        if second:
            x_next = x_next + self._draw(x_next, generator) * float(self.noises[number])
        return Step(x_next, x0)
