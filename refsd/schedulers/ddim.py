"""DDIM: from x_t to x_s, s < t, along the predicted noise, with a share eta of fresh noise.

    x0    = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)
    sigma = eta sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t)) sqrt(1 - alpha_bar_t / alpha_bar_s)
    x_s   = sqrt(alpha_bar_s) x0 + sqrt(1 - alpha_bar_s - sigma^2) eps + sigma z

Song, Meng and Ermon 2021, "Denoising Diffusion Implicit Models", arXiv:2010.02502,
equations 12 and 16.
"""

from typing import Any

import numpy as np

from refsd.arguments import as_array, as_number, shown
from refsd.errors import UsageError
from refsd.schedulers.config import BETAS, CLIPPING
from refsd.schedulers.diffusion import DiffusionScheduler
from refsd.schedulers.noise_schedule import spaced_timesteps
from refsd.schedulers.prediction import keep_in_range, to_eps, to_x0
from refsd.schedulers.scheduler import Step


class DDIMScheduler(DiffusionScheduler):
    """DDIM; eta = 0 draws no noise, eta = 1 is DDPM on the same timesteps.

    s is always t - T // n, diffusers' rule: exact for leading spacing, close for the others.
    """

    DEFAULTS = {
        **BETAS,
        **CLIPPING,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    }

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the timesteps of a run, and start it."""
        steps, config = self._check_steps(num_inference_steps), self.config
        timesteps = spaced_timesteps(
            config.timestep_spacing, steps, config.num_train_timesteps, offset=config.steps_offset
        )
        self._set_schedule(self._check_in_table(timesteps.round().astype(np.int64)))
        self.num_inference_steps = steps

    def _target(self, t):
        return t - self.config.num_train_timesteps // self.num_inference_steps

    def alpha_bars_of_step(self, timestep: int) -> tuple[float, float]:
        """alpha_bar at t and at s."""
        return float(self._alpha_bar(timestep)), float(self._alpha_bar(self._target(timestep)))

    def step(
        self,
        model_output: Any,
        timestep: int,
        sample: Any,
        *,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Any = None,
        variance_noise: Any = None,
    ) -> Step:
        """x_t -> x_s.   (N, ...), (), (N, ...) -> Step

        With eta > 0, z is drawn from `generator`, or is `variance_noise`. With
        `use_clipped_model_output` eps is derived again from the clipped x0.
        """
        model_output, sample = self._pair(model_output, sample)
        requested, eta = eta, as_number(eta)
        if eta is None or not 0 <= eta <= 1:
            raise UsageError(f"eta is {shown(requested)}; give a number from 0 to 1")
        t = self._training_step(timestep)
        alpha_bar_t, alpha_bar_s = self._alpha_bar(t), self._alpha_bar(self._target(t))
        kind = self.config.prediction_type

        x0 = keep_in_range(to_x0(kind, model_output, sample, alpha_bar_t), self.config)
        eps = to_eps(kind, model_output, sample, alpha_bar_t)
        if use_clipped_model_output:
            eps = to_eps("sample", x0, sample, alpha_bar_t)

        variance = (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)
        sigma = eta * np.sqrt(variance)
        # For eta = 1 at alpha_bar_t = 0 the true value is 0, and must not round to less.
        direction = np.maximum(1 - alpha_bar_s - np.square(sigma), np.float32(0))
        x_s = float(np.sqrt(alpha_bar_s)) * x0 + float(np.sqrt(direction)) * eps

        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise UsageError("step got both generator and variance_noise; give one")
            if variance_noise is None:
                variance_noise = self._draw(sample, generator)
            variance_noise = as_array("step: variance_noise", variance_noise, sample.dtype)
            x_s = x_s + float(sigma) * variance_noise
        return Step(x_s, x0)
