"""What the samplers of models trained on betas share: alpha_bar, and the forward process

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps          (`add_noise`)
"""

from typing import Any

import numpy as np

from refsd.arguments import as_array, as_integer, shown
from refsd.errors import UsageError
from refsd.half import to_float32
from refsd.schedulers import noise_schedule
from refsd.schedulers.scheduler import Scheduler, one_each, per_sample


class DiffusionScheduler(Scheduler):
    """`alphas_cumprod`, a NumPy array, has alpha_bar of each of the T training steps."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.alphas_cumprod = noise_schedule.cumprod_alphas(noise_schedule.betas(self.config))
        self.final_alpha_cumprod = np.float32(1)
        if not self.config.get("set_alpha_to_one", True):
            self.final_alpha_cumprod = self.alphas_cumprod[0]

    def add_noise(self, original: Any, noise: Any, timesteps: Any) -> Any:
        """sqrt(alpha_bar_t) original + sqrt(1 - alpha_bar_t) noise.   (N, ...) -> (N, ...)

        `timesteps` is one training step from 0 to T - 1, or one for each of the N.
        """
        original, noise = self._noisy(original, noise)
        steps = [self._training_step(t) for t in one_each(timesteps, original)]
        alpha_bar = self.alphas_cumprod[steps].astype(original.dtype)
        signal = per_sample(np.sqrt(alpha_bar), original)
        return signal * original + per_sample(np.sqrt(1 - alpha_bar), original) * noise

    def _alpha_bar(self, timestep):
        """alpha_bar_t; past the end of the schedule (t < 0) the final one."""
        return self.alphas_cumprod[timestep] if timestep >= 0 else self.final_alpha_cumprod

    def _training_step(self, timestep):
        """`timestep` as an int from 0 to T - 1."""
        last = self.config.num_train_timesteps - 1
        number = as_integer(timestep)
        if number is None or not 0 <= number <= last:
            raise UsageError(f"timestep is {shown(timestep)}; give an integer from 0 to {last}")
        return number

    def _check_in_table(self, timesteps):
        """The timesteps, if they all are training steps (an offset can push the first over T)."""
        if len(timesteps) and timesteps[0] >= self.config.num_train_timesteps:
            raise UsageError(
                f"the first of {len(timesteps)} timesteps would be {timesteps[0]}, beyond the "
                f"{self.config.num_train_timesteps - 1} of training; take fewer steps or a smaller "
                "steps_offset"
            )
        return timesteps

    def _custom_timesteps(self, timesteps):
        """A caller's own timesteps: descending, from T - 1 at the most to 0 at the least."""
        values = to_float32(as_array("timesteps", timesteps))
        most = self.config.num_train_timesteps - 1
        good = values.ndim == 1 and len(values) > 0 and values.dtype.kind in "iuf"
        if not good or not (np.diff(values) < 0).all() or not 0 <= values[-1] <= values[0] <= most:
            raise UsageError(
                f"timesteps is {shown(timesteps)}; give numbers descending from {most} to 0"
            )
        return values
