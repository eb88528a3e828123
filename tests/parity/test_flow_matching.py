"""Flow matching against diffusers, bit by bit: every option of its tables, mu, a caller's own."""

import itertools
import json

import diffusers
import numpy as np
import pytest
import test_schedulers as base
import torch
from diffusers.pipelines.stable_diffusion_3 import pipeline_stable_diffusion_3
from test_schedulers import assert_same_run, assert_same_tables, bits

from refsd import schedulers

# torch's sqrt, exp and log rounded to nearest (conftest.py); warnings of the caller's own timesteps
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("nearest")]
diffusers.utils.logging.set_verbosity(50)

EULER, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
SHIFTS = [{}, {"shift": 3.0}, {"shift": 0.7}]
DYNAMIC = [({"use_dynamic_shifting": True, "time_shift_type": kind}, {"mu": mu})
           for kind in ("exponential", "linear") for mu in (0.5, 1.15)]
CHOICES = [{}, *({choice: True} for choice in base.SIGMA_CHOICES)]
STEPS = (2, 4, 20, 50, 999)
OWN = [1.0, 0.93, 0.8, 0.55, 0.3, 0.1]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("terminal", [{}, {"shift_terminal": 0.1}], ids=str)
def test_all_tables_of_euler(choice, terminal):
    shifts = [(config, {}) for config in SHIFTS] + DYNAMIC
    for (shift, kwargs), invert, steps in itertools.product(shifts, (False, True), STEPS):
        config = {**choice, **terminal, **shift, "invert_sigmas": invert}
        assert assert_same_tables(EULER, config, steps, **kwargs)
        for own in ({"sigmas": OWN}, {"timesteps": [1000 * sigma for sigma in OWN]},
                    {"sigmas": OWN, "timesteps": [900, 800, 700, 600, 500.5, 20]}):
            if steps == 2:
                assert assert_same_tables(EULER, config, None, **own, **kwargs)
                assert assert_same_tables(EULER, config, 6, **own, **kwargs)


def test_tables_of_other_lengths_and_before_a_run():
    for name, config in itertools.product((EULER, HEUN), SHIFTS):
        for train in (1, 7, 2000):
            config = config | {"num_train_timesteps": train}
            assert assert_same_tables(name, config, min(train, 5))
            a, b = base.theirs(name, config), schedulers.SCHEDULERS[name](**config)
            assert bits(a.timesteps) == bits(b.timesteps) and bits(a.sigmas) == bits(b.sigmas)
            assert (a.sigma_min, a.sigma_max) == (b.sigma_min, b.sigma_max)
        assert assert_same_tables(name, config | {"num_train_timesteps": 1000}, 1)
    a, b = (cls(shift=3.0, use_dynamic_shifting=True) for cls in (
        getattr(diffusers, EULER), schedulers.SCHEDULERS[EULER]))
    assert bits(a.sigmas) == bits(b.sigmas)  # not shifted before a picture's size is known


def test_the_limits_of_another_classs_config():
    for choice in base.SIGMA_CHOICES:
        config = {"sigma_min": 0.1, "sigma_max": 20.0, choice: True}
        a = getattr(diffusers, EULER).from_config(config)
        b = schedulers.SCHEDULERS[EULER].from_config(config)
        a.set_timesteps(20)
        b.set_timesteps(20)
        assert bits(a.sigmas) == bits(b.sigmas) and bits(a.timesteps) == bits(b.timesteps)


def test_mu_of_a_picture():
    for config in ({}, {"base_shift": 0.1, "max_shift": 2.0, "base_image_seq_len": 100,
                        "max_image_seq_len": 1000}):
        scheduler = schedulers.SCHEDULERS[EULER](use_dynamic_shifting=True, **config)
        options = base.theirs(EULER, config).config
        for patches in (16, 256, 1024, 4096, 9216):
            assert scheduler.mu_of(patches) == pipeline_stable_diffusion_3.calculate_shift(
                patches, options.base_image_seq_len, options.max_image_seq_len,
                options.base_shift, options.max_shift)


def test_what_diffusers_refuses():
    for config, steps, kwargs in (
        ({"use_dynamic_shifting": True}, 5, {}),
        ({}, None, {}),
        ({}, 5, {"sigmas": OWN}),
        ({}, 5, {"timesteps": OWN}),
        ({}, None, {"sigmas": OWN, "timesteps": OWN[1:]}),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, 5, {}),
        ({"time_shift_type": "square"}, 5, {}),
    ):
        assert not assert_same_tables(EULER, config, steps, **kwargs), (config, kwargs)


def test_one_step_to_a_terminal_sigma_is_nan_in_diffusers_alone():
    a = base.theirs(EULER, {"shift_terminal": 0.1})
    a.set_timesteps(1)
    assert a.sigmas.isnan().any()


@pytest.mark.parametrize("config", [
    {"use_exponential_sigmas": True}, {"use_beta_sigmas": True, "invert_sigmas": True},
    {"shift": 0.7, "stochastic_sampling": True, "shift_terminal": 0.02}], ids=str)
def test_runs_of_other_options(config):
    assert_same_run(EULER, config, 12)
    assert_same_run(EULER, config, 12, begin=5)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_heun_noises_as_in_diffusers(steps):
    """Their scale_noise looks up its place once: so here each has a sampler of its own."""
    rng = np.random.default_rng(3)
    x, noise = (rng.standard_normal((3, 4, 5, 6), dtype=np.float32) for _ in range(2))
    for place in range(0, 2 * steps - 1, 2):
        a, b = base.theirs(HEUN, {"shift": 3.0}), schedulers.SCHEDULERS[HEUN](shift=3.0)
        a.set_timesteps(steps)
        b.set_timesteps(steps)
        expected = a.scale_noise(torch.from_numpy(x), a.timesteps[place], torch.from_numpy(noise))
        assert np.array_equal(expected.numpy(), b.scale_noise(x, b.timesteps[place], noise))


def test_published_configs():
    """Of SD 3 medium and 3.5 large and medium, as their folders have them."""
    sd3 = {"_class_name": EULER, "_diffusers_version": "0.29.0.dev0",
           "num_train_timesteps": 1000, "shift": 3.0}
    for config in (sd3, json.loads(base.theirs(EULER, {"shift": 3.0}).to_json_string())):
        a, b = getattr(diffusers, EULER).from_config(config), schedulers.from_config(config)
        a.set_timesteps(28)
        b.set_timesteps(28)
        assert bits(a.sigmas) == bits(b.sigmas) and bits(a.timesteps) == bits(b.timesteps)
        assert abs(b.timesteps[-1] - 8.9286) < 1e-3


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
MULTI, SINGLE, UNIPC = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
                        "UniPCMultistepScheduler")
AT_MIN = {"final_sigmas_type": "sigma_min"}
SOLVERS = [
    *((name, config) for name in (MULTI, SINGLE) for config in (
        {}, {"solver_order": 1}, {"solver_order": 3}, {"solver_type": "heun"},
        {"algorithm_type": "sde-dpmsolver++"}, {"flow_shift": 3.0},
        {"thresholding": True, "sample_max_value": 1.5}, AT_MIN)),
    *((UNIPC, config) for config in (
        {}, {"solver_order": 1}, {"solver_order": 3}, {"solver_type": "bh1"} | AT_MIN,
        {"flow_shift": 3.0}, {"flow_shift": 0.7} | AT_MIN,
        {"thresholding": True, "sample_max_value": 1.5}, {"disable_corrector": [0, 1, 5]})),
]


@pytest.mark.parametrize("name, config", SOLVERS)
def test_solvers_of_flow_matching(name, config):
    for steps in STEPS:
        assert assert_same_tables(name, FLOW | config, steps)
    for steps in (4, 20):
        assert_same_run(name, FLOW | config, steps)
    assert_same_run(name, FLOW | config, 20, begin=6)


@pytest.mark.parametrize("name", [MULTI, SINGLE, UNIPC])
def test_solvers_noise_as_in_diffusers(name):
    rng = np.random.default_rng(3)
    x, noise = (rng.standard_normal((3, 4, 5, 6), dtype=np.float32) for _ in range(2))
    a, b = base.theirs(name, FLOW), schedulers.SCHEDULERS[name](**FLOW)
    for scheduler in (a, b):
        scheduler.set_timesteps(10)
    expected = a.add_noise(torch.from_numpy(x), torch.from_numpy(noise), a.timesteps[[0, 5, 9]])
    assert np.array_equal(expected.numpy(), b.add_noise(x, noise, b.timesteps[[0, 5, 9]]))
