"""Configurations that diffusers saves, of all its schedulers, read by refsd as by diffusers.

With each option at its default, each that is true or false changed, and each null: what refsd
builds has diffusers' tables; what it does not build, it refuses in one line.
"""

import functools
import inspect
import json
import warnings

import diffusers
import numpy as np
import pytest

from refsd import schedulers
from refsd.cli import sampler_names
from refsd.errors import ModelError, UsageError

diffusers.utils.logging.set_verbosity(50)
# torch's sqrt, exp and log rounded to nearest: then tables are equal to the last bit (conftest.py).
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("nearest")]


def can_be_made(cls):
    try:
        with warnings.catch_warnings(action="ignore"):
            cls()
    except Exception:
        return False
    return hasattr(cls, "from_config")


THEIRS = {
    name: cls
    for name in sorted(diffusers.schedulers.__all__ if hasattr(diffusers.schedulers, "__all__")
                       else dir(diffusers.schedulers))
    if name.endswith("Scheduler") and not name.startswith("Flax")
    and can_be_made(cls := getattr(diffusers.schedulers, name))
}
# What refsd does not compute, in the words of its refusals.
MISSING = ("_class_name is", "algorithm_type is", "use_lu_lambdas is", "use_flow_sigmas is",
           "use_dynamic_shifting is", "prediction_type is", "variance_type is", "beta_schedule is",
           "timestep_type is", "interpolation_type is", "solver_type is", "timestep_spacing is",
           "exclude each other", "alpha_bar ends at 0", "final_sigmas_type is", "trained_betas",
           "the last step goes to sigma 0", "only the first order leads to sigma 0",
           "sigma_data is", "predict_x0 is False")


def saved(cls, **options):
    """The scheduler_config.json that diffusers writes, as Python reads it; None: not to be made."""
    try:
        return json.loads(cls(**options).to_json_string())
    except Exception:
        return None


def changed(cls):
    """The configs of a class: its defaults, and each of its true or false options the other way."""
    flags = [name for name, given in inspect.signature(cls.__init__).parameters.items()
             if isinstance(given.default, bool)]
    found = [saved(cls), *(saved(cls, **{flag: not _default(cls, flag)}) for flag in flags)]
    return [config for config in found if config is not None]


def _default(cls, flag):
    return inspect.signature(cls.__init__).parameters[flag].default


def tables(make, config):
    """A scheduler's tables for a run of 7 steps, and what is raised instead."""
    try:
        found = make(config)
        found.set_timesteps(7)
    except Exception as problem:
        return None, problem
    return {name: np.array(getattr(found, name)) for name in ("alphas_cumprod", "timesteps",
            "sigmas") if hasattr(found, name)} | {
                "init": float(getattr(found, "init_noise_sigma", 1))}, None  # no flow's has it


def theirs_of(name, config):
    """diffusers' tables, once for all configs that say the same to this class."""
    parameters = inspect.signature(THEIRS[name].__init__).parameters
    own = {key: config.get(key, given.default) for key, given in parameters.items()
           if given.default is not given.empty}  # neither self nor options that they ignore
    own |= {key: config.get(key) for key in ("sigma_min", "sigma_max")}
    return _theirs_of(name, json.dumps(own, sort_keys=True))


@functools.cache
def _theirs_of(name, own):
    return tables(THEIRS[name].from_config, json.loads(own))


def assert_same(theirs, ours, where):
    (expected, failed), (got, problem) = theirs, ours
    if problem is not None:
        assert isinstance(problem, (ModelError, UsageError)), f"{where}: {problem!r}"
        assert "\n" not in str(problem)
        assert failed is not None or any(words in str(problem) for words in MISSING), \
            f"{where}: {problem}"
        return 0
    if failed is not None:
        return 0
    for name in set(expected) & set(got) - {"init"}:
        assert expected[name].tobytes() == got[name].tobytes(), f"{where}: {name}"
    assert expected["init"] == got["init"], where
    return 1


def test_there_are_as_many_classes_as_diffusers_has():
    assert len(THEIRS) > 30 and set(schedulers.SCHEDULERS) <= set(THEIRS)


@pytest.mark.parametrize("name", THEIRS)
def test_every_saved_config_is_read_as_in_diffusers_or_answered(name):
    for config in changed(THEIRS[name]):
        if name in schedulers.SCHEDULERS:
            assert_same(tables(THEIRS[name].from_config, config),
                        tables(schedulers.from_config, config), f"{config}")
        else:
            with pytest.raises(ModelError, match="_class_name is .*(would do|no other sampler)"):
                sampler_names.of_model(None, config)


@pytest.mark.parametrize("name", THEIRS)
def test_every_sampler_in_place_of_every_scheduler_has_diffusers_tables(name):
    same = 0
    for config in changed(THEIRS[name]):
        for other, cls in schedulers.SCHEDULERS.items():
            same += assert_same(theirs_of(other, config), tables(cls.from_config, config),
                                f"{other} of {config}")
    assert same or not {"beta_start", "beta_end"} <= set(config), "no config was read"


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_every_option_may_be_null_where_it_may_in_diffusers(name):
    for option in schedulers.SCHEDULERS[name].DEFAULTS:
        needed = {"skip_prk_steps": True, "final_sigmas_type": "sigma_min"}
        config = {key: needed[key] for key in needed if key in schedulers.SCHEDULERS[name].DEFAULTS}
        config |= {"_class_name": name, option: None}
        theirs = tables(THEIRS[name].from_config, config)
        ours = tables(schedulers.from_config, config)
        if ours[1] is not None:
            assert isinstance(ours[1], ModelError) and f"{option} is None" in str(ours[1])
            assert theirs[1] is not None or option in (
                "prediction_type", "solver_type", "sigma_data"), option  # read in a step alone
        assert_same(theirs, ours, f"{name} {option}")
