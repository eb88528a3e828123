"""Samplers of two model calls a step, as diffusers counts them: each call is an entry of timesteps.

A run of n steps has 2 n - 1 of them: the last step goes to sigma 0, where no model is called, and
is Euler's. The first call of a step gives the sample at which the second is made, the second goes
from where the step began. So a run can begin with first calls only.
"""

from typing import Any

import numpy as np

from refsd.arguments import shown
from refsd.errors import UsageError
from refsd.schedulers.config import BETAS
from refsd.schedulers.scheduler import Scheduler, Step
from refsd.schedulers.sigma_space import SigmaSpaceScheduler


class TwoCalls(Scheduler):
    """`sigmas` and `timesteps` have an entry a call; step i // 2 makes the calls i and i + 1."""

    order = 2
    has_history = True

    def _enter(self, timestep):
        i = super()._enter(timestep)
        if i % 2 and self.started is None:
            self.step_index = None
            raise UsageError(
                f"timestep {shown(timestep)} is number {i}, the second of a step's two; give one "
                "with an even number"
            )
        return i

    def _set_schedule(self, timesteps):
        super()._set_schedule(timesteps)
        self.started: Any = None  # what the first call of a step leaves to the second

    def _heun(self, i, x, x0):
        """Call i of Heun's method, at x: first by the slope there, then by the mean of both."""
        slope = (x - x0) / float(self.sigmas[i])
        if i % 2 == 0:
            length = float(self.sigmas[i + 1] - self.sigmas[i])
            self.started = x, slope, length
        else:
            x, first, length = self.started
            slope = (first + slope) / 2
        self.step_index += 1
        return Step(x + slope * length, x0)


class TwoCallScheduler(TwoCalls, SigmaSpaceScheduler):
    """Those trained on betas."""

    DEFAULTS = {
        **BETAS,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "epsilon",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    }


def every_twice(values):
    """a b c -> a a b b c c"""
    return np.repeat(values, 2)
