"""Euler's method for EDM's models: the step of euler.py with the x0 of edm.py.

Karras et al. 2022, arXiv:2206.00364, equation 5 and algorithm 2 without its second order.
"""

import numpy as np

from refsd.schedulers.edm import PreconditionedScheduler
from refsd.schedulers.euler import EulerDiscreteScheduler
from refsd.schedulers.sigma_tables import karras_sigmas


class EDMEulerScheduler(PreconditionedScheduler, EulerDiscreteScheduler):
    """Euler; draws noise only if s_churn > 0."""

    DEFAULTS = PreconditionedScheduler.DEFAULTS
    CHOICES = PreconditionedScheduler.CHOICES

    def _karras(self, steps):
        config = self.config
        sigmas = karras_sigmas(config.sigma_min, config.sigma_max, steps, config.rho)
        return sigmas.astype(np.float32)

    def _last_sigma(self, sigmas):
        return sigmas[-1]

    def _to_x0(self, output, x, sigma, sigma_hat):
        return self._denoised(output, x, sigma_hat)
