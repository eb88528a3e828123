"""PNDM: a linear multistep method whose every move is DDIM's, made with a blend of past outputs.

    x_s = sqrt(alpha_bar_s / alpha_bar_t) x_t - (alpha_bar_s - alpha_bar_t) e'
          / (alpha_bar_t sqrt(1 - alpha_bar_s) + sqrt(alpha_bar_t (1 - alpha_bar_t) alpha_bar_s))
    e'  = (55 e_t - 59 e_{t+1} + 37 e_{t+2} - 9 e_{t+3}) / 24          e_{t+k}: k steps ago

The first outputs come from Runge-Kutta (four model calls a step, for three steps), or with
`skip_prk_steps` from shorter blends; then the first step is made twice (PLMS, as Stable Diffusion).

Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", arXiv:2202.09778,
equations 9, 12, 13. The start without Runge-Kutta is that of CompVis' PLMS sampler.
"""

from typing import Any

import numpy as np

from refsd.errors import UsageError
from refsd.schedulers.config import BETAS
from refsd.schedulers.diffusion import DiffusionScheduler
from refsd.schedulers.noise_schedule import spaced_timesteps
from refsd.schedulers.prediction import to_eps
from refsd.schedulers.scheduler import Step


class PNDMScheduler(DiffusionScheduler):
    """PNDM; n steps are n + 1 model calls with `skip_prk_steps`, n + 9 without. Draws no noise."""

    has_history = True
    DEFAULTS = {
        **BETAS,
        "skip_prk_steps": False,
        "set_alpha_to_one": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 0,
    }
    CHOICES = {"prediction_type": ("epsilon", "v_prediction")}

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the timesteps of a run, and start it."""
        steps, config = self._check_steps(num_inference_steps), self.config
        if not config.skip_prk_steps and steps < 4:
            raise UsageError(
                f"num_inference_steps is {steps}; PNDM's Runge-Kutta start needs 4 or more "
                "(or skip_prk_steps=True)"
            )
        t = spaced_timesteps(
            config.timestep_spacing, steps, config.num_train_timesteps, offset=config.steps_offset
        )
        t = self._check_in_table(t.round().astype(np.int64))

        if config.skip_prk_steps:
            self.prk_timesteps = t[:0]
            timesteps = np.concatenate([t[:2], t[1:]])  # t0 t1 t1 t2 t3 ...
        else:
            half = config.num_train_timesteps // steps // 2
            starts_and_ends = zip(t[:3], t[1:4])
            rounds = [[a, b + half, b + half, b] for a, b in starts_and_ends]
            self.prk_timesteps = np.concatenate(rounds)
            timesteps = np.concatenate([self.prk_timesteps, t[3:]])

        self._set_schedule(timesteps)
        self.num_inference_steps = steps
        self.counter = 0
        self.outputs = []  # e_t, newest last
        self.blend = 0
        self.start = None

    def step(self, model_output: Any, timestep: int, sample: Any, *, generator: Any = None) -> Step:
        """x_t -> x_s.   (N, ...), (), (N, ...) -> Step

        Call it in the order of `timesteps`. `generator` is not used.
        """
        model_output, sample = self._pair(model_output, sample)
        t = self._training_step(timestep)
        if self.counter < len(self.prk_timesteps):
            x_s = self._runge_kutta(model_output, t, sample)
        else:
            x_s = self._multistep(model_output, t, sample)
        self.counter += 1
        return Step(x_s)

    def _runge_kutta(self, e, t, x):
        """One of four calls: at the start, twice half-way, at the end, weights 1/6 1/3 1/3 1/6."""
        call = self.counter % 4
        half = self.config.num_train_timesteps // self.num_inference_steps // 2
        to = t - half if call in (0, 2) else t

        if call == 0:
            self.outputs.append(e)
            self.start = x
        if call < 3:
            self.blend = self.blend + (1 / 6 if call == 0 else 1 / 3) * e
        else:
            e = self.blend + 1 / 6 * e
            self.blend = 0
        return self._move(self.start, int(self.prk_timesteps[self.counter - call]), to, e)

    def _multistep(self, e, t, x):
        """Adams-Bashforth on the last four outputs; fewer at the start, where step 0 is redone."""
        ratio = self.config.num_train_timesteps // self.num_inference_steps
        s = t - ratio
        if self.counter == 1:
            t, s, x = t + ratio, t, self.start
        else:
            self.outputs = [*self.outputs[-3:], e]

        past = self.outputs[::-1]
        if self.counter == 0:
            self.start = x
        elif self.counter == 1:
            e = (e + past[0]) / 2
        elif len(past) == 2:
            e = (3 * past[0] - past[1]) / 2
        elif len(past) == 3:
            e = (23 * past[0] - 16 * past[1] + 5 * past[2]) / 12
        else:
            e = 1 / 24 * (55 * past[0] - 59 * past[1] + 37 * past[2] - 9 * past[3])
        return self._move(x, t, s, e)

    def _move(self, x, t, s, e):
        """x_t -> x_s along e', equation 9."""
        alpha_bar_t, alpha_bar_s = self._alpha_bar(t), self._alpha_bar(s)
        e = to_eps(self.config.prediction_type, e, x, alpha_bar_t)

        beta_bar_t, beta_bar_s = 1 - alpha_bar_t, 1 - alpha_bar_s
        keep = np.sqrt(alpha_bar_s / alpha_bar_t)
        scale = alpha_bar_t * np.sqrt(beta_bar_s) + np.sqrt(alpha_bar_t * beta_bar_t * alpha_bar_s)
        return float(keep) * x - float(alpha_bar_s - alpha_bar_t) * e / float(scale)
