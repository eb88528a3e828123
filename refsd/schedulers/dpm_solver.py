"""DPM-Solver and DPM-Solver++, as an ODE and as an SDE; this file: multistep.

    lambda = log(alpha / sigma),  h = lambda_t - lambda_s,  x = alpha x0 + sigma eps

    dpmsolver++      x_t = sigma_t / sigma_s x_s + alpha_t (1 - e^-h) D0                (= DDIM)
                     second order  ... + alpha_t (1 - e^-h) / 2 D1          "midpoint", DPM++ 2M
                                   ... + alpha_t ((e^-h - 1) / h + 1) D1    "heun"
                     third order   ... - alpha_t ((e^-h - 1 + h) / h^2 - 1/2) D2 besides
    dpmsolver        x_t = alpha_t / alpha_s x_s - sigma_t (e^h - 1) D0         and so on with eps
    sde-dpmsolver++  x_t = sigma_t / sigma_s e^-h x_s + alpha_t (1 - e^-2h) D0
                           + sigma_t sqrt(1 - e^-2h) z                       DPM++ 2M SDE
    sde-dpmsolver    x_t = alpha_t / alpha_s x_s - 2 sigma_t (e^h - 1) D0 + sigma_t sqrt(e^2h - 1) z

D0 is x0 (the ++) or eps as predicted at s; D1 and D2 are divided differences over the last steps,
times h and h^2. Taylor's formula wants the second derivative there, twice D2; the authors' code and
diffusers take D2 once, so that order 3 converges like order 2. The third order of the SDE has
- 1/2 in diffusers where the formula has + 1/2 (k-diffusion's sample_dpmpp_3m_sde has it), which
makes it converge like order 1. Both are kept, for equal pictures.

Lu et al. 2022, "DPM-Solver", arXiv:2206.00927; "DPM-Solver++: Fast Solver for Guided Sampling of
Diffusion Probabilistic Models", arXiv:2211.01095, algorithm 2 and appendix B.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from refsd.arguments import as_array
from refsd.errors import UsageError
from refsd.places import beside
from refsd.random import draw_noise
from refsd.schedulers.exponential import ExponentialIntegrator
from refsd.schedulers.prediction import threshold
from refsd.schedulers.scheduler import Step, only_one
from refsd.schedulers.sigma_tables import exp32

OTHER_SOLVER_TYPES = dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint")


class DPMSolver(ExponentialIntegrator):
    """What its multistep and its singlestep form share: all but where D1 and D2 come from."""

    DEFAULTS = {
        **ExponentialIntegrator.DEFAULTS,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -float("inf"),
        "variance_type": None,
    }
    CHOICES = {
        **ExponentialIntegrator.CHOICES,
        "solver_type": ("midpoint", "heun", *OTHER_SOLVER_TYPES),
        "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    }
    READ_AS = {"solver_type": OTHER_SOLVER_TYPES, "algorithm_type": {"deis": "dpmsolver++"}}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        algorithm = self.config.algorithm_type
        self.of_x0, self.is_noisy = algorithm.endswith("++"), algorithm.startswith("sde")
        if not self.of_x0 and self.config.final_sigmas_type == "zero":
            raise UsageError(f"final_sigmas_type is 'zero', where {algorithm} has no step to go "
                             f"(e^h is infinite); give sigma_min, or {algorithm}++")
        if self.config.use_flow_sigmas and not self.of_x0:
            raise UsageError(f"algorithm_type is {algorithm!r}, which makes eps of no flow; give "
                             f"{algorithm}++")
        if algorithm == "sde-dpmsolver" and self.config.solver_order == 3:
            raise UsageError("solver_order is 3, which sde-dpmsolver has no formula for; give 1 or "
                             "2, or sde-dpmsolver++")

    def _predict(self, output, x, i):
        """x0, and what the algorithm integrates: x0 itself or eps, with x0 in range."""
        if self.of_x0:
            x0 = self._to_x0(output, x, i)
            return x0, x0
        eps = self._to_eps(output, x, i)
        alpha, sigma, _ = self._levels(i)
        x0 = (x - float(sigma) * eps) / float(alpha)
        if self.config.thresholding:
            x0 = threshold(x0, self.config)
            eps = self._eps_of(x0, x, i)
        return x0, eps

    def _move(self, x, s, t, order, differences, noise=None):
        """x_s -> x_t from D0, D1 and D2, as many as there are; s and t are indices of sigmas."""
        weight = self._weights(self._levels(s), self._levels(t), len(differences) > 1)
        if order == 2 and self.config.solver_type == "midpoint":
            weight["d1"] = 0.5 * weight["d0"]
        x_t = float(weight["x"]) * x
        for name, difference in zip(("d0", "d1", "d2"), differences):
            x_t = x_t + float(weight[name]) * difference
        return x_t if noise is None else x_t + float(weight["z"]) * noise

    def _weights(self, s, t, higher):
        """The factors of x, D0, D1 ("heun"), D2 and z from one level to another."""
        (alpha_s, sigma_s, lambda_s), (alpha_t, sigma_t, lambda_t) = s, t
        h = lambda_t - lambda_s
        if self.config.algorithm_type == "dpmsolver++":
            e = exp32(-h) - 1
            weight = {"x": sigma_t / sigma_s, "d0": -alpha_t * e}
            if higher:
                weight["d1"] = alpha_t * (e / h + 1)
                weight["d2"] = -alpha_t * ((e + h) / np.square(h) - 0.5)
        elif self.config.algorithm_type == "dpmsolver":
            e = exp32(h) - 1
            weight = {"x": alpha_t / alpha_s, "d0": -sigma_t * e}
            if higher:
                weight["d1"] = -sigma_t * (e / h - 1)
                weight["d2"] = -sigma_t * ((e - h) / np.square(h) - 0.5)
        elif self.config.algorithm_type == "sde-dpmsolver++":
            e = 1 - exp32(-2 * h)
            weight = {"x": sigma_t / sigma_s * exp32(-h), "d0": alpha_t * e,
                      "z": sigma_t * np.sqrt(e)}
            if higher:
                weight["d1"] = alpha_t * (e / (-2 * h) + 1)
                weight["d2"] = alpha_t * ((e - 2 * h) / np.square(2 * h) - 0.5)
        else:
            e = exp32(h) - 1
            weight = {"x": alpha_t / alpha_s, "d0": -2 * (sigma_t * e),
                      "z": sigma_t * np.sqrt(exp32(2 * h) - 1)}
            if higher:
                weight["d1"] = -2 * (sigma_t * (e / h - 1))
        return weight


class DPMSolverMultistepScheduler(DPMSolver):
    """DPM++ of order 1, 2 or 3; the SDEs draw noise at every step, in float32.

    The last step is of first order when it goes to sigma 0 or with `euler_at_final`; with
    `lower_order_final` the end of a run of fewer than 15 steps is too.
    """

    DEFAULTS = {
        **DPMSolver.DEFAULTS,
        "lower_order_final": True,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }
    CHOICES = {**DPMSolver.CHOICES, "algorithm_type": (
        "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver", "deis")}

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Sequence[int] | None = None
    ) -> None:
        """Choose the sigmas and timesteps of a run, or take the caller's own, and start it."""
        only_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        self._start(num_inference_steps, timesteps)

    def _rounds(self):
        return (self.sigma_choice in ("use_karras_sigmas", "use_lu_lambdas")
                and self.config.beta_schedule != "squaredcos_cap_v2")

    def step(self, model_output: Any, timestep: int, sample: Any, *, generator: Any = None,
             variance_noise: Any = None) -> Step:
        """x_s -> x_t.   (N, ...), (), (N, ...) -> Step

        Call it in the order of `timesteps`. The SDEs draw z from `generator`, or it is
        `variance_noise`.
        """
        model_output, sample = self._pair(model_output, sample)
        i = self._enter(timestep)
        x0, predicted = self._predict(model_output, sample, i)
        self.predictions = [*self.predictions[-2:], predicted]
        noise = None
        if self.is_noisy:
            noise = self._noise(sample, generator, variance_noise)
        order = self._order(i)
        x_t = self._move(sample, i, i + 1, order, self._differences(i, order), noise)
        self.step_index += 1
        return Step(x_t, x0)

    def _noise(self, sample, generator, given):
        """z in float32, whatever the model's dtype."""
        if given is None:
            given = beside(sample, draw_noise(sample.shape, "float32", generator))
        return as_array("step: variance_noise", given, sample.dtype)

    def _order(self, i):
        """The order of step i: no more than the history allows, less at the end of the run."""
        config, left = self.config, len(self.timesteps) - 1 - i
        short = config.lower_order_final and len(self.timesteps) < 15
        if left == 0 and (config.euler_at_final or short or config.final_sigmas_type == "zero"):
            return 1
        order = min(config.solver_order, len(self.predictions))
        return min(order, 2) if left == 1 and short else order

    def _differences(self, i, order):
        """D0, D1 and D2, as many as the order has, from the last predictions.

        D0 alone where h = 0: Karras sigmas that end at sigma_min end there twice.
        """
        m0 = self.predictions[-1]
        lambda_t, lambda_s = self._levels(i + 1)[2], self._levels(i)[2]
        h = lambda_t - lambda_s
        if order == 1 or h == 0:
            return [m0]
        lambda_1 = self._levels(i - 1)[2]
        r0 = (lambda_s - lambda_1) / h
        d1 = float(1 / r0) * (m0 - self.predictions[-2])
        if order == 2:
            return [m0, d1]
        r1 = (lambda_1 - self._levels(i - 2)[2]) / h
        bend = d1 - float(1 / r1) * (self.predictions[-2] - self.predictions[-3])
        return [m0, d1 + float(r0 / (r0 + r1)) * bend, float(1 / (r0 + r1)) * bend]
