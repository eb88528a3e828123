"""Where in its schedule a run stands, also where timesteps are repeated."""

import itertools

import numpy as np
import pytest
from scheduler_samples import NAMES, SD, Noise, make, one, own_options, run

import refsd.schedulers
from refsd.errors import UsageError
from refsd.random import brownian
from refsd.schedulers import sigma_tables

CHOICES = [{}, *({choice: True} for choice in sigma_tables.SIGMAS)]


@pytest.mark.parametrize("name", NAMES)
def test_runs_with_repeated_timesteps_are_as_long_as_their_schedule(name, monkeypatch):
    """Wherever a timestep is repeated, the first one too: one step each, at one sigma each.

    Whatever the noise, so that of a Brownian path, which takes long to draw, is 0.
    """
    monkeypatch.setattr(brownian, "noise_of", lambda seed, place, shape, dtype: np.zeros(shape))
    options = set(own_options(name))
    repeated = 0
    for choice, spacing in itertools.product(CHOICES, ("leading", "trailing", "linspace")):
        words = refsd.schedulers.SCHEDULERS[name].CHOICES.get("timestep_spacing", (spacing,))
        if set(choice) <= options and spacing in words:
            config = {**SD, **choice, "timestep_spacing": spacing, "skip_prk_steps": True}
            config = {key: value for key, value in config.items() if key in options}
            scheduler = make(refsd.schedulers, name, 40, **config)
            repeated += scheduler.timesteps[0] == scheduler.timesteps[1]
            run(scheduler, lambda x, i: 0.1 * x, one(), generator=Noise())
            assert scheduler.step_index in (None, len(scheduler.timesteps))
    assert repeated == {"DPMSolverMultistepScheduler": 3}.get(name, repeated)


def test_a_run_in_the_middle_of_repeats_begins_at_the_second_as_in_diffusers():
    karras = make(refsd.schedulers, "DPMSolverMultistepScheduler", 500, use_karras_sigmas=True)
    repeats = np.flatnonzero(karras.timesteps[1:] == karras.timesteps[:-1])
    place = int(repeats[0])
    assert place > 0
    karras.step(one(), karras.timesteps[place], one())
    assert karras.step_index == place + 2
    for begin in (0, place, place + 1):
        karras.set_timesteps(500)
        karras.set_begin_index(begin)
        karras.step(one(), karras.timesteps[begin], one())
        assert karras.step_index == begin + 1


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_says_whether_it_remembers(name):
    """Its second step from elsewhere is that of a run, unless earlier steps count.

    The second call of a step of two cannot even be made from elsewhere.
    """
    config = {"skip_prk_steps": True} if "skip_prk_steps" in own_options(name) else {}

    def third(steps):
        scheduler = make(refsd.schedulers, name, 6, **config)
        scheduler.set_begin_index(steps[0])
        for i in steps:
            out = one(i + 0.5)
            found = scheduler.step(out, scheduler.timesteps[i], one(), generator=Noise(value=0.1))
        return found.prev_sample.item()

    if refsd.schedulers.SCHEDULERS[name].order == 2:
        assert third([0, 1, 2]) == third([2])
        with pytest.raises(UsageError, match="is number 3, the second of a step's two"):
            third([3])
        assert third([2, 3]) == third([0, 1, 2, 3])
        return
    assert (third([0, 1, 2, 3]) != third([3])) == refsd.schedulers.SCHEDULERS[name].has_history
