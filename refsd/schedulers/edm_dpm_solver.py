"""DPM-Solver++ for EDM's models: the step of dpm_solver.py with the x0 of edm.py and alpha = 1."""

from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.schedulers.config import THRESHOLDING
from refsd.schedulers.dpm_solver import DPMSolverMultistepScheduler
from refsd.schedulers.edm import PreconditionedScheduler
from refsd.schedulers.noise_schedule import linspace32
from refsd.schedulers.prediction import threshold
from refsd.schedulers.sigma_tables import log32


class EDMDPMSolverMultistepScheduler(PreconditionedScheduler, DPMSolverMultistepScheduler):
    """DPM++ of order 1, 2 or 3; the SDE, of order 1 or 2, draws noise at every step."""

    DEFAULTS = {
        **PreconditionedScheduler.DEFAULTS,
        "solver_order": 2,
        **THRESHOLDING,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
    }
    CHOICES = {
        **PreconditionedScheduler.CHOICES,
        "solver_order": (1, 2, 3),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),
        "solver_type": DPMSolverMultistepScheduler.CHOICES["solver_type"],
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._read_words()
        self.of_x0, self.is_noisy = True, self.config.algorithm_type.startswith("sde")
        if self.is_noisy and self.config.solver_order == 3:
            raise UsageError("solver_order is 3, which sde-dpmsolver++ has no formula for here; "
                             "give 1 or 2, or dpmsolver++")

    def _place_sigmas(self, steps):
        super()._place_sigmas(steps)
        self.predictions = []

    def _karras(self, steps):
        """Equation 5 of Karras et al., here in float32."""
        high, low = (sigma ** (1 / self.config.rho)
                     for sigma in (self.config.sigma_max, self.config.sigma_min))
        roots = high + linspace32(0, 1, steps) * (low - high)
        return (np.float64(roots) ** self.config.rho).astype(np.float32)

    def _last_sigma(self, sigmas):
        return self.config.sigma_min

    def _levels(self, i):
        return np.float32(1), self.sigmas[i], -log32(self.sigmas[i])

    def _to_x0(self, output, x, i):
        x0 = self._denoised(output, x, self.sigmas[i])
        return threshold(x0, self.config) if self.config.thresholding else x0

    def _noise(self, sample, generator, given):
        return self._draw(sample, generator)
