"""What DPM-Solver, DEIS and UniPC share: they solve the probability-flow ODE of

    x = alpha x0 + sigma eps          along    lambda = log(alpha / sigma)

so that its linear part is exact and only x0 or eps, smooth in lambda, is approximated by what the
last steps predicted (exponential integrators; Lu et al. 2022, arXiv:2206.00927, section 3).

With use_flow_sigmas alpha = 1 - sigma, the straight path of flow matching (see flow_match.py), and
the model predicts v = eps - x0; without, alpha = sqrt(1 - sigma^2).
"""

from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.schedulers import sigma_tables
from refsd.schedulers.config import BETAS, THRESHOLDING, Config
from refsd.schedulers.diffusion import DiffusionScheduler
from refsd.schedulers.noise_schedule import spaced_timesteps
from refsd.schedulers.prediction import threshold
from refsd.schedulers.scheduler import per_sample
from refsd.schedulers.sigma_tables import log32, shifted


class ExponentialIntegrator(DiffusionScheduler):
    """`sigmas` has the ratio sigma / alpha of each step, of flow matching sigma, and a last one.

    `predictions` has what the last steps predicted, newest last, and not of an earlier run.
    """

    has_history = True
    DEFAULTS = {
        **BETAS,
        "solver_order": 2,
        "prediction_type": "epsilon",
        **THRESHOLDING,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    }
    CHOICES = {
        "solver_order": (1, 2, 3),
        "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction"),
        "use_dynamic_shifting": (False,),
        "time_shift_type": ("exponential", "linear", None),  # of use_dynamic_shifting
    }
    # Words of the other classes' configs, and what diffusers takes them for.
    READ_AS: dict[str, dict[str, str]] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._read_words()
        self.sigma_choice = sigma_tables.chosen_sigmas(self.config)
        self._check_flow()
        if self.config.get("rescale_betas_zero_snr"):
            self.alphas_cumprod[-1] = 2**-24  # not 0, so that the first sigma, 4096, is finite
        self.training_sigmas = sigma_tables.training_sigmas(self.alphas_cumprod)
        self.sigmas = self.training_sigmas

    def _read_words(self):
        read = {key: words[self.config[key]] for key, words in self.READ_AS.items()
                if self.config[key] in words}
        self.config = Config(self.config | read, self.config.defaulted)

    def _check_flow(self):
        """What diffusers would compute besides is of no model, or stops at the first step."""
        config, choice = self.config, self.sigma_choice
        if config.use_flow_sigmas != (config.prediction_type == "flow_prediction"):
            raise UsageError(f"use_flow_sigmas is {config.use_flow_sigmas}, prediction_type "
                             f"{config.prediction_type!r}; give both, True and "
                             "'flow_prediction', for flow matching, neither for other models")
        if config.use_flow_sigmas and choice:
            raise UsageError(f"use_flow_sigmas and {choice} exclude each other; give one")

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the sigmas and timesteps of a run, and start it."""
        self._start(num_inference_steps)

    def _start(self, steps, timesteps=None):
        choice = "use_flow_sigmas" if self.config.use_flow_sigmas else self.sigma_choice
        if choice and timesteps is not None:
            raise UsageError(f"set_timesteps got timesteps, but {choice} chooses them; give steps")
        if self.config.use_flow_sigmas:
            sigmas = self._flow_sigmas(self._check_steps(steps))
            timesteps = sigmas * self.config.num_train_timesteps
        elif choice:
            sigmas, timesteps = self._chosen_sigmas(self._check_steps(steps))
        else:
            if timesteps is None:
                timesteps = self._spaced(self._check_steps(steps))
            else:
                timesteps = self._custom_timesteps(timesteps).astype(np.int64)
            sigmas = sigma_tables.interpolate(timesteps, self.training_sigmas)

        self._set_schedule(timesteps.astype(np.int64))
        self.sigmas = np.append(sigmas, self._last_sigma(sigmas)).astype(np.float32)
        self.num_inference_steps = len(self.timesteps)
        self.predictions = []

    def _last_sigma(self, sigmas):
        """Where the last step goes."""
        return 0 if self.config.final_sigmas_type == "zero" else self.training_sigmas[0]

    def _flow_sigmas(self, steps):
        """n sigmas, shifted, of n + 1 even ones from 1 - 1 / T to 0, without the 0.   -> (n,)"""
        even = 1 - np.linspace(1, 1 / self.config.num_train_timesteps, steps + 1)
        return shifted(even, self.config.flow_shift)[:0:-1]

    def _chosen_sigmas(self, steps):
        low = high = None
        if self.sigma_choice != "use_lu_lambdas":  # diffusers reads these of any class's config
            low, high = self.config.get("sigma_min"), self.config.get("sigma_max")
        low = self.training_sigmas[0].item() if low is None else low
        high = self.training_sigmas[-1].item() if high is None else high
        sigmas = sigma_tables.SIGMAS[self.sigma_choice](low, high, steps)
        timesteps = sigma_tables.sigma_to_timestep(sigmas, np.log(self.training_sigmas))
        return sigmas, timesteps.round() if self._rounds() else timesteps

    def _rounds(self):
        """Whether the timesteps of chosen sigmas are rounded; else they are truncated."""
        return self.sigma_choice == "use_karras_sigmas"

    def _spaced(self, steps):
        """n timesteps out of n + 1 evenly spaced, without the smallest."""
        spacing, train = self._own("timestep_spacing", "linspace"), self.config.num_train_timesteps
        last = train - self._steps_below_lambda_min()
        if spacing == "leading" and last <= steps:
            raise UsageError(
                f"num_inference_steps is {steps}; with leading spacing give fewer than {last}"
            )
        return spaced_timesteps(
            spacing,
            steps,
            train,
            offset=self._own("steps_offset"),
            last=last,
            extra=0 if spacing == "trailing" else 1,
        ).round()

    def _own(self, option, otherwise=None):
        """An option that some of these classes have; a config also keeps those of other classes."""
        return self.config[option] if option in self.DEFAULTS else otherwise

    def _steps_below_lambda_min(self):
        """How many of the noisiest training steps have lambda < lambda_min_clipped."""
        least = np.float32(self._own("lambda_min_clipped", -np.inf))
        lambdas = np.log(np.sqrt(self.alphas_cumprod)) - np.log(np.sqrt(1 - self.alphas_cumprod))
        return int(np.searchsorted(lambdas[::-1], least))

    def _levels(self, i):
        """alpha, sigma and lambda of x = alpha x0 + sigma eps at self.sigmas[i]."""
        alpha, sigma = self._shares(self.sigmas[i])
        return alpha, sigma, log32(alpha) - log32(sigma)

    def _shares(self, ratio):
        """alpha and sigma of entries of self.sigmas."""
        if self._own("use_flow_sigmas"):
            return 1 - ratio, ratio
        alpha = 1 / np.sqrt(np.square(ratio) + 1)
        return alpha, ratio * alpha

    def _to_x0(self, output, x, i):
        """x0 from the model's output at x, in range."""
        alpha, sigma, _ = self._levels(i)
        if self.config.prediction_type == "epsilon":
            x0 = (x - float(sigma) * output) / float(alpha)
        elif self.config.prediction_type == "v_prediction":
            x0 = float(alpha) * x - float(sigma) * output
        elif self.config.prediction_type == "flow_prediction":
            x0 = x - float(sigma) * output
        else:
            x0 = output
        return threshold(x0, self.config) if self.config.thresholding else x0

    def _to_eps(self, output, x, i):
        """eps from the model's output at x."""
        if self.config.prediction_type == "epsilon":
            return output
        if self.config.prediction_type == "sample":
            return self._eps_of(output, x, i)
        alpha, sigma, _ = self._levels(i)
        return float(alpha) * output + float(sigma) * x

    def _eps_of(self, x0, x, i):
        """eps where x0 is known."""
        alpha, sigma, _ = self._levels(i)
        return (x - float(alpha) * x0) / float(sigma)

    def add_noise(self, original: Any, noise: Any, timesteps: Any) -> Any:
        """alpha original + sigma noise.   (N, ...) -> (N, ...)

        With the levels of `timesteps`, one of the run's or one for each of the N; after
        set_begin_index those of the step to come, whatever `timesteps` says.
        """
        original, noise = self._noisy(original, noise)
        ratio = self.sigmas[self._steps_to_noise(timesteps, original)].astype(original.dtype)
        alpha, sigma = self._shares(ratio)
        return per_sample(alpha, original) * original + per_sample(sigma, original) * noise
