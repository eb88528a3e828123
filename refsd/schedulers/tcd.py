"""TCD: a consistency model that jumps to any s, not to x0 alone; then noise brings x_s to u >= s.

    x_s = sqrt(alpha_bar_s) x0 + sqrt(1 - alpha_bar_s) eps          s = (1 - eta) u, rounded down
    x_u = sqrt(alpha_bar_u / alpha_bar_s) x_s + sqrt(1 - alpha_bar_u / alpha_bar_s) z

u is the next timestep, of the last step 0. eta = 0 goes to u at once, as DDIM does; eta = 1 goes to
x_0 and back, as LCM does.

Zheng et al. 2024, "Trajectory Consistency Distillation", arXiv:2402.19159, algorithm 4.
"""

from typing import Any

import numpy as np

from refsd.arguments import as_number, shown
from refsd.errors import UsageError
from refsd.schedulers.lcm import LCMScheduler
from refsd.schedulers.prediction import to_eps, to_x0
from refsd.schedulers.scheduler import Step


class TCDScheduler(LCMScheduler):
    """TCD; draws noise at every step but the last, none with eta = 0.

    Its timesteps are LCM's, or, with `original_inference_steps` in set_timesteps, a choice of all
    of the training's. The options of clipping and thresholding change nothing, as in diffusers.
    """

    def _distilled_timesteps(self, original, strength):
        found, most = super()._distilled_timesteps(original, strength)
        if original is None:
            return found, most
        train = self.config.num_train_timesteps
        found = np.arange(self._share(train, strength))[::-1]
        return found, min(int(original), len(found))

    def step(
        self, model_output: Any, timestep: int, sample: Any, *, eta: float = 0.3,
        generator: Any = None
    ) -> Step:
        """x_t -> x_u.   (N, ...), (), (N, ...) -> Step

        z is drawn from `generator`.
        """
        model_output, sample = self._pair(model_output, sample)
        requested, eta = eta, as_number(eta)
        if eta is None or not 0 <= eta <= 1:
            raise UsageError(f"eta is {shown(requested)}; give a number from 0 to 1")
        t = self._training_step(timestep)
        i = self._enter(timestep)
        u = self.timesteps[i + 1] if i + 1 < len(self.timesteps) else 0
        s = int(np.float32(1 - eta) * np.float32(u))
        alpha_bar_t, alpha_bar_s, alpha_bar_u = self.alphas_cumprod[[t, s, u]]

        kind = self.config.prediction_type
        x0 = to_x0(kind, model_output, sample, alpha_bar_t)
        eps = to_eps(kind, model_output, sample, alpha_bar_t)
        x_u = float(np.sqrt(alpha_bar_s)) * x0 + float(np.sqrt(1 - alpha_bar_s)) * eps

        if eta > 0 and i != self.num_inference_steps - 1:
            kept = alpha_bar_u / alpha_bar_s
            z = self._draw(sample, generator)
            x_u = float(np.sqrt(kept)) * x_u + float(np.sqrt(1 - kept)) * z
        self.step_index += 1
        return Step(x_u, x0)
