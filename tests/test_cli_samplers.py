"""`refsd samplers`: each line of its table against what the sampler does."""

import json

import numpy as np
import pytest
from scheduler_samples import Noise, run

from refsd import schedulers
from refsd.__main__ import main
from refsd.cli.sampler_names import SAMPLERS, find_sampler, of_model
from refsd.cli.samplers import ONLY_CLASSES
from refsd.schedulers import sigma_tables


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
        base = {"DPMSolverMultistepScheduler": "dpm++2m",
                "UniPCMultistepScheduler": "unipc"}.get(row[column], name)
        assert row[column] == "" or find_sampler(row[column]) == base, column


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
