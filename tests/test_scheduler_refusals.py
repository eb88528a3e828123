"""Bad options, schedules and steps: one line that names the field and says what it takes."""

import json
import math
import pickle

import numpy as np
import pytest
from scheduler_samples import NAMES, SD, Noise, make, one, own_options, run

import refsd.schedulers
from refsd.errors import ModelError, UsageError

BAD_STEPS = (0, -1, 1001, 10**9, 1.5, True, "20", math.nan)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", BAD_STEPS, ids=repr)
def test_bad_step_counts(name, steps):
    with pytest.raises(UsageError, match="num_inference_steps is .*give an integer from 1 to "):
        make(refsd.schedulers, name, steps)


@pytest.mark.parametrize(
    "name, option, value",
    [
        ("DDIM", "beta_schedule", "sigmoid"),
        ("DDIM", "timestep_spacing", "sideways"),
        ("DDIM", "prediction_type", None),
        ("DDIM", "prediction_type", ["epsilon"]),
        ("DDIM", "timestep_spacing", np.zeros(2)),
        ("DDIM", "num_train_timesteps", 0),
        ("DDIM", "num_train_timesteps", 10**12),
        ("DDIM", "num_train_timesteps", 1000.5),
        ("DDIM", "beta_start", math.nan),
        ("DDIM", "beta_end", "0.012"),
        ("DDIM", "beta_end", True),
        ("DDIM", "clip_sample", 2),
        ("DDIM", "clip_sample", "false"),
        ("DDIM", "num_train_timesteps", None),
        ("DDIM", "beta_start", None),
        ("EulerDiscrete", "prediction_type", None),
        ("DDIM", "steps_offset", -1),
        ("DDIM", "trained_betas", [0.1, 2.0]),
        ("DDIM", "trained_betas", [0.1, math.nan]),
        ("DDIM", "trained_betas", "0.1"),
        ("DDIM", "trained_betas", [0.1, 0.2]),
        ("DDIM", "trained_betas", np.full(1000, 2.0)),
        ("DDPM", "variance_type", "learned_range"),
        ("DDPM", "variance_type", "fixed_large_log"),
        ("PNDM", "prediction_type", "sample"),
        ("EulerDiscrete", "interpolation_type", "log_linear"),
        ("EulerDiscrete", "timestep_type", "continuous"),
        ("EulerDiscrete", "sigma_min", -1.0),
        ("EulerAncestralDiscrete", "prediction_type", "sample"),
        ("DPMSolverMultistep", "algorithm_type", "sde"),
        ("DPMSolverMultistep", "solver_order", 4),
        ("DPMSolverMultistep", "use_flow_sigmas", True),
        ("DPMSolverMultistep", "prediction_type", "flow_prediction"),
        ("DEISMultistep", "use_flow_sigmas", True),
        ("DEISMultistep", "prediction_type", "flow_prediction"),
        ("DDIM", "prediction_type", "flow_prediction"),
        ("FlowMatchEulerDiscrete", "shift", 0),
        ("FlowMatchEulerDiscrete", "shift", None),
        ("FlowMatchEulerDiscrete", "base_shift", math.nan),
        ("FlowMatchEulerDiscrete", "max_shift", "1"),
        ("FlowMatchEulerDiscrete", "base_image_seq_len", 0),
        ("FlowMatchEulerDiscrete", "max_image_seq_len", 1.5),
        ("FlowMatchEulerDiscrete", "shift_terminal", 1.0),
        ("FlowMatchEulerDiscrete", "time_shift_type", None),
        ("FlowMatchEulerDiscrete", "stochastic_sampling", "yes"),
        ("FlowMatchHeunDiscrete", "shift", -3.0),
        ("DPMSolverMultistep", "use_dynamic_shifting", True),
        ("DPMSolverMultistep", "variance_type", "learned"),
        ("LCM", "original_inference_steps", 0),
        ("HeunDiscrete", "beta_schedule", "sigmoid"),
        ("KDPM2Discrete", "prediction_type", "sample"),
        ("DDIMInverse", "timestep_spacing", "linspace"),
        ("EDMEuler", "sigma_schedule", "lu"),
        ("EDMEuler", "sigma_data", 0),
        ("EDMEuler", "rho", math.nan),
        ("EDMEuler", "prediction_type", "sample"),
        ("EDMDPMSolverMultistep", "algorithm_type", "dpmsolver"),
    ],
)
def test_bad_options(name, option, value):
    """A UsageError as a keyword, a ModelError in a checkpoint's configuration."""
    cls = refsd.schedulers.SCHEDULERS[f"{name}Scheduler"]
    with pytest.raises(UsageError, match=option) as problem:
        cls(**{option: value})
    assert "\n" not in str(problem.value)
    with pytest.raises(ModelError, match=option):
        refsd.schedulers.from_config({"_class_name": cls.__name__, option: value})
    with pytest.raises(UsageError, match=option):
        cls.from_config({}, **{option: value})


@pytest.mark.parametrize("name", NAMES)
def test_null_is_false_and_numbers_may_be_written_as_floats(name):
    for option, default in own_options(name).items():
        if isinstance(default, bool):
            for value in (None, 0, 0.0, False):
                config = {"_class_name": name, option: value}
                assert refsd.schedulers.from_config(config).config[option] is False
        elif isinstance(default, int):
            config = {"_class_name": name, option: float(default)}
            found = refsd.schedulers.from_config(config).config[option]
            assert found == default and type(found) is int
    found = refsd.schedulers.from_config({"_class_name": name, "steps_offset": None}).config
    assert found.get("steps_offset") in (0, None)


def test_unknown_names():
    with pytest.raises(
        UsageError, match="no option 'beta_begin'; did you mean beta_end|beta_start"
    ):
        refsd.schedulers.DDIMScheduler(beta_begin=0.1)
    with pytest.raises(UsageError, match="did you mean timestep_spacing"):
        refsd.schedulers.DDIMScheduler.from_config({}, timesteps_spacing="leading")
    with pytest.raises(ModelError, match="_class_name is 'EulerScheduler'.*EulerDiscreteScheduler"):
        refsd.schedulers.from_config({"_class_name": "EulerScheduler"})
    for config in ({}, [], {"_class_name": ["DDIMScheduler"]}):
        with pytest.raises(ModelError, match="_class_name is "):
            refsd.schedulers.from_config(config)
    with pytest.raises(UsageError, match="from_config got a str"):
        refsd.schedulers.DDIMScheduler.from_config("scheduler_config.json")
    with pytest.warns(UserWarning, match="DDIMScheduler ignores flavour"):
        config = refsd.schedulers.DDIMScheduler.from_config({"flavour": 3}).config
    assert config["flavour"] == 3


def test_two_sigma_choices_exclude_each_other():
    both = {"use_karras_sigmas": True, "use_beta_sigmas": True}
    for name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        with pytest.raises(UsageError, match="use_karras_sigmas and use_beta_sigmas exclude"):
            make(refsd.schedulers, name, **both)


@pytest.mark.parametrize(
    "name, config, steps, kwargs, message",
    [
        ("PNDM", {}, 3, {}, "Runge-Kutta start needs 4"),
        ("DDIM", {"steps_offset": 1}, 1000, {}, "1000, beyond the 999 of training"),
        ("DPMSolverMultistep", {"timestep_spacing": "leading"}, 1000, {}, "fewer than 1000"),
        ("EulerDiscrete", {}, None, {}, "got nothing; give one of num_inference_steps"),
        ("EulerDiscrete", {}, 5, {"timesteps": [5, 1]}, "num_inference_steps', 'timesteps"),
        ("EulerDiscrete", {}, None, {"timesteps": [1, 5]}, "descending"),
        ("EulerDiscrete", {}, None, {"timesteps": [1000, 5]}, "descending from 999 to 0"),
        ("EulerDiscrete", {}, None, {"timesteps": [math.nan]}, "descending from 999 to 0"),
        ("EulerDiscrete", {}, None, {"timesteps": []}, "timesteps is"),
        ("EulerDiscrete", {}, None, {"sigmas": [1.0]}, "two numbers or more"),
        ("EulerDiscrete", {}, None, {"sigmas": [1.0, 2.0]}, "descending"),
        ("EulerDiscrete", {}, None, {"sigmas": [1.0, -1.0]}, "down to 0"),
        ("EulerDiscrete", {"use_karras_sigmas": True}, None, {"timesteps": [5, 1]}, "chooses them"),
        ("DPMSolverMultistep", {"use_karras_sigmas": True}, None, {"timesteps": [5]}, "chooses"),
        ("DDPM", {}, None, {"timesteps": [5, 5]}, "descending"),
        ("LCM", {}, 51, {}, "num_inference_steps is 51; give an integer from 1 to 50"),
        ("TCD", {}, 60, {"original_inference_steps": 55}, "num_inference_steps is 60; .*1 to 55"),
        ("LCM", {}, 4, {"original_inference_steps": 1001}, "original_inference_steps is 1001"),
        ("LCM", {}, 4, {"strength": 0.0}, "strength is 0.0"),
        ("LCM", {}, 4, {"strength": math.nan}, "strength is nan"),
        ("LCM", {}, 4, {"strength": 0.01}, "strength is 0.01"),
        ("FlowMatchEulerDiscrete", {}, None, {}, "got nothing; give one of num_inference_steps"),
        ("FlowMatchEulerDiscrete", {}, 3, {"sigmas": [1, 0.5]},
         "'sigmas': 2, 'num_inference_steps': 3}; give as many of each"),
        ("FlowMatchEulerDiscrete", {}, None, {"sigmas": [1, 0.5], "timesteps": [9]}, "as many"),
        ("FlowMatchEulerDiscrete", {}, None, {"sigmas": [0.5, 1]}, "descending from 1, all over 0"),
        ("FlowMatchEulerDiscrete", {}, None, {"sigmas": [0.9, 0.2, 0.3]}, "descending from 1"),
        ("FlowMatchEulerDiscrete", {}, None, {"sigmas": 0.5}, "sigmas is 0.5; give numbers"),
        ("FlowMatchEulerDiscrete", {}, None, {"sigmas": [1.5, 1]}, "sigmas is .*from 1, "),
        ("FlowMatchEulerDiscrete", {}, None, {"sigmas": [1, 0]}, "a last sigma of 0 is added"),
        ("FlowMatchEulerDiscrete", {}, None, {"sigmas": []}, "sigmas is"),
        ("FlowMatchEulerDiscrete", {}, None, {"sigmas": [[1.0]]}, "sigmas is"),
        ("FlowMatchEulerDiscrete", {}, None, {"sigmas": [math.nan]}, "sigmas is"),
        ("FlowMatchEulerDiscrete", {}, None, {"timesteps": [1001, 5]}, "descending from 1000"),
        ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}, 4, {}, "mu is None, .*needs it"),
        ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}, 4, {"mu": 1e3}, "-100 to 100"),
        ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True, "time_shift_type": "linear"}, 4,
         {"mu": 0}, "mu is 0, .*a number over 0"),
        ("FlowMatchEulerDiscrete", {"shift_terminal": 0.1}, 1, {}, "nothing stretches; take more"),
        ("DPMSolverMultistep", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
         None, {"timesteps": [5]}, "use_flow_sigmas chooses them"),
    ],
)
def test_bad_schedules(name, config, steps, kwargs, message):
    scheduler = make(refsd.schedulers, f"{name}Scheduler", **config)
    with pytest.raises(UsageError, match=message):
        scheduler.set_timesteps(*[steps] if steps else [], **kwargs)


@pytest.mark.parametrize("config, message", [
    ({"algorithm_type": "dpmsolver"}, "final_sigmas_type is 'zero', where dpmsolver has no step"),
    ({"algorithm_type": "sde-dpmsolver"}, "give sigma_min, or sde-dpmsolver[+][+]"),
    ({"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3},
     "solver_order is 3, which sde-dpmsolver has no formula for"),
])
def test_algorithms_without_a_formula(config, message):
    with pytest.raises(UsageError, match=message):
        make(refsd.schedulers, "DPMSolverMultistepScheduler", **config)


@pytest.mark.parametrize("name, config, message", [
    ("DPMSolverMultistep", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
     "algorithm_type is 'dpmsolver', which makes eps of no flow; give dpmsolver[+][+]"),
    ("DPMSolverSinglestep", {"use_karras_sigmas": True},
     "use_flow_sigmas and use_karras_sigmas exclude each other"),
    ("UniPCMultistep", {"predict_x0": False, "final_sigmas_type": "sigma_min"},
     "predict_x0 is False, and of a flow no eps is made"),
    ("UniPCMultistep", {"prediction_type": "epsilon"},
     "use_flow_sigmas is True, prediction_type 'epsilon'; give both, True and"),
])
def test_flow_matching_without_a_formula(name, config, message):
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    with pytest.raises(UsageError, match=message):
        make(refsd.schedulers, f"{name}Scheduler", **flow | config)


def test_flow_matching_that_diffusers_mixes_up():
    with pytest.raises(UsageError, match="invert_sigmas and stochastic_sampling exclude"):
        make(refsd.schedulers, "FlowMatchEulerDiscreteScheduler", invert_sigmas=True,
             stochastic_sampling=True)
    for config in ({"base_shift": None}, {"max_shift": None}, {"base_image_seq_len": 4096}):
        euler = make(refsd.schedulers, "FlowMatchEulerDiscreteScheduler", **config)
        with pytest.raises(UsageError, match="which tell no mu; give set_timesteps one"):
            euler.mu_of(1024)
    for name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"):
        flow = make(refsd.schedulers, name, 4)
        with pytest.raises(UsageError, match="timestep is 1000; give one of scheduler.timesteps"):
            flow.step(one(), 1000, one())


def test_bad_steps():
    ddim = make(refsd.schedulers, "DDIMScheduler")
    with pytest.raises(UsageError, match="call set_timesteps before step"):
        ddim.step(one(), 1, one())
    ddim.set_timesteps(10)
    for t in (1000, -1, 3.5, "3", None):
        with pytest.raises(UsageError, match="timestep is .*from 0 to 999"):
            ddim.step(one(), t, one())
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="eta is"):
            ddim.step(one(), 1, one(), eta=eta, generator=Noise())
        tcd = make(refsd.schedulers, "TCDScheduler", 4)
        with pytest.raises(UsageError, match="eta is"):
            tcd.step(one(), tcd.timesteps[0], one(), eta=eta, generator=Noise())
    with pytest.raises(UsageError, match=r"has shape \(1, 1\), sample \(1, 2\); give two of one"):
        ddim.step(one(), 1, np.ones((1, 2)))
    for bad in (np.ones((1, 1), bool), [[1j]], "1", None):
        with pytest.raises(UsageError, match="step: model_output"):
            ddim.step(bad, 1, one())
        with pytest.raises(UsageError, match="step: sample"):
            ddim.step(one(), 1, bad)
    with pytest.raises(UsageError, match="noise to draw and no generator"):
        ddim.step(one(), 1, one(), eta=1.0)
    with pytest.raises(UsageError, match="both generator and variance_noise"):
        ddim.step(one(), 1, one(), eta=1.0, generator=Noise(), variance_noise=one())
    with pytest.raises(UsageError, match="got 2 generators for 1 samples; give one, or 1"):
        ddim.step(one(), 1, one(), eta=1.0, generator=[Noise(), Noise()])

    euler = make(refsd.schedulers, "EulerDiscreteScheduler", 2)
    with pytest.raises(UsageError, match="timestep is 0; give one of scheduler.timesteps"):
        euler.step(one(), 0, one())
    with pytest.raises(UsageError, match="s_churn is nan"):
        euler.step(one(), euler.timesteps[0], one(), s_churn=math.nan, generator=Noise())
    with pytest.raises(UsageError, match="timestep 3.5 is not in the schedule"):
        euler.step(one(), 3.5, one())
    run(euler, lambda x, i: x, one())
    with pytest.raises(UsageError, match="all 2 steps are done"):
        euler.step(one(), euler.timesteps[-1], one())
    for index in (-1, 2, "1"):
        with pytest.raises(UsageError, match="begin_index is .*from 0 to 1"):
            euler.set_begin_index(index)


@pytest.mark.parametrize("options, message", [
    ({"s_noise": math.nan}, "s_noise is nan; give a number"),
    ({"s_noise": "1"}, "s_noise is '1'"),
    ({"generator": [Noise(), Noise()]}, "got 2 generators for 1 samples; give one, or 1"),
    ({"generator": None}, "generator is None, which tells no seed"),
    ({"generator": [np.random.default_rng(0)]}, "which tells no seed"),
])
def test_bad_steps_along_a_path(options, message):
    sde = make(refsd.schedulers, "DPMSolverSDEScheduler", 2)
    with pytest.raises(UsageError, match=message):
        sde.step(one(), sde.timesteps[0], one(), **{"generator": Noise(), **options})
    assert np.isfinite(sde.step(one(), sde.timesteps[0], one(), generator=[Noise()]).prev_sample)


def test_epsilon_at_alpha_bar_0_and_sigmas_without_end():
    flawed = make(
        refsd.schedulers,
        "DDIMScheduler",
        10,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    with pytest.raises(UsageError, match="use a v_prediction model"):
        flawed.step(one(), 999, one())
    assert np.isfinite(flawed.step(one(), 899, one()).prev_sample)
    with pytest.raises(UsageError, match="alpha_bar ends at 0"):
        refsd.schedulers.EulerDiscreteScheduler(beta_end=1.0)


def test_a_predicted_x0_at_alpha_bar_1():
    inverse = make(refsd.schedulers, "DDIMInverseScheduler", 10, prediction_type="sample", **SD)
    with pytest.raises(UsageError, match="use set_alpha_to_one=False, or a model that predicts"):
        inverse.step(one(), 0, one())
    assert np.isfinite(inverse.step(one(), 100, one()).prev_sample)


def test_steps_whose_midpoint_is_lost():
    lost = make(refsd.schedulers, "KDPM2AncestralDiscreteScheduler", 4,
                beta_schedule="squaredcos_cap_v2")
    lost.step(one(), lost.timesteps[0], one())
    with pytest.raises(UsageError, match="step 0 goes so far that its midpoint is lost.*take more"):
        lost.step(one(), lost.timesteps[1], one())


def test_orders_that_lms_and_edms_sde_lack():
    lms = make(refsd.schedulers, "LMSDiscreteScheduler", 4)
    for order in (0, 1.5, "4"):
        with pytest.raises(UsageError, match="order is .*give an integer, 1 or more"):
            lms.step(one(), lms.timesteps[0], one(), order=order)
    with pytest.raises(UsageError, match="solver_order is 3.*give 1 or 2"):
        make(refsd.schedulers, "EDMDPMSolverMultistepScheduler", solver_order=3,
             algorithm_type="sde-dpmsolver++")


def test_eta_1_from_alpha_bar_0_is_finite():
    """The direction's weight, sqrt(1 - alpha_bar_s - sigma^2), must not be the root of -6e-8."""
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **SD}
    for steps in range(2, 60):
        scheduler = make(
            refsd.schedulers, "DDIMScheduler", steps, prediction_type="v_prediction", **config
        )
        step = scheduler.step(one(), 999, one(), eta=1.0, generator=Noise())
        assert np.isfinite(step.prev_sample)


def test_the_config_is_complete_and_read_only():
    for name in NAMES:
        config = make(refsd.schedulers, name).config
        assert set(own_options(name)) | {"_class_name"} == set(config)
        assert config.num_train_timesteps == config["num_train_timesteps"] == 1000
        for change in (
            lambda c: c.update(beta_end=1),
            lambda c: c.__setitem__("beta_end", 1),
            lambda c: setattr(c, "beta_end", 1),
            lambda c: c.pop("beta_end"),
            lambda c: c.clear(),
        ):
            with pytest.raises(UsageError, match="read-only"):
                change(config)
        with pytest.raises(AttributeError, match="no option 'flavour'"):
            config.flavour  # noqa: B018
    trained = [0.01] * 1000
    config = refsd.schedulers.DDIMScheduler(trained_betas=np.array(trained, np.float64)).config
    assert json.loads(json.dumps(config))["trained_betas"] == trained
    twin = pickle.loads(pickle.dumps(config))
    assert twin == config and twin.defaulted == config.defaulted


def test_the_place_of_a_repeated_timestep_is_the_second():
    karras = make(refsd.schedulers, "DPMSolverMultistepScheduler", 500, use_karras_sigmas=True)
    values, counts = np.unique(karras.timesteps, return_counts=True)
    assert counts.max() > 1
    repeated = values[counts.argmax()]
    first = int(np.argmax(karras.timesteps == repeated))
    assert karras.index_for_timestep(repeated) == first + 1
