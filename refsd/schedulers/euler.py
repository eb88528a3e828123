"""Euler's method on the probability-flow ODE  dx/dsigma = (x - x0(x, sigma)) / sigma.

    x0     = x - sigma eps                                  (or from v, or predicted as such)
    x_next = x + (sigma_next - sigma) (x - x0) / sigma

With churn, sigma is first raised to sigma_hat = (1 + gamma) sigma by fresh noise.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models",
arXiv:2206.00364, algorithm 2 without its second-order correction.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from refsd.arguments import as_array, as_number, shown
from refsd.errors import UsageError
from refsd.schedulers.config import BETAS
from refsd.schedulers.scheduler import Step, only_one
from refsd.schedulers.sigma_space import SigmaSpaceScheduler


class EulerDiscreteScheduler(SigmaSpaceScheduler):
    """Euler; draws noise only if s_churn > 0."""

    DEFAULTS = {
        **BETAS,
        "prediction_type": "epsilon",
        "interpolation_type": "linear",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "sigma_min": None,
        "sigma_max": None,
        "timestep_spacing": "linspace",
        "timestep_type": "discrete",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
    }
    CHOICES = {"interpolation_type": ("linear",), "timestep_type": ("discrete", None)}

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Choose the sigmas and timesteps of a run, and start it.

        Instead of a number of steps, the caller's own `timesteps`, or own `sigmas` with the final
        one (often 0) at the end.
        """
        argument = only_one(
            num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas
        )
        if argument == "sigmas":
            sigmas = self._custom_sigmas(sigmas)
            sigmas, last = sigmas[:-1], sigmas[-1]
            timesteps = self._timesteps_of(sigmas)
        else:
            sigmas, timesteps = self._sigmas_of_run(num_inference_steps, timesteps)
            last = 0 if self.config.final_sigmas_type == "zero" else self.training_sigmas[0]
        self._set_sigmas(sigmas, timesteps.astype(np.float32), last=last)
        self.num_inference_steps = len(self.timesteps)

    def step(
        self,
        model_output: Any,
        timestep: float,
        sample: Any,
        *,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: Any = None,
    ) -> Step:
        """x at one sigma -> x at the next.   (N, ...), (), (N, ...) -> Step

        gamma is s_churn / n, sqrt(2) - 1 at the most, where s_tmin <= sigma <= s_tmax; the noise it
        adds comes from `generator`, scaled by s_noise.
        """
        model_output, sample = self._pair(model_output, sample)
        self._check_float(timestep)
        churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        for name, value in churn.items():
            number = as_number(value)
            if number is None or math.isnan(number) or (name == "s_churn" and number < 0):
                least = "0 or more" if name == "s_churn" else "a number"
                raise UsageError(f"{name} is {shown(value)}; give {least}")
        s_churn, s_tmin, s_tmax, s_noise = map(as_number, churn.values())
        i = self._enter(timestep)
        sigma, sigma_next = self.sigmas[i], self.sigmas[i + 1]
        inside = s_tmin <= sigma <= s_tmax
        gamma = min(s_churn / len(self.timesteps), 2**0.5 - 1) if inside else 0.0
        sigma_hat = sigma * (gamma + 1)
        x = sample
        if gamma > 0:
            noise = self._draw(x, generator) * s_noise
            x = x + noise * float(np.sqrt(np.square(sigma_hat) - np.square(sigma)))

        x0 = self._to_x0(model_output, x, sigma, sigma_hat)
        slope = (x - x0) / float(sigma_hat)
        x_next = x + slope * float(sigma_next - sigma_hat)
        self.step_index += 1
        return Step(x_next, x0)

    def _custom_sigmas(self, sigmas):
        values = as_array("sigmas", sigmas, "float32")
        if values.ndim != 1 or len(values) < 2 or not (np.diff(values) < 0).all() or values[-1] < 0:
            raise UsageError(
                f"sigmas is {shown(sigmas)}; give two numbers or more, descending, down to 0"
            )
        return values
