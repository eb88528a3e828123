"""DPM-Solver and DPM-Solver++, singlestep: groups of steps, each group one step of higher order.

A group begins at s with a step of first order. Its second step goes from x_s again, over the whole
way and with the predictions at both; its third step as well, with those at all three (the formulas
are those of dpm_solver.py):

    r_k = (lambda_k - lambda_s) / h,   d_k = (p_k - p_s) / r_k      p_k predicted after k steps
    second order  D0 = p_s,  D1 = d_1
    third order   D0 = p_s,  D1 = d_2 with the weight of "heun"                       "midpoint"
                  D1 = (r_2 d_1 - r_1 d_2) / (r_2 - r_1),  D2 = 2 (d_2 - d_1) / (r_2 - r_1) "heun"

So n steps call the model n times, as those of the others do. As an SDE a group's later steps read
predictions made at samples with other noise, as in diffusers: orders 2 and 3 are less exact than 1,
and "heun" of order 3, with the sign of dpm_solver.py, does not converge. Kept, for equal pictures.

Lu et al. 2022, arXiv:2206.00927, algorithms 4 and 5; arXiv:2211.01095, algorithm 1.
"""

from collections.abc import Sequence
from typing import Any

from refsd.schedulers.dpm_solver import DPMSolver
from refsd.schedulers.scheduler import Step, only_one


class DPMSolverSinglestepScheduler(DPMSolver):
    """DPM++ in groups of `solver_order` steps; the SDE draws noise at every step.

    The last step is of first order when it goes to sigma 0. A number of steps that is no multiple
    of the order ends in the middle of a group.
    """

    DEFAULTS = {**DPMSolver.DEFAULTS, "lower_order_final": False}
    CHOICES = {**DPMSolver.CHOICES, "algorithm_type": (
        "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "deis")}

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Sequence[int] | None = None
    ) -> None:
        """Choose the sigmas and timesteps of a run, or take the caller's own, and start it."""
        only_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        self._start(num_inference_steps, timesteps)
        self.orders = self._orders(self.num_inference_steps)
        self.start = None  # x_s of the group

    def _orders(self, steps):
        """The order of each step: 1, 2, 3 again and again; of a whole group's last one maybe 1."""
        order, to_zero = self.config.solver_order, self.config.final_sigmas_type == "zero"
        orders = [i % order + 1 for i in range(steps)]
        if to_zero or (self.config.lower_order_final and steps % order == 0):
            orders[-1] = 1
        return orders

    def step(self, model_output: Any, timestep: int, sample: Any, *, generator: Any = None) -> Step:
        """x_s -> x_t.   (N, ...), (), (N, ...) -> Step

        Call it in the order of `timesteps`. The SDE draws z from `generator`.
        """
        model_output, sample = self._pair(model_output, sample)
        i = self._enter(timestep)
        x0, predicted = self._predict(model_output, sample, i)
        self.predictions = [*self.predictions[-2:], predicted]
        noise = self._draw(sample, generator) if self.is_noisy else None

        order = min(self.orders[i], len(self.predictions))  # a run may start in a group's middle
        if order == 1:
            self.start = sample
        s = i + 1 - order
        x_t = self._move(self.start, s, i + 1, order, self._differences(s, i + 1, order), noise)
        self.step_index += 1
        return Step(x_t, x0)

    def _differences(self, s, t, order):
        """D0, D1 and D2 of a group that began at s, as many as the order has."""
        d0, *later = self.predictions[-order:]
        lambda_s = self._levels(s)[2]
        h = self._levels(t)[2] - lambda_s
        r = [(self._levels(s + k)[2] - lambda_s) / h for k in range(1, order)]
        d = [float(1 / r_k) * (p - d0) for r_k, p in zip(r, later)]
        if order < 3:
            return [d0, *d]
        if self.config.solver_type == "midpoint":
            return [d0, d[1]]
        apart = r[1] - r[0]
        return [d0, (float(r[1]) * d[0] - float(r[0]) * d[1]) / float(apart),
                (2.0 * (d[1] - d[0])) / float(apart)]
