"""Truths about one step of a sampler: perfect models, zero outputs, variances, identities.

Each is a function of a `schedulers` package, so that test_schedulers.py can run it on copies with
one planted mistake. Samples are float64, so that only the coefficients round.
"""

import importlib
import math

import numpy as np
from scheduler_samples import DIFFUSION, EPS, SD, Noise, in_sigma_space, make, one, own_options


def a_perfect_model_gives_x0_in_one_step(schedulers):
    """From the noisiest timestep to no noise at all, for each prediction type.

    TCD goes to timestep 0, which has some noise, and DDIM inversion the other way.
    """
    x0, eps = 0.7, -1.3
    for name in set(DIFFUSION) - {"TCDScheduler", "DDIMInverseScheduler"}:
        config = {"timestep_spacing": "trailing", **SD}
        if "timestep_spacing" not in own_options(name):
            config = SD
        if "set_alpha_to_one" in own_options(name):
            config["set_alpha_to_one"] = True
        if "skip_prk_steps" in own_options(name):
            config["skip_prk_steps"] = True
        kinds = schedulers.SCHEDULERS[name].CHOICES.get(
            "prediction_type", ("epsilon", "sample", "v_prediction")
        )
        for kind in set(kinds) - {"flow_prediction"}:  # of sampler_flow_truths.py
            scheduler = make(schedulers, name, 1, prediction_type=kind, **config)
            alpha_bar = float(scheduler.alphas_cumprod[999])
            signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
            x = signal * x0 + noise * eps
            out = {"epsilon": eps, "sample": x0, "v_prediction": signal * eps - noise * x0}[kind]
            if in_sigma_space(scheduler):
                x = x / signal
            (t,) = scheduler.timesteps
            step = scheduler.step(one(out), t, one(x), generator=Noise())
            end = x0
            if name == "DEISMultistepScheduler":  # which ends at the smallest sigma of training
                last = float(scheduler.sigmas[-1])
                end = (x0 + last * eps) / math.sqrt(last**2 + 1)
            # Some 8 roundings of coefficients on terms of up to 20 (the sigma at t is 14.6).
            assert abs(step.prev_sample.item() - end) < 8 * EPS * 20, (name, kind)
            if step.pred_original_sample is not None:
                assert abs(step.pred_original_sample.item() - x0) < 8 * EPS * 20, (name, kind)


# Samplers that take what is predicted to x0 or to eps, each in a way of its own.
CONVERTING = [
    ("DPMSolverMultistep", {}),
    ("DPMSolverMultistep", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("DPMSolverSinglestep", {}),
    ("DPMSolverSinglestep", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("DEISMultistep", {}),
    ("UniPCMultistep", {}),
]


def every_prediction_type_says_the_same(schedulers):
    """The same x0 and eps, told as eps, as x0 and as v, make the same steps."""
    x0, eps = 0.7, -1.3
    for name, config in CONVERTING:
        found = []
        for kind in ("epsilon", "sample", "v_prediction"):
            scheduler = make(schedulers, f"{name}Scheduler", 10, prediction_type=kind, **SD,
                             **config)
            for i, t in enumerate(scheduler.timesteps[:3]):
                signal = 1 / math.sqrt(float(scheduler.sigmas[i]) ** 2 + 1)
                noise = float(scheduler.sigmas[i]) * signal
                told = {"epsilon": eps, "sample": x0, "v_prediction": signal * eps - noise * x0}
                step = scheduler.step(one(told[kind]), t, one(signal * x0 + noise * eps))
            found.append(step.prev_sample.item())
            assert abs(step.pred_original_sample.item() - x0) < 8 * EPS * 20, (name, kind)
        # Some 8 roundings of coefficients on terms of up to 20 (the first sigma is 14.6), which
        # higher orders divide by a ratio of steps, 0.3 or more.
        assert np.ptp(found) < 8 * EPS * 20 * 3, (name, config, found)


def thresholding_changes_what_is_integrated(schedulers):
    """One number is its own quantile: an x0 of 5 becomes 1, also where eps is what counts."""
    for name, config in CONVERTING:
        found = []
        for options, out in (({"thresholding": True}, 5.0), ({}, 1.0)):
            scheduler = make(schedulers, f"{name}Scheduler", 10, prediction_type="sample", **SD,
                             **config, **options)
            for t in scheduler.timesteps[:2]:
                step = scheduler.step(one(out), t, one(0.5))
            assert step.pred_original_sample == 1, name
            found.append(step.prev_sample.item())
        assert abs(found[0] - found[1]) < 16 * EPS, (name, config, found)


def zero_output_scales_the_sample(schedulers):
    """With eps = 0 all there is to do is to rescale x, by sqrt(alpha_bar_s / alpha_bar_t)."""
    for name in ("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"):
        config = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
        scheduler = make(schedulers, name, 10, timestep_spacing="trailing", **SD, **config)
        alpha_bar = scheduler.alphas_cumprod.astype(np.float64)
        t, s = 999, 899
        got = scheduler.step(one(0), scheduler.timesteps[0], one()).prev_sample.item()
        assert abs(got / math.sqrt(alpha_bar[s] / alpha_bar[t]) - 1) < 16 * EPS, name
    euler = make(schedulers, "EulerDiscreteScheduler", 10)
    assert euler.step(one(0), euler.timesteps[0], one()).prev_sample == 1


def euler_follows_the_slope(schedulers):
    """x + (sigma_next - sigma) eps, and x / sqrt(sigma^2 + 1) for the model to see."""
    scheduler = make(schedulers, "EulerDiscreteScheduler", 10, **SD)
    sigma, following = (float(value) for value in scheduler.sigmas[:2])
    t = scheduler.timesteps[0]
    seen = scheduler.scale_model_input(one(3.0), t).item()
    assert abs(seen - 3 / math.sqrt(sigma**2 + 1)) < 4 * EPS
    got = scheduler.step(one(0.5), t, one(3.0)).prev_sample.item()
    assert abs(got - (3 + (following - sigma) * 0.5)) < 4 * EPS * sigma
    assert scheduler.init_noise_sigma == sigma
    leading = make(schedulers, "EulerDiscreteScheduler", 10, timestep_spacing="leading", **SD)
    sigma = float(leading.sigmas[0])
    assert abs(leading.init_noise_sigma - math.sqrt(sigma**2 + 1)) < 4 * EPS * sigma


def churn_adds_noise_up_to_sigma_hat(schedulers):
    """At its most, gamma = sqrt(2) - 1: sigma_hat = sqrt(2) sigma, and the noise has sigma."""
    for steps, churn in ((10, 1e9), (10, 0.5)):
        scheduler = make(schedulers, "EulerDiscreteScheduler", steps, **SD)
        t, sigma = scheduler.timesteps[0], float(scheduler.sigmas[0])
        gamma = min(churn / steps, math.sqrt(2) - 1)
        noise = Noise(value=1.0)
        got = scheduler.step(one(0), t, one(2.0), s_churn=churn, s_noise=0.5, generator=noise)
        expected = 2 + 0.5 * sigma * math.sqrt((1 + gamma) ** 2 - 1)
        # sigma_hat^2 - sigma^2 cancels: an error of 2 EPS in each is 1 / gamma as much.
        assert abs(got.prev_sample.item() - expected) < 4 * EPS * sigma / gamma
    scheduler = make(schedulers, "EulerDiscreteScheduler", 10, **SD)
    quiet = scheduler.step(one(0), scheduler.timesteps[0], one(), s_churn=9.0, s_tmax=1.0)
    assert quiet.prev_sample == 1


def ancestral_noise_makes_up_for_the_longer_step(schedulers):
    """sigma_up^2 + sigma_down^2 = sigma_next^2, and sigma_up^2 is the posterior's variance."""
    scheduler = make(schedulers, "EulerAncestralDiscreteScheduler", 10, **SD)
    for i, t in enumerate(scheduler.timesteps[:-1]):
        sigma, following = (float(value) for value in scheduler.sigmas[i : i + 2])
        scheduler.step_index = i
        down = scheduler.step(one(1.0), t, one(0), generator=Noise(value=0.0)).prev_sample.item()
        scheduler.step_index = i
        up = scheduler.step(one(0), t, one(0), generator=Noise(value=1.0)).prev_sample.item()
        down += sigma
        assert abs(up**2 + down**2 - following**2) < 16 * EPS * sigma * following
        posterior = 1 / (1 / following**2 + 1 / (sigma**2 - following**2))
        # 1 - (sigma_next / sigma)^2 cancels as the steps get short.
        assert abs(up**2 / posterior - 1) < 16 * EPS / (1 - (following / sigma) ** 2)


def heun_takes_the_mean_of_two_slopes(schedulers):
    """By hand, a step of two calls; and of the last step one, Euler's."""
    scheduler = make(schedulers, "HeunDiscreteScheduler", 10, **SD)
    t, sigma, following = (list(map(float, x[:3:2])) for x in (
        scheduler.timesteps, scheduler.sigmas, scheduler.sigmas[1:]))
    assert len(scheduler.timesteps) == 19 and len(scheduler.sigmas) == 20
    assert scheduler.timesteps[1] == scheduler.timesteps[2] == t[1] and following[0] == sigma[1]
    tried = scheduler.step(one(0.5), scheduler.timesteps[0], one(3.0)).prev_sample.item()
    length = sigma[1] - sigma[0]
    assert abs(tried - (3 + length * 0.5)) < 4 * EPS * sigma[0]
    seen = scheduler.scale_model_input(one(), scheduler.timesteps[1]).item()
    assert abs(seen - 1 / math.sqrt(sigma[1] ** 2 + 1)) < 4 * EPS
    got = scheduler.step(one(0.7), scheduler.timesteps[1], one(tried)).prev_sample.item()
    assert abs(got - (3 + length * 0.6)) < 4 * EPS * sigma[0]
    clipped = make(schedulers, "HeunDiscreteScheduler", 10, clip_sample=True, clip_sample_range=2.0)
    assert clipped.step(one(0), clipped.timesteps[0], one(5.0)).pred_original_sample == 2
    scheduler.step_index = 18
    last = scheduler.step(one(0.5), scheduler.timesteps[18], one(3.0)).prev_sample.item()
    assert abs(last - (3 - float(scheduler.sigmas[18]) * 0.5)) < 4 * EPS


def dpm2_takes_the_slope_of_the_midpoint(schedulers):
    """x + (sigma_next - sigma) d_mid, the midpoint halfway in log sigma, its t between the two."""
    scheduler = make(schedulers, "KDPM2DiscreteScheduler", 10, **SD)
    t = scheduler.timesteps
    assert len(t) == 19 and (np.diff(t) < 0).all() and t[2] == 888
    sigma, following = float(scheduler.sigmas[0]), float(scheduler.sigmas[1])
    middle = math.sqrt(sigma * following)
    tried = scheduler.step(one(0.5), t[0], one(3.0)).prev_sample.item()
    assert abs(tried - (3 + (middle - sigma) * 0.5)) < 8 * EPS * sigma
    seen = scheduler.scale_model_input(one(), t[1]).item()
    assert abs(seen - 1 / math.sqrt(middle**2 + 1)) < 8 * EPS
    got = scheduler.step(one(0.7), t[1], one(tried)).prev_sample.item()
    assert abs(got - (3 + (following - sigma) * 0.7)) < 4 * EPS * sigma
    assert scheduler.sigmas[2] == scheduler.sigmas[1]
    log_sigmas = np.log(scheduler.training_sigmas.astype(np.float64))
    # t is found in a table of float32 logarithms, of up to 2.7, that rise by 0.0012 a timestep or
    # more in its middle part; t itself is rounded to float32.
    assert abs(np.interp(t[1], np.arange(1000), log_sigmas) - math.log(middle)) < 8 * EPS * 2.7
    karras = make(schedulers, "KDPM2DiscreteScheduler", 10, use_karras_sigmas=True, **SD)
    assert (karras.timesteps[::2] == karras.timesteps[::2].round()).all()


def dpm2_ancestral_noise_makes_up_for_the_longer_step(schedulers):
    """sigma_up^2 + sigma_down^2 = sigma_next^2, with noise in a step's second call alone."""
    scheduler = make(schedulers, "KDPM2AncestralDiscreteScheduler", 10, **SD)
    for i in range(0, 18, 2):
        sigma, following = (float(scheduler.sigmas[j]) for j in (i, i + 1))
        ends = []
        for slope, noise in ((1.0, 0.0), (0.0, 1.0)):
            scheduler.step_index = i
            tried = scheduler.step(one(0.3), scheduler.timesteps[i], one(0)).prev_sample.item()
            # sigma_mid is sigma_next; its square root is of a rounded difference, as sigma_down is.
            short = 1 - (following / sigma) ** 2
            assert abs(tried - 0.3 * (following - sigma)) < 16 * EPS * sigma / short
            step = scheduler.step(one(slope), scheduler.timesteps[i + 1], one(tried),
                                  generator=Noise(value=noise))
            ends.append(step.prev_sample.item())
        down, up = ends[0] + sigma, ends[1]
        assert abs(up**2 + down**2 - following**2) < 16 * EPS * sigma * following
        posterior = 1 / (1 / following**2 + 1 / (sigma**2 - following**2))
        assert abs(up**2 / posterior - 1) < 16 * EPS / short
    scheduler.step_index = 18
    last = scheduler.step(one(1.0), scheduler.timesteps[18], one(3.0)).prev_sample.item()
    assert abs(last - (3 - float(scheduler.sigmas[18]))) < 4 * EPS


def ddim_with_eta_1_is_ddpm(schedulers):
    ddim = make(schedulers, "DDIMScheduler", 20, **SD)
    ddpm = make(schedulers, "DDPMScheduler", 20, **SD)
    for t in ddim.timesteps[:-1]:
        out, x = one(0.8), one(-0.4)
        a = ddim.step(out, t, x, eta=1.0, generator=Noise(int(t))).prev_sample.item()
        b = ddpm.step(out, t, x, generator=Noise(int(t))).prev_sample.item()
        # x0 is up to 14 at the noisiest step, with some 16 roundings of coefficients on each side;
        # at the quietest beta = 1 - alpha_bar_t / alpha_bar_s is a difference of 2 %.
        assert abs(a - b) < 32 * EPS * 14


def ddpm_variances(schedulers):
    """fixed_small is the posterior's variance, fixed_large is beta; the last step adds 1e-10."""
    for variance_type in ("fixed_small", "fixed_small_log", "fixed_large"):
        scheduler = make(schedulers, "DDPMScheduler", 10, variance_type=variance_type, **SD)
        alpha_bar = scheduler.alphas_cumprod.astype(np.float64)
        t, s = (int(value) for value in scheduler.timesteps[:2])
        beta = 1 - alpha_bar[t] / alpha_bar[s]
        small = (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * beta
        got = scheduler.step(one(0), t, one(0), generator=Noise(value=1.0)).prev_sample.item()
        expected = math.sqrt(beta if variance_type == "fixed_large" else small)
        assert abs(got / expected - 1) < 16 * EPS, variance_type
    offset = make(schedulers, "DDPMScheduler", 10, steps_offset=1, **SD)
    got = offset.step(one(0), 1, one(0), generator=Noise(value=1.0)).prev_sample.item()
    assert abs(got / 1e-10 - 1) < 4 * EPS


def ddim_clips_and_rederives_eps(schedulers):
    scheduler = make(schedulers, "DDIMScheduler", 10, clip_sample=True, clip_sample_range=0.5, **SD)
    t, s = (int(value) for value in scheduler.timesteps[:2])
    a_t, a_s = (float(scheduler.alphas_cumprod[i]) for i in (t, s))
    x, eps = 3.0, 0.1
    for rederive in (False, True):
        step = scheduler.step(one(eps), t, one(x), use_clipped_model_output=rederive)
        e = (x - math.sqrt(a_t) * 0.5) / math.sqrt(1 - a_t) if rederive else eps
        expected = math.sqrt(a_s) * 0.5 + math.sqrt(1 - a_s) * e
        assert step.pred_original_sample == 0.5
        assert abs(step.prev_sample.item() - expected) < 16 * EPS * 3


def thresholding_by_hand(schedulers):
    """The median of |x0| = 1, 2, 3, 4, 5 is 3: x0 is clipped to 3 and divided by it."""
    config = schedulers.Config(
        {"thresholding": True, "dynamic_thresholding_ratio": 0.5, "sample_max_value": 9.0}
    )
    keep = importlib.import_module(f"{schedulers.__name__}.prediction").keep_in_range
    x0 = np.array([[1.0, -2.0, 3.0, -4.0, 5.0], [0.1, -0.2, 0.3, -0.4, 0.5]])
    got = keep(x0, config)
    assert np.allclose(got, [[1 / 3, -2 / 3, 1, -1, 1], x0[1]], rtol=1e-15)
    config = schedulers.Config({**config, "sample_max_value": 2.0})
    assert np.allclose(keep(x0, config)[0], [0.5, -1, 1, -1, 1], rtol=1e-15)


def lcm_boundary_and_noise(schedulers):
    """f(x, 0) = x; else f blends x0 and x, and the noise brings it to alpha_bar_s."""
    scheduler = make(schedulers, "LCMScheduler")
    scheduler.set_timesteps(timesteps=[400, 0])
    alpha_bar = [float(value) for value in scheduler.alphas_cumprod[[400, 0]]]
    x, eps = 0.9, 0.2
    step = scheduler.step(one(eps), 400, one(x), generator=Noise(value=1.0))
    x0 = (x - math.sqrt(1 - alpha_bar[0]) * eps) / math.sqrt(alpha_bar[0])
    k = 400 * 10.0
    f = k / math.sqrt(k**2 + 0.25) * x0 + 0.25 / (k**2 + 0.25) * x
    assert abs(step.pred_original_sample.item() - f) < 16 * EPS
    expected = math.sqrt(alpha_bar[1]) * f + math.sqrt(1 - alpha_bar[1])
    assert abs(step.prev_sample.item() - expected) < 16 * EPS
    assert scheduler.step(one(eps), 0, one(x)).prev_sample == x
    scheduler = make(schedulers, "LCMScheduler", timestep_scaling=0.01)
    scheduler.set_timesteps(timesteps=[50])
    step = scheduler.step(one(0.0), 50, one(x))  # k = 0.5: c_skip = 1/2, c_out = 1/sqrt(2)
    x0 = x / math.sqrt(scheduler.alphas_cumprod[50])
    assert abs(step.prev_sample.item() - (0.5 * x + x0 / math.sqrt(2))) < 16 * EPS


def tcd_jumps_and_noises(schedulers):
    """To (1 - eta) u along the noise, then up to u; to u at once with eta = 0, and at the end."""
    x, eps = 0.9, 0.2
    for eta, s in ((0.3, 70), (0.0, 100), (1.0, 0)):
        scheduler = make(schedulers, "TCDScheduler")
        scheduler.set_timesteps(timesteps=[400, 100])
        t, s, u = (float(scheduler.alphas_cumprod[i]) for i in (400, s, 100))
        x0 = (x - math.sqrt(1 - t) * eps) / math.sqrt(t)
        step = scheduler.step(one(eps), 400, one(x), eta=eta, generator=Noise(value=1.0))
        jumped = math.sqrt(s) * x0 + math.sqrt(1 - s) * eps
        # 1 - u / s cancels to 0.02 at the least where it is not 0.
        expected = math.sqrt(u / s) * jumped + math.sqrt(1 - u / s)
        assert abs(step.prev_sample.item() - expected) < 16 * EPS / 0.1, eta
        last = scheduler.step(one(eps), 100, one(x), eta=eta).prev_sample.item()
        zero = float(scheduler.alphas_cumprod[0])
        x0 = (x - math.sqrt(1 - u) * eps) / math.sqrt(u)
        assert abs(last - (math.sqrt(zero) * x0 + math.sqrt(1 - zero) * eps)) < 16 * EPS
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 759, 499, 259]
    scheduler.set_timesteps(4, original_inference_steps=50)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]


def ddim_inversion_undoes_ddim(schedulers):
    """A step up and a step down with the same prediction, from where the data is too."""
    for to_one, spacing in ((True, "leading"), (False, "trailing")):
        config = {"set_alpha_to_one": to_one, "timestep_spacing": spacing, **SD}
        up = make(schedulers, "DDIMInverseScheduler", 20, **config)
        down = make(schedulers, "DDIMScheduler", 20, **config)
        assert (up.timesteps[::-1] == down.timesteps).all()
        for t in up.timesteps:
            step = up.step(one(0.4), t, one(0.6))
            back = down.step(one(0.4), t, step.prev_sample)
            # x0, of up to 1, is divided by sqrt(alpha_bar), 0.07 at the least.
            assert abs(back.prev_sample.item() - 0.6) < 16 * EPS / 0.07
            assert abs((back.pred_original_sample - step.pred_original_sample).item()) < (
                16 * EPS / 0.07)
        first = up.timesteps[0]
        signal = 1.0 if to_one else math.sqrt(up.alphas_cumprod[0])
        x0 = up.step(one(0), first, one(0.6)).pred_original_sample.item()
        assert abs(x0 - 0.6 / signal) < 4 * EPS
    clipped = make(schedulers, "DDIMInverseScheduler", 20, clip_sample=True, clip_sample_range=0.5)
    assert clipped.step(one(0), 0, one(0.6)).pred_original_sample == 0.5


def edm_by_hand(schedulers):
    """What its model sees, and x0 of what it says; a perfect one gives it in one step."""
    for name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        for kind, sign in (("epsilon", 1), ("v_prediction", -1)):
            scheduler = make(schedulers, name, 1, prediction_type=kind, sigma_data=0.7)
            (t,), sigma = scheduler.timesteps, 80.0
            assert scheduler.sigmas.tolist() == [np.float32(80), 0] or name.startswith("EDMD")
            assert abs(scheduler.sigmas[0] - 80) < 80 * 4 * EPS and scheduler.sigmas[1] == 0
            assert abs(t - math.log(80) / 4) < 4 * EPS
            assert abs(scheduler.init_noise_sigma - math.sqrt(6401)) < 1e-12
            total = math.sqrt(sigma**2 + 0.7**2)
            seen = scheduler.scale_model_input(one(3.0), t).item()
            assert abs(seen - 3 / total) < 8 * EPS
            x, x0 = 30.0, 0.6
            out = sign * (x0 - 0.7**2 / total**2 * x) / (sigma * 0.7 / total)
            step = scheduler.step(one(out), t, one(x), generator=Noise())
            assert abs(step.pred_original_sample.item() - x0) < 16 * EPS
            assert abs(step.prev_sample.item() - x0) < 8 * EPS * 80
        if "thresholding" in own_options(name):
            kept = make(schedulers, name, 1, thresholding=True)
            step = kept.step(one(10.0), kept.timesteps[0], one())  # x0 is 5
            assert step.pred_original_sample == 1
        for schedule, middle in (("karras", (80 ** (1 / 5) / 2 + 0.002 ** (1 / 5) / 2) ** 5),
                                 ("exponential", math.sqrt(80 * 0.002))):
            scheduler = make(schedulers, name, 3, sigma_schedule=schedule, rho=5.0,
                             final_sigmas_type="sigma_min")
            # The fifth power of rounded roots; e to the power of logarithms of up to 6.3.
            expected = np.array([80, middle, 0.002, 0.002])
            assert np.abs(scheduler.sigmas / expected - 1).max() < 5 * 8 * EPS
            noisy = scheduler.add_noise(one(2.0), one(), scheduler.timesteps[1])
            assert noisy == 2 + float(scheduler.sigmas[1])


def add_noise_is_the_forward_process(schedulers):
    for name in DIFFUSION:
        scheduler = make(schedulers, name, 10, **SD)
        t = scheduler.timesteps[[2, 7]]
        signal = scheduler.add_noise(np.ones((2, 1, 1)), np.zeros((2, 1, 1)), t).ravel()
        noise = scheduler.add_noise(np.zeros((2, 1, 1)), np.ones((2, 1, 1)), t).ravel()
        alpha_bar = scheduler.alphas_cumprod[t.astype(int)].astype(np.float64)
        if in_sigma_space(scheduler):
            assert (signal == 1).all()
            assert (noise == scheduler.sigmas[[2, 7]]).all()
        else:
            assert np.abs(signal**2 / alpha_bar - 1).max() < 8 * EPS, name
            assert np.abs(signal**2 + noise**2 - 1).max() < 8 * EPS, name
        both = scheduler.add_noise(np.full((2, 1, 1), 2.0), np.full((2, 1, 1), 3.0), t).ravel()
        assert np.abs(both - (2 * signal + 3 * noise)).max() < 1e-13
        single = scheduler.add_noise(np.zeros((2, 1, 1)), np.ones((2, 1, 1)), t[0]).ravel()
        assert (single == noise[0]).all()


def begin_index_starts_in_the_middle(schedulers):
    for name in ("Euler", "EulerAncestral"):
        scheduler = make(schedulers, f"{name}DiscreteScheduler", 10, **SD)
        scheduler.set_begin_index(4)
        noisy = scheduler.add_noise(one(0), one(), scheduler.timesteps[:1])
        assert noisy == scheduler.sigmas[4]
        scheduler.step(one(0), scheduler.timesteps[4], one(), generator=Noise())
        assert scheduler.step_index == 5
        assert scheduler.add_noise(one(0), one(), scheduler.timesteps[:1]) == scheduler.sigmas[5]
        scheduler.set_timesteps(10)
        assert scheduler.begin_index is None and scheduler.step_index is None


TRUTHS = [
    a_perfect_model_gives_x0_in_one_step,
    every_prediction_type_says_the_same,
    thresholding_changes_what_is_integrated,
    zero_output_scales_the_sample,
    euler_follows_the_slope,
    churn_adds_noise_up_to_sigma_hat,
    ancestral_noise_makes_up_for_the_longer_step,
    heun_takes_the_mean_of_two_slopes,
    dpm2_takes_the_slope_of_the_midpoint,
    dpm2_ancestral_noise_makes_up_for_the_longer_step,
    ddim_with_eta_1_is_ddpm,
    ddpm_variances,
    ddim_clips_and_rederives_eps,
    thresholding_by_hand,
    lcm_boundary_and_noise,
    tcd_jumps_and_noises,
    ddim_inversion_undoes_ddim,
    edm_by_hand,
    add_noise_is_the_forward_process,
    begin_index_starts_in_the_middle,
]
