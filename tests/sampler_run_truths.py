"""Truths about many steps: quadratures exact on polynomials, what a step depends on, draws.

Each is a function of a `schedulers` package, so that test_schedulers.py can run it on copies with
one planted mistake. Samples are float64, so that only the coefficients round.
"""

import math

import numpy as np
from scheduler_samples import EPS, SD, Noise, make, one, run

from refsd.random.brownian import BrownianPath


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
        ("DPMSolverSinglestep", {}, {}, 0),
        ("DPMSolverSinglestep", {"algorithm_type": "sde-dpmsolver++"}, {}, 5),
        ("DEISMultistep", {}, {}, 0),
        ("UniPCMultistep", {}, {}, 0),
        ("LCM", {}, {}, 4),
        ("TCD", {}, {}, 4),
        ("TCD", {}, {"eta": 0.0}, 0),
        ("DDIMInverse", {}, {}, 0),
        ("EDMEuler", {}, {}, 0),
        ("EDMEuler", {}, {"s_churn": 1.0}, 5),
        ("EDMDPMSolverMultistep", {}, {}, 0),
        ("EDMDPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, {}, 5),
        ("FlowMatchEulerDiscrete", {}, {}, 0),
        ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}, {}, 5),
        ("FlowMatchHeunDiscrete", {}, {}, 0),
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
                    float32 = name in ("DPMSolverMultistep", "FlowMatchEulerDiscrete")
                    drawn = np.dtype("f4" if float32 else dtype)
                    assert user.draws == [(shape or (1, 2, 4), drawn)] * draws, name


def dpm_sde_adds_the_noise_of_one_path(schedulers):
    """Of a model of zeros x is scaled, and what a call adds is W(sigma, r) / sqrt(sigma - r)."""
    path = BrownianPath(0.029168, 14.614647, (1, 1), "float32", 5)
    for seed, generator, steps in ((5, None, 6), (None, Noise(5), 1), (None, [Noise(5)], 1)):
        scheduler = make(schedulers, "DPMSolverSDEScheduler", 4, noise_sampler_seed=seed, **SD,
                         use_exponential_sigmas=True)
        sigmas = np.geomspace(14.614647, 0.0291675, 4)
        for i, t in enumerate(scheduler.timesteps[:steps]):
            start, end = sigmas[i // 2], sigmas[i // 2 + 1]
            seen = scheduler.scale_model_input(one(), t).item()
            middle = math.sqrt(start * end)
            at = middle if i % 2 else start
            assert abs(seen - 1 / math.sqrt(at**2 + 1)) < 16 * EPS
            end = end if i % 2 else middle
            step = scheduler.step(one(0), t, one(0), generator=generator, s_noise=2.0)
            z = -path.increment(end, start).item() / math.sqrt(start - end)
            up = math.sqrt(end**2 * (start**2 - end**2) / start**2)
            # Times are rounded to 1e-6, of lengths of 0.025 or more: so is where the path is.
            assert abs(step.prev_sample.item() - 2 * up * z) < 0.02 * up * 2, (seed, i)
            assert step.pred_original_sample == 0


TRUTHS = [
    pndm_integrates_polynomials,
    lms_integrates_polynomials,
    noise_is_drawn_in_diffusers_order,
    dpm_sde_adds_the_noise_of_one_path,
]
