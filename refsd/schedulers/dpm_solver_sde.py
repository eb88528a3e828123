"""DPM++ SDE: two calls a step, and noise along a Brownian path in both.

In t = -log sigma, with x0 predicted at sigma, a step from sigma to r is ancestral:

    sigma_up^2 = r^2 (sigma^2 - r^2) / sigma^2,     sigma_down^2 = r^2 - sigma_up^2
    x_r = sigma_down / sigma x - (e^(t - t_down) - 1) x0 + sigma_up z
    z = W(sigma, r) / sqrt(sigma - r)

The first call steps to the midpoint of t, the second from x to sigma_next with the midpoint's x0.
W is the Brownian path of refsd.random.brownian, so that noise does not depend on where it is asked.

Katherine Crowson's sample_dpmpp_sde, after Lu et al. 2022, arXiv:2211.01095, algorithm 1.
"""

from typing import Any

import numpy as np

from refsd.arguments import as_number, shown
from refsd.errors import UsageError
from refsd.places import beside
from refsd.random.brownian import BrownianPath
from refsd.schedulers.noise_schedule import spaced_timesteps
from refsd.schedulers.scheduler import Step
from refsd.schedulers.sigma_tables import exp32, expm1_32, log32, sigma_to_timestep
from refsd.schedulers.two_calls import TwoCallScheduler, every_twice


class DPMSolverSDEScheduler(TwoCallScheduler):
    """DPM++ SDE; two calls of the model a step, of which the last has one.

    The path's seed is `noise_sampler_seed`, or, where that is None, the seed of the generator, one
    path for each generator of a list. Nothing is drawn from the generator.
    """

    DEFAULTS = {**TwoCallScheduler.DEFAULTS, "noise_sampler_seed": None}
    CHOICES = {"prediction_type": ("epsilon", "v_prediction")}

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the sigmas and timesteps of a run, and start it."""
        sigmas, timesteps = self._sigmas_of_run(num_inference_steps)
        self._set_sigmas(sigmas, timesteps, last=0)
        self.num_inference_steps = len(sigmas)
        self.seeds = None  # of the path, from the first step on

    def _spaced(self, steps):
        """Timesteps in float64, as this sampler alone has them."""
        config = self.config
        return np.float64(spaced_timesteps(config.timestep_spacing, steps,
                                           config.num_train_timesteps, offset=config.steps_offset))

    def _set_sigmas(self, sigmas, timesteps, *, last):
        super()._set_sigmas(sigmas, timesteps, last=last)
        t = -np.log(sigmas)
        between = sigma_to_timestep(np.exp(-(t[:-1] + np.diff(t) * 0.5)),
                                    np.log(self.training_sigmas))
        self.timesteps = np.append(timesteps[:1], np.stack([between, timesteps[1:]], axis=1))
        t = -log32(self.sigmas)
        self.midpoints = t[:-1] + np.diff(t) * np.float32(0.5)
        self.sigmas = every_twice(self.sigmas)[1:-1]

    def _sigma_of_call(self, i):
        return exp32(-self.midpoints[i // 2]) if i % 2 else self.sigmas[i]

    def step(
        self, model_output: Any, timestep: float, sample: Any, *, s_noise: float = 1.0,
        generator: Any = None
    ) -> Step:
        """A call of the model's worth of a step.   (N, ...), (), (N, ...) -> Step

        The first call goes from x at a sigma to the midpoint, the second, with what the model says
        there, from x to the next sigma. The noise is scaled by s_noise.
        """
        model_output, sample = self._pair(model_output, sample)
        self._check_float(timestep)
        requested, s_noise = s_noise, as_number(s_noise)
        if s_noise is None or not np.isfinite(s_noise):
            raise UsageError(f"s_noise is {shown(requested)}; give a number")
        i = self._enter(timestep)
        sigma = self._sigma_of_call(i)
        x0 = self._to_x0(model_output, sample, sigma, sigma)
        if i == len(self.timesteps) - 1:  # to sigma 0, by Euler's method
            slope = (sample - x0) / float(sigma)
            x_next = sample + slope * float(0 - sigma)
        elif i % 2 == 0:
            self.started = sample
            x_next = self._towards(sample, x0, i, self.midpoints[i // 2], s_noise, generator)
        else:
            target = -log32(self.sigmas[i])
            x_next = self._towards(self.started, x0, i - 1, target, s_noise, generator)
        self.step_index += 1
        return Step(x_next, x0)

    def _towards(self, x, x0, i, t_next, s_noise, generator):
        """From x at sigmas[i] to -log sigma = t_next."""
        t = -log32(self.sigmas[i])
        start, end = exp32(-t), exp32(-t_next)
        variance, variance_end = np.square(start), np.square(end)
        up = min(end, np.sqrt(variance_end * (variance - variance_end) / variance))
        t_down = -log32(np.sqrt(variance_end - np.square(up)))
        x = float(exp32(-t_down) / start) * x - float(expm1_32(t - t_down)) * x0
        return x + self._noise_along(x, start, end, generator) * s_noise * float(up)

    def _noise_along(self, x, start, end, generator):
        """z of the path between two sigmas, drawn in float32 or the model's half."""
        if self.seeds is None:
            self.seeds = self._seeds(generator, x.shape[0])
        low, high = self.sigmas[self.sigmas > 0].min(), self.sigmas.max()
        dtype = self._half or "float32"
        many = isinstance(self.seeds, list)
        shape = tuple(x.shape)[1:] if many else tuple(x.shape)
        paths = [BrownianPath(low, high, shape, dtype, seed)
                 for seed in (self.seeds if many else [self.seeds])]
        w = [path.increment(end, start) for path in paths]
        w = (np.stack(w) if many else w[0]) * -1
        return beside(x, (w / np.sqrt(abs(end - start))).astype(x.dtype))

    def _seeds(self, generator, count):
        if self.config.noise_sampler_seed is not None:
            return self.config.noise_sampler_seed
        if isinstance(generator, (list, tuple)) and len(generator) == 1:
            generator = generator[0]
        many = isinstance(generator, (list, tuple))
        if many and len(generator) != count:
            raise UsageError(f"step got {len(generator)} generators for {count} samples; give one, "
                             f"or {count}")
        seeds = [getattr(one, "initial_seed", None) for one in (generator if many else [generator])]
        if None in seeds:
            raise UsageError(f"generator is {shown(generator)}, which tells no seed; give a "
                             "TorchGenerator, one for each sample, or the option "
                             "noise_sampler_seed")
        seeds = [int(seed()) % 2**64 for seed in seeds]
        return seeds if many else seeds[0]
