"""Truths about the tables and the options: published and hand-computed values, exact products.

Each is a function of a `schedulers` package, so that test_schedulers.py can run it on copies with
one planted mistake.
"""

import itertools
import json
import math
from hashlib import sha256
from pathlib import Path

import numpy as np
from scheduler_samples import CHECKPOINT, EPS, SD, Noise, make, one, run


def published_values(schedulers):
    """Stable Diffusion 1's schedule, to the digits that the literature and its checkpoints give."""
    scheduler = schedulers.DDIMScheduler(**SD)
    alpha_bar = scheduler.alphas_cumprod
    assert alpha_bar.dtype == np.float32 and alpha_bar.shape == (1000,)
    for i, value in ((0, 0.99915), (1, 0.998296), (999, 0.004660095)):
        assert abs(float(alpha_bar[i]) - value) < 5e-7
    sigmas = schedulers.EulerDiscreteScheduler(**SD).sigmas
    assert abs(float(sigmas[0]) - 14.614647) < 1e-6 and sigmas[-1] == 0
    assert abs(float(sigmas[-2]) - 0.0291675) < 1e-7


def alpha_bar_is_the_product(schedulers):
    """Against the product in exact order in float64, for every kind of betas.

    A float32 beta is off by 4 roundings at the most (two ends, the step, the result; twice that
    when squared), 1 - beta by one of at most 2^-25, the stored product by one.
    """
    count = 1000
    ramp = [i / (count - 1) for i in range(count)]
    start, end = SD["beta_start"], SD["beta_end"]
    squares = [(start**0.5 + r * (end**0.5 - start**0.5)) ** 2 for r in ramp]
    f = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
    trained = [0.001 + 0.00001 * i for i in range(count)]
    cases = (
        (SD, squares),
        ({}, [0.0001 + r * (0.02 - 0.0001) for r in ramp]),
        (
            {"beta_schedule": "squaredcos_cap_v2"},
            [min(1 - after / before, 0.999) for before, after in itertools.pairwise(f)],
        ),
        ({"trained_betas": trained}, trained),
    )
    for config, betas in cases:
        product = log_error = 0.0
        for beta, got in zip(betas, schedulers.DDIMScheduler(**config).alphas_cumprod):
            product += math.log1p(-beta)
            log_error += (8 * EPS * beta + EPS / 2) / (1 - beta)
            assert abs(math.log(got) - product) < log_error + EPS


def zero_terminal_snr(schedulers):
    plain = schedulers.DDIMScheduler(**SD).alphas_cumprod.astype(np.float64)
    got = schedulers.DDIMScheduler(**SD, rescale_betas_zero_snr=True).alphas_cumprod
    assert got[-1] == 0 and (np.diff(got) < 0).all()
    root = np.sqrt(plain)
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    # The shift is exact to EPS; going through betas adds a rounding or two a step.
    assert np.abs(np.sqrt(got.astype(np.float64)) - expected).max() < 2000 * EPS
    assert abs(got[0] - plain[0]) < 4 * EPS
    for name in ("Euler", "EulerAncestral"):
        scheduler = make(schedulers, f"{name}DiscreteScheduler", rescale_betas_zero_snr=True)
        assert scheduler.alphas_cumprod[-1] == 2.0**-24
        assert scheduler.sigmas[0] == np.float32(math.sqrt(2**24 - 1))


def timesteps_by_hand(schedulers):
    cases = [
        ("DDIM", "leading", 50, 1, [*range(981, 0, -20)]),
        ("DDPM", "leading", 30, 1, [*range(958, 0, -33)]),
        ("DDIM", "trailing", 4, 1, [999, 749, 499, 249]),
        ("DDPM", "linspace", 5, 1, [999, 749, 500, 250, 0]),
        ("PNDM", "leading", 50, 1, [981, 961, *range(961, 0, -20)]),
        ("EulerDiscrete", "linspace", 5, 1, [999, 749.25, 499.5, 249.75, 0]),
        ("EulerAncestralDiscrete", "leading", 4, 1, [751, 501, 251, 1]),
        ("EulerDiscrete", "trailing", 3, 0, [999, 666, 332]),
        ("DPMSolverMultistep", "linspace", 4, 1, [999, 749, 500, 250]),
        ("DPMSolverMultistep", "leading", 4, 1, [801, 601, 401, 201]),
        ("DPMSolverMultistep", "trailing", 4, 1, [999, 749, 499, 249]),
        ("LCM", "leading", 4, 1, [999, 759, 499, 259]),
    ]
    for name, spacing, steps, offset, expected in cases:
        config = {"timestep_spacing": spacing, "steps_offset": offset}
        if name == "PNDM":
            config["skip_prk_steps"] = True
        scheduler = make(schedulers, f"{name}Scheduler", steps, **config)
        assert scheduler.timesteps.tolist() == expected, name
    rounds = [800, 700, 700, 600, 600, 500, 500, 400, 400, 300, 300, 200]
    pndm = make(schedulers, "PNDMScheduler", 5)
    assert pndm.timesteps.tolist() == [*rounds, 200, 0]
    assert make(schedulers, "PNDMScheduler", 1, skip_prk_steps=True).timesteps.tolist() == [0]


def trailing_spacing_gives_as_many_timesteps_as_asked(schedulers):
    for steps in (61, 103, 121, 998):
        timesteps = make(schedulers, "DDIMScheduler", steps, timestep_spacing="trailing").timesteps
        assert len(timesteps) == steps and timesteps[-1] >= 0

    # Of 0 .. 428 every 1000 / 7th, from the end: 429, 286.1, 143.3 and 0.43, which rounds to 0.
    levels = make(schedulers, "DPMSolverMultistepScheduler", **SD).training_sigmas[[428, 429]]
    limit = -np.log(levels).mean().item()
    config = {"lambda_min_clipped": limit, "timestep_spacing": "trailing", **SD}
    clipped = make(schedulers, "DPMSolverMultistepScheduler", 7, **config)
    assert clipped.timesteps.tolist() == [428, 285, 142]


def sigmas_by_hand(schedulers):
    low, high, steps = 0.1, 20.0, 9
    limits = {"sigma_min": low, "sigma_max": high}

    def sigmas(choice, **more):
        name = "EulerDiscreteScheduler"
        return make(schedulers, name, steps, **SD, **limits, **{choice: True}, **more).sigmas

    for i, sigma in enumerate(sigmas("use_karras_sigmas")[:-1]):
        root = high ** (1 / 7) + i / (steps - 1) * (low ** (1 / 7) - high ** (1 / 7))
        assert abs(sigma - root**7) <= 2 * EPS * sigma
    ratios = sigmas("use_exponential_sigmas")[:-1].astype(np.float64)
    assert np.abs(ratios[1:] / ratios[:-1] / (low / high) ** (1 / 8) - 1).max() < 4 * EPS
    beta = sigmas("use_beta_sigmas")
    assert beta[0] == np.float32(high) and beta[-2] == np.float32(low)
    assert abs(beta[4] - (low + high) / 2) < 20 * EPS  # the distribution is symmetric
    last = sigmas("use_karras_sigmas", final_sigmas_type="sigma_min")[-1]
    assert last == make(schedulers, "EulerDiscreteScheduler", **SD).sigmas[-2]

    table = np.array([-2.0, -1.0, 0.5, 1.0])
    at = np.exp([-3.0, -2.0, -1.5, -1.0, -0.25, 0.75, 1.0, 2.0])
    got = schedulers.sigma_tables.sigma_to_timestep(at, table)
    assert np.allclose(got, [0, 0, 0.5, 1, 1.5, 2.5, 3, 3], rtol=0, atol=1e-15)


def custom_sigmas_find_their_timesteps(schedulers):
    """The sigma of training step t, given as a custom sigma, is at timestep t."""
    scheduler = make(schedulers, "EulerDiscreteScheduler", **SD)
    t = [900, 500, 20]
    scheduler.set_timesteps(sigmas=[*scheduler.training_sigmas[t], 0])
    # log sigma is found to a few EPS of its size; between two training steps it moves by 1e-3.
    assert np.abs(scheduler.timesteps - t).max() < 8 * EPS * 4 / 1e-3
    scheduler.set_timesteps(timesteps=t)
    assert scheduler.sigmas.tolist() == [*scheduler.training_sigmas[t].tolist(), 0]


def clipped_lambda_leaves_out_the_noisiest_steps(schedulers):
    """lambda = log(alpha / sigma) of the first timestep is at least lambda_min_clipped."""
    config = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}
    scheduler = make(schedulers, "DPMSolverMultistepScheduler", 20, **config)
    first = scheduler.timesteps[0]
    assert first < 999
    assert math.log(scheduler.training_sigmas[first]) <= 5.1
    assert math.log(scheduler.training_sigmas[first + 1]) > 5.1


def tables_are_frozen(schedulers):
    """The hashes of tests/schedule_hashes.json, which the parity tests compare with diffusers."""
    for case in json.loads((Path(__file__).parent / "schedule_hashes.json").read_text()):
        scheduler = schedulers.SCHEDULERS[case["class"]](**case["config"])
        scheduler.set_timesteps(case["steps"])
        for table, expected in case["sha256"].items():
            data = getattr(scheduler, table).tobytes()
            assert sha256(data).hexdigest() == expected, (case["class"], case["config"], table)


def options_that_were_defaults_are_dropped(schedulers):
    """PNDM's leading is a default nobody chose: Euler takes its own, linspace; and E-S7's like."""
    pndm = schedulers.from_config(CHECKPOINT)
    assert pndm.config.timestep_spacing == "leading"
    assert pndm.config.defaulted == {"timestep_spacing", "prediction_type"}
    euler = schedulers.EulerDiscreteScheduler.from_config(pndm.config)
    assert euler.config.timestep_spacing == "linspace" and euler.config.steps_offset == 1
    assert euler.config.beta_end == 0.012 and euler.config.skip_prk_steps is True
    back = schedulers.PNDMScheduler.from_config(euler.config)
    assert back.config == pndm.config
    chosen = schedulers.PNDMScheduler.from_config(CHECKPOINT, timestep_spacing="leading")
    euler = schedulers.EulerDiscreteScheduler.from_config(chosen.config)
    assert euler.config.timestep_spacing == "leading"
    saved = json.loads(json.dumps(pndm.config))
    assert saved["_class_name"] == "PNDMScheduler"
    assert schedulers.EulerDiscreteScheduler.from_config(saved).config.timestep_spacing == "leading"


def options_of_other_classes_have_no_effect(schedulers):
    """They are kept for the next class; clip_sample, say, must not clip in DPM++."""
    clipping = {"clip_sample": True, "clip_sample_range": 0.1, "rescale_betas_zero_snr": False}
    clipping |= {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "trailing"}
    clipping |= {"lambda_min_clipped": -3.0}
    names = ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "DDPMScheduler",
             "DPMSolverSinglestepScheduler", "DEISMultistepScheduler")
    for name, karras in itertools.product(names, (False, True)):
        cls = schedulers.SCHEDULERS[name]
        clipping["use_karras_sigmas"] = karras
        own = {key: value for key, value in clipping.items() if key in cls.DEFAULTS}
        results = []
        for scheduler in (cls.from_config(clipping), cls(**own)):
            scheduler.set_timesteps(3)
            results.append(run(scheduler, lambda x, i: -x, one(), generator=Noise(1)))
        assert results[0] == results[1]


def exponential_betas_are_all_the_same(schedulers):
    """alpha_bar of the whole training is e^-12, and each step takes the same share of it."""
    scheduler = make(schedulers, "HeunDiscreteScheduler", beta_schedule="exp")
    logs = np.log(scheduler.alphas_cumprod.astype(np.float64))
    # beta, 0.012, is rounded to float32, and so is 1 - beta, which then is multiplied t times.
    assert np.abs(logs + 0.012 * np.arange(1, 1001)).max() < 1001 * 2.0**-24


TRUTHS = [
    published_values,
    alpha_bar_is_the_product,
    exponential_betas_are_all_the_same,
    zero_terminal_snr,
    timesteps_by_hand,
    trailing_spacing_gives_as_many_timesteps_as_asked,
    sigmas_by_hand,
    custom_sigmas_find_their_timesteps,
    clipped_lambda_leaves_out_the_noisiest_steps,
    tables_are_frozen,
    options_that_were_defaults_are_dropped,
    options_of_other_classes_have_no_effect,
]
