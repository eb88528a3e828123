"""UniPC: a predictor, and a corrector that uses the next call of the model, without a further one.

    lambda = log(alpha / sigma),  h = lambda_t - lambda_s,  x = alpha x0 + sigma eps
    base       sigma_t / sigma_s x_s - alpha_t (e^-h - 1) p_s        as DPM-Solver++'s first order
    predictor  x_t = base - alpha_t B sum over k of rho_k D_k
    corrector  x_t = base - alpha_t B (sum over k of rho_k D_k + rho_t (p_t - p_s))

    r_k = (lambda_k - lambda_s) / h,   D_k = (p_k - p_s) / r_k   of the steps k before s,  r_t = 1
    B = e^-h - 1 ("bh2") or -h ("bh1");  sum over k of rho_k r_k^(n-1) = b_n, n = 1, 2, ...

p is x0 as predicted, b_n B = (-h)^n n! phi_(n+1)(-h) the n-th moment of the exponential's integral.
With predict_x0 off p is eps, alpha and sigma change places, and -h becomes h. As in the authors'
code the predictor of second order and the corrector of first take rho = 1/2.

Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
Models", arXiv:2302.04867, equation 3 and algorithms 5 to 8.
"""

import math
from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.schedulers.exponential import ExponentialIntegrator
from refsd.schedulers.scheduler import Step
from refsd.schedulers.sigma_tables import expm1_32, shifted


class UniPCMultistepScheduler(ExponentialIntegrator):
    """UniPC of order 1, 2 or 3; corrected, of one order more. Draws no noise.

    A step first corrects the sample that the step before it made, unless `disable_corrector` names
    that step. With `lower_order_final` the last steps are of lower order.
    """

    DEFAULTS = {
        **ExponentialIntegrator.DEFAULTS,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "final_sigmas_type": "zero",
        "rescale_betas_zero_snr": False,
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    }
    READ_AS = {"solver_type": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")}
    CHOICES = {**ExponentialIntegrator.CHOICES,
               "solver_type": ("bh1", "bh2", *READ_AS["solver_type"]),
               "solver_p": (None,),
               "shift_terminal": (None,)}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.config.use_flow_sigmas and not self.config.predict_x0:
            raise UsageError("predict_x0 is False, and of a flow no eps is made; give True")

    def _last_sigma(self, sigmas):
        """Where the last step goes; chosen sigmas that end at the smallest end there twice."""
        if self.config.final_sigmas_type == "zero":
            return 0
        own = self.sigma_choice or self.config.use_flow_sigmas
        return sigmas[-1] if own else self.training_sigmas[0]

    def _flow_sigmas(self, steps):
        """n sigmas, shifted, of n + 1 even ones from 1 to 1 / T, without the last.   -> (n,)

        A first one of 1, where lambda is infinite, is a millionth less.
        """
        even = np.linspace(1, 1 / self.config.num_train_timesteps, steps + 1)[:-1]
        sigmas = shifted(even, self.config.flow_shift)
        sigmas[0] -= 1e-6 * (abs(sigmas[0] - 1) < 1e-6)
        return sigmas

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the sigmas and timesteps of a run, and start it."""
        config = self.config
        if config.final_sigmas_type == "zero":
            if not config.predict_x0:
                raise UsageError("predict_x0 is False, but the last step goes to sigma 0, where "
                                 "eps leads nowhere; give True, or final_sigmas_type sigma_min")
            if not config.lower_order_final and config.solver_order > 1:
                raise UsageError("lower_order_final is False, but only the first order leads to "
                                 "sigma 0; give True, or final_sigmas_type sigma_min")
        self._start(num_inference_steps)
        self.last_sample, self.last_order = None, 0

    def step(self, model_output: Any, timestep: int, sample: Any, *, generator: Any = None) -> Step:
        """x_s -> x_t.   (N, ...), (), (N, ...) -> Step

        Call it in the order of `timesteps`. `generator` is not used.
        """
        model_output, sample = self._pair(model_output, sample)
        i = self._enter(timestep)
        x0 = predicted = self._to_x0(model_output, sample, i)
        if not self.config.predict_x0:
            predicted = self._to_eps(model_output, sample, i)
        if self.last_sample is not None and i - 1 not in self.config.disable_corrector:
            sample = self._update(self.last_sample, i - 1, self.last_order, corrected_by=predicted)

        self.predictions = [*self.predictions[-2:], predicted]
        order = min(self.config.solver_order, len(self.predictions))
        if self.config.lower_order_final:
            order = min(order, len(self.timesteps) - i)
        self.last_sample, self.last_order = sample, order
        x_t = self._update(sample, i, order)
        self.step_index += 1
        return Step(x_t, x0)

    def _update(self, x, i, order, corrected_by=None):
        """From step i to the next: predicted, or corrected by what the model says there."""
        alpha_s, sigma_s, lambda_s = self._levels(i)
        alpha_t, sigma_t, lambda_t = self._levels(i + 1)
        h = lambda_t - lambda_s
        if self.config.predict_x0:
            keep, scale, hh = sigma_t / sigma_s, alpha_t, -h
        else:
            keep, scale, hh = alpha_t / alpha_s, sigma_t, h
        p = self.predictions[-1]
        x_t = float(keep) * x - float(scale * expm1_32(hh)) * p
        if h == 0 or (order == 1 and corrected_by is None):
            return x_t

        r = [(self._levels(i - k)[2] - lambda_s) / h for k in range(1, order)]
        b_h = expm1_32(hh) if self.config.solver_type == "bh2" else hh
        rho = self._rho(r, hh, b_h, order, corrected_by is not None)
        terms = [float(rho_k) * ((p_k - p) / float(r_k))
                 for rho_k, r_k, p_k in zip(rho, r, self.predictions[-2::-1])]
        if corrected_by is not None:
            terms.append(float(rho[-1]) * (corrected_by - p))
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return x_t - float(scale * b_h) * total

    def _rho(self, r, hh, b_h, order, corrects):
        if order == 2 - corrects:
            return [0.5]
        r = np.array([*r, 1], np.float32)[:order if corrects else order - 1]
        matrix = np.stack([r**n for n in range(len(r))])
        return solve32(matrix, moments(hh, b_h)[:len(r)])


def moments(hh, b_h):
    """b_1, b_2 and b_3: hh^n n! phi_(n+1)(hh) / B, from phi_(n+1)(z) = (phi_n(z) - 1 / n!) / z."""
    phi, found = expm1_32(hh) / hh - 1, []
    for n in (1, 2, 3):
        found.append(phi * math.factorial(n) / b_h)
        phi = phi / hh - 1 / math.factorial(n + 1)
    return np.array(found)


def solve32(matrix, b):
    """The float32 solution nearest to that of matrix rho = b.   (n, n), (n,) -> (n,)"""
    return np.linalg.solve(matrix.astype(np.float64), b.astype(np.float64)).astype(np.float32)
