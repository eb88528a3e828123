"""DPM-Solver++: exponential multistep integration of the probability-flow ODE in lambda.

    lambda = log(alpha / sigma),  h = lambda_t - lambda_s,  D0 = x0(x_s, s)
    first order   x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - e^-h) D0           (= DDIM)
    second order  ... + alpha_t (1 - e^-h) / 2 D1                 "midpoint", DPM++ 2M
                  ... + alpha_t ((e^-h - 1) / h + 1) D1           "heun"
    third order   ... + alpha_t ((e^-h - 1) / h + 1) D1 - alpha_t ((e^-h - 1 + h) / h^2 - 1/2) D2

alpha, sigma are those of x_t = alpha x0 + sigma eps. D1 and D2 are divided differences of x0 over
the last steps, times h and h^2. Taylor's formula wants the second derivative there, twice D2; the
authors' code and diffusers take D2 once, so that order 3 converges like order 2.

Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
arXiv:2211.01095, algorithm 2 and appendix B.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.schedulers import noise_schedule
from refsd.schedulers.config import BETAS, CLIPPING, Config
from refsd.schedulers.diffusion import DiffusionScheduler
from refsd.schedulers.noise_schedule import exp32, log32
from refsd.schedulers.prediction import threshold
from refsd.schedulers.scheduler import Step, only_one, per_sample

# The solver types in other multistep samplers' configs, which diffusers takes for midpoint here.
OTHER_SOLVER_TYPES = ("logrho", "bh1", "bh2")


class DPMSolverMultistepScheduler(DiffusionScheduler):
    """DPM++ of order 1, 2 or 3. Draws no noise.

    The last step is of first order when it goes to sigma 0 or with `euler_at_final`; with
    `lower_order_final` the end of a run of fewer than 15 steps is too.
    """

    has_history = True
    DEFAULTS = {
        **BETAS,
        "solver_order": 2,
        "prediction_type": "epsilon",
        "thresholding": CLIPPING["thresholding"],
        "dynamic_thresholding_ratio": CLIPPING["dynamic_thresholding_ratio"],
        "sample_max_value": CLIPPING["sample_max_value"],
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -float("inf"),
        "variance_type": None,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    }
    CHOICES = {
        "solver_order": (1, 2, 3),
        "algorithm_type": ("dpmsolver++",),
        "solver_type": ("midpoint", "heun", *OTHER_SOLVER_TYPES),
        "use_lu_lambdas": (False,),
        "use_flow_sigmas": (False,),
        "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
        "use_dynamic_shifting": (False,),
        "time_shift_type": ("exponential", "linear", None),  # of use_dynamic_shifting
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.config.solver_type in OTHER_SOLVER_TYPES:
            self.config = Config(self.config | {"solver_type": "midpoint"}, self.config.defaulted)
        self.sigma_choice = noise_schedule.chosen_sigmas(self.config)
        if self.config.rescale_betas_zero_snr:
            self.alphas_cumprod[-1] = 2**-24  # not 0, so that the first sigma, 4096, is finite
        self.training_sigmas = noise_schedule.training_sigmas(self.alphas_cumprod)
        self.sigmas = self.training_sigmas

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Sequence[int] | None = None
    ) -> None:
        """Choose the sigmas and timesteps of a run, or take the caller's own, and start it."""
        choice, zero_last = self.sigma_choice, self.config.final_sigmas_type == "zero"
        argument = only_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        if argument == "timesteps" and choice:
            raise UsageError(f"set_timesteps got timesteps, but {choice} chooses them; give steps")

        if choice:
            sigmas, timesteps = self._chosen_sigmas(self._check_steps(num_inference_steps))
        else:
            if argument == "timesteps":
                timesteps = self._custom_timesteps(timesteps).astype(np.int64)
            else:
                timesteps = self._spaced(self._check_steps(num_inference_steps))
            sigmas = noise_schedule.interpolate(timesteps, self.training_sigmas)

        self._set_schedule(timesteps.astype(np.int64))
        last = 0 if zero_last else self.training_sigmas[0]
        self.sigmas = np.append(sigmas, last).astype(np.float32)
        self.num_inference_steps = len(self.timesteps)
        self.predictions = []  # x0 of the last steps, newest last
        self.steps_done = 0

    def _chosen_sigmas(self, steps):
        low, high = self.training_sigmas[0].item(), self.training_sigmas[-1].item()
        sigmas = noise_schedule.SIGMAS[self.sigma_choice](low, high, steps)
        timesteps = noise_schedule.sigma_to_timestep(sigmas, np.log(self.training_sigmas))
        rounds = self.sigma_choice == "use_karras_sigmas"
        if rounds and self.config.beta_schedule != "squaredcos_cap_v2":
            timesteps = timesteps.round()
        return sigmas, timesteps

    def _spaced(self, steps):
        """n timesteps out of n + 1 evenly spaced, without the smallest."""
        config = self.config
        last = config.num_train_timesteps - self._steps_below_lambda_min()
        if config.timestep_spacing == "leading" and last <= steps:
            raise UsageError(
                f"num_inference_steps is {steps}; with leading spacing give fewer than {last}"
            )
        return noise_schedule.spaced_timesteps(
            config.timestep_spacing,
            steps,
            config.num_train_timesteps,
            offset=config.steps_offset,
            last=last,
            extra=0 if config.timestep_spacing == "trailing" else 1,
        ).round()

    def _steps_below_lambda_min(self):
        """How many of the noisiest training steps have lambda < lambda_min_clipped."""
        lambdas = np.log(np.sqrt(self.alphas_cumprod)) - np.log(np.sqrt(1 - self.alphas_cumprod))
        return int(np.searchsorted(lambdas[::-1], np.float32(self.config.lambda_min_clipped)))

    def step(self, model_output: Any, timestep: int, sample: Any, *, generator: Any = None) -> Step:
        """x_s -> x_t.   (N, ...), (), (N, ...) -> Step

        Call it in the order of `timesteps`. `generator` is not used.
        """
        model_output, sample = self._pair(model_output, sample)
        i = self._enter(timestep)
        x0 = self._to_x0(model_output, sample, i)
        self.predictions = [*self.predictions[-2:], x0]
        x_t = self._update(sample, i, self._order(i))
        self.steps_done += 1
        self.step_index += 1
        return Step(x_t, x0)

    def _order(self, i):
        """The order of step i: no more than the history allows, less at the end of the run."""
        config, left = self.config, len(self.timesteps) - 1 - i
        short = config.lower_order_final and len(self.timesteps) < 15
        if left == 0 and (config.euler_at_final or short or config.final_sigmas_type == "zero"):
            return 1
        order = min(config.solver_order, self.steps_done + 1)
        return min(order, 2) if left == 1 and short else order

    def _levels(self, i):
        """alpha, sigma and lambda of x = alpha x0 + sigma eps at self.sigmas[i]."""
        ratio = self.sigmas[i]
        alpha = 1 / np.sqrt(np.square(ratio) + 1)
        sigma = ratio * alpha
        return alpha, sigma, log32(alpha) - log32(sigma)

    def _to_x0(self, output, x, i):
        alpha, sigma, _ = self._levels(i)
        if self.config.prediction_type == "epsilon":
            x0 = (x - float(sigma) * output) / float(alpha)
        elif self.config.prediction_type == "v_prediction":
            x0 = float(alpha) * x - float(sigma) * output
        else:
            x0 = output
        return threshold(x0, self.config) if self.config.thresholding else x0

    def _update(self, x, i, order):
        alpha_t, sigma_t, lambda_t = self._levels(i + 1)
        _, sigma_s, lambda_s = self._levels(i)
        h = lambda_t - lambda_s
        decay = exp32(-h) - 1  # e^-h - 1

        m0 = self.predictions[-1]
        x_t = float(sigma_t / sigma_s) * x - float(alpha_t * decay) * m0
        if order == 1 or h == 0:  # h = 0: Karras sigmas that end at sigma_min end there twice
            return x_t

        m1 = self.predictions[-2]
        lambda_1 = self._levels(i - 1)[2]
        r0 = (lambda_s - lambda_1) / h
        d1 = float(1 / r0) * (m0 - m1)
        if order == 2 and self.config.solver_type == "midpoint":
            return x_t - float(0.5 * (alpha_t * decay)) * d1
        if order == 2:
            return x_t + float(alpha_t * (decay / h + 1)) * d1

        r1 = (lambda_1 - self._levels(i - 2)[2]) / h
        bend = d1 - float(1 / r1) * (m1 - self.predictions[-3])
        d1 = d1 + float(r0 / (r0 + r1)) * bend
        d2 = float(1 / (r0 + r1)) * bend
        x_t = x_t + float(alpha_t * (decay / h + 1)) * d1
        return x_t - float(alpha_t * ((decay + h) / np.square(h) - 0.5)) * d2

    def add_noise(self, original: Any, noise: Any, timesteps: Any) -> Any:
        """alpha original + sigma noise.   (N, ...) -> (N, ...)

        With the levels of `timesteps`, one of the run's or one for each of the N; after
        set_begin_index those of the step to come, whatever `timesteps` says.
        """
        original, noise = self._noisy(original, noise)
        ratio = self.sigmas[self._steps_to_noise(timesteps, original)].astype(original.dtype)
        alpha = 1 / np.sqrt(np.square(ratio) + 1)
        return per_sample(alpha, original) * original + per_sample(ratio * alpha, original) * noise
