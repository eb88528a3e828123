"""Heun's method along the straight paths of flow matching.

    x_e = x + (sigma_next - sigma) v(x, sigma)
    x_next = x + (sigma_next - sigma) (v(x, sigma) + v(x_e, sigma_next)) / 2

v is made anew from x0 = x - sigma v, as (x - x0) / sigma, as diffusers has it.

Karras et al. 2022, arXiv:2206.00364, algorithm 1; Liu et al. 2022, arXiv:2209.03003.
"""

from typing import Any

import numpy as np

from refsd.schedulers.flow_match import FlowMatching
from refsd.schedulers.scheduler import Step
from refsd.schedulers.sigma_tables import shifted
from refsd.schedulers.two_calls import TwoCalls, every_twice


class FlowMatchHeunDiscreteScheduler(TwoCalls, FlowMatching):
    """Heun; two calls of the model a step, of which the last has one. Draws no noise."""

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the sigmas and timesteps of a run, and start it."""
        steps, train = self._check_steps(num_inference_steps), self.config.num_train_timesteps
        sigmas = shifted(self._even_timesteps(steps) / train, self.config.shift)
        sigmas = sigmas.astype(np.float32)
        self._set_schedule(every_twice(sigmas * train)[1:])
        self.sigmas = every_twice(np.append(sigmas, np.float32(0)))[1:-1]
        self.num_inference_steps = steps

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
        x0 = sample - float(self.sigmas[i]) * model_output
        return self._heun(i, sample, x0)
