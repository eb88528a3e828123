"""Truths about flow matching: x_sigma = (1 - sigma) x0 + sigma noise, and v = noise - x0 along it.

Each is a function of a `schedulers` package, so that test_schedulers.py can run it on copies with
one planted mistake. Samples are float64, so that only the coefficients round.
"""

import math

import numpy as np
from sampler_gaussian_truths import MEAN, Probe, S, has_order
from scheduler_samples import EPS, Noise, make, one

EULER, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SOLVERS = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
           "UniPCMultistepScheduler")


def close(found, wanted):
    """Within some 16 roundings of numbers of up to 1."""
    assert np.shape(found) == np.shape(wanted), (np.shape(found), np.shape(wanted))
    assert np.abs(np.float64(found) - wanted).max() < 16 * EPS, (found, wanted)


def shift(sigma, s):
    return s * sigma / (1 + (s - 1) * sigma)


def even_sigmas_are_shifted_towards_the_noise(schedulers):
    """From 1 to the smallest of training, which is shifted itself, so shifted twice, and then 0."""
    for s in (1.0, 3.0):
        wanted = shift(np.linspace(1, shift(1 / 1000, s), 5), s)
        scheduler = make(schedulers, EULER, 5, shift=s)
        close(scheduler.sigmas, [*wanted, 0])
        close(scheduler.timesteps / 1000, wanted)
        heun = make(schedulers, HEUN, 5, shift=s)
        close(heun.sigmas, [wanted[0], *np.repeat(wanted[1:], 2), 0])
        close(heun.timesteps / 1000, [wanted[0], *np.repeat(wanted[1:], 2)])
        close(make(schedulers, EULER, shift=s).sigmas,  # before a run: those of training
              shift(np.arange(1000, 0, -1) / 1000, s))


def a_mu_shifts_the_sigmas_of_a_picture(schedulers):
    """m / (m + 1 / sigma - 1) is the shift by m, for which those of training are not shifted."""
    even = np.linspace(1, 1 / 1000, 6)
    for kind, m in (("exponential", math.exp(0.8)), ("linear", 0.8)):
        scheduler = make(schedulers, EULER, use_dynamic_shifting=True, time_shift_type=kind,
                         shift=9.0)
        scheduler.set_timesteps(6, mu=0.8)
        close(scheduler.sigmas, [*shift(even, m), 0])
    line = make(schedulers, EULER, base_shift=0.25, max_shift=1.25, base_image_seq_len=100,
                max_image_seq_len=300)
    for patches, mu in ((100, 0.25), (300, 1.25), (200, 0.75), (400, 1.75)):
        assert abs(line.mu_of(patches) - mu) < 16 * 2.0**-53  # a few roundings of 1 or so


def sigmas_are_stretched_turned_and_chosen(schedulers):
    even = np.linspace(1, 1 / 1000, 6)
    stretched = 1 - (1 - even) * (1 - 0.1) / (1 - even[-1])
    close(make(schedulers, EULER, 6, shift_terminal=0.1).sigmas, [*stretched, 0])
    turned = make(schedulers, EULER, 6, shift_terminal=0.1, invert_sigmas=True)
    close(turned.sigmas, [*(1 - stretched), 1])
    close(turned.timesteps / 1000, 1 - stretched)
    for choice, wanted in (("exponential", np.geomspace(1, 0.1, 6)),
                           ("karras", np.linspace(1, 0.1 ** (1 / 7), 6) ** 7)):
        options = {f"use_{choice}_sigmas": True}
        close(make(schedulers, EULER, 6, shift_terminal=0.1, **options).sigmas, [*wanted, 0])


def a_callers_own_sigmas_are_shifted_and_own_timesteps_told(schedulers):
    own = np.array([0.9, 0.5, 0.25])
    scheduler = make(schedulers, EULER, shift=3.0)
    scheduler.set_timesteps(sigmas=own.tolist())
    close(scheduler.sigmas, [*shift(own, 3), 0])
    close(scheduler.timesteps / 1000, shift(own, 3))
    scheduler.set_timesteps(timesteps=(1000 * own).tolist())
    close(scheduler.sigmas, [*shift(own, 3), 0])
    close(scheduler.timesteps / 1000, own)
    scheduler.set_timesteps(3, timesteps=[800, 700, 600], sigmas=own)
    close(scheduler.sigmas, [*shift(own, 3), 0])
    close(scheduler.timesteps / 1000, [0.8, 0.7, 0.6])
    assert scheduler.num_inference_steps == 3


def solvers_have_flow_sigmas(schedulers):
    """DPM-Solver's even ones begin at 1 - 1 / T, UniPC's at 1, a millionth less."""
    for name in SOLVERS:
        first, last = (1, 1 / 1000) if name.startswith("UniPC") else (1 - 1 / 1000, 0)
        even = np.linspace(first, last, 6)[:-1]
        for s in (1.0, 3.0):
            scheduler = make(schedulers, name, 5, flow_shift=s, **FLOW)
            wanted = shift(even, s)
            wanted[0] -= 1e-6 * (first == 1)
            close(scheduler.sigmas, [*wanted, 0])
            assert (scheduler.timesteps == (1000 * wanted).astype(int)).all()


def noise_is_mixed_in_along_the_path(schedulers):
    for name, config in ((EULER, {}), (HEUN, {}), *((name, FLOW) for name in SOLVERS)):
        scheduler = make(schedulers, name, 4, **config)
        places = range(0, len(scheduler.timesteps), scheduler.order)
        for i in places:
            sigma = float(scheduler.sigmas[i])
            found = scheduler.add_noise(one(3.0), one(-2.0), scheduler.timesteps[i])
            assert abs(found.item() - ((1 - sigma) * 3 - 2 * sigma)) < 16 * EPS, name
    euler = make(schedulers, EULER, 4)
    assert euler.scale_noise(one(3.0), euler.timesteps[1], one(-2.0)) == euler.add_noise(
        one(3.0), one(-2.0), euler.timesteps[1])


def a_perfect_model_arrives_from_anywhere(schedulers):
    """v is the same all along a path: any run ends at x0, and each step says where that is."""
    x0, noise = 0.7, -1.3
    for name, config in ((EULER, {}), (EULER, {"shift": 3.0}), (HEUN, {"shift": 3.0}),
                         (EULER, {"stochastic_sampling": True}),
                         *((name, FLOW) for name in SOLVERS)):
        for steps in (1, 4):
            scheduler = make(schedulers, name, steps, **config)
            sigma = float(scheduler.sigmas[0])
            x = one((1 - sigma) * x0 + sigma * noise)
            for t in scheduler.timesteps:
                out = one(noise - x0)
                step = scheduler.step(out, t, x, generator=Noise(value=noise))
                x = step.prev_sample
                # UniPC divides by alpha, 1e-6, at its first step: it loses a millionth's rounding.
                assert abs(step.pred_original_sample.item() - x0) < 64 * EPS, (name, config)
            assert abs(x.item() - x0) < 64 * EPS, (name, config, steps)
    turned = make(schedulers, EULER, 4, invert_sigmas=True)
    x = one(noise)  # sigma is the share of x0 there
    for t in turned.timesteps:
        step = turned.step(one(x0 - noise), t, x)
        x = step.prev_sample
        assert abs(step.pred_original_sample.item() - x0) < 16 * EPS
    assert abs(x.item() - x0) < 16 * EPS


def spread(sigma):
    """Deviation of x_sigma for data N(MEAN, S^2)."""
    return math.sqrt(((1 - sigma) * S) ** 2 + sigma**2)


def velocity(x, sigma):
    """The best guess of noise - x0 at x."""
    off = (x - (1 - sigma) * MEAN) / spread(sigma) ** 2
    return sigma * off - (MEAN + (1 - sigma) * S**2 * off)


def along_the_path(x, start, end):
    return (1 - end) * MEAN + (x - (1 - start) * MEAN) * spread(end) / spread(start)


def they_converge_at_their_order(schedulers):
    """On Gaussian data, of which all is known: Euler 1, Heun 2, DPM++ 2 (and 3 singlestep)."""
    runs = (
        (EULER, {}, 1, 25),
        (EULER, {"shift": 3.0}, 1, 25),
        (HEUN, {}, 2, 25),
        (SOLVERS[0], FLOW, 2, 48),
        (SOLVERS[0], FLOW | {"solver_order": 1}, 1, 48),
        (SOLVERS[1], FLOW, 2, 48),
        (SOLVERS[2], FLOW, 3, 48),
    )
    for name, config, order, few in runs:
        errors = []
        for steps in (few, 2 * few, 4 * few):
            scheduler = make(schedulers, name, steps, **config)
            sigmas = scheduler.sigmas.astype(np.float64)
            # From sigma 0.9 to 0.1 or so: at 0 alone some orders end lower.
            first = int(np.argmax(sigmas <= 0.9) // scheduler.order * scheduler.order)
            last = int(np.argmax(sigmas <= 0.1))
            x = one(along_the_path(2.0, 1.0, sigmas[first]))
            scheduler.set_begin_index(first)
            for i in range(first, last - last % scheduler.order):
                x = scheduler.step(velocity(x, sigmas[i]), scheduler.timesteps[i], x).prev_sample
            exact = along_the_path(2.0, 1.0, sigmas[last - last % scheduler.order])
            errors.append(abs(x.item() - exact))
        has_order(f"{name} {config}", errors, order, slack=0.5)


def stochastic_steps_of_a_consistency_function_are_exact(schedulers):
    """With the end of the path through x for its x0, the data's distribution in any steps.

    With the best guess of x0 it is another, and more steps do not help: the steps are meant for
    distilled models.
    """
    for steps in (1, 2, 4, 25):
        scheduler = make(schedulers, EULER, steps, stochastic_sampling=True)
        mean, variance = 0.0, 1.0
        for sigma, t in zip(scheduler.sigmas.astype(np.float64), scheduler.timesteps):
            x = np.array([[0.0, 1.0, 0.0]])
            out = (x - along_the_path(x, sigma, 0)) / sigma
            x = scheduler.step(out, t, x, generator=Probe()).prev_sample
            b, ab, bc = x[0].tolist()
            mean, variance = (ab - b) * mean + b, (ab - b) ** 2 * variance + (bc - b) ** 2
        # A step rounds some 4 coefficients of terms of up to 2 and begins anew from noise.
        assert abs(mean - MEAN) < 32 * EPS and abs(math.sqrt(variance) - S) < 32 * EPS, steps


TRUTHS = [
    even_sigmas_are_shifted_towards_the_noise,
    a_mu_shifts_the_sigmas_of_a_picture,
    sigmas_are_stretched_turned_and_chosen,
    a_callers_own_sigmas_are_shifted_and_own_timesteps_told,
    solvers_have_flow_sigmas,
    noise_is_mixed_in_along_the_path,
    a_perfect_model_arrives_from_anywhere,
    they_converge_at_their_order,
    stochastic_steps_of_a_consistency_function_are_exact,
]
