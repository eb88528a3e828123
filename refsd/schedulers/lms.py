"""LMS, linear multistep: the integral of the polynomial through the slopes of the last steps.

    d_j = (x_j - x0(x_j, sigma_j)) / sigma_j
    x_next = x + sum_j c_j d_j
    c_j = integral from sigma to sigma_next of prod_k (s - sigma_k) / (sigma_j - sigma_k), k != j

This is Adams' and Bashforth's method on steps of any length, with Lagrange's polynomials. Katherine
Crowson's sample_lms.
"""

import math
from typing import Any

import numpy as np

from refsd.arguments import as_integer, shown
from refsd.errors import UsageError
from refsd.schedulers.config import BETAS
from refsd.schedulers.scheduler import Step
from refsd.schedulers.sigma_space import SigmaSpaceScheduler


class LMSDiscreteScheduler(SigmaSpaceScheduler):
    """LMS of four steps. Draws no noise."""

    has_history = True
    DEFAULTS = {
        **BETAS,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    }

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the sigmas and timesteps of a run, and start it."""
        sigmas, timesteps = self._sigmas_of_run(num_inference_steps)
        self._set_sigmas(sigmas, timesteps.astype(np.float32), last=0)
        self.num_inference_steps = len(sigmas)
        self.slopes = []  # of the last steps, newest first

    def step(
        self, model_output: Any, timestep: float, sample: Any, *, order: int = 4,
        generator: Any = None
    ) -> Step:
        """x at one sigma -> x at the next.   (N, ...), (), (N, ...) -> Step

        Of the last `order` steps. A run that begins in the middle of its schedule weighs its first
        slopes as if it had all of them, as diffusers does. `generator` is not used.
        """
        model_output, sample = self._pair(model_output, sample)
        self._check_float(timestep)
        number = as_integer(order)
        if number is None or number < 1:
            raise UsageError(f"order is {shown(order)}; give an integer, 1 or more")
        i = self._enter(timestep)
        sigma = self.sigmas[i]
        x0 = self._to_x0(model_output, sample, sigma, sigma)
        self.slopes = [(sample - x0) / float(sigma), *self.slopes][:number]

        weights = self._weights(i, min(i + 1, number))
        terms = [weight * slope for weight, slope in zip(weights, self.slopes)]
        self.step_index += 1
        return Step(sample + sum(terms[1:], terms[0]), x0)

    def _weights(self, i, order):
        """c_j of the last `order` sigmas, that of step i first, by quadrature as in diffusers.

        Its polynomials are computed in float32, which is felt in the last bits of c_j.
        """
        from scipy.integrate import quad  # here, because import refsd must not load SciPy

        past = self.sigmas[i - order + 1 : i + 1][::-1]

        def weight(j):
            def polynomial(s):
                factors = ((np.float32(s) - past[k]) / (past[j] - past[k])
                           for k in range(order) if k != j)
                return math.prod(factors, start=np.float32(1))

            return quad(polynomial, self.sigmas[i], self.sigmas[i + 1], epsrel=1e-4)[0]

        return [weight(j) for j in range(order)]
