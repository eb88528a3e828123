"""What the samplers of EDM's models share: sigma from sigma_max to sigma_min, and a model F in

    x0(x, sigma) = c_skip x + c_out F(c_in x, c_noise)              x = x0 + sigma eps
    c_skip  = sigma_data^2 / (sigma^2 + sigma_data^2)
    c_out   = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)       (negative for v)
    c_in    = 1 / sqrt(sigma^2 + sigma_data^2)
    c_noise = log(sigma) / 4                                        the `timesteps`

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models",
arXiv:2206.00364, table 1.
"""

import math
from typing import Any

import numpy as np

from refsd.arguments import as_array
from refsd.half import in_float32
from refsd.schedulers.noise_schedule import linspace32
from refsd.schedulers.scheduler import Scheduler
from refsd.schedulers.sigma_space import SigmaSpaceScheduler
from refsd.schedulers.sigma_tables import exp32, log32


@in_float32
def _scaled(x, number):
    return x * number


class PreconditionedScheduler(SigmaSpaceScheduler):
    """Without betas. A sampler says what Karras' sigmas are in `_karras`, and where they end."""

    DEFAULTS = {
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "sigma_schedule": "karras",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "rho": 7.0,
        "final_sigmas_type": "zero",
    }
    draws_with_any = False
    CHOICES = {"prediction_type": ("epsilon", "v_prediction")}

    def __init__(self, **options: Any) -> None:
        Scheduler.__init__(self, **options)
        self._place_sigmas(self.config.num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the sigmas and timesteps of a run, and start it."""
        steps = self._check_steps(num_inference_steps)
        self._place_sigmas(steps)
        self.num_inference_steps = steps

    def _place_sigmas(self, steps):
        config = self.config
        if config.sigma_schedule == "karras":
            sigmas = self._karras(steps)
        else:
            low, high = math.log(config.sigma_min), math.log(config.sigma_max)
            sigmas = exp32(linspace32(low, high, steps))[::-1]
        last = 0 if config.final_sigmas_type == "zero" else self._last_sigma(sigmas)
        self._set_sigmas(sigmas, np.float32(0.25) * log32(sigmas), last=last)

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation that the first sample is to have."""
        return (self.config.sigma_max**2 + 1) ** 0.5

    def scale_model_input(self, sample: Any, timestep: float) -> Any:
        """c_in sample, with the sigma of `timestep`."""
        variance = self._variance(self.sigmas[self._enter(timestep)])
        sample = as_array("scale_model_input: sample", sample)
        return _scaled(sample, float(1 / np.sqrt(variance)))

    def _variance(self, sigma):
        return np.square(sigma) + self.config.sigma_data**2

    def _denoised(self, output, x, sigma):
        """x0 from the model's output at x."""
        variance, sigma_data = self._variance(sigma), self.config.sigma_data
        c_skip = 1 / variance * sigma_data**2
        c_out = sigma * sigma_data / np.sqrt(variance)
        if self.config.prediction_type == "v_prediction":
            c_out = -c_out
        return float(c_skip) * x + float(c_out) * output
