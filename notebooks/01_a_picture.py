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
# # 1. A picture in ten minutes
#
# A prompt goes in, a picture comes out. Between the two are five stages, each of which is a
# function on plain NumPy arrays. Here you run them one after the other, look at what passes
# between them, and turn the two knobs that everyone turns: the seed and the guidance.
#
# The model is the one that ships with refsd: 9 million parameters, which have seen nothing but
# ray-traced solids. Its parts are those of Stable Diffusion, only narrower, so all of this holds
# for the large ones too.

# %%
import matplotlib.pyplot as plt
import numpy as np
from pace import few  # few(full, fast) is full; the tests of these notebooks take fast
from pictures import show

from refsd import StableDiffusionPipeline
from refsd.notebook import playground
from refsd.pipelines import stages
from refsd.random import TorchGenerator

plt.style.use("refsd.mplstyle")

# %% [markdown]
# ## From prompt to PNG

# %%
pipe = StableDiffusionPipeline.from_pretrained()  # or a folder, a file, a hub id
prompt = "a glossy red sphere left of a small blue cube"
image = pipe(prompt, num_inference_steps=few(20, 3), guidance_scale=3, generator=2).images[0]
image.save("picture.png")
show([image], [f"{image.width} x {image.height} pixels"], side=2)

# %% [markdown]
# ## Stages 1 and 2: the text becomes numbers
#
# The tokenizer cuts the prompt into tokens and looks up an integer for each. The text encoder, a
# transformer, turns each token into a vector that knows the tokens before it. The picture never
# sees the words: only these vectors.

# %%
pieces = pipe.tokenizer.pieces(prompt)
print("  ".join(f"{piece.text.strip()}:{piece.id}" for piece in pieces))

ids = stages.tokenize(pipe.tokenizer, ["", prompt])  # the empty text: needed for guidance, below
text = stages.encode_text(pipe.text_encoder, ids)
print("ids", ids.shape, "->  text", text.shape)

# %% [markdown]
# ## Stages 3 and 4: noise becomes latents
#
# The UNet does not work on pixels but on **latents**, 4 numbers for every 8 x 8 pixels. It starts
# from pure noise, $x_T \sim \mathcal N(0, I)$, and a scheduler leads it along a list of timesteps
# $t$ down to 0. In each step the UNet looks at $x_t$, $t$ and the text; from its answer follows
# an estimate $\hat x_0$ of the finished latents, and the scheduler moves a part of the way
# towards it. (How far is the subject of notebook 5.)
#
# The whole of it is a loop of five lines. The UNet is asked twice, with the empty text and with
# the prompt; what `guidance` makes of the two answers comes further down.

# %%
side = pipe.unet.config.sample_size
steps = few(10, 3)


def denoise(text, guidance, seed, steps):
    """All x_t, the noise first, and after each step the estimate of x_0.   -> (T, 4, h, w) twice"""
    stages.make_schedule(pipe.scheduler, steps)
    x = TorchGenerator(seed).randn(1, 4, side, side)
    states, estimates = [x], []
    for t in pipe.scheduler.timesteps:
        without, with_prompt = pipe.unet(np.concatenate([x, x]), t, text)
        predicted = without + guidance * (with_prompt - without)
        step = pipe.scheduler.step(predicted[None], t, x)
        x = step.prev_sample
        states.append(x)
        estimates.append(step.pred_original_sample)
    return np.concatenate(states), np.concatenate(estimates)


states, estimates = denoise(text, 3.0, seed=2, steps=steps)
print(f"x_T: {states[0].shape}, mean {states[0].mean():.2f}, deviation {states[0].std():.2f}")

# %% [markdown]
# **Question.** The decoder (stage 5) turns any latents into a picture, so it can also decode the
# ones in between. After half of the steps, will the picture be half as noisy? And when will $\hat
# x_0$ first show what is where?

# %%
on_the_way = stages.decode(pipe.vae, states[1:])
guessed = stages.decode(pipe.vae, estimates)
labels = [f"t = {t}" for t in pipe.scheduler.timesteps]
show([*on_the_way, *guessed], labels, columns=steps, rows=["$x$ after the step", r"$\hat x_0$"],
     side=0.95)

# %% [markdown]
# $x_t$ stays noisy almost to the end: the schedule says how noisy, and the UNet only what else is
# in there. The estimate $\hat x_0$ knows **where** things are after the first step, as a blur of
# all that still could be there; then it settles colours, then shapes, and edges and highlights
# last. So what is in the wrong place after a third of the steps will stay there, however many
# follow.
#
# ## The seed
#
# The only randomness was $x_T$, and it comes from a generator with a **seed**. The same seed
# gives the same noise, number for number the same as in PyTorch, and so the same picture.
#
# **Question.** Same prompt, other seeds: what stays, what changes?

# %%
seeds = [2, 3, 4, 5, 6, 7][:few(6, 2)]
count = few(20, 3)
drawn = [pipe(prompt, num_inference_steps=count, guidance_scale=3, generator=seed).images[0]
         for seed in seeds]
show(drawn, [f"seed {seed}" for seed in seeds])

# %% [markdown]
# What the prompt names stays; what it leaves out (sizes, the ground, the light) is the seed's. So
# the seed is the handle for changing one thing at a time: keep it, and change a word.

# %%
prompts = [prompt, prompt.replace("red", "green"), prompt.replace("cube", "cone"),
           prompt.replace("left", "right")][:few(4, 2)]
drawn = [pipe(p, num_inference_steps=count, guidance_scale=3, generator=2).images[0]
         for p in prompts]
show(drawn, [p.replace(" left", "\nleft").replace(" right", "\nright") for p in prompts], side=1.7,
     title="seed 2, four prompts")

# %% [markdown]
# ## Guidance
#
# In each step the UNet is asked twice: with the prompt, and with the empty text. Classifier-free
# guidance (Ho and Salimans, 2022) goes from one answer towards the other, and on:
#
# $$\tilde\varepsilon = \varepsilon_{\text{nothing}} + s\,(\varepsilon_{\text{prompt}} -
# \varepsilon_{\text{nothing}})$$
#
# At $s = 0$ the prompt is not heard, at $s = 1$ the answer is the model's own for the prompt,
# beyond that it is exaggerated.
#
# **Question.** If $s = 3$ draws what was asked, will $s = 12$ draw it better?

# %%
scales = [0, 1, 2, 3, 5, 8, 12][:few(7, 3)]
sheet_seeds = [2, 3, 4][:few(3, 1)]
sheet = {(seed, s): denoise(text, s, seed, steps=count) for seed in sheet_seeds for s in scales}
ends = np.concatenate([states[-1:] for states, _ in sheet.values()])
show(stages.decode(pipe.vae, ends), [f"s = {s}" for s in scales], columns=len(scales),
     rows=[f"seed {seed}" for seed in sheet_seeds], side=0.95)

# %% [markdown]
# At 1 colours and sizes are still uncertain; around 3 all is there; far above, the shapes take
# damage, and some pictures change their ground. $\hat x_0$ tells why: the larger the scale, the
# further the first estimates overshoot.

# %%
figure, axis = plt.subplots(figsize=(5, 2.8))
for s in [s for s in scales if s in (1, 3, 8, 12)]:
    spread = np.mean([sheet[seed, s][1].std(axis=(1, 2, 3)) for seed in sheet_seeds], axis=0)
    axis.plot(pipe.scheduler.timesteps, spread, label=f"s = {s}", markevery=few(2, 1))
axis.invert_xaxis()
axis.set(xlabel="timestep $t$", ylabel=r"deviation of $\hat x_0$", ylim=(0, None))
axis.legend()
plt.show()

# %% [markdown]
# No finished latents vary much more than 1. At $s = 12$ the first estimates are several times
# that: the network is shown states that training never did, and the rest of the run repairs what
# it can.
#
# ## Your turn
#
# In a running notebook the next cell is a form. (On a page that is only read there is nothing to
# see, and without ipywidgets it draws once.) The model knows spheres, cubes, cylinders, cones and
# rings in eight colours, small or large, glossy or matte, left of, right of, behind or in front
# of each other.

# %%
playground(pipe, prompt="a large yellow torus behind a small matte green cone", steps=few(20, 3))

# %% [markdown]
# ## Read next
#
# * [The whole of it on one page](../examples/sd.py): the same five stages written out with the
#   ops alone.
# * [Notebook 5](05_noise_and_schedulers.ipynb): what the scheduler does in a step, and how many
#   steps are enough.
# * [Notebook 6](06_the_autoencoder.ipynb): what the four numbers of a latent hold.
# * Ho and Salimans 2022, *Classifier-Free Diffusion Guidance*, arXiv:2207.12598.
