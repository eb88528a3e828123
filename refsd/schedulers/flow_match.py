"""What the samplers of flow matching share: straight paths from data to noise, and their sigmas.

    x_sigma = (1 - sigma) x0 + sigma noise          the model predicts v = dx/dsigma = noise - x0

A run's sigmas are even, then shifted towards the noise, for larger pictures need more of it:

    shift     s sigma / (1 + (s - 1) sigma)
    dynamic   m / (m + 1 / sigma - 1), m = e^mu or mu        the same with s = m; mu by the picture
    terminal  1 - (1 - sigma) (1 - end) / (1 - sigma_last)   stretched, so that the last is `end`

The timesteps are T sigma. Liu et al. 2022, "Flow Straight and Fast", arXiv:2209.03003; the shift is
Esser et al. 2024, "Scaling Rectified Flow Transformers", arXiv:2403.03206, equation 23.
"""

from typing import Any

import numpy as np

from refsd.schedulers.scheduler import Scheduler, per_sample
from refsd.schedulers.sigma_tables import shifted


class FlowMatching(Scheduler):
    """`sigmas` has an entry a call and a last one; `timesteps` are float32, T times as large.

    `sigma_max` and `sigma_min` are the ends of the training's sigmas.
    """

    draws_with_any = False
    DEFAULTS = {"num_train_timesteps": 1000, "shift": 1.0}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        train = self.config.num_train_timesteps
        sigmas = np.arange(train, 0, -1).astype(np.float32) / train
        self.sigmas = self._shifted_in_training(sigmas)
        self.sigma_max, self.sigma_min = self.sigmas[0].item(), self.sigmas[-1].item()
        self._set_schedule(self.sigmas * train)

    def _shifted_in_training(self, sigmas):
        return shifted(sigmas, self.config.shift)

    def _even_timesteps(self, steps):
        """n timesteps from the largest of training to the smallest.   -> (n,) float64"""
        train = self.config.num_train_timesteps
        return np.linspace(self.sigma_max * train, self.sigma_min * train, steps)

    def scale_noise(self, sample: Any, timestep: Any, noise: Any) -> Any:
        """`add_noise`, as diffusers calls it in these samplers and orders its arguments."""
        return self.add_noise(sample, noise, timestep)

    def add_noise(self, original: Any, noise: Any, timesteps: Any) -> Any:
        """(1 - sigma) original + sigma noise.   (N, ...) -> (N, ...)

        sigma is that of `timesteps`, one of the run's or one for each of the N; after
        set_begin_index it is that of the step to come, whatever `timesteps` says.
        """
        original, noise = self._noisy(original, noise)
        sigma = self.sigmas[self._steps_to_noise(timesteps, original)].astype(original.dtype)
        return per_sample(sigma, original) * noise + per_sample(1 - sigma, original) * original
