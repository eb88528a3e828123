"""What the scheduler tests share: a checkpoint's options, a small sample, counted noise, a run."""

import numpy as np

import refsd.schedulers

EPS = 2.0**-24  # half an ulp of 1 in float32: the coefficients' rounding
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CHECKPOINT = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    **SD,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
NAMES = tuple(refsd.schedulers.SCHEDULERS)
DIFFUSION = tuple(name for name in NAMES  # the others know no betas
                  if "beta_start" in refsd.schedulers.SCHEDULERS[name].DEFAULTS)


class Noise:
    """A generator that remembers what was drawn from it."""

    def __init__(self, seed=0, value=None):
        self.random, self.value, self.draws = np.random.default_rng(seed), value, []
        self.seed = seed

    def initial_seed(self):
        return self.seed

    def randn(self, shape, dtype):
        self.draws.append((shape, np.dtype(dtype)))
        noise = self.random.standard_normal(shape).astype(dtype)
        return noise if self.value is None else np.full(shape, self.value, dtype)


def make(schedulers, name, steps=None, **config):
    unclipped = {"clip_sample": False} if "clip_sample" in own_options(name) else {}
    if name not in DIFFUSION:
        config = {key: value for key, value in config.items() if key not in SD}
    scheduler = schedulers.SCHEDULERS[name](**unclipped | config)
    if steps is not None:
        scheduler.set_timesteps(steps)
    return scheduler


def own_options(name):
    return refsd.schedulers.SCHEDULERS[name].DEFAULTS


def in_sigma_space(scheduler):
    """Whether it works on x0 + sigma eps; by name, for copies of the package have their own."""
    return "SigmaSpaceScheduler" in [cls.__name__ for cls in type(scheduler).__mro__]


def one(value=1.0):
    """A sample of one number, in float64, so that only coefficients round."""
    return np.full((1, 1), float(value))


def run(scheduler, model, x, *, generator=None, **options):
    """x at the end of a run with model(x, t), t counted in steps of the run."""
    for i, t in enumerate(scheduler.timesteps):
        out = model(scheduler.scale_model_input(x, t), i)
        x = scheduler.step(out, t, x, generator=generator, **options).prev_sample
    return x
