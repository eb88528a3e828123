"""The samplers against what is not themselves, and mistakes planted in them, which must be noticed.

The truths are in schedule_truths.py, sampler_step_truths.py, sampler_run_truths.py,
sampler_gaussian_truths.py and sampler_flow_truths.py; what the samplers do with bad input is in
test_scheduler_refusals.py.
"""

import importlib
import sys
from collections import defaultdict
from functools import cache
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.util import spec_from_loader
from pathlib import Path

import numpy as np
import pytest
import sampler_flow_truths
import sampler_gaussian_truths
import sampler_run_truths
import sampler_solver_truths
import sampler_step_truths
import schedule_truths
from scheduler_samples import EPS, SD, Noise, make, run

import refsd.schedulers

TRUTHS = (schedule_truths.TRUTHS + sampler_step_truths.TRUTHS + sampler_run_truths.TRUTHS
          + sampler_solver_truths.TRUTHS + sampler_flow_truths.TRUTHS
          + sampler_gaussian_truths.TRUTHS)  # the last take the longest


@pytest.mark.parametrize("truth", TRUTHS, ids=lambda function: function.__name__)
def test_truth(truth):
    truth(refsd.schedulers)


MUTANTS = """
noise_schedule.py | linspace32(start**0.5, end**0.5, count) | linspace32(start, end, count)
noise_schedule.py | np.cumprod(alpha.astype(np.float64)).astype(np.float32) | np.cumprod(alpha)
noise_schedule.py | i < count // 2 | i < count
sigma_tables.py | return np.sqrt((1 - alphas_cumprod) / alphas_cumprod) | return (1 - alphas_cumprod) / alphas_cumprod
noise_schedule.py | (last // count))[::-1] + offset | (last // count))[::-1]
noise_schedule.py | (last // count))[::-1] + offset | (last // count) + offset)[::-1] + 1
noise_schedule.py | -train / steps)) - 1 | -train / steps))
noise_schedule.py | timesteps = timesteps[timesteps >= 0] | timesteps = timesteps[timesteps >= -1]
noise_schedule.py | return timesteps[:steps] | return timesteps[-steps:]
sigma_tables.py | rho=7.0 | rho=5.0
noise_schedule.py | (root - last) * (first | root * (first
noise_schedule.py | max_beta=0.999 | max_beta=0.99
sigma_tables.py | (1 - weight) * low + weight * (low + 1) | weight * low + (1 - weight) * (low + 1)
sigma_tables.py | alpha=0.6, beta=0.6 | alpha=0.6, beta=0.7
ddim.py | eta * np.sqrt(variance) | eta * variance
ddim.py | 1 - alpha_bar_s - np.square(sigma) | 1 - alpha_bar_s
ddim.py | return t - | return t - 1 -
ddim.py | if use_clipped_model_output: | if not use_clipped_model_output:
ddim.py | float(sigma) * variance_noise | variance_noise
ddpm.py | if t > 0: | if t >= 0:
ddpm.py | np.sqrt(alpha_bar_s) * beta | alpha_bar_s * beta
ddpm.py | np.sqrt(alpha) * | alpha *
ddpm.py | np.float32(1e-20) | np.float32(0)
ddpm.py | return np.sqrt(beta) | return beta
ddpm.py | exp32(0.5 * log32 | exp32(log32
pndm.py | 55 * | 54 *
pndm.py | 59 * | 58 *
pndm.py | 37 * | 36 *
pndm.py | 9 * past[3] | 8 * past[3]
pndm.py | 23 * | 24 *
pndm.py | 16 * | 15 *
pndm.py | 5 * past[2] | 4 * past[2]
pndm.py | (3 * past[0] - past[1]) / 2 | 2 * past[0] - past[1]
pndm.py | e = (e + past[0]) / 2 | pass
pndm.py | 1 / 6 if call == 0 else 1 / 3 | 1 / 3
pndm.py | e = self.blend + 1 / 6 * e | e = self.blend
pndm.py | - float(alpha_bar_s - alpha_bar_t) | - float(alpha_bar_t - alpha_bar_s)
pndm.py | self.outputs[-3:] | self.outputs[-2:]
pndm.py | [t[:2], t[1:]] | [t[:1], t[0:]]
pndm.py | [a, b + half, b + half, b] | [a, b + half, b, b]
euler.py | self.sigmas[i], self.sigmas[i + 1] | self.sigmas[i], self.sigmas[i]
euler.py | 2**0.5 - 1 | 2**0.5
euler.py | s_churn / len(self.timesteps) | s_churn
euler.py | generator) * s_noise | generator)
euler.py | else self.training_sigmas[0] | else self.training_sigmas[1]
sigma_space.py | float(np.sqrt(np.square(sigma) + 1)) | float(np.square(sigma) + 1)
sigma_space.py | np.sqrt(np.square(largest) + 1) | largest
sigma_space.py | -sigma / np.sqrt(variance) | -sigma / variance
sigma_space.py | x / float(variance) | x / float(np.sqrt(variance))
sigma_space.py | self.alphas_cumprod[-1] = 2**-24 | self.alphas_cumprod[-1] = 2**-14
euler_ancestral.py | sigma_up = np.sqrt( | sigma_up = (
euler_ancestral.py | variance_next - np.square(sigma_up) | variance_next - sigma_up
euler_ancestral.py | self.sigmas[i], self.sigmas[i + 1] | self.sigmas[i + 1], self.sigmas[i + 1]
two_calls.py | if i % 2 and self.started is None: | if i % 2:
two_calls.py | (first + slope) / 2 | first + slope
two_calls.py | x, first, length = self.started | first, length = self.started[1:]
two_calls.py | (x - x0) / float(self.sigmas[i]) | (x - x0) / float(self.sigmas[i - i % 2])
heun.py | every_twice(self.sigmas)[1:-1] | every_twice(self.sigmas)[:-2]
heun.py | every_twice(timesteps)[1:] | every_twice(timesteps)[:-1]
heun.py | if self.config.clip_sample: | if False:
kdpm2.py | (logs[:-1] - logs[1:]) * 0.5 | (logs[:-1] - logs[1:]) * 0.4
kdpm2.py | if i % 2 else self.sigmas[i] | if False else self.sigmas[i]
kdpm2.py | np.stack([between | np.stack([timesteps[1:]
kdpm2.py | self.started, self.targets | sample, self.targets
kdpm2.py | self.sigmas[i - i % 2] | self.sigmas[i]
kdpm2.py | timesteps = timesteps.round() | pass
kdpm2_ancestral.py | self.noises = np.sqrt( | self.noises = (
kdpm2_ancestral.py | end - (end - start) * 0.5 | end - (end - start) * 0.3
kdpm2_ancestral.py | variance_next - np.square(self.noises) | variance_next - self.noises
kdpm2_ancestral.py | if second: | if not second:
dpm_solver_sde.py | np.diff(t) * np.float32(0.5) | np.diff(t) * np.float32(0.4)
dpm_solver_sde.py | if i % 2 else self.sigmas[i] | if False else self.sigmas[i]
dpm_solver_sde.py | np.sqrt(variance_end - np.square(up)) | np.sqrt(variance_end - up)
dpm_solver_sde.py | (variance - variance_end) / variance)) | (variance - variance_end)))
dpm_solver_sde.py | expm1_32(t - t_down) | expm1_32(t_down - t)
dpm_solver_sde.py | s_noise * float(up) | s_noise * float(end)
dpm_solver_sde.py | self._towards(self.started, x0 | self._towards(sample, x0
dpm_solver_sde.py | np.sqrt(abs(end - start)) | abs(end - start)
dpm_solver_sde.py | path.increment(end, start) | path.increment(low, high)
dpm_solver_sde.py | return self.config.noise_sampler_seed | return 0
lms.py | (np.float32(s) - past[k]) | (np.float32(s) - past[j])
lms.py | min(i + 1, number) | min(i + 1, 3)
lms.py | self.slopes][:number] | self.slopes][:number - 1]
lms.py | self.sigmas[i], self.sigmas[i + 1] | self.sigmas[i + 1], self.sigmas[i]
lms.py | [(sample - x0) / float(sigma), *self.slopes] | [*self.slopes, (sample - x0) / float(sigma)]
noise_schedule.py | math.exp(-12.0 * t) | math.exp(-10.0 * t)
dpm_solver.py | d1 = float(1 / r0) | d1 = float(r0)
dpm_solver.py | 0.5 * weight["d0"] | weight["d0"]
dpm_solver.py | alpha_t * (e / h + 1) | alpha_t * (e / h - 1)
dpm_solver.py | if order == 1 or h == 0: | if order == 1:
dpm_solver.py | exp32(-h) - 1 | exp32(h) - 1
dpm_solver.py | len(self.timesteps) - 1 - i | len(self.timesteps) - i
dpm_solver.py | len(self.timesteps) < 15 | len(self.timesteps) < 5
dpm_solver.py | if left == 1 and short | if left == 2 and short
dpm_solver.py | float(1 / (r0 + r1)) * bend | float(2 / (r0 + r1)) * bend
dpm_solver.py | float(r0 / (r0 + r1)) * bend | float(r1 / (r0 + r1)) * bend
dpm_solver.py | "d0": -sigma_t * e | "d0": -alpha_t * e
dpm_solver.py | -sigma_t * (e / h - 1) | -sigma_t * (e / h + 1)
dpm_solver.py | (e - h) / np.square(h) - 0.5 | (e - h) / np.square(h) + 0.5
dpm_solver.py | 1 - exp32(-2 * h) | 1 - exp32(-h)
dpm_solver.py | sigma_t / sigma_s * exp32(-h) | sigma_t / sigma_s
dpm_solver.py | "z": sigma_t * np.sqrt(e) | "z": sigma_t * e
dpm_solver.py | alpha_t * (e / (-2 * h) + 1) | alpha_t * (e / (-2 * h) - 1)
dpm_solver.py | np.square(2 * h) - 0.5 | np.square(2 * h) + 0.5
dpm_solver.py | "d0": -2 * (sigma_t * e) | "d0": -(sigma_t * e)
dpm_solver.py | exp32(2 * h) - 1) | exp32(h) - 1)
dpm_solver.py | -2 * (sigma_t * (e / h - 1)) | -(sigma_t * (e / h - 1))
dpm_solver.py | self._levels(t), len | self._levels(s), len
dpm_solver.py | sample.shape, "float32" | sample.shape, "float64"
dpm_solver.py | eps = self._eps_of(x0, x, i) | pass
dpm_solver.py | in ("use_karras_sigmas", "use_lu_lambdas") | in ("use_karras_sigmas",)
exponential.py | lambda_min_clipped", -np.inf)) | lambda_min_clipped", -np.inf)) + 1
exponential.py | self.config[option] if option in self.DEFAULTS else | self.config[option] if option in self.config else
exponential.py | if self.config.thresholding else | if self.config.get("clip_sample") else
exponential.py | return float(alpha) * output + float(sigma) * x | return float(alpha) * output - float(sigma) * x
exponential.py | return (x - float(alpha) * x0) / float(sigma) | return (x - float(sigma) * x0) / float(alpha)
exponential.py | self.alphas_cumprod[-1] = 2**-24 | self.alphas_cumprod[-1] = 2**-14
exponential.py | else self.training_sigmas[0] | else self.training_sigmas[1]
dpm_solver_singlestep.py | i % order + 1 | 1 + (i + 1) % order
dpm_solver_singlestep.py | if to_zero or ( | if (
dpm_solver_singlestep.py | steps % order == 0 | steps % order == 1
dpm_solver_singlestep.py | if order == 1: | if self.start is None:
dpm_solver_singlestep.py | float(1 / r_k) * | float(r_k) *
dpm_solver_singlestep.py | return [d0, d[1]] | return [d0, d[0]]
dpm_solver_singlestep.py | (2.0 * (d[1] - d[0])) | (1.0 * (d[1] - d[0]))
dpm_solver_singlestep.py | float(r[1]) * d[0] - float(r[0]) * d[1] | float(r[1]) * d[1] - float(r[0]) * d[0]
deis.py | rho * (-c + log - 1) | rho * (-c + log + 1)
deis.py | c * (d - log + 1) | c * (d - log - 1)
deis.py | - 2 * log + 2 | - log + 2
deis.py | [*logs[j + 1:], *logs[:j]] | [*logs[j:], *logs[:j]]
deis.py | primitive(rhos[0], logs[j], *others) | primitive(rhos[-1], logs[j], *others)
deis.py | return float(alpha_t) * x_t | return x_t
deis.py | float(sigma_t * e) | float(alpha_t * e)
deis.py | len(self.timesteps) - i) if short | len(self.timesteps) - i) if self.config.lower_order_final
deis.py | return sigmas[-1] if self.sigma_choice | return 0 if self.sigma_choice
unipc.py | moments(hh, b_h)[:len(r)] | moments(hh, b_h)[::-1][:len(r)]
unipc.py | phi * math.factorial(n) | phi
unipc.py | 1 / math.factorial(n + 1) | 1 / math.factorial(n)
unipc.py | if order == 2 - corrects: | if order == 1:
unipc.py | return [0.5] | return [1.0]
unipc.py | not in self.config.disable_corrector | in self.config.disable_corrector
unipc.py | i - 1, self.last_order, corrected | i - 1, 1, corrected
unipc.py | self.last_sample, self.last_order = sample, order | self.last_sample, self.last_order = None, order
unipc.py | self._levels(i - k)[2] - lambda_s) / h | self._levels(i - k)[2] - lambda_s)
unipc.py | float(rho[-1]) * (corrected_by - p) | float(rho[-1]) * corrected_by
unipc.py | self.predictions[-2::-1] | self.predictions[:-1]
unipc.py | order if corrects else order - 1 | order
unipc.py | keep, scale, hh = alpha_t / alpha_s, sigma_t, h | keep, scale, hh = alpha_t / alpha_s, sigma_t, -h
unipc.py | if h == 0 or ( | if (
unipc.py | scale * expm1_32(hh) | scale * (expm1_32(hh) + 1)
unipc.py | len(self.timesteps) - i) | len(self.timesteps) - i + 1)
lcm.py | DATA_VARIANCE = 0.25 | DATA_VARIANCE = 0.5
lcm.py | c_skip = DATA_VARIANCE / (np.square(k) | c_skip = DATA_VARIANCE / (k
lcm.py | if i != self.num_inference_steps - 1 | if True
lcm.py | (train // original) - 1 | (train // original)
lcm.py | np.float32(t) * self.config.timestep_scaling | np.float32(t) * 10.0
tcd.py | np.float32(1 - eta) * | np.float32(eta) *
tcd.py | kept = alpha_bar_u / alpha_bar_s | kept = alpha_bar_s / alpha_bar_u
tcd.py | float(np.sqrt(1 - kept)) * z | float(1 - kept) * z
tcd.py | i != self.num_inference_steps - 1 | True
tcd.py | float(np.sqrt(1 - alpha_bar_s)) * eps | float(np.sqrt(1 - alpha_bar_u)) * eps
tcd.py | np.arange(self._share(train, strength)) | np.arange(1, self._share(train, strength))
ddim_inverse.py | self._alpha_bar(s), self._alpha_bar(t) | self._alpha_bar(t), self._alpha_bar(s)
ddim_inverse.py | timesteps[::-1].copy() | timesteps.copy()
ddim_inverse.py | if self.config.clip_sample: | if False:
ddim_inverse.py | float(np.sqrt(1 - alpha_bar_t)) * eps | float(np.sqrt(1 - alpha_bar_s)) * eps
edm.py | c_skip = 1 / variance * sigma_data**2 | c_skip = 1 / variance * sigma_data
edm.py | c_out = sigma * sigma_data / np.sqrt(variance) | c_out = sigma * sigma_data / variance
edm.py | c_out = -c_out | pass
edm.py | float(1 / np.sqrt(variance)) | float(1 / variance)
edm.py | np.float32(0.25) * | np.float32(0.5) *
edm.py | self.config.sigma_max**2 + 1 | self.config.sigma_max**2
edm.py | linspace32(low, high, steps))[::-1] | linspace32(low, high, steps))
edm_euler.py | return self._denoised(output, x, sigma_hat) | return output
edm_euler.py | steps, config.rho | steps
edm_dpm_solver.py | return np.float32(1), self.sigmas[i] | return 1 / np.sqrt(np.square(self.sigmas[i]) + 1), self.sigmas[i]
edm_dpm_solver.py | return self.config.sigma_min | return 0.1
edm_dpm_solver.py | ** (1 / self.config.rho) | ** (1 / 7.0)
edm_dpm_solver.py | if self.config.thresholding else x0 | if False else x0
edm_dpm_solver.py | self.is_noisy = True, self.config.algorithm_type.startswith("sde") | self.is_noisy = True, False
sigma_tables.py | return shift * sigmas / (1 + (shift - 1) * sigmas) | return shift * sigmas / (1 + shift * sigmas)
flow_match.py | np.arange(train, 0, -1) | np.arange(train - 1, -1, -1)
flow_match.py | self.sigma_max * train, self.sigma_min * train | train, 1
flow_match.py | per_sample(1 - sigma, original) | per_sample(1 + 0 * sigma, original)
flow_match.py | self.add_noise(sample, noise, timestep) | self.add_noise(noise, sample, timestep)
flow_match_euler.py | sigmas if self.config.use_dynamic_shifting else super() | super()
flow_match_euler.py | - slope * config.base_image_seq_len) | )
flow_match_euler.py | scale + (1 / sigmas - 1) | scale + 1 / sigmas
flow_match_euler.py | return number if linear else math.exp(number) | return math.exp(number)
flow_match_euler.py | kept / (kept[-1] / (1 - config.shift_terminal)) | kept / kept[-1] * config.shift_terminal
flow_match_euler.py | sigmas, told = 1 - sigmas, None | told = None
flow_match_euler.py | np.float32(self.config.invert_sigmas) | np.float32(0)
flow_match_euler.py | sigmas * train if told is None else told | sigmas * train
flow_match_euler.py | if told is None else told) / train | ) / train
flow_match_euler.py | float(end - sigma) * model_output | float(sigma - end) * model_output
flow_match_euler.py | float(1 - sigma_next) * x0 | x0
flow_match_euler.py | float(sigma_next) * z | float(sigma) * z
flow_match_euler.py | float(sigma_next - sigma) | float(-sigma)
flow_match_euler.py | sample.shape, "float32" | sample.shape, sample.dtype
flow_match_heun.py | every_twice(sigmas * train)[1:] | every_twice(sigmas * train)[:-1]
flow_match_heun.py | np.float32(0)))[1:-1] | np.float32(0)))[:-2]
flow_match_heun.py | sample - float(self.sigmas[i]) * model_output | sample - float(self.sigmas[i - i % 2]) * model_output
flow_match_heun.py | (self._even_timesteps(steps) / train, self.config.shift) | (self._even_timesteps(steps) / train, 1)
exponential.py | return 1 - ratio, ratio | return np.sqrt(1 - np.square(ratio)), ratio
exponential.py | x0 = x - float(sigma) * output | x0 = x - output
exponential.py | self.config.flow_shift)[:0:-1] | self.config.flow_shift)[::-1][:-1] / 2
exponential.py | timesteps = sigmas * self.config.num_train_timesteps | timesteps = sigmas
unipc.py | sigmas[0] -= 1e-6 * (abs(sigmas[0] - 1) < 1e-6) | pass
unipc.py | shifted(even, self.config.flow_shift) | shifted(even, 1)
prediction.py | return signal * x - noise * output | return signal * x + noise * output
prediction.py | return signal * output + noise * x | return signal * output - noise * x
prediction.py | np.clip(flat, -s, s) / s | np.clip(flat, -s, s)
prediction.py | return (x - noise * output) / signal | return x - noise * output
prediction.py | np.clip(s, 1, | np.clip(s, 0.5,
diffusion.py | if not self.config.get("set_alpha_to_one", True) | if self.config.get("set_alpha_to_one", True)
diffusion.py | per_sample(np.sqrt(1 - alpha_bar) | per_sample(1 - alpha_bar
scheduler.py | if key not in dropped and | if
scheduler.py | Config({**options, **scheduler.config} | Config({**scheduler.config}
scheduler.py | if self.step_index is None else self.step_index | if True else self.step_index
config.py | key for key in defaults if key not in options | key for key in ()
"""  # noqa: E501


SOURCES = {path.name: path.read_text()
           for path in Path(refsd.schedulers.__file__).parent.glob("*.py")}
COPY = "schedulers_with_a_mistake"
NOTICED = defaultdict(set)  # the truths that noticed mistakes, by file


@cache
def compiled(name, text):
    return compile(text.replace("refsd.schedulers", COPY), name, "exec")


class Copy(MetaPathFinder, InspectLoader):
    """Imports the package COPY from texts by file; only those not seen before are compiled."""

    def __init__(self, texts):
        self.texts = texts

    def find_spec(self, name, path=None, target=None):
        return spec_from_loader(name, self) if name.partition(".")[0] == COPY else None

    def is_package(self, name):
        return name == COPY

    def get_source(self, name):
        return self.texts[(name.partition(".")[2] or "__init__") + ".py"]

    def get_code(self, name):
        return compiled(name, self.get_source(name))


@pytest.mark.parametrize("mutant", MUTANTS.strip().splitlines())
def test_mutants(mutant, monkeypatch):
    """One planted mistake in a copy of the package: a truth has to fail.

    Those that noticed others in the same file are asked first, which mostly saves asking the rest.
    """
    file, old, new = mutant.split(" | ")
    assert SOURCES[file].count(old) == 1, f"{file} has {old!r} {SOURCES[file].count(old)} times"
    finder = Copy(SOURCES | {file: SOURCES[file].replace(old, new)})
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    copy = importlib.import_module(COPY)
    try:
        for truth in sorted(TRUTHS, key=lambda truth: truth not in NOTICED[file]):
            if fails(truth, copy):
                NOTICED[file].add(truth)
                return
        pytest.fail("no truth noticed")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == COPY]:
            del sys.modules[name]


def fails(truth, schedulers):
    try:
        with np.errstate(all="ignore"):
            truth(schedulers)
    except (AssertionError, ArithmeticError, AttributeError, LookupError, ValueError):
        return True
    return False


RUNS = [
    ("DDIMScheduler", {}, {"eta": 0.7}),
    ("DDIMScheduler", {"prediction_type": "v_prediction"}, {}),
    ("DDPMScheduler", {}, {}),
    ("PNDMScheduler", {"skip_prk_steps": True}, {}),
    ("PNDMScheduler", {}, {}),
    ("EulerDiscreteScheduler", {}, {"s_churn": 2.0}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}, {}),
    ("EulerAncestralDiscreteScheduler", {}, {}),
    ("HeunDiscreteScheduler", {}, {}),
    ("KDPM2DiscreteScheduler", {"prediction_type": "v_prediction"}, {}),
    ("KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    ("LMSDiscreteScheduler", {}, {}),
    ("DPMSolverSDEScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("DEISMultistepScheduler", {"solver_order": 3}, {}),
    ("UniPCMultistepScheduler", {}, {}),
    ("LCMScheduler", {}, {}),
    ("TCDScheduler", {}, {}),
    ("DDIMInverseScheduler", {}, {}),
    ("EDMEulerScheduler", {}, {"s_churn": 2.0}),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, {}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, {}),
    ("DPMSolverMultistepScheduler", sampler_flow_truths.FLOW, {}),
    ("UniPCMultistepScheduler", sampler_flow_truths.FLOW, {}),
]


class Plain:
    """An array that knows + - * / with its like and with Python's own numbers; nothing else."""

    __array_ufunc__ = None

    def __init__(self, data):
        self.data, self.shape, self.dtype = data, data.shape, data.dtype

    def _apply(self, other, operation):
        assert type(other) in (Plain, float, int), f"met a {type(other)}"
        other = other.data if isinstance(other, Plain) else other
        result = operation(self.data, other)
        assert result.dtype == self.dtype
        return Plain(result)

    def __add__(self, other):
        return self._apply(other, lambda a, b: a + b)

    def __sub__(self, other):
        return self._apply(other, lambda a, b: a - b)

    def __rsub__(self, other):
        return self._apply(other, lambda a, b: b - a)

    def __mul__(self, other):
        return self._apply(other, lambda a, b: a * b)

    def __truediv__(self, other):
        return self._apply(other, lambda a, b: a / b)

    __radd__, __rmul__ = __add__, __mul__


@pytest.mark.parametrize("name, config, options", [run for run in RUNS if "SDE" not in run[0]])
def test_any_array_type_with_operators_serves(name, config, options):
    class PlainNoise(Noise):
        def randn(self, shape, dtype):
            return Plain(super().randn(shape, dtype))

    results = []
    for wrap, noise in ((lambda x: x, Noise(3)), (Plain, PlainNoise(3))):
        scheduler = make(refsd.schedulers, name, 8, **SD, **config)
        x = wrap(np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4))
        x = scheduler.add_noise(x, noise.randn((2, 3, 4), np.float32), scheduler.timesteps[0])
        results.append(run(scheduler, lambda x, i: x * 0.1, x, generator=noise, **options))
    assert np.array_equal(results[0], results[1].data)


@pytest.mark.parametrize("name, config, options", RUNS)
def test_dtype_in_is_dtype_out(name, config, options):
    results = []
    for dtype in (np.float32, np.float64):
        scheduler = make(refsd.schedulers, name, 8, **SD, **config)
        x = np.linspace(-1, 1, 24).reshape(2, 3, 4).astype(dtype)
        x = run(scheduler, lambda x, i: x * 0.1, x, generator=Noise(3), **options)
        assert x.dtype == dtype
        results.append(x)
    # 8 steps of some 10 roundings on terms of up to 15 (x0 at the noisiest step).
    assert np.abs(results[0] - results[1]).max() < 8 * 10 * EPS * 15


@pytest.mark.parametrize("name, config, options", RUNS)
def test_nothing_is_left_of_an_earlier_run(name, config, options):
    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    before = x.copy()

    def model(x, i):
        return np.tanh(x + 0.1 * i)

    fresh = make(refsd.schedulers, name, 8, **SD, **config)
    expected = run(fresh, model, x, generator=Noise(3), **options)
    used = make(refsd.schedulers, name, 12, **SD, **config)
    for t in used.timesteps[:5]:
        used.step(model(x, 0), t, x, generator=Noise(9), **options)
    used.set_timesteps(8)
    assert np.array_equal(run(used, model, x, generator=Noise(3), **options), expected)
    used.set_timesteps(8)
    assert np.array_equal(run(used, model, x, generator=Noise(3), **options), expected)
    assert np.array_equal(x, before)
