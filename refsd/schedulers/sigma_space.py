"""The samplers that work on x = x0 + sigma eps (variance exploding) rather than on x_t.

    x = x_t / sqrt(alpha_bar_t),   sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t)

The model was trained on x_t, so it is to see x / sqrt(sigma^2 + 1) (`scale_model_input`).
"""

from typing import Any

import numpy as np

from refsd.arguments import as_array
from refsd.errors import UsageError
from refsd.half import in_float32
from refsd.schedulers import sigma_tables
from refsd.schedulers.diffusion import DiffusionScheduler
from refsd.schedulers.noise_schedule import spaced_timesteps
from refsd.schedulers.scheduler import per_sample


@in_float32
def _divided(x, number):
    return x / number


class SigmaSpaceScheduler(DiffusionScheduler):
    """`sigmas` has an entry a step and a last one; `timesteps` are float32 and may be fractions."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sigma_choice = sigma_tables.chosen_sigmas(self.config)
        if self.config.get("rescale_betas_zero_snr"):
            self.alphas_cumprod[-1] = 2**-24  # not 0, so that the first sigma, 4096, is finite
        self.training_sigmas = sigma_tables.training_sigmas(self.alphas_cumprod)
        timesteps = np.arange(self.config.num_train_timesteps)[::-1].astype(np.float32)
        self._set_sigmas(self.training_sigmas[::-1], timesteps, last=0)

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation that the first sample is to have."""
        largest = self.sigmas.max()
        if self.config.timestep_spacing == "leading":
            return float(np.sqrt(np.square(largest) + 1))
        return float(largest)

    def scale_model_input(self, sample: Any, timestep: float) -> Any:
        """sample / sqrt(sigma^2 + 1), with the sigma of `timestep`."""
        sigma = self._sigma_of_call(self._enter(timestep))
        sample = as_array("scale_model_input: sample", sample)
        return _divided(sample, float(np.sqrt(np.square(sigma) + 1)))

    def add_noise(self, original: Any, noise: Any, timesteps: Any) -> Any:
        """original + sigma noise.   (N, ...) -> (N, ...)

        sigma is that of `timesteps`, one of the run's or one for each of the N; after
        set_begin_index it is that of the step to come, whatever `timesteps` says.
        """
        original, noise = self._noisy(original, noise)
        steps = self._steps_to_noise(timesteps, original)
        return original + noise * per_sample(self.sigmas[steps], original)

    def _sigma_of_call(self, i):
        """The sigma at which the model is called at timesteps[i]."""
        return self.sigmas[i]

    def _to_x0(self, output, x, sigma, sigma_hat):
        """x0 from the model's output at x, which stands at sigma_hat (v is read at sigma)."""
        if self.config.prediction_type == "sample":
            return output
        if self.config.prediction_type == "epsilon":
            return x - float(sigma_hat) * output
        variance = np.square(sigma) + 1
        return output * float(-sigma / np.sqrt(variance)) + x / float(variance)

    def _set_sigmas(self, sigmas, timesteps, *, last):
        self._set_schedule(timesteps)
        self.sigmas = np.append(sigmas, last).astype(np.float32)

    def _spaced(self, steps):
        """float32 timesteps of `steps` steps, fractional for linspace spacing."""
        config = self.config
        return spaced_timesteps(
            config.timestep_spacing, steps, config.num_train_timesteps, offset=config.steps_offset
        ).astype(np.float32)

    def _sigmas_of_run(self, steps, timesteps=None):
        """The n sigmas of a run in float64, and its timesteps: the n of `steps`, or the caller's.

        float32 timesteps choose the sigmas, unless an option of SIGMAS does: then the timesteps
        are found from those, in float64.
        """
        config, choice = self.config, self.sigma_choice
        if timesteps is None:
            steps = self._check_steps(steps)
            timesteps = self._spaced(steps)
        elif choice:
            raise UsageError(f"set_timesteps got timesteps, but {choice} chooses them; give steps")
        else:
            timesteps = self._custom_timesteps(timesteps).astype(np.float32)

        sigmas = sigma_tables.interpolate(timesteps, self.training_sigmas)
        if choice:
            low, high = config.get("sigma_min"), config.get("sigma_max")
            low = sigmas[-1].item() if low is None else low
            high = sigmas[0].item() if high is None else high
            sigmas = sigma_tables.SIGMAS[choice](low, high, steps)
            timesteps = self._timesteps_of(sigmas)
        return sigmas, timesteps

    def _timesteps_of(self, sigmas):
        return sigma_tables.sigma_to_timestep(sigmas, np.log(self.training_sigmas))
