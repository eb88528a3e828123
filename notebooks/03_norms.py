# %% [markdown]
# # 3. Norms and activations
#
# A network is a long chain of ops, and something must keep its numbers from growing or fading on
# the way. That is what normalisations do. Each has a constant that looks too small to matter,
# $\varepsilon$. Here you see what it does, change it in a trained network, look for the difference
# in the picture, and then find it where it cannot hide.

# %%
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
from pace import few
from pictures import show

import refsd
from refsd import F
from refsd.golden.comparing.bisect import bisect
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.comparing.report import sentence
from refsd.golden.packs.pack import Pack
from refsd.golden.recording.kinds import request_of
from refsd.golden.recording.make import make
from refsd.golden.recording.record import Recorder, Selection
from refsd.golden.recording.run import run

plt.style.use("refsd.mplstyle")
LABELS = {1e-6: "10^{-6}", 1e-5: "10^{-5}", 1e-3: "10^{-3}"}

# %% [markdown]
# ## Group normalisation
#
# An activation is $(N, C, H, W)$. The channels of each image are cut into groups, and each group
# is shifted and scaled to mean 0 and variance 1; then every channel $c$ has a weight and a bias:
#
# $$y = w_c\,\frac{x-\mu}{\sqrt{\sigma^2+\varepsilon}} + b_c,\qquad
# \mu = \frac1n\sum x,\quad \sigma^2 = \frac1n\sum (x-\mu)^2 \quad\text{over a group's } n
# \text{ numbers.}$$
#
# That is four lines of NumPy. refsd's definition and its Numba kernel give the same but for
# rounding.

# %%
def group_norm(x, weight, bias, *, groups, eps):
    """(N, C, H, W) -> the same"""
    g = x.reshape(len(x), groups, -1)
    g = g - g.mean(axis=-1, keepdims=True)
    g = g / np.sqrt((g * g).mean(axis=-1, keepdims=True) + eps)
    return g.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


rng = np.random.default_rng(0)
x, weight, bias = (rng.normal(size=s).astype("f4") for s in ((1, 64, 16, 16), 64, 64))
ours = group_norm(x, weight, bias, groups=32, eps=1e-5)
for backend in ("numpy", "numba"):
    with refsd.use(backend):
        theirs = F.group_norm(x, weight, bias, groups=32, eps=1e-5)
    print(f"{backend}: the largest difference is {abs(ours - theirs).max():.1e}")

# %% [markdown]
# **Question.** The result is to have variance 1 whatever goes in. With $\varepsilon = 10^{-5}$,
# what becomes of a group whose standard deviation is 0.001?

# %%
sigma = np.logspace(-5, 1, 200)
figure, axis = plt.subplots(figsize=(6.4, 2.8))
for eps, label in LABELS.items():
    axis.semilogx(sigma, sigma / np.sqrt(sigma**2 + eps), markevery=25,
                  label=rf"$\varepsilon = {label}$")
axis.set(xlabel=r"standard deviation $\sigma$ of a group", ylabel="that of the result")
axis.legend()
plt.show()

# %% [markdown]
# 0.3, for the variance, $10^{-6}$, is a tenth of $\varepsilon$. A group that varies by much more
# than $\sqrt\varepsilon$ is normalised, one that varies by much less is left nearly flat. So
# $\varepsilon$ does more than guard against a division by 0: it is the threshold below which
# differences count as noise. Whether it matters depends on what a network's norms are given. We
# ask the network: `refsd.watch` calls a function after every op.

# %%
deviations, given = {}, {}


def listen(op, inputs, options, output):
    """Keep the deviations of groups, and some of the numbers that activations are given."""
    x = inputs.get("x")
    if op == "group_norm":
        part, _, layer = inputs["weight"].name.partition(".")
        place = "transformers" if "attentions" in layer else "resnets"
        kind = "VAE" if part == "vae" else f"UNet, {place}"
        found = x.reshape(len(x) * options["groups"], -1).std(axis=-1)
        deviations.setdefault((kind, options["eps"]), []).append(found)
    elif op in ("silu", "quick_gelu", "geglu"):
        x = x[..., x.shape[-1] // 2:] if op == "geglu" else x  # the half that goes through GELU
        given.setdefault(op, []).append(x.ravel()[::17])


PROMPT = "a glossy red sphere left of a small blue cube"
draw = {"num_inference_steps": few(10, 2), "guidance_scale": 3, "generator": 2, "output_type": "np"}
with refsd.watch(listen):
    right = refsd.StableDiffusionPipeline.from_pretrained()(PROMPT, **draw).images[0]

figure, axis = plt.subplots(figsize=(7.4, 2.8))
for ((kind, eps), found), style in zip(sorted(deviations.items()), ("-", "--", ":")):
    found = np.concatenate(found)
    axis.hist(found, bins=np.logspace(-4, 2, 120), weights=np.full(len(found), 100 / len(found)),
              histtype="step", linestyle=style, linewidth=1.4,
              label=rf"{kind} ($\varepsilon = {LABELS[eps]}$)")
for eps, label in LABELS.items():
    axis.axvline(np.sqrt(eps), color="0.6", linewidth=0.8)
    axis.text(np.sqrt(eps), axis.get_ylim()[1], rf"$\sqrt{{{label}}}$", fontsize=7,
              ha="right" if eps == min(LABELS) else "left", va="bottom")
axis.set(xscale="log", xlabel=r"standard deviation $\sigma$ of a group that a norm is given",
         ylabel="groups (%)")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# The checkpoint was trained with $10^{-5}$ in the UNet's resnets, and with $10^{-6}$ in its
# transformers and in the VAE. All these thresholds lie far to the left of what the norms are
# given: at the UNet's usual $\sigma$ of 2 to 5, $\varepsilon = 10^{-5}$ changes the result by
# about a millionth.
#
# ## A wrong eps
#
# Suppose that a port has this constant wrong in the UNet's resnets: $10^{-6}$, or even $10^{-3}$,
# in place of $10^{-5}$. Everything else is right.
#
# **Question.** Two of these four pictures come from a wrong network. Which?

# %%
def picture(eps, **options):
    """What the network draws if its resnets' norms have this eps."""
    pipe = refsd.StableDiffusionPipeline.from_pretrained(**options)
    pipe.unet.config = replace(pipe.unet.config, eps=eps)
    return pipe(PROMPT, **draw).images[0]


drawn = {"A": picture(1e-6), "B": picture(1e-5, exact=True), "C": picture(1e-3), "D": right}
show([*drawn.values()], [*drawn], side=1.5)

# %% [markdown]
# A and C. B is as right as D: its convolutions add up plain products where D's use Winograd's
# algorithm, so that they round differently. No eye tells the four apart. Here are the differences
# to D, a thousand times as strong.

# %%
for name, eps in (("A", "1e-6"), ("B", "1e-5"), ("C", "1e-3")):
    error = abs(drawn[name] - right).max()
    changed = np.mean(np.round(255 * drawn[name]) != np.round(255 * right))
    print(f"{name}, eps {eps}: at most {error:.1e} from D, where white is 1; "
          f"{changed:.2%} of the bytes differ")
show([np.clip(1000 * abs(drawn[name] - right), 0, 1) for name in "ABC"],
     ["|A - D| x 1000", "|B - D| x 1000", "|C - D| x 1000"], side=1.5)

# %% [markdown]
# Hardly a byte changes, and yet two of these networks are wrong. In a network whose groups vary
# less the same mistake will show, and then nobody knows where to look.
#
# ## What golden tensors see
#
# A picture is where all errors end up, added together and rounded to bytes. A *golden pack* has
# what is on the way: the tensors of a run in float64, under the checkpoint's names, each with what
# a right port in float32 may differ by there. That was measured: the run is repeated with other
# roundings, and the tolerance is what they spread ([docs/tolerances.md](../docs/tolerances.md)).
# One pack lies in the repository, of 4 steps at 64 x 64. We follow its recipe with three values of
# $\varepsilon$, record all tensors, and compare each with the golden one.

# %%
FOLDER, GOLDEN = Path(mkdtemp()), Path("..", "golden", "bundled")
with Pack.open(GOLDEN) as pack:
    recipe = pack.manifest.recipe
REQUEST = request_of(recipe)


class Tensors(dict):
    """What a recorder finds, by name."""

    holds = dict.__contains__

    def add(self, name, array, **about):
        self[name] = np.asarray(array)

    def checkpoint(self, percent, name, step):
        """A pack has marks at 0, 25, ... % of the steps; here nobody asks for them."""


def record(eps):
    """The file with every tensor of a float32 run with this eps."""
    pipe, tensors = refsd.StableDiffusionPipeline.from_pretrained(), Tensors()
    pipe.unet.config = replace(pipe.unet.config, eps=eps)
    run(pipe, REQUEST, Recorder(tensors, Selection(level=3)))
    np.savez(FOLDER / f"{eps}.npz", **tensors)
    return FOLDER / f"{eps}.npz"


files, results = {eps: record(eps) for eps in few([*LABELS], [1e-6])}, {}
with Pack.open(GOLDEN) as pack:
    for eps, file in files.items():
        with Candidate.open(file) as candidate:
            results[eps] = compare(pack, candidate)
        print(f"eps = {eps:g}: {sentence(results[eps])}\n")

# %%
figure, axis = plt.subplots(figsize=(7, 3))
for (eps, result), marker in zip(results.items(), "vos"):
    of = [v for v in result.verdicts if v.kind in ("spread", "largest") and v.times > 0]
    axis.semilogy([v.entry.index for v in of], [v.times for v in of], marker, linestyle="none",
                  label=rf"$\varepsilon = {LABELS[eps]}$" + (", right" if eps == 1e-5 else ""))
axis.axhline(1, color="0.4", linewidth=0.8, marker="")
axis.set(xlabel="tensor, in the order of execution", ylabel="error / tolerance", ylim=(1e-3, None))
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# $10^{-3}$ is found at the first block that has such a norm. $10^{-6}$ makes the errors ten times
# as large, and still most of them stay below the line: what a whole network allows a tensor must
# have room for all the rounding before it, and the mistake is hardly larger than that.
#
# **Question.** How can so small a mistake be told from rounding?

# %%
make(FOLDER / "ops", REQUEST, selection=Selection(level=3, include=("unet/000/*",)))
found = {}
with Pack.open(FOLDER / "ops") as pack:
    for eps in few([1e-6, 1e-5], [1e-6]):
        with Candidate.open(files[eps]) as candidate:
            found[eps] = bisect(pack, candidate)
        print(f"eps = {eps:g}: {found[eps].sentence}\n")

figure, axis = plt.subplots(figsize=(7, 3))
for norms, marker in ((True, "o"), (False, ".")):
    rows = [row for row in found[1e-6].rows
            if (row.entry.op == "group_norm") == norms and row.times > 0]
    axis.semilogy([row.entry.index for row in rows], [row.times for row in rows], marker,
                  linestyle="none", color="C2" if norms else "0.5",
                  label="group norms" if norms else "all other ops")
axis.axhline(1, color="0.4", linewidth=0.8, marker="")
axis.set(xlabel="op, in the order of execution", ylabel="own error / tolerance", ylim=(1e-3, None),
         title=r"the network with $\varepsilon = 10^{-6}$")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# By judging each op alone. We made another pack, with every op of the first step, and `bisect`
# computes each of them again, in float64, on the inputs that *this* run had. Nothing is inherited,
# so an op may be off by its own few roundings and no more (an addition by one, which some use up:
# the dots on the line). The right network passes. The wrong one fails at its first norm, and the
# reason is stated. The norms below the line are the transformers', whose $\varepsilon$ is right,
# and those whose groups vary so much that $\varepsilon$ drowns.
#
# ## Activations
#
# Between two norms stands a function that is not linear; without it the network would be one
# matrix. Resnets use SiLU, CLIP's text encoder "quick GELU", the transformers GELU:
#
# $$\text{SiLU}(x) = x\,s(x),\qquad \text{quick GELU}(x) = x\,s(1.702x),\qquad
# \text{GELU}(x) = x\,\Phi(x),$$
# $$\text{GELU}_{\tanh}(x) = \frac x2\left(1+\tanh\left(\sqrt{2/\pi}\,
# (x+0.044715x^3)\right)\right)$$
#
# with the logistic function $s(x) = 1/(1+e^{-x})$ and the normal distribution's $\Phi$. The last
# approximates GELU without erf, and quick GELU does so more coarsely.
#
# **Question.** Where do they differ most: near 0, near 2, or far out? And where are the numbers
# that the network gives them?

# %%
x = np.linspace(-6, 6, 1201).astype("f4")
curves = {"GELU": F.gelu(x), "GELU by tanh": F.gelu_tanh(x), "quick GELU": F.quick_gelu(x),
          "SiLU": F.silu(x)}
figure, axes = plt.subplots(3, 1, figsize=(7, 6), sharex=True)
for i, (name, y) in enumerate(curves.items()):
    style = {"color": f"C{i}", "marker": "os^D"[i], "linestyle": ("-", "--", "-.", ":")[i],
             "markevery": (30 * i, 120)}
    axes[0].plot(x, y, label=name, **style)
    if name != "GELU":
        axes[1].semilogy(x, abs(y - curves["GELU"]), label=f"{name} - GELU", **style)
for (op, numbers), style in zip(given.items(), ("-", "--", ":")):
    numbers = np.concatenate(numbers)
    axes[2].hist(numbers, bins=np.linspace(-6, 6, 121), density=True,
                 histtype="step", linestyle=style, linewidth=1.4, label=f"given to {op}")
axes[0].set(ylabel="y", ylim=(-0.5, 3))
axes[1].set(ylabel="|difference|", ylim=(1e-7, 1))
axes[2].set(ylabel="density", xlabel="x")
for axis in axes:
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Near 2 and -2 (the tanh form a little further out), and that is within what the network computes.
# The tanh form is off by 0.0005 at most, quick GELU by 0.02. And the picture?
#
# **Question.** CLIP was trained with quick GELU. Give it the better GELU: is the picture better?

# %%
pipe = refsd.StableDiffusionPipeline.from_pretrained()
pipe.text_encoder.config = replace(pipe.text_encoder.config, activation="gelu")
gelu = pipe(PROMPT, **draw).images[0]
print(f"{np.mean(np.round(255 * gelu) != np.round(255 * right)):.0%} of the bytes differ, "
      f"by {255 * abs(gelu - right).max():.0f} of 255 at most")
show([right, gelu, np.clip(20 * abs(gelu - right), 0, 1)],
     ["quick GELU", "GELU", "|difference| x 20"], side=1.5)

# %% [markdown]
# Neither better nor worse: a slightly different one. The weights were trained around the function
# that was there, flaws included, so the right one is the checkpoint's.
#
# ## What to take along
#
# * $\varepsilon$ is a threshold on the variance, and as much a part of a checkpoint as a weight.
#   refsd has no default for it, so that nobody can forget it.
# * A picture that looks right proves little. Compare tensors, and judge each op on the inputs that
#   it had.
# * An approximation of an activation is another function. A checkpoint's config says which it
#   wants.
#
# **Read next:** [4. Attention](04_attention.ipynb), and [8. Porting](08_porting.ipynb), where
# `bisect` finds the mistakes of a port. In the repository:
# [refsd/ops/norm.py](../refsd/ops/norm.py) beside
# [refsd/numba_ops/cpu/norm.py](../refsd/numba_ops/cpu/norm.py), and
# [docs/tolerances.md](../docs/tolerances.md). Papers: Wu and He 2018, *Group Normalization*;
# Hendrycks and Gimpel 2016, *Gaussian Error Linear Units*.
