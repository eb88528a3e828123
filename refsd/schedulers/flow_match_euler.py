"""Euler's method along the straight paths of flow matching.

    x_next = x + (sigma_next - sigma) v
    x_next = (1 - sigma_next) x0 + sigma_next z,  x0 = x - sigma v      with stochastic_sampling

With invert_sigmas sigma is the share of the data, from 0 up to 1, and v points to it.

Liu et al. 2022, "Flow Straight and Fast", arXiv:2209.03003, section 2.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from refsd.arguments import as_array, as_number, shown
from refsd.errors import UsageError
from refsd.places import beside
from refsd.random import draw_noise
from refsd.schedulers import sigma_tables
from refsd.schedulers.flow_match import FlowMatching
from refsd.schedulers.scheduler import Step
from refsd.schedulers.sigma_tables import shifted


class FlowMatchEulerDiscreteScheduler(FlowMatching):
    """Euler; draws noise, at every step, only with stochastic_sampling."""

    DEFAULTS = {
        **FlowMatching.DEFAULTS,
        "use_dynamic_shifting": False,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "time_shift_type": "exponential",
        "stochastic_sampling": False,
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sigma_choice = sigma_tables.chosen_sigmas(self.config)
        if self.config.invert_sigmas and self.config.stochastic_sampling:
            raise UsageError("invert_sigmas and stochastic_sampling exclude each other: x0 is made "
                             "of sigmas that are shares of the noise; give one")

    def _shifted_in_training(self, sigmas):
        return sigmas if self.config.use_dynamic_shifting else super()._shifted_in_training(sigmas)

    def mu_of(self, image_seq_len: int) -> float:
        """mu of a picture of so many patches, on the line through base_shift and max_shift."""
        config = self.config
        lengths = config.max_image_seq_len - config.base_image_seq_len
        if config.base_shift is None or config.max_shift is None or not lengths:
            raise UsageError(f"base_shift is {config.base_shift}, max_shift {config.max_shift}, "
                             f"of {config.base_image_seq_len} and {config.max_image_seq_len} "
                             "patches, which tell no mu; give set_timesteps one")
        slope = (config.max_shift - config.base_shift) / lengths
        return image_seq_len * slope + (config.base_shift - slope * config.base_image_seq_len)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Choose the sigmas and timesteps of a run, and start it.

        Instead of a number of steps, or with the same number, the caller's own `sigmas`, which are
        shifted as the run's would be and get a last one, own `timesteps`, which the model is told
        as they are, or both. `mu` is for use_dynamic_shifting.
        """
        steps = self._count(num_inference_steps, sigmas, timesteps)
        told, train = timesteps, self.config.num_train_timesteps
        if told is not None:
            told = timesteps = self._own_values("timesteps", timesteps, train)
        if sigmas is not None:
            sigmas = self._own_values("sigmas", sigmas, 1)
        else:
            sigmas = (self._even_timesteps(steps) if told is None else told) / train
        sigmas = self._laid_out(sigmas, mu).astype(np.float32)
        if self.config.invert_sigmas:
            sigmas, told = 1 - sigmas, None
        self._set_schedule(sigmas * train if told is None else told)
        self.sigmas = np.append(sigmas, np.float32(self.config.invert_sigmas))
        self.num_inference_steps = steps

    def _count(self, steps, sigmas, timesteps):
        """The number of steps, on which all that was given agrees."""
        own = {name: as_array(name, values) for name, values in (("sigmas", sigmas), (
            "timesteps", timesteps)) if values is not None}
        counts = {name: values.shape[0] if values.ndim else 0 for name, values in own.items()}
        if steps is not None or not own:
            if steps is None:
                raise UsageError("set_timesteps got nothing; give one of num_inference_steps, "
                                 "timesteps, sigmas")
            counts["num_inference_steps"] = self._check_steps(steps)
        if len(set(counts.values())) > 1:
            raise UsageError(f"set_timesteps got {counts}; give as many of each")
        return next(iter(counts.values()))

    def _own_values(self, name, values, most):
        array = as_array(name, values, "float32")
        if array.ndim != 1 or not len(array) or not (np.diff(array) < 0).all() \
                or not 0 < array[-1] <= array[0] <= most:
            raise UsageError(f"{name} is {shown(values)}; give numbers descending from {most}, all "
                             "over 0 (a last sigma of 0 is added)")
        return array

    def _laid_out(self, sigmas, mu):
        """Even sigmas as the options shift, stretch and choose them, in their own dtype."""
        config = self.config
        if config.use_dynamic_shifting:
            scale = self._scale(mu)
            sigmas = scale / (scale + (1 / sigmas - 1))
        else:
            sigmas = shifted(sigmas, config.shift)
        if config.shift_terminal:
            kept = 1 - sigmas
            if kept[-1] == 0:
                raise UsageError(f"shift_terminal is {config.shift_terminal}, but the last of the "
                                 "sigmas is 1, which nothing stretches; take more steps")
            sigmas = 1 - kept / (kept[-1] / (1 - config.shift_terminal))
        if self.sigma_choice:
            low, high = config.get("sigma_min"), config.get("sigma_max")  # of any class's config
            low = sigmas[-1].item() if low is None else low
            high = sigmas[0].item() if high is None else high
            sigmas = sigma_tables.SIGMAS[self.sigma_choice](low, high, len(sigmas))
        return sigmas

    def _scale(self, mu):
        linear = self.config.time_shift_type == "linear"
        number = as_number(mu)
        if number is None or not (0 < number < 1e6 if linear else -100 < number < 100):
            raise UsageError(f"mu is {shown(mu)}, and use_dynamic_shifting needs it; give "
                             + ("a number over 0" if linear else "a number from -100 to 100")
                             + ", such as scheduler.mu_of(number of patches)")
        return number if linear else math.exp(number)

    def step(
        self, model_output: Any, timestep: float, sample: Any, *, generator: Any = None
    ) -> Step:
        """x at one sigma -> x at the next.   (N, ...), (), (N, ...) -> Step

        z is drawn from `generator`, in float32 whatever the model's dtype.
        """
        model_output, sample = self._pair(model_output, sample)
        self._check_float(timestep)
        i = self._enter(timestep)
        sigma, sigma_next, end = self.sigmas[i], self.sigmas[i + 1], self.sigmas[-1]
        x0 = sample + float(end - sigma) * model_output
        if self.config.stochastic_sampling:
            z = beside(sample, draw_noise(sample.shape, "float32", generator))
            z = as_array("step: noise", z, sample.dtype)
            x_next = float(1 - sigma_next) * x0 + float(sigma_next) * z
        else:
            x_next = sample + float(sigma_next - sigma) * model_output
        self.step_index += 1
        return Step(x_next, x0)
