"""`refsd samplers`: each line of its table against what the sampler does."""

import json
import re

import numpy as np
import pytest
from scheduler_samples import Noise, run

from refsd import schedulers
from refsd.__main__ import main
from refsd.cli.sampler_names import SAMPLERS, find_sampler, label, of_model
from refsd.cli.samplers import ONLY_CLASSES
from refsd.errors import ModelError
from refsd.schedulers import sigma_tables

# Classes of several samplers, and the one that a class's name says.
BASE = {"DPMSolverMultistepScheduler": "dpm++2m", "UniPCMultistepScheduler": "unipc"}


@pytest.fixture(scope="module")
def table():
    return {}


@pytest.fixture
def rows(capsys, table):
    if not table:
        assert main(["samplers", "--json"]) == 0
        table.update(json.loads(capsys.readouterr().out))
    return table


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_says_what_the_sampler_does(rows, name):
    (row,) = (row for row in rows["samplers"] if row["name"] == name)
    scheduler = of_model(name, {})
    scheduler.set_timesteps(7)
    calls = {"n": 7, "n + 1": 8, "2 n - 1": 13}[row["calls"]]
    assert len(scheduler.timesteps) == calls
    noise, x = Noise(), np.ones((1, 4, 2, 2), "f4")
    found = run(scheduler, lambda x, i: 0.1 * x, x, generator=noise)
    if not noise.draws:  # or of the generator's seed alone
        scheduler.set_timesteps(7)
        assert row["noise"] != np.array_equal(found, run(
            scheduler, lambda x, i: 0.1 * x, x, generator=Noise(8)))
    else:
        assert row["noise"]
    for word in row["sigmas"]:
        assert of_model(f"{name}_{word}", {}).config[f"use_{word}_sigmas"] is True
        others = [option for option in sigma_tables.SIGMAS if word not in option]
        assert not any(of_model(f"{name}_{word}", {}).config.get(option) for option in others)
    for column in ("a1111", "comfyui", "sd_cpp", "class"):
        base = BASE.get(row[column], name)
        assert row[column] == "" or find_sampler(row[column]) == base, column


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_says_whether_a_sampler_draws_with_flow_matching(rows, name):
    """With the model's shift, from the noise to x0 along a straight path; or it is refused."""
    (row,) = (row for row in rows["samplers"] if row["name"] == name)
    model = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    if not row["flow"]:
        with pytest.raises(ModelError, match=f"{re.escape(name)} is not for models of flow "
                           "matching.*; --sampler euler or heun would do"):
            of_model(name, model)
        return
    scheduler = of_model(name, schedulers.from_config(model).config)
    again = of_model(name, scheduler.config)
    for found in (scheduler, again):
        assert found.config.get("shift") == found.config.get("flow_shift", 3.0) == 3.0
        found.set_timesteps(4)
        sigmas, x = found.sigmas, np.zeros((1, 4, 2, 2), "f4")
        x = run(found, lambda x, i: (x - 1) / sigmas[i], x, generator=Noise())  # noqa: B023
        assert np.abs(x - 1).max() < 1e-5  # whatever the way there, of some 50 roundings of 2^-24
    assert label(scheduler.config)[0] == row["a1111"] or not row["a1111"] or "bh" in name
    assert find_sampler(type(scheduler).__name__) in (name, *BASE.values())
    karras = [word for word in row["sigmas"] if word == "karras"]
    for word in karras if name != "euler" else ():
        with pytest.raises(ModelError, match="exclude each other|has no use_karras_sigmas"):
            of_model(f"{name}_{word}", model)
    if name == "euler":
        assert of_model("euler_karras", model).config.use_karras_sigmas is True


def test_the_shift_of_a_model_whose_config_is_a_solvers():
    model = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction",
             "use_flow_sigmas": True, "flow_shift": 2.5}
    assert of_model("euler", model).config.shift == 2.5
    assert of_model("heun", {"_class_name": "FlowMatchHeunDiscreteScheduler"}).config.shift == 1.0


def test_what_would_do_for_a_model_of_flow_matching():
    for config in ({"_class_name": "FlowMatchLCMScheduler"},
                   {"_class_name": "DDIMScheduler", "prediction_type": "flow_prediction"}):
        assert schedulers.would_do(config) == ["FlowMatchEulerDiscreteScheduler",
                                               "FlowMatchHeunDiscreteScheduler"]
    assert "FlowMatchEulerDiscreteScheduler" not in schedulers.would_do({})


def test_every_class_is_a_sampler_or_says_why_not():
    assert {sampler.scheduler for sampler in SAMPLERS.values()} | {*ONLY_CLASSES} == {
        *schedulers.SCHEDULERS}
    for name in schedulers.SCHEDULERS:
        assert schedulers.SCHEDULERS[name].draws_with_any == (name not in ONLY_CLASSES)


def test_the_table_is_read_by_people_too(capsys):
    assert main(["samplers"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} " in text for name in SAMPLERS)
    assert "\nelsewhere, and not here\n  dpm++2m_sde_bt" in text
    assert text.splitlines()[2].split()[:2] == ["ddpm", "DDPMScheduler()"]
