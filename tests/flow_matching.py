"""A sampler without betas, as a file of refsd.schedulers would have it: flow matching by Euler.

    x_sigma = (1 - sigma) x0 + sigma noise,  v = noise - x0,  x_next = x + (sigma_next - sigma) v

Liu et al. 2022, "Flow Straight and Fast", arXiv:2209.03003.
"""

import numpy as np

from refsd.schedulers import Scheduler, Step


class FlowMatchEulerDiscreteScheduler(Scheduler):
    """`sigmas` go evenly from 1 to 0; timesteps are T times as large."""

    DEFAULTS = {"num_train_timesteps": 1000}

    def set_timesteps(self, num_inference_steps):
        self.num_inference_steps = self._check_steps(num_inference_steps)
        self.sigmas = np.linspace(1, 0, self.num_inference_steps + 1, dtype=np.float32)
        self._set_schedule(self.sigmas[:-1] * self.config.num_train_timesteps)

    def step(self, model_output, timestep, sample, *, generator=None):
        model_output, sample = self._pair(model_output, sample)
        i = self._enter(timestep)
        self.step_index += 1
        return Step(sample + float(self.sigmas[i + 1] - self.sigmas[i]) * model_output)

    def add_noise(self, original, noise, timesteps):
        original, noise = self._noisy(original, noise)
        sigma = float(self.sigmas[self._steps_to_noise(timesteps, original)][0])
        return (1 - sigma) * original + sigma * noise
