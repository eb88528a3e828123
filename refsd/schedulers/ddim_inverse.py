"""DDIM inversion: DDIM's step the other way, from a picture up to the noise that it comes from.

    x0  = (x_s - sqrt(1 - alpha_bar_s) eps) / sqrt(alpha_bar_s)                 s < t
    x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps

eps is predicted at x_s as if it were x_t, from which DDIM would come down: an error of the order of
the step (Song, Meng and Ermon 2021, arXiv:2010.02502, section 4.3; Hertz et al. 2022,
arXiv:2208.01626, section 4).
"""

from typing import Any

import numpy as np

from refsd.schedulers.config import BETAS
from refsd.schedulers.diffusion import DiffusionScheduler
from refsd.schedulers.noise_schedule import spaced_timesteps
from refsd.schedulers.prediction import to_eps, to_x0
from refsd.schedulers.scheduler import Step


class DDIMInverseScheduler(DiffusionScheduler):
    """DDIM inversion; draws no noise. Its timesteps ascend, and s is t - T // n.

    The first s is before training's first step: `set_alpha_to_one` says what alpha_bar is there.
    """

    DEFAULTS = {
        **BETAS,
        "clip_sample": True,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": "epsilon",
        "clip_sample_range": 1.0,
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    }
    draws_with_any = False
    CHOICES = {"timestep_spacing": ("leading", "trailing")}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._set_schedule(np.arange(self.config.num_train_timesteps))

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the timesteps of a run, and start it."""
        steps, config = self._check_steps(num_inference_steps), self.config
        timesteps = spaced_timesteps(
            config.timestep_spacing, steps, config.num_train_timesteps, offset=config.steps_offset
        )
        timesteps = self._check_in_table(timesteps.round().astype(np.int64))
        self._set_schedule(timesteps[::-1].copy())
        self.num_inference_steps = steps

    def step(
        self, model_output: Any, timestep: int, sample: Any, *, generator: Any = None
    ) -> Step:
        """x_s -> x_t, t the timestep.   (N, ...), (), (N, ...) -> Step

        `generator` is not used.
        """
        model_output, sample = self._pair(model_output, sample)
        t = self._training_step(timestep)
        s = t - self.config.num_train_timesteps // self.num_inference_steps
        alpha_bar_s, alpha_bar_t = self._alpha_bar(s), self._alpha_bar(t)
        kind = self.config.prediction_type

        x0 = to_x0(kind, model_output, sample, alpha_bar_s)
        if self.config.clip_sample:
            x0 = x0.clip(-self.config.clip_sample_range, self.config.clip_sample_range)
        eps = to_eps(kind, model_output, sample, alpha_bar_s)
        return Step(float(np.sqrt(alpha_bar_t)) * x0 + float(np.sqrt(1 - alpha_bar_t)) * eps, x0)
