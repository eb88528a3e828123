"""DPM2 of k-diffusion: the midpoint method, its midpoint halfway in log sigma.

    sigma_mid = sqrt(sigma sigma_next)
    d     = (x - x0(x, sigma)) / sigma                      x_mid = x + (sigma_mid - sigma) d
    d_mid = (x_mid - x0(x_mid, sigma_mid)) / sigma_mid
    x_next = x + (sigma_next - sigma) d_mid

Katherine Crowson's sample_dpm_2, "inspired by DPM-Solver-2": Lu et al. 2022, arXiv:2206.00927,
algorithm 1, and Karras et al. 2022, arXiv:2206.00364, algorithm 2.
"""

from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.schedulers.scheduler import Step
from refsd.schedulers.sigma_tables import exp32, log32, sigma_to_timestep
from refsd.schedulers.two_calls import TwoCallScheduler, every_twice


class KDPM2DiscreteScheduler(TwoCallScheduler):
    """DPM2; two calls of the model a step, of which the last has one. Draws no noise."""

    CHOICES = {"prediction_type": ("epsilon", "v_prediction")}

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the sigmas and timesteps of a run, and start it."""
        sigmas, timesteps = self._sigmas_of_run(num_inference_steps)
        if self.sigma_choice == "use_karras_sigmas":
            timesteps = timesteps.round()
        self._set_sigmas(sigmas, timesteps, last=0)
        self.num_inference_steps = len(sigmas)

    def _set_sigmas(self, sigmas, timesteps, *, last):
        super()._set_sigmas(sigmas, timesteps, last=last)
        self._place_midpoints(self.sigmas)
        between = sigma_to_timestep(self.midpoints[:-1], np.log(self.training_sigmas), np.float32)
        both = np.stack([between.astype(timesteps.dtype), timesteps[1:]], axis=1)
        self.timesteps = np.append(timesteps[:1], both)
        self.sigmas = np.append(every_twice(self.sigmas)[1:], np.float32(last))

    def _place_midpoints(self, sigmas):
        """For each step the sigma of its midpoint, 0 for the last, and the one it goes to."""
        logs = log32(sigmas)
        self.midpoints = exp32(logs[:-1] - (logs[:-1] - logs[1:]) * 0.5)
        self.targets = sigmas[1:]

    def _sigma_of_call(self, i):
        return self.midpoints[i // 2] if i % 2 else self.sigmas[i]

    def step(
        self, model_output: Any, timestep: float, sample: Any, *, generator: Any = None
    ) -> Step:
        """A call of the model's worth of a step.   (N, ...), (), (N, ...) -> Step

        The first call goes from x at a sigma to x_mid, the second, from x_mid, to x at the next.
        `generator` is not used.
        """
        return self._call(model_output, timestep, sample)

    def _call(self, model_output, timestep, sample):
        model_output, sample = self._pair(model_output, sample)
        self._check_float(timestep)
        i = self._enter(timestep)
        sigma = self._sigma_of_call(i)
        if not sigma > 0:
            raise UsageError(
                f"step {i // 2} goes so far that its midpoint is lost in float32; take more steps "
                "or chosen sigmas (use_karras_sigmas)"
            )
        x0 = self._to_x0(model_output, sample, sigma, sigma)
        slope = (sample - x0) / float(sigma)

        if i % 2 == 0:
            x, self.started, target = sample, sample, self.midpoints[i // 2]
        else:
            x, target = self.started, self.targets[i // 2]
        x_next = x + slope * float(target - self.sigmas[i - i % 2])
        self.step_index += 1
        return Step(x_next, x0)
