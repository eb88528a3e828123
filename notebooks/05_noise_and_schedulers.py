# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Noise and schedulers
#
# Training adds noise to pictures by a known recipe. Sampling runs the recipe backwards, and the
# backward path is an ordinary differential equation. So a sampler is a numerical integrator, and
# can be judged as one: by its order of convergence. Here you measure it where the exact solution
# is known, and see it in pictures.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from pace import few  # few(full, fast) is full; the tests of these notebooks take fast
from pictures import show

from refsd import StableDiffusionPipeline, schedulers
from refsd.pipelines import stages
from refsd.random import TorchGenerator

plt.style.use("refsd.mplstyle")
pipe = StableDiffusionPipeline.from_pretrained()
prompt = "a glossy red sphere left of a small blue cube"

# %% [markdown]
# ## The recipe
#
# Training step $t$ of $T = 1000$ mixes a picture's latents $x_0$ with noise $\varepsilon \sim
# \mathcal N(0, I)$:
#
# $$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1 - \bar\alpha_t}\,\varepsilon, \qquad
# \bar\alpha_t = \prod_{i \le t} (1 - \beta_i), \qquad
# \sigma_t = \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t}$$
#
# Divided by $\sqrt{\bar\alpha_t}$ it is $x_0 + \sigma_t \varepsilon$: the same thing in other
# units. DDIM, PNDM and DPM++ count in $x_t$, Euler in $x_0 + \sigma \varepsilon$.

# %%
alpha_bar = schedulers.DDIMScheduler.from_config(pipe.scheduler.config).alphas_cumprod.astype(float)
sigma = np.sqrt((1 - alpha_bar) / alpha_bar)

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8))
every = {"markevery": 125}
left.plot(np.sqrt(alpha_bar), label=r"signal $\sqrt{\bar\alpha_t}$", **every)
left.plot(np.sqrt(1 - alpha_bar), label=r"noise $\sqrt{1 - \bar\alpha_t}$", **every)
left.set(xlabel="training step $t$", ylabel="weight")
left.legend()
right.semilogy(sigma, marker="", label=r"$\sigma_t$")
for name, marker, options in (("evenly spaced in $t$", "o", {}),
                              ("Karras", "x", {"use_karras_sigmas": True})):
    euler = schedulers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, **options)
    euler.set_timesteps(10)
    right.plot(euler.timesteps, euler.sigmas[:-1], marker, label=f"10 steps, {name}")
right.set(xlabel="training step $t$", ylabel=r"$\sigma_t$")
right.legend()
plt.show()

# %% [markdown]
# **Question.** At which $t$ will you no longer recognise the picture: where signal and noise are
# equal ($\sigma = 1$), before, or after?

# %%
scheduler = pipe.scheduler
clean = pipe(prompt, num_inference_steps=few(20, 3), guidance_scale=3, generator=2,
             output_type="latent")
x0 = clean.images
noise = TorchGenerator(0).randn(*x0.shape)
shown = [0, 100, 250, 400, 550, 700, 850, 999]
noisy = np.concatenate([scheduler.add_noise(x0, noise, t) for t in shown])
show(stages.decode(pipe.vae, noisy), [f"t = {t}\n$\\sigma$ = {sigma[t]:.2f}" for t in shown])

# %% [markdown]
# Long after: the sphere can be made out where the noise is three times as strong as the signal.
# What is large survives noise, what is small does not. So the way back, from noise to picture,
# first decides what is large.
#
# ## The way back is an equation
#
# Given $x = x_0 + \sigma\varepsilon$, there is a best guess of the noise,
# $\hat\varepsilon(x, \sigma)$; a network learns it. Song et al. (2021) showed that the path
#
# $$\frac{dx}{d\sigma} = \hat\varepsilon(x, \sigma)$$
#
# carries noise at large $\sigma$ to pictures at $\sigma = 0$. No network is needed to study how
# well a sampler follows it. If the data are Gaussian, $x_0 \sim \mathcal N(\mu, s^2)$, the best
# guess and the path are known:
#
# $$\hat\varepsilon = \frac{\sigma\,(x - \mu)}{s^2 + \sigma^2}, \qquad
# x(\sigma) = \mu + (x_T - \mu) \sqrt{\frac{s^2 + \sigma^2}{s^2 + \sigma_T^2}}$$

# %%
mean, s = 0.8, 0.5


def best_guess(x, sigma):
    return sigma * (x - mean) / (s**2 + sigma**2)


def path(x_T, sigma):
    """The exact x at each sigma, of the path that is at x_T at the first."""
    return mean + (x_T - mean) * np.sqrt((s**2 + sigma**2) / (s**2 + sigma[0] ** 2))


figure, axis = plt.subplots(figsize=(6, 2.8))
fine, coarse = np.linspace(4, 0, 200), np.linspace(4, 0, 6)
for x_T in (-6, -1, 3, 8):
    axis.plot(fine, path(x_T, fine), "k-", label="exact" if x_T == 8 else None)
    points = [x_T]
    for a, b in pairwise(coarse):
        points.append(points[-1] + (b - a) * best_guess(points[-1], a))
    axis.plot(coarse, points, "s--", color="C2", label="Euler, 5 steps" if x_T == 8 else None)
axis.set(xlabel=r"$\sigma$ (the run goes from left to right)", ylabel="$x$")
axis.invert_xaxis()
axis.legend()
plt.show()

# %% [markdown]
# Euler's method follows the tangent, and the paths bend: it lands beside the target. More steps
# help. **How much** is the order: with order $p$, twice the steps leave $2^{-p}$ of the error.
#
# **Question.** All samplers below call the model once a step. Which of them will profit most from
# twice the steps? By how much?

# %%
COMMON = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SAMPLERS = {
    "DDIM": (schedulers.DDIMScheduler, {"clip_sample": False}),
    "Euler": (schedulers.EulerDiscreteScheduler, {}),
    "PNDM": (schedulers.PNDMScheduler, {"skip_prk_steps": True}),
    "DPM++ 2M": (schedulers.DPMSolverMultistepScheduler, {}),
}


def error_on_gaussian(kind, options, steps, start=10.0, end=199):
    """How far from the exact path a run from t = 999 is at t = 199, in x0 + sigma eps."""
    sampler = kind(timestep_spacing="trailing", **COMMON, **options)
    sampler.set_timesteps(steps)
    in_sigma_space = kind is schedulers.EulerDiscreteScheduler
    x = np.full((1, 1), start if in_sigma_space else start * np.sqrt(alpha_bar[-1]))
    for t in sampler.timesteps[sampler.timesteps > end]:
        x_t = sampler.scale_model_input(x, t)
        eps = best_guess(x_t / np.sqrt(alpha_bar[int(t)]), sigma[int(t)])
        x = sampler.step(eps, t, x).prev_sample
    x = x if in_sigma_space else x / np.sqrt(alpha_bar[end])
    return abs(x.item() - path(start, sigma[[-1, end]])[1])


counts = [10, 20, 40, 50, 100, 200]
errors = {name: [error_on_gaussian(*how, n) for n in counts] for name, how in SAMPLERS.items()}

figure, axis = plt.subplots(figsize=(5, 3.2))
for name, error in errors.items():
    order = np.polyfit(np.log(counts[-3:]), np.log(error[-3:]), 1)[0]
    axis.loglog(counts, error, label=f"{name}: slope {order:.2f}")
axis.set(xlabel="steps (model calls)", ylabel="error", xticks=counts)
axis.set_xticklabels(counts)
axis.minorticks_off()
axis.grid(True)
axis.legend()
plt.show()

# %% [markdown]
# DDIM and Euler have the same error: DDIM **is** Euler's method in $\sigma$, written in $x_t$.
# PNDM and DPM++ 2M remember earlier predictions and fit the bend with them, which costs no model
# call: order 2. (`tests/sampler_gaussian_truths.py` holds every sampler of refsd to its order,
# those that draw noise too: there the deviation of the results converges, with order 1.)
#
# ## The same in pictures
#
# **Question.** One seed, eight samplers, 2 to 50 steps. Which rows end at the same picture on the
# right, and which never will?

# %%
config = pipe.scheduler.config
DETERMINISTIC = {
    "DDIM": schedulers.DDIMScheduler.from_config(config),
    "Euler": schedulers.EulerDiscreteScheduler.from_config(config),
    "PNDM": schedulers.PNDMScheduler.from_config(config, skip_prk_steps=True),
    "DPM++ 2M": schedulers.DPMSolverMultistepScheduler.from_config(config),
    "DPM++ Karras": schedulers.DPMSolverMultistepScheduler.from_config(
        config, use_karras_sigmas=True),
}
STOCHASTIC = {
    "DDPM": schedulers.DDPMScheduler.from_config(config),
    "Euler a": schedulers.EulerAncestralDiscreteScheduler.from_config(config),
    "LCM": schedulers.LCMScheduler.from_config(config),
}


def latents(sampler, steps):
    pipe.scheduler = sampler
    return pipe(prompt, num_inference_steps=steps, guidance_scale=3, generator=2,
                output_type="latent").images


columns = [2, 4, 8, 15, 25, 50][:few(6, 2)]
ends = {(name, n): latents(sampler, n)
        for name, sampler in (DETERMINISTIC | STOCHASTIC).items() for n in columns}
drawn = stages.decode(pipe.vae, np.concatenate([*ends.values()]))
show(drawn, [f"{n} steps" for n in columns], columns=len(columns),
     rows=[*DETERMINISTIC, *STOCHASTIC], side=0.8)

# %% [markdown]
# The first five integrate the same equation: they agree, once they have converged. DDPM and Euler
# ancestral add fresh noise at every step, so that more steps are another picture, not a better
# one (with the same seed they draw the same: they are one formula in two units). LCM expects a
# model that was distilled for it, which this one was not.
#
# And PNDM, the most exact of all on the Gaussian, is the worst at few steps. Order promises
# something for **many** steps. PNDM weighs the last four predictions with 55/24, -59/24, 37/24
# and -9/24: where they differ much from step to step, as under guidance, it amplifies the
# difference.
#
# How many steps are enough? Measure the distance to a run of many steps.

# %%
solution = latents(schedulers.DPMSolverMultistepScheduler.from_config(config), few(200, 20))
figure, axis = plt.subplots(figsize=(5, 3.2))
for name in DETERMINISTIC:
    distance = [np.sqrt(np.mean((ends[name, n] - solution) ** 2)) for n in columns]
    axis.loglog(columns, distance, label=name)
axis.set(xlabel="steps", ylabel="RMS distance of the latents", xticks=columns)
axis.set_xticklabels(columns)
axis.minorticks_off()
axis.grid(True)
axis.legend()
plt.show()

# %% [markdown]
# On Karras' sigmas, which are dense where the path bends, DPM++ 2M is closer after 15 steps than
# DDIM after 50. The eye is content earlier: 8 steps of either look right.
#
# ## There and back: DDIM inversion
#
# A deterministic path can be walked in both directions. From a finished picture **up** to noise,
# each step takes the noise predicted where it stands:
#
# $$x_{t+h} = \sqrt{\bar\alpha_{t+h}}\;\hat x_0(x_t)
# + \sqrt{1 - \bar\alpha_{t+h}}\;\hat\varepsilon(x_t)$$
#
# The way **down** predicts at the other end of each step, so the two do not cancel exactly.
#
# **Question.** How will the error of the round trip depend on the number of steps?

# %%
def embed(text):
    return stages.encode_text(pipe.text_encoder, stages.tokenize(pipe.tokenizer, [text]))


def invert(x, text, steps):
    """x_0 -> x_T along the predicted noise.   (1, 4, h, w) -> the same"""
    ddim.set_timesteps(steps)
    for t, after in pairwise([0, *ddim.timesteps[::-1]]):
        a, b = np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t])
        v = pipe.unet(x, t, text)  # this model predicts v = a eps - b x0
        clean, eps = a * x - b * v, a * v + b * x
        x = np.sqrt(alpha_bar[after]) * clean + np.sqrt(1 - alpha_bar[after]) * eps
    return x


def generate(x, text, steps):
    ddim.set_timesteps(steps)
    for t in ddim.timesteps:
        x = ddim.step(pipe.unet(x, t, text), t, x).prev_sample
    return x


ddim, text = DETERMINISTIC["DDIM"], embed(prompt)
trips = [5, 10, 20, 50, 100][:few(5, 2)]
found = {n: invert(x0, text, n) for n in trips}
returned = {n: generate(found[n], text, n) for n in trips}
show(stages.decode(pipe.vae, np.concatenate([x0, found[trips[-1]], *returned.values()])),
     ["picture", "noise found", *(f"{n} + {n} steps" for n in trips)])

# %%
gap = [np.sqrt(np.mean((returned[n] - x0) ** 2)) / x0.std() for n in trips]
z = found[trips[-1]]
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8))
left.loglog(trips, gap, label="round trip")
left.loglog(trips, gap[-1] * trips[-1] / np.array(trips), marker="", label="1 / steps")
left.set(xlabel="steps each way", ylabel="RMS error / deviation of $x_0$", xticks=trips)
left.set_xticklabels(trips)
left.minorticks_off()
left.legend()
right.hist(z.ravel(), bins=25, density=True, histtype="step", color="C0", linestyle="-",
           label="noise found")
grid = np.linspace(-4, 4, 100)
right.plot(grid, np.exp(-grid**2 / 2) / np.sqrt(2 * np.pi), color="C2", linestyle="--", marker="",
           label=r"$\mathcal{N}(0, 1)$")
right.set(xlabel="value", ylabel="density")
right.legend()
plt.show()

# %% [markdown]
# With 5 or 10 steps the ground comes back in another colour; from 20 on the error falls like 1 /
# steps, as that of the two halves does. The noise at the top is nearly normal, a little narrower.
#
# It belongs to this picture as the seed's noise belongs to its own. So the picture
# can be drawn again with **another prompt**: what the new text does not contradict stays where it
# was.

# %%
steps = few(50, 3)
z = invert(x0, text, steps)
edits = [prompt, prompt.replace("red", "yellow"), prompt.replace("blue cube", "green cone")]
changed = [generate(z, embed(edit), steps) for edit in edits]
show(stages.decode(pipe.vae, np.concatenate([x0, *changed])),
     ["picture", *(edit.replace(" left", "\nleft") for edit in edits)], side=1.7)

# %% [markdown]
# ## Read next
#
# * `refsd/schedulers/`: each sampler is one file that opens with its formula; `docs/schedules.md`
#   lists where diffusers' tables surprise.
# * [Notebook 6](06_the_autoencoder.ipynb): what the latents are that all this happens to.
# * Song, Meng and Ermon 2021, *Denoising Diffusion Implicit Models*, arXiv:2010.02502; Karras et
#   al. 2022, *Elucidating the Design Space of Diffusion-Based Generative Models*,
#   arXiv:2206.00364.
