"""Schedules and samplers against diffusers on torch, bit by bit.

torch's float32 sqrt, exp and log are Intel MKL's on x86, and those give other bits on other CPUs
(docs/schedules.md has the figures). So diffusers runs here with the three rounded to the nearest
float32, as refsd's are; then every table and every sample has to be equal to the last bit. What
the CPU's own sqrt changes is bounded in `test_sigmas_with_the_sqrt_of_this_cpu`.
"""

import functools
import inspect
import itertools
import json
import warnings
from hashlib import sha256
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from refsd import schedulers
from refsd.errors import ModelError, UsageError
from refsd.random import TorchGenerator
from refsd.schedulers import prediction, sigma_tables
from refsd.schedulers.noise_schedule import cumprod_alphas, linspace32

diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = (1, 4, 20, 50, 999)
# diffusers finds their timesteps one by one in all of the table
SLOW = ("Heun", "KDPM2", "LMS", "DPMSolverSDE")
SPACINGS = ("leading", "trailing", "linspace")
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
SIGMA_CHOICES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def counts_of(name):
    return STEPS[:-1] if name.startswith(SLOW) else STEPS


def own(name, config):
    """The options that the class has: those of EDM know no betas and no spacing."""
    options = schedulers.SCHEDULERS[name].DEFAULTS
    return {key: value for key, value in config.items() if key in options}


def spacings(name):
    if "timestep_spacing" not in schedulers.SCHEDULERS[name].DEFAULTS:
        return [None]
    words = schedulers.SCHEDULERS[name].CHOICES.get("timestep_spacing", SPACINGS)
    return [spacing for spacing in SPACINGS if spacing in words]


def theirs(name, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**config)


@functools.lru_cache(maxsize=8)
def made(name, config):
    """`theirs` once: diffusers' KDPM2 takes a tenth of a second to make."""
    return theirs(name, json.loads(config))


def bits(x):
    x = np.asarray(x)
    return x.dtype, x.shape, x.tobytes()


def outcome(make):
    """What `make` gives, or the exception it raises, as a pair."""
    try:
        return make(), None
    except Exception as problem:
        return None, problem


def configurations(name, options):
    """Every combination of the options that the class has: [(option, values)...]."""
    own = [(key, values) for key, values in options if key in schedulers.SCHEDULERS[name].DEFAULTS]
    for values in itertools.product(*(values for _, values in own)):
        yield dict(zip((key for key, _ in own), values))


def test_linspace_has_torchs_bits():
    rng = np.random.default_rng(0)
    cases = [(0.00085**0.5, 0.012**0.5, 1000), (1e-4, 0.02, 1000), (0.0, 1.0, 1), (2.0, -1.0, 2)]
    cases += [(*rng.normal(size=2), int(rng.integers(2, 2000))) for _ in range(200)]
    for start, end, count in cases:
        expected = torch.linspace(start, end, count, dtype=torch.float32).numpy()
        assert bits(linspace32(start, end, count)) == bits(expected), (start, end, count)


def test_cumprod_has_torchs_bits():
    rng = np.random.default_rng(1)
    for size in (1, 2, 1000, 4001):
        beta = rng.uniform(0, 0.02, size).astype(np.float32)
        expected = torch.cumprod(1 - torch.from_numpy(beta), dim=0).numpy()
        assert bits(cumprod_alphas(beta)) == bits(expected)


def assert_same_tables(name, config, steps, **kwargs):
    config = own(name, config)

    def set_up(scheduler):
        scheduler.set_timesteps(*([] if steps is None else [steps]), **kwargs)
        return scheduler

    expected, refused = outcome(lambda: set_up(made(name, json.dumps(config))))
    got, error = outcome(lambda: set_up(schedulers.SCHEDULERS[name](**config)))
    where = f"{name} {config} {steps} {kwargs}"
    if refused is not None:
        assert isinstance(error, UsageError), f"{where}: diffusers {refused!r}, refsd {error!r}"
        return False
    assert error is None, f"{where}: {error!r}"
    for table in ("alphas_cumprod", "timesteps", "sigmas"):
        if hasattr(expected, table):
            a, b = getattr(expected, table).numpy(), getattr(got, table)
            assert bits(a) == bits(b), f"{where}: {table} {a} {b}"
    # diffusers' flow matching scales no noise, and has no name for it
    assert float(getattr(expected, "init_noise_sigma", 1)) == got.init_noise_sigma, where
    return True


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
@pytest.mark.parametrize("beta", [{}, SD, COSINE], ids=["linear", "scaled_linear", "cosine"])
def test_tables(nearest, name, beta):
    """alphas_cumprod, timesteps, sigmas: each spacing, offset, step count, zero SNR, last sigma."""
    options = [
        ("timestep_spacing", SPACINGS),
        ("steps_offset", (0, 1)),
        ("skip_prk_steps", (False, True)),
        ("rescale_betas_zero_snr", (False, True)),
        ("final_sigmas_type", ("zero", "sigma_min")),
        ("sigma_schedule", ("karras", "exponential")),
        ("rho", (7.0, 5.5)),
    ]
    accepted = [
        assert_same_tables(name, beta | config, steps)
        for config in configurations(name, options)
        for steps in counts_of(name)
    ]
    assert sum(accepted) > len(accepted) // 2


@pytest.mark.parametrize("name, choice", [
    (name, choice) for name in schedulers.SCHEDULERS for choice in sigma_tables.SIGMAS
    if choice in schedulers.SCHEDULERS[name].DEFAULTS])
@pytest.mark.parametrize("beta", [SD, COSINE], ids=["scaled_linear", "cosine"])
def test_tables_of_chosen_sigmas(nearest, name, choice, beta):
    options = [
        ("timestep_spacing", SPACINGS),
        ("rescale_betas_zero_snr", (False, True)),
        ("final_sigmas_type", ("zero", "sigma_min")),
    ]
    for config in configurations(name, options):
        for steps in counts_of(name):
            assert assert_same_tables(name, beta | config | {choice: True}, steps)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_tables_do_not_depend_on_the_prediction_type(nearest, name, kind):
    kinds = schedulers.SCHEDULERS[name].CHOICES.get("prediction_type", (kind,))
    if kind not in kinds:
        with pytest.raises(UsageError, match="prediction_type"):
            schedulers.SCHEDULERS[name](prediction_type=kind)
        return
    for spacing, steps in itertools.product(SPACINGS, counts_of(name)):
        config = SD | {"prediction_type": kind, "timestep_spacing": spacing}
        assert_same_tables(name, config, steps)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_all_step_counts(nearest, name):
    """Every count up to 1000; the timestep -1 of diffusers' trailing spacing is left out."""
    slow = name.startswith(("KDPM2", "DPMSolverSDE"))  # they find a midpoint's for each step
    counts = range(1, 122, 12) if slow else range(1, 1001)
    for spacing in spacings(name):
        config = own(name, SD | {"timestep_spacing": spacing})
        scheduler, ours = theirs(name, config), schedulers.SCHEDULERS[name](**config)
        for steps in counts:
            _, refused = outcome(lambda: scheduler.set_timesteps(steps))  # noqa: B023
            if refused is not None:
                with pytest.raises(UsageError):
                    ours.set_timesteps(steps)
                continue
            expected = scheduler.timesteps.numpy()
            if spacing == "leading" and hasattr(ours, "predictions") and steps == 1000:
                with pytest.raises(UsageError, match="fewer than 1000"):  # theirs are all 0
                    ours.set_timesteps(steps)
                continue
            ours.set_timesteps(steps)
            if spacing == "trailing" and -1 in expected:
                expected = expected[1:] if expected[0] == -1 else expected[: -ours.order]
                assert len(expected) == len(ours.timesteps)
            assert bits(expected) == bits(ours.timesteps), (spacing, steps)


def test_other_betas_and_lengths(nearest):
    rng = np.random.default_rng(2)
    trained = np.sort(rng.uniform(1e-4, 0.03, 200)).tolist()
    for name in schedulers.SCHEDULERS:
        config = {"num_train_timesteps": 200, "trained_betas": trained}
        for extra in ({}, {"steps_offset": 1}, {"timestep_spacing": "trailing"}):
            if set(extra) <= set(schedulers.SCHEDULERS[name].DEFAULTS):
                assert assert_same_tables(name, config | extra, 20)
        for count in (1, 7, 2000):
            if (name, count) != ("DPMSolverSinglestepScheduler", 1):  # theirs is not to be made
                assert_same_tables(name, {"num_train_timesteps": count}, min(count, 5))
    for value in (-5.1, 0.0, 2.0):
        for spacing in SPACINGS:
            config = COSINE | {"lambda_min_clipped": value, "timestep_spacing": spacing}
            assert assert_same_tables("DPMSolverMultistepScheduler", config, 20)
        del config["timestep_spacing"]
        assert assert_same_tables("DPMSolverSinglestepScheduler", config, 20)
    limits = {"sigma_min": 0.1, "sigma_max": 20.0}
    for choice in SIGMA_CHOICES:
        for name in ("EulerDiscreteScheduler", "UniPCMultistepScheduler"):
            assert assert_same_tables(name, SD | limits | {choice: True}, 20)


def test_custom_timesteps_and_sigmas(nearest):
    align_your_steps = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    sigmas = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    for name in ("DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler",
                 "DPMSolverSinglestepScheduler", "HeunDiscreteScheduler"):
        assert assert_same_tables(name, SD, None, timesteps=align_your_steps)
    for strength, name in itertools.product((1.0, 0.6), ("LCMScheduler", "TCDScheduler")):
        kwargs = {"timesteps": [999, 759, 499, 259], "strength": strength}
        assert assert_same_tables(name, SD, None, **kwargs)
    for config in (SD, SD | {"use_karras_sigmas": True}):
        assert assert_same_tables("EulerDiscreteScheduler", config, None, sigmas=sigmas)
    for kwargs in ({"original_inference_steps": 100}, {"strength": 0.5}, {"strength": 0.3}):
        assert assert_same_tables("LCMScheduler", SD, 4, **kwargs)
        assert assert_same_tables("TCDScheduler", SD, 4, **kwargs)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
                                  "DEISMultistepScheduler", "UniPCMultistepScheduler"])
def test_limits_in_another_classs_config(nearest, name):
    """Chosen sigmas keep to the limits of any class; lu lambdas to those of training."""
    for choice in sigma_tables.SIGMAS:
        if choice in schedulers.SCHEDULERS[name].DEFAULTS:
            config = SD | {"sigma_min": 0.1, "sigma_max": 20.0, choice: True}
            a = getattr(diffusers, name).from_config(config)
            b = schedulers.SCHEDULERS[name].from_config(config)
            a.set_timesteps(20)
            b.set_timesteps(20)
            assert bits(a.sigmas) == bits(b.sigmas) and bits(a.timesteps) == bits(b.timesteps)


def test_refusals(nearest):
    """Where diffusers raises, refsd raises a UsageError."""
    cases = [
        ("PNDMScheduler", {}, 3, {}),
        ("LCMScheduler", {}, 999, {}),
        ("LCMScheduler", {}, 4, {"original_inference_steps": 2000}),
        ("LCMScheduler", {}, 40, {"strength": 0.5}),
        ("TCDScheduler", {}, 60, {"original_inference_steps": 55}),
        ("TCDScheduler", {}, 40, {"strength": 0.5}),
        ("DDIMInverseScheduler", {"timestep_spacing": "linspace"}, 5, {}),
        ("DDIMScheduler", {}, 1001, {}),
        ("DDPMScheduler", {}, None, {"timesteps": [10, 20]}),
        ("DDPMScheduler", {}, None, {"timesteps": [1000, 20]}),
        ("DDPMScheduler", {}, 5, {"timesteps": [20, 10]}),
        ("EulerDiscreteScheduler", {}, None, {}),
        ("EulerDiscreteScheduler", {}, None, {"timesteps": [9, 1], "sigmas": [2, 1, 0]}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, None, {"timesteps": [9, 1]}),
        ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True}, None, {"timesteps": [9, 1]}),
        ("DPMSolverSinglestepScheduler", {"use_beta_sigmas": True}, None, {"timesteps": [9, 1]}),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver"} | AT_MIN, 5, {}),
        ("DEISMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 5, {}),
        ("UniPCMultistepScheduler", {"shift_terminal": 0.1}, 5, {}),
        ("EulerDiscreteScheduler", dict.fromkeys(SIGMA_CHOICES[:2], True), 5, {}),
        ("DPMSolverMultistepScheduler", {"solver_type": "rk4"}, 5, {}),
        ("DDIMScheduler", {"beta_schedule": "sigmoid"}, 5, {}),
        ("DDIMScheduler", {"timestep_spacing": "sideways"}, 5, {}),
    ]
    for name, config, steps, kwargs in cases:
        assert not assert_same_tables(name, config, steps, **kwargs), (name, config, kwargs)


def test_sigmas_with_the_sqrt_of_this_cpu():
    """With torch's own sqrt: sigmas within 2^-22 of each other, all other tables equal.

    MKL's sqrt is within 1 ulp, at the most 2^-23 of the value. Interpolation, Karras', exponential
    and beta sigmas are monotone and homogeneous of degree 1 in the sigmas they start from, so they
    pass that relative error on; each side rounds to float32 once more, by 2^-24 at the most.
    """
    for choice in (None, *SIGMA_CHOICES):
        config = SD if choice is None else SD | {choice: True}
        for name, spacing, steps in itertools.product(
            ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler"), SPACINGS, STEPS
        ):
            a = theirs(name, config | {"timestep_spacing": spacing})
            b = schedulers.SCHEDULERS[name](**config, timestep_spacing=spacing)
            a.set_timesteps(steps)
            b.set_timesteps(steps)
            assert bits(a.alphas_cumprod) == bits(b.alphas_cumprod)
            if choice is None:
                assert bits(a.timesteps) == bits(b.timesteps)
            assert a.sigmas.shape == b.sigmas.shape
            error = np.abs(a.sigmas.numpy().astype(np.float64) - b.sigmas)
            assert (error <= 2.0**-22 * b.sigmas).all(), (name, config, spacing, steps)


def test_frozen_tables(nearest):
    """The hashes that the tests without torch compare with are those of diffusers' tables."""
    frozen = json.loads((Path(__file__).parents[1] / "schedule_hashes.json").read_text())
    for case in frozen:
        scheduler = theirs(case["class"], case["config"])
        scheduler.set_timesteps(case["steps"])
        for table, expected in case["sha256"].items():
            data = getattr(scheduler, table).numpy().tobytes()
            assert sha256(data).hexdigest() == expected, (case["class"], case["config"], table)


class Noise:
    """refsd's generator interface over torch's own generator."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def randn(self, shape, dtype):
        kind = getattr(torch, np.dtype(dtype).name)
        return torch.randn(shape, generator=self.generator, dtype=kind).numpy()


def model(x, t):
    """A deterministic stand-in for a network, the same NumPy on both sides."""
    return (np.sin(x * 1.3 + float(t) * 0.01) + 0.1 * x).astype(x.dtype)


def assert_same_run(name, config, steps, *, batch=2, begin=None, generators=None, **options):
    """Every prev_sample and pred_original_sample of a run is equal, bit by bit."""
    config = own(name, {"noise_sampler_seed": 7} | config)  # else it is torch's global generator's
    a, b = theirs(name, config), schedulers.SCHEDULERS[name](**config)
    a.set_timesteps(steps)
    b.set_timesteps(steps)
    noisy = "generator" in inspect.signature(a.step).parameters
    torch_generator, our_generator = generators or (torch.Generator().manual_seed(5), Noise(5))

    x = np.random.default_rng(7).standard_normal((batch, 4, 5, 6), dtype=np.float32)
    x = y = x * np.float32(b.init_noise_sigma)
    if begin is not None:
        if hasattr(a, "set_begin_index"):
            a.set_begin_index(begin)
        b.set_begin_index(begin)
    start = begin or 0
    for i, (t, u) in enumerate(zip(a.timesteps[start:], b.timesteps[start:])):
        seen = getattr(a, "scale_model_input", lambda x, t: x)(torch.from_numpy(x), t)
        out = model(seen.numpy(), t)
        kwargs = {"generator": torch_generator} if noisy else {}
        step = a.step(torch.from_numpy(out), t, torch.from_numpy(x), **kwargs, **options)
        ours = b.step(model(b.scale_model_input(y, u), u), u, y, generator=our_generator, **options)
        x, y = step.prev_sample.numpy(), ours.prev_sample
        assert y.dtype == np.float32
        where = f"{name} {config} {options}, step {i} of {steps}"
        assert np.array_equal(x, y), f"{where}: {np.abs(x - y).max()}"
        x0 = step.get("pred_original_sample", step.get("denoised"))
        if x0 is not None:
            assert np.array_equal(x0.numpy(), ours.pred_original_sample), where
    assert np.isfinite(y).all()


V = {"prediction_type": "v_prediction"}
ZERO_SNR = V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
AT_MIN = {"final_sigmas_type": "sigma_min"}  # eps leads nowhere at sigma 0
KINDS = ({"prediction_type": "sample"}, V, {"thresholding": True, "sample_max_value": 1.5})
ALGORITHMS = [
    *(("dpmsolver", AT_MIN | options) for options in (
        {}, {"solver_order": 1}, {"solver_type": "heun"}, {"solver_order": 3}, *KINDS)),
    *(("sde-dpmsolver++", options) for options in (
        {}, {"solver_order": 1}, {"solver_type": "heun"}, {"solver_order": 3, **AT_MIN},
        {"use_karras_sigmas": True}, {"euler_at_final": True}, *KINDS, ZERO_SNR)),
    *(("sde-dpmsolver", AT_MIN | options) for options in (
        {}, {"solver_order": 1}, {"solver_type": "heun"}, *KINDS)),
]
RUNS = {
    "DDIMScheduler": [
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        {"clip_sample": True, "clip_sample_range": 2.0},
        {"clip_sample": False, "prediction_type": "sample"},
        {"thresholding": True, "sample_max_value": 1.5},
        {"clip_sample": False} | V,
        {"clip_sample": False} | ZERO_SNR,
    ],
    "DDPMScheduler": [
        {"clip_sample": False, "steps_offset": 1},
        {"clip_sample": True, "variance_type": "fixed_large"},
        {"clip_sample": False, "variance_type": "fixed_small_log"},
        {"clip_sample": False, "prediction_type": "sample"},
        {"thresholding": True, "sample_max_value": 1.5},
        {"clip_sample": False} | ZERO_SNR,
    ],
    "PNDMScheduler": [
        {"skip_prk_steps": True, "steps_offset": 1},
        {"skip_prk_steps": True, "set_alpha_to_one": True} | V,
        {"skip_prk_steps": False},
        {"skip_prk_steps": False, "timestep_spacing": "linspace"} | V,
    ],
    "EulerDiscreteScheduler": [
        {},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"},
        {"use_beta_sigmas": True},
        {"prediction_type": "sample"},
        ZERO_SNR,
    ],
    "EulerAncestralDiscreteScheduler": [
        {},
        {"timestep_spacing": "leading", "steps_offset": 1},
        ZERO_SNR,
    ],
    "HeunDiscreteScheduler": [
        {},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"use_karras_sigmas": True, "clip_sample": True, "clip_sample_range": 2.0},
        {"use_exponential_sigmas": True, "beta_schedule": "exp"},
        {"use_beta_sigmas": True, "prediction_type": "sample"},
        V,
    ],
    "KDPM2DiscreteScheduler": [
        {},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        V,
    ],
    "KDPM2AncestralDiscreteScheduler": [
        {},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        V,
    ],
    "DPMSolverSDEScheduler": [
        {},
        {"timestep_spacing": "leading", "steps_offset": 1, "noise_sampler_seed": 2**40 + 3},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        V,
    ],
    "LMSDiscreteScheduler": [
        {},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True, "prediction_type": "sample"},
        {"use_beta_sigmas": True},
        V,
    ],
    "DPMSolverMultistepScheduler": [
        {},
        {"use_karras_sigmas": True},
        {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
        {"solver_order": 1},
        {"solver_type": "heun"},
        {"solver_order": 3},
        {"solver_order": 3, "use_karras_sigmas": True, "lower_order_final": False},
        {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False, "solver_type": "heun"},
        {"prediction_type": "sample"},
        {"thresholding": True, "sample_max_value": 1.5},
        {"solver_type": "bh2"},
        {"use_lu_lambdas": True},
        *({"algorithm_type": kind, **options} for kind, options in ALGORITHMS),
        ZERO_SNR,
    ],
    "DPMSolverSinglestepScheduler": [
        {},
        {"lower_order_final": True},
        {"use_karras_sigmas": True},
        {"solver_order": 1},
        {"solver_type": "heun"},
        {"solver_order": 3},
        {"solver_order": 3, "solver_type": "heun"},
        {"solver_order": 3, "lower_order_final": True} | AT_MIN,
        {"use_karras_sigmas": True} | AT_MIN,
        *({"algorithm_type": kind, "solver_order": order, **options} for kind, options in ALGORITHMS
          if kind != "sde-dpmsolver" and not {*options} & {"solver_order", "thresholding",
                                                           "euler_at_final", *ZERO_SNR} - {*V}
          for order in (1, 2, 3)),
        *KINDS,
    ],
    "DEISMultistepScheduler": [
        {},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_order": 3, "lower_order_final": False},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"solver_type": "bh2", "algorithm_type": "dpmsolver++"},
        *KINDS,
    ],
    "UniPCMultistepScheduler": [
        {},
        {"solver_type": "bh1"} | AT_MIN,
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_order": 3, "solver_type": "bh1"} | AT_MIN,
        {"solver_order": 3, "lower_order_final": False} | AT_MIN,
        {"use_karras_sigmas": True},
        {"use_karras_sigmas": True, "lower_order_final": False} | AT_MIN,
        {"disable_corrector": [0, 1, 5]},
        {"predict_x0": False} | AT_MIN,
        {"predict_x0": False, "solver_order": 3} | AT_MIN,
        {"predict_x0": False, "solver_type": "bh1"} | AT_MIN | V,
        {"predict_x0": False, "prediction_type": "sample"} | AT_MIN,
        {"sigma_min": 0.1, "sigma_max": 12.0, "use_exponential_sigmas": True},
        *KINDS,
        ZERO_SNR,
    ],
    "DDIMInverseScheduler": [
        {"clip_sample": False, "steps_offset": 1},
        {"clip_sample": True, "clip_sample_range": 2.0, "set_alpha_to_one": False},
        {"clip_sample": False, "prediction_type": "sample", "set_alpha_to_one": False},
        {"clip_sample": False} | ZERO_SNR,
    ],
    "TCDScheduler": [
        {},
        {"prediction_type": "sample", "original_inference_steps": 100},
        ZERO_SNR,
    ],
    "EDMEulerScheduler": [
        {},
        {"sigma_schedule": "exponential", "final_sigmas_type": "sigma_min"},
        {"sigma_data": 0.7, "rho": 6.0, "sigma_min": 0.03, "sigma_max": 14.6} | V,
    ],
    "EDMDPMSolverMultistepScheduler": [
        {},
        {"sigma_schedule": "exponential", "final_sigmas_type": "sigma_min"},
        {"sigma_data": 0.7, "rho": 6.0, "solver_order": 3, "lower_order_final": False} | V,
        {"solver_type": "heun", "thresholding": True, "sample_max_value": 1.5},
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        {"algorithm_type": "deis", "solver_type": "bh2", "final_sigmas_type": "sigma_min"},
    ],
    "FlowMatchEulerDiscreteScheduler": [
        {},
        {"shift": 3.0, "use_karras_sigmas": True},
        {"shift": 3.0, "stochastic_sampling": True},
        {"invert_sigmas": True, "shift_terminal": 0.1},
    ],
    "FlowMatchHeunDiscreteScheduler": [
        {},
        {"shift": 3.0},
    ],
    "LCMScheduler": [
        {},
        {"clip_sample": True},
        {"prediction_type": "sample", "timestep_scaling": 5.0},
        {"thresholding": True, "sample_max_value": 1.5},
        ZERO_SNR,
    ],
}


@pytest.mark.parametrize("name, config", [(name, c) for name in RUNS for c in RUNS[name]])
@pytest.mark.parametrize("steps", [4, 20])
def test_runs(nearest, name, config, steps):
    assert_same_run(name, SD | config, steps)


@pytest.mark.parametrize("name", [name for name in RUNS if name != "PNDMScheduler"])
def test_one_step_runs(nearest, name):
    config = {"clip_sample": False} if "clip_sample" in schedulers.SCHEDULERS[name].DEFAULTS else {}
    assert_same_run(name, SD | config, 1)


@pytest.mark.parametrize("config", RUNS["DDIMScheduler"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_with_noise(nearest, config, spacing):
    config = SD | config | {"timestep_spacing": spacing}
    from_zero = config.get("rescale_betas_zero_snr") and spacing != "leading"
    for eta in (0.3, 0.9 if from_zero else 1.0):
        assert_same_run("DDIMScheduler", config, 20, eta=eta)
    assert_same_run("DDIMScheduler", config, 20, eta=0.5, use_clipped_model_output=True)


def test_ddim_from_zero_snr_with_eta_1_is_nan_in_diffusers_alone(nearest):
    """1 - alpha_bar_s - sigma^2 is 0, and rounds to a negative number under their square root."""
    a = theirs("DDIMScheduler", SD | ZERO_SNR)
    b = schedulers.DDIMScheduler(**SD, **ZERO_SNR)
    x = np.ones((1, 4, 8, 8), np.float32)
    a.set_timesteps(20)
    b.set_timesteps(20)
    noise = torch.zeros(1, 4, 8, 8)
    step = a.step(noise, a.timesteps[0], torch.from_numpy(x), eta=1.0, variance_noise=noise)
    assert step.prev_sample.isnan().all()
    ours = b.step(noise.numpy(), b.timesteps[0], x, eta=1.0, variance_noise=noise.numpy())
    assert np.isfinite(ours.prev_sample).all()


BH1 = SD | {"solver_type": "bh1"}


def test_the_last_step_of_unipc_bh1_to_sigma_0_is_nan_in_diffusers_alone(nearest):
    """h is infinite there, and they multiply it by a sum of no terms, 0."""
    a, b = theirs("UniPCMultistepScheduler", BH1), schedulers.UniPCMultistepScheduler(**BH1)
    a.set_timesteps(5)
    b.set_timesteps(5)
    x = y = np.ones((1, 4, 2, 2), np.float32)
    for i, t in enumerate(b.timesteps):
        x = a.step(torch.from_numpy(model(x, t)), a.timesteps[i], torch.from_numpy(x))
        x, y = x.prev_sample.numpy(), b.step(model(y, t), t, y).prev_sample
        assert np.array_equal(x, y) if i < 4 else np.isnan(x).all() and np.isfinite(y).all()


def test_tcd_with_other_shares_of_noise(nearest):
    for eta in (0.0, 0.7, 1.0):
        assert_same_run("TCDScheduler", SD, 8, eta=eta)


def test_euler_with_churn(nearest):
    for options in ({"s_churn": 8.0}, {"s_churn": 40.0, "s_tmin": 0.1, "s_tmax": 5.0}):
        assert_same_run("EulerDiscreteScheduler", SD, 20, s_noise=1.003, **options)
        assert_same_run("EulerDiscreteScheduler", SD | V, 20, **options)
        assert_same_run("EDMEulerScheduler", {}, 20, s_noise=1.003, **options)


@pytest.mark.parametrize("name, spacing", [(name, s) for name in RUNS for s in spacings(name)])
def test_runs_from_the_middle(nearest, name, spacing):
    """Image to image: the first steps are left out, `set_begin_index` says how many."""
    config = {"timestep_spacing": spacing, "skip_prk_steps": True}
    begin = 7 * schedulers.SCHEDULERS[name].order
    assert_same_run(name, SD | config, 20, begin=begin)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_a_generator_for_each_image(nearest, name):
    generators = (
        [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)],
        [TorchGenerator(seed) for seed in (1, 2, 3)],
    )
    assert_same_run(name, SD, 8, batch=3, generators=generators)


@pytest.mark.parametrize("name", RUNS)
def test_one_generator_for_all(nearest, name):
    """refsd.random's generator and torch's, in the same order of draws."""
    generators = (torch.Generator().manual_seed(11), TorchGenerator(11))
    assert_same_run(name, SD, 8, generators=generators)


@pytest.mark.parametrize("name", [
    name for name in RUNS
    if {"add_noise", "scale_noise"} & {*dir(getattr(diffusers, name))} and "MatchHeun" not in name])
def test_add_noise(nearest, name):
    rng = np.random.default_rng(3)
    x, noise = (rng.standard_normal((3, 4, 5, 6)) for _ in range(2))
    config = own(name, SD)
    for dtype in (np.float32, np.float64):
        a, b = theirs(name, config), schedulers.SCHEDULERS[name](**config)
        a.set_timesteps(10)
        b.set_timesteps(10)
        pair = x.astype(dtype), noise.astype(dtype)
        tensors = [torch.from_numpy(array) for array in pair]
        noised = getattr(a, "add_noise", lambda x, noise, t: a.scale_noise(x, t, noise))  # noqa: B023
        for places in ([4, 4, 4], [0, 5, 9]):
            expected = noised(*tensors, a.timesteps[places])
            got = b.add_noise(*pair, b.timesteps[places])
            assert got.dtype == dtype
            assert np.array_equal(expected.numpy(), got)
        if hasattr(a, "set_begin_index"):
            a.set_begin_index(6)
            b.set_begin_index(6)
            expected = noised(*tensors, a.timesteps[6:7].repeat(3))
            got = b.add_noise(*pair, b.timesteps[6])
            assert np.array_equal(expected.numpy(), got)


def test_quantile_has_torchs_bits():
    rng = np.random.default_rng(4)
    for size in (1, 2, 17, 1200):
        x = rng.standard_normal((3, size)).astype(np.float32)
        for ratio in (0.0, 0.3, 0.5, 0.995, 1.0):
            expected = torch.quantile(torch.from_numpy(x), ratio, dim=1).numpy()
            assert bits(prediction.quantile(x, ratio)) == bits(expected), (size, ratio)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_options_and_defaults(name):
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    expected = {key: p.default for key, p in parameters.items() if key not in ("self", "kwargs")}
    assert expected == schedulers.SCHEDULERS[name].DEFAULTS


CHECKPOINT = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


@pytest.mark.parametrize("through", list(itertools.permutations(RUNS, 2)))
def test_from_config_through_other_classes(through):
    """A checkpoint's options through two more classes: the same values, kept and dropped alike."""
    a, b = CHECKPOINT, CHECKPOINT
    for name in ("PNDMScheduler", *through):
        first, second = getattr(diffusers, name).from_config(a), schedulers.SCHEDULERS[name]
        a, b = first.config, second.from_config(b).config
        assert {k: v for k, v in a.items() if k[0] != "_"} == {
            k: v for k, v in b.items() if k[0] != "_"
        }
        assert set(a.get("_use_default_values", ())) == b.defaulted


def test_a_diffusers_config_is_taken_as_it_is():
    theirs_config = diffusers.PNDMScheduler.from_config(CHECKPOINT).config
    assert schedulers.EulerDiscreteScheduler.from_config(theirs_config).config.timestep_spacing == (
        "linspace"
    )
    saved = json.loads(diffusers.PNDMScheduler.from_config(CHECKPOINT).to_json_string())
    assert schedulers.EulerDiscreteScheduler.from_config(saved).config.timestep_spacing == "leading"
    ours = json.loads(json.dumps(schedulers.from_config(CHECKPOINT).config))
    assert diffusers.EulerDiscreteScheduler.from_config(ours).config.timestep_spacing == "leading"


def test_options_that_refsd_lacks_are_refused_and_diffusers_has_them():
    for name, option in (
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned"}),
        ("DDPMScheduler", {"variance_type": "learned_range"}),
        ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
    ):
        theirs(name, option).set_timesteps(10)
        with pytest.raises(ModelError, match=next(iter(option))):
            schedulers.SCHEDULERS[name].from_config(option)
