"""Truths on Gaussian data, of which everything is known: the predictor, the path, the distribution.

For data N(MEAN, S^2) and x = x0 + sigma eps the best guess of the noise is
sigma (x - MEAN) / (S^2 + sigma^2), the exact path of the probability-flow ODE
x - MEAN ~ sqrt(S^2 + sigma^2), and x is N(MEAN, S^2 + sigma^2). Each truth is a function of a
`schedulers` package, so that test_schedulers.py can run it on copies with one planted mistake.
"""

import itertools
import math

import numpy as np
from scheduler_samples import EPS, SD, make, one, own_options

MEAN, S = 0.8, 0.5


def best_guess(x, sigma):
    return sigma * (x - MEAN) / (S**2 + sigma**2)


def deviation(sigma):
    return math.sqrt(S**2 + sigma**2)


def sigma_table(scheduler):
    """sigma of each training step in float64."""
    alpha_bar = scheduler.alphas_cumprod.astype(np.float64)
    return np.sqrt((1 - alpha_bar) / alpha_bar)


def visited(scheduler, space):
    """The sigmas of a run, and what x = x0 + sigma eps is divided by in the sampler's units."""
    sigmas = (sigma_table(scheduler)[scheduler.timesteps] if space == "timestep"
              else scheduler.sigmas.astype(np.float64))
    if space == "midpoint":  # calls at every second one are halfway there, in log sigma
        sigmas[1::2] = np.sqrt(sigmas[:-1:2] * sigmas[1::2])
    units = ("sigma", "midpoint")
    return sigmas, np.ones_like(sigmas) if space in units else np.sqrt(sigmas**2 + 1)


def error_of(scheduler, space, start=3.0, until=None):
    """How far a run ends from the exact path through its start, in x0 + sigma eps.

    `until` is the index of the timestep it stops at, else the last of the sigmas.
    """
    sigmas, scale = visited(scheduler, space)
    until = len(sigmas) - 1 if until is None else until
    exact = MEAN + (start - MEAN) * deviation(sigmas[until]) / deviation(sigmas[0])
    x = one(start / scale[0])
    for i, t in enumerate(scheduler.timesteps[:until]):
        x = scheduler.step(best_guess(x * scale[i], sigmas[i]), t, x).prev_sample
    return abs(x.item() * scale[until] - exact)


def has_order(label, errors, order, slack=0.35):
    """Twice the steps, half the error at order 1, a quarter at order 2."""
    for coarse, fine in itertools.pairwise(errors):
        measured = math.log2(coarse / fine)
        assert abs(measured - order) < slack, f"{label}: order {measured:.2f}, {errors}"


def samplers_converge_at_their_order(schedulers):
    """DDIM and Euler are of order 1, PNDM, Heun and DPM2 of 2.

    PNDM blends as if e were smooth in t but moves in sigma, which leaves order 2 of four outputs
    (Liu et al. 2022, theorem 3.1).
    """
    euler = []
    for steps in (50, 100, 200):
        scheduler = make(schedulers, "EulerDiscreteScheduler")
        scheduler.set_timesteps(sigmas=np.geomspace(10, 0.1, steps + 1).tolist())
        euler.append(error_of(scheduler, "sigma"))
    has_order("euler", euler, 1)
    for label, name, space in (("heun", "Heun", "sigma"), ("dpm2", "KDPM2", "midpoint")):
        runs = [make(schedulers, f"{name}DiscreteScheduler", steps, use_exponential_sigmas=True,
                     **SD) for steps in (25, 50, 100)]
        has_order(label, [error_of(run, space, until=len(run.timesteps) - 1) for run in runs], 2)
    for label, order, name, config in (
        ("ddim", 1, "DDIMScheduler", {}),
        ("plms", 2, "PNDMScheduler", {"skip_prk_steps": True}),
        ("pndm", 2, "PNDMScheduler", {}),
    ):
        for few in (50, 125):  # whose multiples hit 200, and halves of them are whole timesteps
            runs = [make(schedulers, name, steps, **SD | config) for steps in (few, 2 * few)]
            errors = [error_of(run, "timestep", 10.0, run.timesteps.tolist().index(200))
                      for run in runs]
            has_order(label, errors, order)


def lms_of_four_exact_slopes_is_of_order_4(schedulers):
    """Of the first steps, which have fewer slopes, only the slopes are kept: x is put right."""
    errors = []
    for steps in (25, 50, 100):
        scheduler = make(schedulers, "LMSDiscreteScheduler", steps, use_exponential_sigmas=True,
                         **SD)
        sigmas = scheduler.sigmas.astype(np.float64)
        for i, t in enumerate(scheduler.timesteps[:-1]):
            if i < 4:
                x = one(MEAN + (10 - MEAN) * deviation(sigmas[i]) / deviation(sigmas[0]))
            x = scheduler.step(best_guess(x, sigmas[i]), t, x).prev_sample
        exact = MEAN + (10 - MEAN) * deviation(sigmas[-2]) / deviation(sigmas[0])
        errors.append(abs(x.item() - exact))
    has_order("lms", errors, 4, slack=0.6)


def exponential_integrators_converge_at_their_order(schedulers):
    """As their papers say; but solver_order 3 of DPM++ multistep is of order 2, with a third of
    the error (see dpm_solver.py). Of finer runs of DEIS of order 3 the rounding is seen.
    """
    multi, single, unipc = "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"
    of_eps, heun, third = ({"algorithm_type": "dpmsolver"}, {"solver_type": "heun"},
                           {"solver_order": 3})
    for name, few, order, config in (
        (multi, 25, 1, {"solver_order": 1}),
        (multi, 25, 2, {}),
        (multi, 25, 2, heun),
        (multi, 25, 2, third),
        (multi, 25, 1, {"solver_order": 1} | of_eps),
        (multi, 25, 2, of_eps),
        (multi, 25, 2, heun | of_eps),
        (multi, 25, 2, third | of_eps),
        (single, 24, 1, {"solver_order": 1}),
        (single, 24, 2, {}),
        (single, 24, 2, heun),
        (single, 24, 3, third),
        (single, 24, 3, third | heun),
        (single, 24, 2, of_eps),
        (single, 24, 3, third | of_eps),
        (unipc, 24, 2, {"solver_order": 1}),
        (unipc, 12, 3, {}),
        (unipc, 24, 3, {"solver_type": "bh1"}),
        (unipc, 12, 4, third | {"predict_x0": False}),
        (unipc, 24, 2, {"disable_corrector": list(range(100))}),
        ("DEISMultistep", 24, 1, {"solver_order": 1}),
        ("DEISMultistep", 24, 2, {}),
    ):
        ends = {"final_sigmas_type": "sigma_min", "lower_order_final": False, **SD}
        ends = {key: ends[key] for key in ends if key in own_options(f"{name}Scheduler")}
        runs = [make(schedulers, f"{name}Scheduler", steps, use_exponential_sigmas=True,
                     **ends | config) for steps in (few, 2 * few, 4 * few)]
        has_order(f"{name} {config}", [error_of(run, "variance") for run in runs], order)
    errors = [error_of(make(schedulers, "DEISMultistepScheduler", steps, **SD, **third,
                            use_exponential_sigmas=True, lower_order_final=False), "variance")
              for steps in (10, 20, 40)]
    has_order("deis 3", errors, 3.5, slack=0.5)


class Probe:
    """A generator whose noise is that of one of three samples: at 0, at 1, and at 0 with noise."""

    def randn(self, shape, dtype):
        return np.array([[0.0, 0.0, 1.0]], dtype)


def distribution_of(scheduler, space, predictor=best_guess, until=None, **options):
    """Mean and deviation at a run's end of samples that begin as exact ones.   -> two floats

    A step is x -> a x + b + c z, as everything here is linear: three samples find a, b and c.
    """
    sigmas, scale = visited(scheduler, space)
    mean, variance = MEAN / scale[0], (deviation(sigmas[0]) / scale[0]) ** 2
    calls = list(enumerate(scheduler.timesteps[:until]))
    for first in range(0, len(calls), scheduler.order):
        x = np.array([[0.0, 1.0, 0.0]])
        for i, t in calls[first : first + scheduler.order]:
            out = predictor(x * scale[i], sigmas[i])
            x = scheduler.step(out, t, x, generator=Probe(), **options).prev_sample
        b, ab, bc = x[0].tolist()
        mean, variance = (ab - b) * mean + b, (ab - b) ** 2 * variance + (bc - b) ** 2
    return mean, math.sqrt(variance)


def noisy_samplers_converge_in_distribution(schedulers):
    """Twice the steps, half the error of the deviation: order 1, whatever noise was drawn.

    DPM2 ancestral is of order 2. Its midpoint, halfway in log sigma to sigma_down, is sigma_next.
    """
    for label, name, space, config, options in (
        ("ddpm", "DDPMScheduler", "timestep", {}, {}),
        ("ddpm, fixed_large", "DDPMScheduler", "timestep", {"variance_type": "fixed_large"}, {}),
        ("ddim, eta 1", "DDIMScheduler", "timestep", {}, {"eta": 1.0}),
        ("ddim, eta 0.5", "DDIMScheduler", "timestep", {}, {"eta": 0.5}),
        ("euler a", "EulerAncestralDiscreteScheduler", "sigma", {"timestep_spacing": "leading"},
         {}),
    ):
        errors = []
        for steps in (50, 100, 200):
            scheduler = make(schedulers, name, steps, **SD | config)
            until = scheduler.timesteps.tolist().index(200)
            sigmas, scale = visited(scheduler, space)
            _, spread = distribution_of(scheduler, space, until=until, **options)
            errors.append(abs(spread * scale[until] - deviation(sigmas[until])))
        has_order(label, errors, 1)
    errors = []
    for steps in (25, 50, 100):
        scheduler = make(schedulers, "KDPM2AncestralDiscreteScheduler", steps,
                         use_exponential_sigmas=True, **SD)
        last = len(scheduler.timesteps) - 1
        _, spread = distribution_of(scheduler, "sigma", until=last)
        errors.append(abs(spread - deviation(scheduler.sigmas[last])))
    has_order("dpm2 a", errors, 2)


class OneHot:
    """A generator of one 1 a draw: in the third sample first, then in the next."""

    place = 1

    def randn(self, shape, dtype):
        self.place += 1
        return np.eye(1, shape[1], self.place, dtype)


def spread_of(scheduler):
    """The deviation at a run's end, as above, of a sampler whose steps read earlier ones.

    One run of a sample at 0, of one at 1, and for each draw of one at 0 with that noise alone.
    """
    sigmas, scale = visited(scheduler, "variance")
    x, generator = np.eye(1, len(sigmas) + 1, 1), OneHot()
    for i, t in enumerate(scheduler.timesteps):
        out = best_guess(x * scale[i], sigmas[i])
        x = scheduler.step(out, t, x, generator=generator).prev_sample
    response = x[0] - x[0, 0]
    response[1] *= deviation(sigmas[0]) / scale[0]
    return np.linalg.norm(response) * scale[-1]


def sde_solvers_converge_in_distribution(schedulers):
    """The order of the deviation's error; order 3 of the SDE is of order 1 (see dpm_solver.py).

    Of the singlestep form only order 1 converges at its order (see dpm_solver_singlestep.py).
    """
    for name, algorithm, order, config in (
        ("DPMSolverMultistep", "sde-dpmsolver++", 1, {"solver_order": 1}),
        ("DPMSolverMultistep", "sde-dpmsolver++", 2, {}),
        ("DPMSolverMultistep", "sde-dpmsolver++", 2, {"solver_type": "heun"}),
        ("DPMSolverMultistep", "sde-dpmsolver++", 1, {"solver_order": 3}),
        ("DPMSolverMultistep", "sde-dpmsolver", 2, {}),
        ("DPMSolverMultistep", "sde-dpmsolver", 2, {"solver_type": "heun"}),
        ("DPMSolverSinglestep", "sde-dpmsolver++", 1, {"solver_order": 1}),
    ):
        config = {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min",
                  "lower_order_final": False, "algorithm_type": algorithm, **SD, **config}
        runs = [make(schedulers, f"{name}Scheduler", steps, **config) for steps in (25, 50, 100)]
        errors = [abs(spread_of(run) - deviation(float(run.sigmas[-1]))) for run in runs]
        has_order(f"{algorithm} {config}", errors, order)


def lcm_of_a_consistency_function_is_exact(schedulers):
    """f(x, sigma), the end of the path through x, gives the data's distribution in any steps.

    c_skip adds 1/4 / (k^2 + 1/4) of x_t, c_out lacks half of that; k is 10 t, t 19 or more.
    """

    def consistency(x, sigma):
        return MEAN + (x - MEAN) * S / deviation(sigma)

    for steps in (1, 2, 4, 25):
        scheduler = make(schedulers, "LCMScheduler", steps, prediction_type="sample", **SD)
        k = 10.0 * scheduler.timesteps[-1]
        mean, spread = distribution_of(scheduler, "timestep", consistency)
        slack = 0.25 / k**2 * (MEAN + S + 1) + 16 * EPS
        assert abs(mean - MEAN) < slack and abs(spread - S) < slack, steps


def tcd_of_a_trajectory_function_is_exact(schedulers):
    """A model that knows the path to s gives the distribution at timestep 0, in any steps."""
    for steps, eta in itertools.product((1, 2, 4, 25), (0.0, 0.3, 1.0)):
        scheduler = make(schedulers, "TCDScheduler", steps, **SD)
        table = sigma_table(scheduler)
        goals = np.floor((1 - eta) * np.append(scheduler.timesteps[1:], 0) + 1e-4).astype(int)
        jumps = dict(zip(table[scheduler.timesteps], table[goals]))

        def slope(x, sigma):
            goal = jumps[sigma]  # noqa: B023
            end = MEAN + (x - MEAN) * deviation(goal) / deviation(sigma)
            return (x - end) / (sigma - goal)

        mean, spread = distribution_of(scheduler, "timestep", slope, eta=eta)
        signal = math.sqrt(scheduler.alphas_cumprod[0])
        # A step rounds some 16 coefficients of terms of up to 15 (x0 at the noisiest step).
        slack = steps * 16 * EPS * 15
        assert abs(mean - signal * MEAN) < slack, (steps, eta)
        assert abs(spread - signal * deviation(table[0])) < slack, (steps, eta)


def ddim_can_be_walked_back(schedulers):
    """Up to the noise by DDIM's formula, and down again by its steps, from a sample of the data.

    With the noise that the way down will see, the two cancel; with the noise predicted where the
    way up stands (DDIM inversion), the round trip's error is of order 1.
    """
    for cancels in (True, False):
        errors = []
        for steps in (50, 100, 200):
            scheduler = make(schedulers, "DDIMScheduler", steps, **SD)
            sigmas, scale = visited(scheduler, "timestep")
            until = scheduler.timesteps.tolist().index(200)
            x = 1.3
            for i in reversed(range(until)):
                eps = 0.3 * sigmas[i] if cancels else best_guess(x, sigmas[i + 1])
                x += (sigmas[i] - sigmas[i + 1]) * eps
            x = one(x / scale[0])
            for i, t in enumerate(scheduler.timesteps[:until]):
                eps = one(0.3 * sigmas[i]) if cancels else best_guess(x * scale[i], sigmas[i])
                x = scheduler.step(eps, t, x).prev_sample
            errors.append(abs(x.item() * scale[until] - 1.3))
        if cancels:
            # In x0 + sigma eps a step rounds some eight coefficients of its terms, x and sigma eps,
            # of up to 1.3 + 0.3 sigma^2, and passes on what earlier steps were off by.
            assert max(errors) < 8 * EPS * (1.3 + 0.3 * sigmas**2).sum(), errors
        else:
            has_order("round trip", errors, 1)


def ddim_inversion_follows_the_path(schedulers):
    """Up from a sample of the data at t = 200 to t = 980, at order 1."""
    errors = []
    for steps in (50, 100, 200):
        scheduler = make(schedulers, "DDIMInverseScheduler", steps, **SD)
        sigmas, scale = visited(scheduler, "timestep")
        start, end = (scheduler.timesteps.tolist().index(t) for t in (200, 980))
        x = one(1.3 / scale[start])
        for i in range(start + 1, end + 1):
            eps = best_guess(x * scale[i], sigmas[i])
            x = scheduler.step(eps, scheduler.timesteps[i], x).prev_sample
        exact = MEAN + (1.3 - MEAN) * deviation(sigmas[end]) / deviation(sigmas[start])
        errors.append(abs(x.item() * scale[end] - exact))
    has_order("inversion", errors, 1)


def edm_samplers_converge_at_their_order(schedulers):
    """Euler of order 1, DPM++ of 2, with the F whose x0 is the best guess."""
    for label, order, config in (("EDMEuler", 1, {}),
                                 ("EDMDPMSolverMultistep", 2, {"lower_order_final": False})):
        errors = []
        for steps in (25, 50, 100):
            scheduler = make(schedulers, f"{label}Scheduler", steps, sigma_schedule="exponential",
                             final_sigmas_type="sigma_min", sigma_min=0.03, **config)
            sigmas, x = scheduler.sigmas.astype(np.float64), one(100.0)
            for sigma, t in zip(sigmas, scheduler.timesteps):
                x0 = x - sigma * best_guess(x, sigma)
                total = math.sqrt(sigma**2 + 0.25)
                out = (x0 - 0.25 / total**2 * x) / (sigma * 0.5 / total)
                x = scheduler.step(out, t, x).prev_sample
            exact = MEAN + (100 - MEAN) * deviation(sigmas[-1]) / deviation(sigmas[0])
            errors.append(abs(x.item() - exact))
        has_order(label, errors, order)


def dpm_sde_converges_in_distribution(schedulers):
    """With the two noises of a step as a Brownian path has them, of which the first is a part."""
    errors = []
    for steps in (25, 50, 100):
        scheduler = make(schedulers, "DPMSolverSDEScheduler", steps, use_exponential_sigmas=True,
                         **SD)
        sigmas, probes = scheduler.sigmas.astype(np.float64), iter(())
        scheduler._noise_along = lambda *_: next(probes)  # noqa: B023
        mean, variance = MEAN, deviation(sigmas[0]) ** 2
        for i in range(0, 2 * steps - 2, 2):
            start, end = sigmas[i], sigmas[i + 1]
            middle = math.sqrt(start * end)
            parts = np.sqrt([start - middle, middle - end]) / math.sqrt(start - end)
            probes = iter((np.array([[0, 0, 1.0, 0]]), np.array([[0, 0, *parts]])))
            x = np.array([[0, 1.0, 0, 0]])
            for j, sigma in ((i, start), (i + 1, middle)):
                x = scheduler.step(best_guess(x, sigma), scheduler.timesteps[j], x).prev_sample
            b, ab, first, second = x[0].tolist()
            mean = (ab - b) * mean + b
            variance = (ab - b) ** 2 * variance + (first - b) ** 2 + (second - b) ** 2
        errors.append(abs(math.sqrt(variance) - deviation(end)))
        assert abs(mean - MEAN) < 1e-3
    has_order("dpm++sde", errors, 2)


TRUTHS = [
    dpm_sde_converges_in_distribution,
    samplers_converge_at_their_order,
    lms_of_four_exact_slopes_is_of_order_4,
    exponential_integrators_converge_at_their_order,
    noisy_samplers_converge_in_distribution,
    sde_solvers_converge_in_distribution,
    lcm_of_a_consistency_function_is_exact,
    tcd_of_a_trajectory_function_is_exact,
    ddim_can_be_walked_back,
    ddim_inversion_follows_the_path,
    edm_samplers_converge_at_their_order,
]
