"""LCM: a consistency model jumps to x0 from anywhere; each step jumps, then noises back to s.

    x0   = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)
    f    = c_out x0 + c_skip x_t            c_skip = 1/4 / (k^2 + 1/4),  c_out = k / sqrt(k^2 + 1/4)
    x_s  = sqrt(alpha_bar_s) f + sqrt(1 - alpha_bar_s) z          no noise at the last step

k = timestep_scaling t, so that f(x_0, 0) = x_0; the 1/4 is the data's assumed variance.

Luo et al. 2023, "Latent Consistency Models", arXiv:2310.04378, equation 9 and algorithm 3.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from refsd.arguments import as_integer, as_number, shown
from refsd.errors import UsageError
from refsd.schedulers.config import BETAS, CLIPPING
from refsd.schedulers.diffusion import DiffusionScheduler
from refsd.schedulers.prediction import keep_in_range, to_x0
from refsd.schedulers.scheduler import Step, only_one

DATA_VARIANCE = 0.25


class LCMScheduler(DiffusionScheduler):
    """LCM; draws noise at every step but the last.

    Its timesteps are a choice of the `original_inference_steps` it was distilled on, so
    timestep_spacing, steps_offset and set_alpha_to_one change nothing here, as in diffusers.
    """

    DEFAULTS = {
        **BETAS,
        **CLIPPING,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "original_inference_steps": 50,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "timestep_scaling": 10.0,
        "rescale_betas_zero_snr": False,
    }
    CHOICES = {"timestep_spacing": ("leading", "trailing", "linspace", None)}

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        original_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        strength: float = 1.0,
    ) -> None:
        """Choose the timesteps of a run, or take the caller's own, and start it.

        `strength` below 1 leaves out the noisiest part, for image to image.
        """
        requested, strength = strength, as_number(strength)
        if strength is None or not 0 < strength <= 1:
            raise UsageError(f"strength is {shown(requested)}; give a number over 0, 1 at the most")
        if only_one(num_inference_steps=num_inference_steps, timesteps=timesteps) == "timesteps":
            chosen = self._custom_timesteps(timesteps).astype(np.int64)
            steps = len(chosen)
            chosen = chosen[steps - self._share(steps, strength) :]
        else:
            distilled, most = self._distilled_timesteps(original_inference_steps, strength)
            steps = self._check_steps(num_inference_steps, most=most)
            positions = np.linspace(0, len(distilled), steps, endpoint=False)
            chosen = distilled[np.floor(positions).astype(np.int64)]
        self._set_schedule(chosen)
        self.num_inference_steps = steps

    def _distilled_timesteps(self, original, strength):
        """The timesteps of the distillation, descending, and how many of them a run may have.

        They are multiples of T // original, less 1.
        """
        train = self.config.num_train_timesteps
        requested = self.config.original_inference_steps if original is None else original
        original = as_integer(requested)
        if original is None or not 1 <= original <= train:
            raise UsageError(
                f"original_inference_steps is {shown(requested)}; give an integer from 1 to {train}"
            )
        ascending = np.arange(1, self._share(original, strength) + 1) * (train // original) - 1
        return ascending[::-1], len(ascending)

    def _share(self, steps, strength):
        """How many of `steps` are left at this strength: one or more."""
        if int(steps * strength) < 1:
            raise UsageError(
                f"strength is {strength}; to keep one of {steps} steps give {1 / steps}"
            )
        return int(steps * strength)

    def step(self, model_output: Any, timestep: int, sample: Any, *, generator: Any = None) -> Step:
        """x_t -> x_s.   (N, ...), (), (N, ...) -> Step, with f as its pred_original_sample

        z is drawn from `generator`.
        """
        model_output, sample = self._pair(model_output, sample)
        t = self._training_step(timestep)
        i = self._enter(timestep)
        s = self.timesteps[i + 1] if i + 1 < len(self.timesteps) else t
        alpha_bar_t, alpha_bar_s = self.alphas_cumprod[t], self.alphas_cumprod[s]

        x0 = to_x0(self.config.prediction_type, model_output, sample, alpha_bar_t)
        x0 = keep_in_range(x0, self.config)

        k = np.float32(t) * self.config.timestep_scaling
        c_skip = DATA_VARIANCE / (np.square(k) + DATA_VARIANCE)
        c_out = k / np.sqrt(np.square(k) + DATA_VARIANCE)
        f = float(c_out) * x0 + float(c_skip) * sample

        x_s = f
        if i != self.num_inference_steps - 1:
            z = self._draw(sample, generator)
            x_s = float(np.sqrt(alpha_bar_s)) * f + float(np.sqrt(1 - alpha_bar_s)) * z
        self.step_index += 1
        return Step(x_s, f)
