"""Truths about many steps: quadratures exact on polynomials, what a step depends on, draws.

Each is a function of a `schedulers` package, so that test_schedulers.py can run it on copies with
one planted mistake. Samples are float64, so that only the coefficients round.
"""

import itertools
import math

import numpy as np
from scheduler_samples import EPS, SD, Noise, make, one, run


def pndm_integrates_polynomials(schedulers):
    """Adams-Bashforth of order k gives the exact mean over the next step of any x^(k-1).

    Outputs are e_i = i^p at step i, at x = 0; there a step is linear in the blend e', so that e' is
    the quotient by the step with outputs 1.
    """

    def blends(p, scheduler):
        results = []
        for i, t in enumerate(scheduler.timesteps[:9]):
            step = max(i - 1, 0) if i != 1 else 1
            results.append(scheduler.step(one(float(step) ** p), t, one(0)).prev_sample.item())
        return results

    for p in range(4):
        unit = blends(0, make(schedulers, "PNDMScheduler", 20, skip_prk_steps=True))
        got = blends(p, make(schedulers, "PNDMScheduler", 20, skip_prk_steps=True))
        for i in range(2, 9):
            if p < min(i, 4):
                k = i - 1
                mean = ((k + 1) ** (p + 1) - k ** (p + 1)) / (p + 1)
                assert abs(got[i] / unit[i] - mean) < 1e-10, (p, i)
        redone = (0**p + 1**p) / 2  # the first step again, by the trapezoid of its two ends
        assert abs(got[1] / unit[1] - redone) < 1e-12
    for p in range(4):  # Runge-Kutta calls at 0, 1/2, 1/2 and 1: Simpson's rule, exact up to cubics
        moves = []
        for power in (p, 0):
            scheduler = make(schedulers, "PNDMScheduler", 20)
            for at, t in zip((0, 0.5, 0.5, 1), scheduler.timesteps):
                step = scheduler.step(one(float(at) ** power), t, one(0))
            moves.append(step.prev_sample.item())
        assert abs(moves[0] / moves[1] - 1 / (p + 1)) < 1e-12


def lms_integrates_polynomials(schedulers):
    """k slopes sigma^p give the integral to the next sigma, exact for p < k (four at the most)."""
    for order in (4, 2):
        for p in range(4):
            scheduler = make(schedulers, "LMSDiscreteScheduler", 20, **SD)
            sigmas = scheduler.sigmas.astype(np.float64)
            for i, t in enumerate(scheduler.timesteps):
                slope = one(sigmas[i] ** p)
                got = scheduler.step(slope, t, one(0), order=order).prev_sample.item()
                slopes = min(i + 1, order)
                if p < slopes:
                    exact = (sigmas[i + 1] ** (p + 1) - sigmas[i] ** (p + 1)) / (p + 1)
                    # A weight's polynomial is a product of up to three quotients, 12 roundings; the
                    # first of four is the largest slope, and weights alternate, up to some 8 times
                    # the step's length in sum.
                    size = 8 * (sigmas[i] - sigmas[i + 1]) * sigmas[max(i - 3, 0)] ** p
                    assert abs(got - exact) < 16 * EPS * size, (order, p, i)


def dpm_solver_integrates_polynomials(schedulers):
    """Order 2 (heun) and 3 are exact where x0, or eps, is linear in lambda.

    In closed form, with p the predicted one and z = 0:
    dpmsolver++      x_t = sigma_t / sigma_s x_s + sigma_t * integral of e^lambda p
    dpmsolver        x_t = alpha_t / alpha_s x_s - alpha_t * integral of e^-lambda p
    sde-dpmsolver++  x_t = sigma_t / sigma_s e^-h x_s + 2 alpha_t * integral of e^2(lambda - l_t) p
    sde-dpmsolver    as dpmsolver, with the integral twice.
    Order 3 takes half the second derivative (see dpm_solver.py): of lambda^2 it lacks the half of
    the last term, and the SDE besides h^2 alpha_t, for its wrong sign.
    """
    lacks = {  # at lambda^2, in units of alpha_t for the ++ and of sigma_t
        "dpmsolver++": lambda h: math.exp(-h) - 1 + h - h**2 / 2,
        "dpmsolver": lambda h: math.exp(h) - 1 - h - h**2 / 2,
        "sde-dpmsolver++": lambda h: -(1 - math.exp(-2 * h) - 2 * h) / 4 - 1.5 * h**2,
    }
    for algorithm, order in itertools.product((*lacks, "sde-dpmsolver"), (2, 3)):
        if (algorithm, order) == ("sde-dpmsolver", 3):
            continue
        of_x0, sde = algorithm.endswith("++"), algorithm.startswith("sde")
        scheduler = make(
            schedulers,
            "DPMSolverMultistepScheduler",
            20,
            solver_order=order,
            solver_type="heun",
            algorithm_type=algorithm,
            final_sigmas_type="sigma_min",
            prediction_type="sample" if of_x0 else "epsilon",
            **SD,
        )
        ratios = scheduler.sigmas.astype(np.float64)
        lambdas = -np.log(ratios)
        alphas = 1 / np.sqrt(ratios**2 + 1)
        sigmas = ratios * alphas
        for p in range(order):
            scheduler.set_timesteps(20)
            for i, t in enumerate(scheduler.timesteps[:6]):
                got = scheduler.step(one(lambdas[i] ** p), t, one(0.5), generator=Noise(value=0.0))
                if i + 1 < order:
                    continue
                h = lambdas[i + 1] - lambdas[i]
                keep = (sigmas if of_x0 else alphas)[i + 1] / (sigmas if of_x0 else alphas)[i]
                keep *= math.exp(-h) if of_x0 and sde else 1
                rate = 1 + sde if of_x0 else -1
                integral = (1 + sde) * math.copysign(alphas[i + 1], rate) * integral_to(
                    lambdas[i + 1], h, rate, p)
                if not of_x0:  # alpha_t e^-lambda = sigma_t e^(lambda_t - lambda)
                    integral *= ratios[i + 1]
                expected = keep * 0.5 + integral
                if p == 2:
                    expected += (alphas if of_x0 else sigmas)[i + 1] * lacks[algorithm](h)
                # h is the difference of two rounded lambdas; the higher differences divide by it.
                assert abs(got.prev_sample.item() - expected) < 64 * EPS / h**2, (algorithm, p, i)


def integral_to(end, h, rate, p):
    """The integral of e^(rate (u - end)) u^p over u from end - h to end, for p = 0, 1 or 2."""

    def primitive(u):
        power = [1 / rate, u / rate - 1 / rate**2, u**2 / rate - 2 * u / rate**2 + 2 / rate**3][p]
        return math.exp(rate * (u - end)) * power

    return primitive(end) - primitive(end - h)


def first_order_dpm_solver_is_ddim(schedulers):
    """On the same timesteps, with the same last alpha_bar."""

    def model(x, i):
        return np.tanh(x)

    ddim = make(schedulers, "DDIMScheduler", 20, set_alpha_to_one=False, **SD)
    dpm = make(
        schedulers,
        "DPMSolverMultistepScheduler",
        solver_order=1,
        final_sigmas_type="sigma_min",
        **SD,
    )
    timesteps = ddim.timesteps + 1
    dpm.set_timesteps(timesteps=timesteps)
    x = y = one(1.2)
    for i, t in enumerate(timesteps):
        x = ddim.step(model(x, i), t, x).prev_sample
        y = dpm.step(model(y, i), t, y).prev_sample
        # lambda is under 4 and rounds by 2^-23; six roundings a step, on an x0 of up to 14.
        assert abs(x - y).item() < (i + 1) * 6 * 2 * EPS * 14
    noisy = make(schedulers, "DPMSolverMultistepScheduler", solver_order=1,
                 algorithm_type="sde-dpmsolver++", **SD)
    noisy.set_timesteps(timesteps=timesteps)
    for i, t in enumerate(timesteps[:-1]):  # with eta 1 the last step of DDIM still adds noise
        x = ddim.step(model(x, i), t, x, eta=1.0, generator=Noise(i)).prev_sample
        y = noisy.step(model(y, i), t, y, variance_noise=Noise(i).randn((1, 1), "f8")).prev_sample
        # 1 - e^-2h is a difference of 1 and 0.2 or more: some ten roundings on each side
        assert abs(x - y).item() < (i + 20) * 20 * 2 * EPS * 14


def dpm_solver_ends_at_lower_order(schedulers):
    """Its order at each step shows in how many past outputs the step depends on."""

    def reach(i, **config):
        """How many outputs before step i's own change the result of step i."""
        reached = 0
        for back in range(1, min(i, 3) + 1):
            results = []
            for value in (0.0, 1.0):
                scheduler = make(
                    schedulers,
                    "DPMSolverMultistepScheduler",
                    config.get("steps", 10),
                    prediction_type="sample",
                    solver_order=3,
                    **{k: v for k, v in config.items() if k != "steps"},
                )
                for j, t in enumerate(scheduler.timesteps[: i + 1]):
                    step = scheduler.step(one(value if j == i - back else 0.3), t, one(0.5))
                results.append(step.prev_sample.item())
            reached = back if results[0] != results[1] else reached
        return reached

    low = {"final_sigmas_type": "sigma_min"}
    assert [reach(i) for i in (0, 1, 2, 5, 7, 8, 9)] == [0, 1, 2, 2, 2, 1, 0]
    assert [reach(i, **low, lower_order_final=False) for i in (8, 9)] == [2, 2]
    assert reach(9, **low, lower_order_final=False, euler_at_final=True) == 0
    assert [reach(i, steps=16) for i in (14, 15)] == [2, 0]
    assert [reach(i, steps=16, **low) for i in (14, 15)] == [2, 2]


def noise_is_drawn_in_diffusers_order(schedulers):
    """How many draws a run of 5 steps makes, of what shape and dtype."""
    cases = (
        ("DDIM", {}, {}, 0),
        ("DDIM", {}, {"eta": 0.5}, 5),
        ("DDPM", {}, {}, 4),
        ("DDPM", {"steps_offset": 1}, {}, 5),
        ("PNDM", {"skip_prk_steps": True}, {}, 0),
        ("EulerDiscrete", {}, {}, 0),
        ("EulerDiscrete", {}, {"s_churn": 1.0}, 5),
        ("EulerAncestralDiscrete", {}, {}, 5),
        ("HeunDiscrete", {}, {}, 0),
        ("KDPM2Discrete", {}, {}, 0),
        ("KDPM2AncestralDiscrete", {}, {}, 4),
        ("LMSDiscrete", {}, {}, 0),
        ("DPMSolverMultistep", {}, {}, 0),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, {}, 5),
        ("LCM", {}, {}, 4),
    )
    x = np.ones((3, 2, 4), np.float32)
    for name, config, options, draws in cases:
        for dtype in (np.float32, np.float64):
            noise = [Noise(), Noise(), Noise()]
            for generator, shape in ((noise[0], (3, 2, 4)), ([noise[1]], (3, 2, 4)), (noise, None)):
                scheduler = make(schedulers, f"{name}Scheduler", 5, **config)
                for one_noise in noise:
                    one_noise.draws.clear()
                run(scheduler, lambda x, i: x, x.astype(dtype), generator=generator, **options)
                used = noise if shape is None else [generator] if shape else []
                for user in used:
                    user = user[0] if isinstance(user, list) else user
                    drawn = np.dtype("f4" if name == "DPMSolverMultistep" else dtype)
                    assert user.draws == [(shape or (1, 2, 4), drawn)] * draws, name


def a_step_of_length_0_leaves_the_sample(schedulers):
    """Karras sigmas that end at sigma_min end there twice."""
    for config in ({}, {"solver_type": "heun"}, {"solver_order": 3}):
        scheduler = make(
            schedulers,
            "DPMSolverMultistepScheduler",
            20,
            use_karras_sigmas=True,
            final_sigmas_type="sigma_min",
            **config,
        )
        assert scheduler.sigmas[-1] == scheduler.sigmas[-2]
        for t in scheduler.timesteps:
            step = scheduler.step(one(0.1), t, one(0.5))
        assert step.prev_sample == 0.5


TRUTHS = [
    a_step_of_length_0_leaves_the_sample,
    pndm_integrates_polynomials,
    lms_integrates_polynomials,
    dpm_solver_integrates_polynomials,
    first_order_dpm_solver_is_ddim,
    dpm_solver_ends_at_lower_order,
    noise_is_drawn_in_diffusers_order,
]
