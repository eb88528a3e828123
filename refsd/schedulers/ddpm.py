"""DDPM: a draw from the posterior q(x_s | x_t, x0), s the next timestep of the run (-1 at the end).

    alpha = alpha_bar_t / alpha_bar_s,  beta = 1 - alpha,  alpha_bar_{-1} = 1
    mean  = (sqrt(alpha_bar_s) beta / (1 - alpha_bar_t)) x0
          + (sqrt(alpha) (1 - alpha_bar_s) / (1 - alpha_bar_t)) x_t
    var   = (1 - alpha_bar_s) / (1 - alpha_bar_t) beta
    x_s   = mean + sqrt(var) z                                    no noise at timestep 0

Ho, Jain and Abbeel 2020, "Denoising Diffusion Probabilistic Models",
arXiv:2006.11239, equations 6 and 7.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from refsd.schedulers.config import BETAS, CLIPPING
from refsd.schedulers.diffusion import DiffusionScheduler
from refsd.schedulers.noise_schedule import spaced_timesteps
from refsd.schedulers.prediction import keep_in_range, to_x0
from refsd.schedulers.scheduler import Step, only_one
from refsd.schedulers.sigma_tables import exp32, log32


class DDPMScheduler(DiffusionScheduler):
    """DDPM; draws noise at every step but at timestep 0."""

    DEFAULTS = {
        **BETAS,
        **CLIPPING,
        "variance_type": "fixed_small",
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }
    # A learned variance needs a model with twice the channels; diffusers' fixed_large_log is NaN.
    CHOICES = {"variance_type": ("fixed_small", "fixed_small_log", "fixed_large", None)}

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Sequence[int] | None = None
    ) -> None:
        """Choose the timesteps of a run, or take the caller's own, and start it."""
        config = self.config
        if only_one(num_inference_steps=num_inference_steps, timesteps=timesteps) == "timesteps":
            chosen = self._custom_timesteps(timesteps)
        else:
            steps = self._check_steps(num_inference_steps)
            chosen = spaced_timesteps(
                config.timestep_spacing,
                steps,
                config.num_train_timesteps,
                offset=config.steps_offset,
            ).round()
        self._set_schedule(self._check_in_table(chosen.astype(np.int64)))
        self.num_inference_steps = len(self.timesteps)

    def step(self, model_output: Any, timestep: int, sample: Any, *, generator: Any = None) -> Step:
        """x_t -> x_s.   (N, ...), (), (N, ...) -> Step

        `timestep` is one of `timesteps`; the one after it is s. z is drawn from `generator`.
        """
        model_output, sample = self._pair(model_output, sample)
        t = self._training_step(timestep)
        following = self.index_for_timestep(t) + 1
        s = self.timesteps[following] if following < len(self.timesteps) else -1
        alpha_bar_t, alpha_bar_s = self._alpha_bar(t), self._alpha_bar(s)
        alpha = alpha_bar_t / alpha_bar_s
        beta = 1 - alpha

        x0 = to_x0(self.config.prediction_type, model_output, sample, alpha_bar_t)
        x0 = keep_in_range(x0, self.config)

        x0_weight = np.sqrt(alpha_bar_s) * beta / (1 - alpha_bar_t)
        x_weight = np.sqrt(alpha) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        x_s = float(x0_weight) * x0 + float(x_weight) * sample

        if t > 0:
            z = self._draw(sample, generator)
            x_s = x_s + float(self._deviation(alpha_bar_t, alpha_bar_s, beta)) * z
        return Step(x_s, x0)

    def _deviation(self, alpha_bar_t, alpha_bar_s, beta):
        """The standard deviation of the noise; the last step's 0 becomes 1e-10, as in diffusers."""
        if self.config.variance_type == "fixed_large":
            return np.sqrt(beta)
        variance = np.maximum((1 - alpha_bar_s) / (1 - alpha_bar_t) * beta, np.float32(1e-20))
        if self.config.variance_type == "fixed_small_log":
            return exp32(0.5 * log32(variance))
        return np.sqrt(variance)
