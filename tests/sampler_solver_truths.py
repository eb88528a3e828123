"""Truths about DPM-Solver, DEIS and UniPC: exact on polynomials in lambda, orders, relatives.

Each is a function of a `schedulers` package, so that test_schedulers.py can run it on copies with
one planted mistake. Samples are float64, so that only the coefficients round.
"""

import itertools
import math

import numpy as np
from scheduler_samples import EPS, SD, Noise, make, one

AT_MIN = {"final_sigmas_type": "sigma_min"}


def levels(scheduler):
    """alpha, sigma and lambda of a run's sigmas in float64."""
    ratios = scheduler.sigmas.astype(np.float64)
    alphas = 1 / np.sqrt(ratios**2 + 1)
    return alphas, ratios * alphas, -np.log(ratios)


def exact(scheduler, algorithm, x, s, t, n):
    """From x at sigmas[s] to sigmas[t], in closed form, where lambda^n is predicted and z = 0.

    dpmsolver++      x_t = sigma_t / sigma_s x_s + sigma_t * integral of e^lambda p
    dpmsolver        x_t = alpha_t / alpha_s x_s - alpha_t * integral of e^-lambda p
    sde-dpmsolver++  x_t = sigma_t / sigma_s e^-h x_s + 2 alpha_t * integral of e^2(lambda - l_t) p
    sde-dpmsolver    as dpmsolver, with the integral twice.
    """
    alphas, sigmas, lambdas = levels(scheduler)
    of_x0, twice = algorithm.endswith("++"), 1 + algorithm.startswith("sde")
    h, rate = lambdas[t] - lambdas[s], twice if of_x0 else -1

    def primitive(u):
        power = [1 / rate, u / rate - 1 / rate**2, u**2 / rate - 2 * u / rate**2 + 2 / rate**3][n]
        return math.exp(rate * (u - lambdas[t])) * power

    integral = twice * (primitive(lambdas[t]) - primitive(lambdas[s]))
    if not of_x0:
        return alphas[t] / alphas[s] * x - sigmas[t] * integral
    return sigmas[t] / sigmas[s] * (math.exp(-h) if twice == 2 else 1) * x + alphas[t] * integral


def solver(schedulers, name, steps=20, **config):
    """A sampler whose model says directly what the solver integrates."""
    of_eps = name.startswith("DEIS") or config.get("algorithm_type", "")[-9:] == "dpmsolver"
    of_eps = of_eps or not config.get("predict_x0", True)
    kind = "epsilon" if of_eps else "sample"
    return make(schedulers, f"{name}Scheduler", steps, prediction_type=kind, **SD, **config)


def dpm_solver_integrates_polynomials(schedulers):
    """Order 2 (heun) and 3 are exact where x0, or eps, is linear in lambda.

    Order 3 takes half the second derivative (see dpm_solver.py): of lambda^2 it lacks the half of
    the last term, and the SDE besides h^2 alpha_t, for its wrong sign.
    """
    lacks = {  # at lambda^2, in units of alpha_t for the ++, else of sigma_t
        "dpmsolver++": lambda h: math.exp(-h) - 1 + h - h**2 / 2,
        "dpmsolver": lambda h: math.exp(h) - 1 - h - h**2 / 2,
        "sde-dpmsolver++": lambda h: -(1 - math.exp(-2 * h) - 2 * h) / 4 - 1.5 * h**2,
    }
    for algorithm, order in itertools.product((*lacks, "sde-dpmsolver"), (2, 3)):
        if (algorithm, order) == ("sde-dpmsolver", 3):
            continue
        scheduler = solver(schedulers, "DPMSolverMultistep", solver_order=order, solver_type="heun",
                           algorithm_type=algorithm, **AT_MIN)
        alphas, sigmas, lambdas = levels(scheduler)
        for n in range(order):
            scheduler.set_timesteps(20)
            for i, t in enumerate(scheduler.timesteps[:6]):
                got = scheduler.step(one(lambdas[i] ** n), t, one(0.5), generator=Noise(value=0.0))
                if i + 1 < order:
                    continue
                h = lambdas[i + 1] - lambdas[i]
                expected = exact(scheduler, algorithm, 0.5, i, i + 1, n)
                if n == 2:
                    unit = alphas if algorithm.endswith("++") else sigmas
                    expected += unit[i + 1] * lacks[algorithm](h)
                # h is the difference of two rounded lambdas; the higher differences divide by it.
                assert abs(got.prev_sample.item() - expected) < 64 * EPS / h**2, (algorithm, n, i)


def singlestep_integrates_polynomials(schedulers):
    """A group of order 2 or 3 (heun) is exact up to degree 1 or 2; midpoint of order 3 up to 1.

    The SDE lacks alpha_t D2 at degree 2, D2 = 2 h^2, for its wrong sign.
    """
    for algorithm, (order, kind, most) in itertools.product(
        ("dpmsolver++", "dpmsolver", "sde-dpmsolver++"),
        ((2, "heun", 1), (3, "heun", 2), (3, "midpoint", 1)),
    ):
        scheduler = solver(schedulers, "DPMSolverSinglestep", 18, solver_order=order,
                           solver_type=kind, algorithm_type=algorithm, **AT_MIN)
        alphas, _, lambdas = levels(scheduler)
        for n in range(most + 1):
            scheduler.set_timesteps(18)
            for i, t in enumerate(scheduler.timesteps[:6]):
                x = one(9.0 if i % order else 0.5)  # only the group's first sample counts
                got = scheduler.step(one(lambdas[i] ** n), t, x, generator=Noise(value=0.0))
                if i % order < order - 1:
                    continue
                s = i + 1 - order
                h = lambdas[i + 1] - lambdas[s]
                expected = exact(scheduler, algorithm, 0.5, s, i + 1, n)
                if n == 2 and algorithm.startswith("sde"):
                    expected -= 2 * h**2 * alphas[i + 1]
                # lambda is under 4 and lambda^2 under 8; differences divide by h and by h^2.
                assert abs(got.prev_sample.item() - expected) < 64 * EPS / h**2, (algorithm, kind,
                                                                                  n, i)


def singlestep_orders(schedulers):
    """1, 2, 3 again and again: a step reads what was predicted since its group began.

    The third of "midpoint" leaves out the second.
    """
    for config, steps, expected in (
        ({}, 6, [1, 2, 1, 2, 1, 1]),
        (AT_MIN, 6, [1, 2, 1, 2, 1, 2]),
        ({"lower_order_final": True} | AT_MIN, 6, [1, 2, 1, 2, 1, 1]),
        (AT_MIN, 5, [1, 2, 1, 2, 1]),
        ({"solver_order": 3}, 6, [1, 2, 3, 1, 2, 1]),
        ({"solver_order": 3, "solver_type": "midpoint"}, 6, [1, 2, 3, 1, 2, 1]),
        ({"solver_order": 3} | AT_MIN, 6, [1, 2, 3, 1, 2, 3]),
        ({"solver_order": 3, "lower_order_final": True} | AT_MIN, 5, [1, 2, 3, 1, 2]),
        ({"solver_order": 3}, 5, [1, 2, 3, 1, 1]),
        ({"solver_order": 1}, 3, [1, 1, 1]),
    ):
        for i, order in enumerate(expected):
            results = []
            for changed in (None, *range(i + 1)):
                scheduler = solver(schedulers, "DPMSolverSinglestep", steps,
                                   **{"solver_type": "heun", **config})
                for j, t in enumerate(scheduler.timesteps[: i + 1]):
                    step = scheduler.step(one(2.0 if j == changed else 0.3), t, one(0.5))
                results.append(step.prev_sample.item())
            read = [j for j in range(i + 1) if results[j + 1] != results[0]]
            wanted = list(range(i + 1 - order, i + 1))
            if order == 3 and "solver_type" in config:
                del wanted[1]
            assert read == wanted, (config, i, read)


def a_group_entered_in_its_middle_begins_anew(schedulers):
    """Image to image: what no step predicted is not read; the step is of a lower order."""
    scheduler = solver(schedulers, "DPMSolverSinglestep", 6, solver_order=3, **AT_MIN)
    scheduler.set_begin_index(1)
    got = scheduler.step(one(1.0), scheduler.timesteps[1], one(0.5)).prev_sample.item()
    assert abs(got - exact(scheduler, "dpmsolver++", 0.5, 1, 2, 0)) < 16 * EPS


def deis_integrates_polynomials(schedulers):
    """Order k is exact where eps is of degree k - 1 in log rho, which is - lambda."""
    for order in (1, 2, 3):
        scheduler = solver(schedulers, "DEISMultistep", solver_order=order)
        lambdas = levels(scheduler)[2]
        for n in range(order):
            scheduler.set_timesteps(20)
            for i, t in enumerate(scheduler.timesteps[:6]):
                got = scheduler.step(one(lambdas[i] ** n), t, one(0.5)).prev_sample.item()
                if i + 1 < order:
                    continue
                # A primitive is rho (log^2 - 2 log + 2), under 14 * 15, as log is under 2.7; some 8
                # roundings, as those of lambda^n, divided by (order - 1) steps of lambda.
                h = lambdas[i + 1] - lambdas[i]
                expected = exact(scheduler, "dpmsolver", 0.5, i, i + 1, n)
                assert abs(got - expected) < 8 * EPS * 14 * 15 / h ** (order - 1), (order, n, i)


def unipc_integrates_polynomials(schedulers):
    """From step to step of order 3 the corrected and the predicted sample are exact up to degree 2.

    So that each result follows from the one before, whatever sample was handed in.
    """
    for config, algorithm in (
        ({}, "dpmsolver++"),
        ({"solver_type": "bh1"}, "dpmsolver++"),
        ({"predict_x0": False}, "dpmsolver"),
    ):
        scheduler = solver(schedulers, "UniPCMultistep", solver_order=3, **config, **AT_MIN)
        lambdas = levels(scheduler)[2]
        for n in range(3):
            scheduler.set_timesteps(20)
            before = None
            for i, t in enumerate(scheduler.timesteps[:8]):
                got = scheduler.step(one(lambdas[i] ** n), t, one(0.5)).prev_sample.item()
                if i > 2:
                    h = lambdas[i + 1] - lambdas[i]
                    expected = exact(scheduler, algorithm, before, i, i + 1, n)
                    # As of DPM-Solver, with the errors of a system of equations, twice.
                    assert abs(got - expected) < 4 * 64 * EPS / h**2, (config, n, i)
                before = got


def unipc_corrects_where_it_may(schedulers):
    """The sample handed in counts where the corrector is off: at the first step, and as asked."""
    for config, free in (({}, [0]), ({"disable_corrector": [0, 2]}, [0, 1, 3])):
        for i in range(5):
            results = []
            for value in (0.5, 2.0):
                scheduler = solver(schedulers, "UniPCMultistep", 5, **config)
                for j, t in enumerate(scheduler.timesteps[: i + 1]):
                    step = scheduler.step(one(0.3), t, one(value if j == i else 0.5))
                results.append(step.prev_sample.item())
            assert (results[0] != results[1]) == (i in free), (config, i)


def unipc_begins_with_ddim_and_a_trapezoid(schedulers):
    """Its first order is DPM-Solver++'s; the first correction takes half of the second output."""
    unipc = solver(schedulers, "UniPCMultistep", 10, **AT_MIN)
    dpm = solver(schedulers, "DPMSolverMultistep", 10, **AT_MIN)
    t, u = unipc.timesteps[:2]
    first = unipc.step(one(0.3), t, one(0.5)).prev_sample.item()
    assert abs(first - dpm.step(one(0.3), t, one(0.5)).prev_sample.item()) < 4 * EPS
    unipc.step(one(0.9), u, one(first))
    alphas, _, lambdas = levels(unipc)
    weight = alphas[1] * (1 - math.exp(lambdas[0] - lambdas[1]))
    corrected = first + weight / 2 * (0.9 - 0.3)
    assert abs(unipc.last_sample.item() - corrected) < 16 * EPS


def unipc_without_its_corrector_is_dpm_solver(schedulers):
    """Its predictor of order 2 is DPM++ 2M, as it takes rho = 1/2."""
    unipc = solver(schedulers, "UniPCMultistep", 10, disable_corrector=list(range(10)))
    dpm = solver(schedulers, "DPMSolverMultistep", 10)
    x = y = one(0.5)
    for i, t in enumerate(unipc.timesteps):
        x = unipc.step(one(0.3 * i), t, x).prev_sample
        y = dpm.step(one(0.3 * i), t, y).prev_sample
        # x0 is up to 3, lambda rounds by 2^-23, and is divided by steps of 0.2 and more
        assert abs(x - y).item() < (i + 1) * 6 * 2 * EPS * 3 / 0.2


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


def multistep_solvers_end_at_lower_order(schedulers):
    """Its order at each step shows in how many past outputs the step depends on."""

    def reach(i, name="DPMSolverMultistep", steps=10, **config):
        """How many outputs before step i's own change the result of step i."""
        reached = 0
        for back in range(1, min(i, 3) + 1):
            results = []
            for value in (0.0, 1.0):
                scheduler = solver(schedulers, name, steps, solver_order=3, **config)
                for j, t in enumerate(scheduler.timesteps[: i + 1]):
                    step = scheduler.step(one(value if j == i - back else 0.3), t, one(0.5))
                results.append(step.prev_sample.item())
            reached = back if results[0] != results[1] else reached
        return reached

    assert [reach(i) for i in (0, 1, 2, 5, 7, 8, 9)] == [0, 1, 2, 2, 2, 1, 0]
    assert [reach(i, **AT_MIN, lower_order_final=False) for i in (8, 9)] == [2, 2]
    assert reach(9, **AT_MIN, lower_order_final=False, euler_at_final=True) == 0
    assert [reach(i, steps=16) for i in (14, 15)] == [2, 0]
    assert [reach(i, steps=16, **AT_MIN) for i in (14, 15)] == [2, 2]
    deis = "DEISMultistep"
    assert [reach(i, deis) for i in (0, 1, 2, 7, 8, 9)] == [0, 1, 2, 2, 1, 0]
    assert [reach(i, deis, lower_order_final=False) for i in (8, 9)] == [2, 2]
    assert [reach(i, deis, 16) for i in (14, 15)] == [2, 2]
    unipc = {"name": "UniPCMultistep", "disable_corrector": list(range(20))}
    assert [reach(i, **unipc) for i in (0, 1, 2, 7, 8, 9)] == [0, 1, 2, 2, 1, 0]
    assert [reach(i, **unipc, steps=16) for i in (13, 14, 15)] == [2, 1, 0]
    assert [reach(i, **unipc, **AT_MIN, lower_order_final=False) for i in (8, 9)] == [2, 2]


def a_step_of_length_0_leaves_the_sample(schedulers):
    """Karras sigmas that end at sigma_min end there twice."""
    dpm, unipc, low = "DPMSolverMultistep", "UniPCMultistep", {"lower_order_final": False}
    for name, config in ((dpm, {}), (dpm, {"solver_type": "heun"}), (dpm, {"solver_order": 3}),
                         (unipc, {}), (unipc, low), (unipc, {"solver_order": 3} | low)):
        scheduler = make(schedulers, f"{name}Scheduler", 20, use_karras_sigmas=True,
                         final_sigmas_type="sigma_min", **config)
        assert scheduler.sigmas[-1] == scheduler.sigmas[-2]
        for t in scheduler.timesteps:
            step = scheduler.step(one(0.0), t, one(0.5))
        if name == dpm:  # UniPC first corrects the sample
            assert step.prev_sample == 0.5
        assert np.isfinite(step.prev_sample)


TRUTHS = [
    dpm_solver_integrates_polynomials,
    singlestep_integrates_polynomials,
    singlestep_orders,
    a_group_entered_in_its_middle_begins_anew,
    deis_integrates_polynomials,
    unipc_integrates_polynomials,
    unipc_corrects_where_it_may,
    unipc_begins_with_ddim_and_a_trapezoid,
    unipc_without_its_corrector_is_dpm_solver,
    first_order_dpm_solver_is_ddim,
    multistep_solvers_end_at_lower_order,
    a_step_of_length_0_leaves_the_sample,
]
