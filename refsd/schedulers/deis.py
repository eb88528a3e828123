"""DEIS: exponential integration with polynomials of eps in log rho, rho = sigma / alpha.

    x_t / alpha_t = x_s / alpha_s + integral of eps d rho        from rho_s to rho_t

of which eps is replaced by the polynomial in log rho through the last predictions (Lagrange):

    x_t = alpha_t (x_s / alpha_s + sum of C_j eps_j)
    C_j = integral of the product over k != j of (log r - log rho_k) / (log rho_j - log rho_k) d r

Zhang and Chen 2022, "Fast Sampling of Diffusion Models with Exponential Integrator",
arXiv:2204.13902, section 3.3, the variant rho-AB with log rho.
"""

from typing import Any

import numpy as np

from refsd.schedulers.exponential import ExponentialIntegrator
from refsd.schedulers.scheduler import Step
from refsd.schedulers.sigma_tables import exp32, log32


class DEISMultistepScheduler(ExponentialIntegrator):
    """DEIS of order 1, 2 or 3. Draws no noise, and ends at the smallest sigma of training.

    With `lower_order_final` the end of a run of fewer than 15 steps is of lower order.
    """

    DEFAULTS = {
        **ExponentialIntegrator.DEFAULTS,
        "algorithm_type": "deis",
        "solver_type": "logrho",
        "lower_order_final": True,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    }
    READ_AS = {"algorithm_type": dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis"),
               "solver_type": dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho")}
    CHOICES = {**ExponentialIntegrator.CHOICES,
               "use_flow_sigmas": (False,),  # diffusers' end at the last sigma twice, not at 0
               "prediction_type": ("epsilon", "sample", "v_prediction"),
               "algorithm_type": ("deis", *READ_AS["algorithm_type"]),
               "solver_type": ("logrho", *READ_AS["solver_type"])}

    def _last_sigma(self, sigmas):
        """The smallest of training; chosen sigmas, which end there, end there twice."""
        return sigmas[-1] if self.sigma_choice else self.training_sigmas[0]

    def step(self, model_output: Any, timestep: int, sample: Any, *, generator: Any = None) -> Step:
        """x_s -> x_t.   (N, ...), (), (N, ...) -> Step

        Call it in the order of `timesteps`. `generator` is not used.
        """
        model_output, sample = self._pair(model_output, sample)
        i = self._enter(timestep)
        x0 = self._to_x0(model_output, sample, i)
        self.predictions = [*self.predictions[-2:], self._eps_of(x0, sample, i)]
        x_t = self._update(sample, i, self._order(i))
        self.step_index += 1
        return Step(x_t, x0)

    def _order(self, i):
        """The order of step i: no more than the history allows, less at the end of the run."""
        order = min(self.config.solver_order, len(self.predictions))
        short = self.config.lower_order_final and len(self.timesteps) < 15
        return min(order, len(self.timesteps) - i) if short else order

    def _update(self, x, i, order):
        alpha_s, _, lambda_s = self._levels(i)
        alpha_t, sigma_t, lambda_t = self._levels(i + 1)
        if order == 1:
            e = exp32(lambda_t - lambda_s) - 1
            return float(alpha_t / alpha_s) * x - float(sigma_t * e) * self.predictions[-1]
        rhos = [self._rho(i - j) for j in range(order)]
        logs = [log32(rho) for rho in rhos]
        x_t = x / float(alpha_s)
        for j, eps in enumerate(reversed(self.predictions[-order:])):
            others = [*logs[j + 1:], *logs[:j]]  # in diffusers' order, which decides the last bit
            c = primitive(self._rho(i + 1), logs[j], *others) - primitive(rhos[0], logs[j], *others)
            x_t = x_t + float(c) * eps
        return float(alpha_t) * x_t

    def _rho(self, i):
        alpha, sigma, _ = self._levels(i)
        return sigma / alpha


def primitive(rho, b, c, d=None):
    """The integral to rho of (log r - c) / (b - c), times (log r - d) / (b - d) with a d."""
    log = log32(rho)
    if d is None:
        return rho * (-c + log - 1) / (b - c)
    numerator = c * (d - log + 1) - d * log + d + np.square(log) - 2 * log + 2
    return rho * numerator / ((b - c) * (b - d))
