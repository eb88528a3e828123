# %% [markdown]
# # 4. Attention
#
# A convolution sees its neighbours, attention sees everything: each token (a patch of the picture,
# a piece of a word) asks all others a question, and takes home a weighted mean of their answers.
# It is how the prompt gets into the picture, and where much of a large model's time goes. Here you
# write it, mask it, compute it tile by tile without ever holding the whole table of scores, and
# then watch which part of a picture asks for which word, step by step.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
from pace import few
from pictures import show

import refsd
from refsd import F

plt.style.use("refsd.mplstyle")
rng = np.random.default_rng(0)

# %% [markdown]
# ## Shapes
#
# $$Y = \text{softmax}\left(\frac{Q K^\top}{\sqrt d} + M\right) V$$
#
# There are $L$ queries and $S$ keys, all of width $C$, and a value for each key. The width is cut
# into heads of $d = C / \text{heads}$ numbers, and every head attends on its own. $Q K^\top$ holds
# a score for each query and each key; the softmax turns a query's scores into *probabilities*,
# positive and adding up to 1: the share that it takes of each value.

# %%
def split(x, heads):
    """(N, L, heads d) -> (N, heads, L, d)"""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def probabilities(q, k, heads, mask=0):
    """(N, L, C), (N, S, C) -> (N, heads, L, S)"""
    q, k = split(q, heads), split(k, heads)
    scores = q @ k.swapaxes(2, 3) / math.sqrt(q.shape[-1]) + mask
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(q, k, v, heads, mask=0):
    """(N, L, C), (N, S, C), (N, S, D) -> (N, L, D)"""
    y = probabilities(q, k, heads, mask) @ split(v, heads)
    return y.swapaxes(1, 2).reshape(*q.shape[:2], -1)


q, k, v = (rng.normal(size=(2, n, 64)).astype("f4") for n in (10, 7, 7))
y = attention(q, k, v, 4)
print(f"q {q.shape}, k and v {k.shape} -> y {y.shape}")
print(f"the largest difference to refsd: {abs(y - F.attention(q, k, v, heads=4)).max():.1e}")

# %% [markdown]
# **Question.** Shuffle the keys, and the values in the same way. What happens to $Y$? And if the
# queries are shuffled?

# %%
keys, queries = rng.permutation(7), rng.permutation(10)
error = abs(attention(q, k[:, keys], v[:, keys], 4) - y).max()
print(f"keys and values shuffled: y changes by {error:.1e}")
error = abs(attention(q[:, queries], k, v, 4) - y[:, queries]).max()
print(f"queries shuffled: y differs by {error:.1e} from y with its rows shuffled alike")

# %% [markdown]
# Nothing but rounding; and the rows of $Y$ move with the queries. Attention knows no order: to it,
# a text is a bag of tokens and a picture a bag of patches. So CLIP adds a vector of its position
# to each token; in the UNet the convolutions, whose padding shows where the edge is, tell patches
# where they are.
#
# ## Masks
#
# What a query must not see gets $-\infty$ before the softmax, and $e^{-\infty} = 0$. CLIP's
# encoder is *causal*: a token sees itself and what stands before it.
#
# **Question.** What does the first row of a causal attention look like?

# %%
q, k, column, row = *rng.normal(size=(2, 1, 12, 16)), np.arange(12), np.arange(12)[:, None]
masks = {"no mask": 0 * column, "causal": np.where(column > row, -np.inf, 0),
         "the last 4 keys are padding": np.where(column >= 8, -np.inf, 0)}
figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.6))
for axis, (name, mask) in zip(axes, masks.items()):
    table = axis.imshow(probabilities(q, k, 1, mask)[0, 0], cmap="gray_r", vmin=0, vmax=1)
    axis.set(title=name, xlabel="key", ylabel="query")
figure.colorbar(table, ax=axes, label="probability")
plt.show()

# %% [markdown]
# A single 1: the first token sees itself and nothing else, whatever it asks. Remember it; it comes
# back below.
#
# ## Without the table
#
# The table of scores has $L \times S$ entries for each head. At 512 x 512 the first attention of
# Stable Diffusion 1.5 has $64 \cdot 64 = 4096$ queries, as many keys, and 8 heads: 512 MiB of
# float32, written and read several times. Yet a query wants one weighted mean, which can be summed
# key by key, but for one obstacle: before $e^s$, the largest score is subtracted, and that is
# known only at the end.
#
# **Question.** Is the subtraction needed, say if the scores are about 100?

# %%
scores = np.float32([100, 95, 90])
with np.errstate(over="ignore", invalid="ignore"):
    e = np.exp(scores)
    print("without:", e / e.sum())
e = np.exp(scores - scores.max())
print("with:   ", e / e.sum())

# %% [markdown]
# It is: $e^{100}$ is beyond float32. The way out (Milakov and Gimelshein 2018) is to subtract the
# largest score *so far*, and to correct the sums when a larger one turns up. Of the keys so far
# keep the maximum $m$, the sum $l = \sum_j e^{s_j - m}$, and $a = \sum_j e^{s_j - m} v_j$. With
# the next tile of keys they become
#
# $$m' = \max(m, \max_j s_j),\qquad l' = l\,e^{m-m'} + \sum_j e^{s_j-m'},\qquad
# a' = a\,e^{m-m'} + \sum_j e^{s_j-m'} v_j,$$
#
# and at the end $y = a / l$. Here are one query, 128 keys in tiles of 16, and values of 3 numbers.

# %%
def online(s, v, tile):
    """Attention of one query with scores s (S,) to values v (S, D): m, l and a after each tile."""
    m, l, a = -np.inf, 0, 0
    for j in range(0, len(s), tile):
        larger = max(m, s[j:j + tile].max())
        e, factor = np.exp(s[j:j + tile] - larger), np.exp(m - larger)
        m, l, a = larger, l * factor + e.sum(), a * factor + e @ v[j:j + tile]
        yield m, l, a


def exact(s, v):
    """The same at once, in float64."""
    e = np.exp(s.astype("f8") - s.max())
    return e @ v / e.sum()


numbers = np.random.default_rng(114)
s, v = 1.5 * numbers.normal(size=128).astype("f4"), numbers.normal(size=(128, 3)).astype("f4")
m, l, a = map(np.array, zip(*online(s, v, 16)))
seen = np.arange(16, 129, 16)

figure, axes = plt.subplots(3, 1, figsize=(7, 5.4), sharex=True)
axes[0].plot(np.arange(128) + 0.5, s, ".", color="0.5", linestyle="none", label="scores $s_j$")
axes[0].step([0, *seen], [m[0], *m], where="pre", marker="", label="maximum so far, $m$")
axes[1].plot(seen, l, label="$l$, in units of $e^m$")
axes[1].plot(seen, l * np.exp(m - m[-1]), label="the same sum, in units of the last $e^m$")
for c, style in enumerate(("o-", "s--", "^-.")):
    axes[2].plot(seen, a[:, c] / l, style, color=f"C{c}", label=f"$a / l$, number {c + 1}")
    axes[2].axhline(exact(s, v)[c], color=f"C{c}", linewidth=0.8, linestyle=":", marker="")
for axis, name in zip(axes, ("score", "sum", "output")):
    axis.set(ylabel=name, xticks=[0, *seen])
    axis.grid(axis="x")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
axes[2].set(xlabel="keys seen so far")
plt.show()
print(f"the largest difference to the exact output: {abs(a[-1] / l[-1] - exact(s, v)).max():.1e}")

# %% [markdown]
# Where the maximum rises much, $l$ falls: that is the factor $e^{m - m'}$. In fixed units the sum
# only grows. On the way $a / l$ is already the exact attention to the keys seen so far, and after
# the last tile it is the attention to all of them (dotted).
#
# **Question.** Does the tile's size change the result? And what does it change?

# %%
s, v = 3 * rng.normal(size=4096).astype("f4"), rng.normal(size=(4096, 64)).astype("f4")
truth, tiles, errors = exact(s, v), 2 ** np.arange(13), []
for tile in tiles:
    *_, (_, l, a) = online(s, v, tile)
    errors.append(abs(a / l - truth).max())
figure, axis = plt.subplots(figsize=(6, 2.8))
axis.loglog(tiles, errors, base=2, label="tile by tile, float32")
axis.axhline(np.finfo("f4").eps / 2 * abs(truth).max(), color="0.4", linestyle="--", marker="",
             label="rounding the largest output once")
axis.set(xlabel="keys in a tile", ylabel="largest error of 64 outputs", ylim=(1e-9, 1e-5))
axis.set_yscale("log", base=10)
axis.legend()
plt.show()

# %% [markdown]
# It is the same attention but for rounding, of which small tiles make more. What changes is the
# memory: a tile of scores for each query in place of all $S$, however large $S$ is. This is
# FlashAttention (Dao et al. 2022), and refsd's kernel, whose tiles stay in the first-level cache.
#
# ## Which patch asks for which word
#
# The UNet has two kinds of attention. In *self-attention* the patches of the picture ask one
# another; in *cross-attention* they ask the tokens of the prompt, and this is where words enter
# the picture. `refsd.watch` shows us the queries and keys of every attention while a picture is
# drawn. Those whose keys, and only they, are as many as the text has tokens are cross-attentions.

# %%
pipe = refsd.StableDiffusionPipeline.from_pretrained()
PROMPT = "a glossy red sphere left of a small blue cube"
TOKENS, STEPS = pipe.tokenizer.model_max_length, few(20, 3)
recorded, latents = [], []


def listen(op, inputs, options, output):
    if op == "attention" and inputs["k"].shape[1] == TOKENS != inputs["q"].shape[1]:
        # One half of the batch has the empty prompt, for guidance: the second has ours.
        recorded.append(probabilities(inputs["q"], inputs["k"], options["heads"])[1])


def keep(pipe, step, timestep, tensors):
    latents.append(tensors["latents"])
    return {}


with refsd.watch(listen):
    picture = pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=3, generator=2,
                   callback_on_step_end=keep, output_type="np").images[0]
each = len(recorded) // STEPS
print(f"{each} cross-attentions a step, (heads, patches, tokens):",
      *(table.shape for table in recorded[:each]))

# %% [markdown]
# The last two of them are nearest to the output, at 8 x 8 patches of 16 x 16 pixels. We take the
# mean over both and their heads.
#
# **Question.** Which token do you expect to get the largest share?

# %%
def shares(step):
    """The probabilities of one step, (64 patches, tokens)."""
    return np.mean(recorded[each * step + each - 2:each * (step + 1)], axis=(0, 1))


words = [piece.token.removesuffix("</w>") for piece in pipe.tokenizer.pieces(PROMPT)]
mean = np.mean([shares(step) for step in range(STEPS)], axis=(0, 1))
end = 1 + len(words)
heights = [*mean[:end + 1], mean[end + 1:].sum()]
labels = ["(start)", *words, "(end)", f"({TOKENS - end - 1} x padding)"]
figure, axis = plt.subplots(figsize=(7, 2.8))
axis.bar(range(len(heights)), [100 * height for height in heights], color="0.6", edgecolor="k")
axis.set_xticks(range(len(heights)), labels, rotation=45, ha="right")
axis.set(ylabel="share of the attention (%)")
plt.show()

# %% [markdown]
# The start token, which means nothing: CLIP is causal, so the first token has seen only itself,
# and says the same in every prompt. A softmax must give all of its shares to someone, and where a
# head finds nothing to ask in a patch, a trained network lets it ask where that does no harm, here
# mostly the start and the padding.
#
# So look at where the small shares of the words come from. The first row is the picture so far;
# below it the final picture is lit in proportion to what each patch takes of the word.
#
# **Question.** From which step on will "cube" be asked for where the cube is to stand?

# %%
def lit(word, step):
    """The final picture, each patch as bright as its share of the word."""
    share = shares(step)[:, 1 + words.index(word)].reshape(8, 8)
    return picture * (0.1 + 0.9 * np.kron(share / share.max(), np.ones((16, 16))))[..., None]


steps = few([0, 1, 3, 6, 10, 19], [0, 1, 2])
names = ["so far", "red", "sphere", "blue", "cube"]
grid = [pipe.to_output(latents[step], "np")[0] for step in steps]
grid += [lit(word, step) for word in names[1:] for step in steps]
show(grid, [f"step {step + 1}" for step in steps], columns=len(steps), rows=names)

# %% [markdown]
# From the first step, when all that can be seen is noise. To quantify it, take the pixels that are
# red and blue in the final picture, and ask which part of a word's share comes from there.

# %%
r, g, b = np.moveaxis(picture, -1, 0)
regions = {"red": r - np.maximum(g, b) > 0.15, "blue": b - np.maximum(r, g) > 0.25}
figure, axes = plt.subplots(1, 2, figsize=(7.4, 2.8), sharey=True)
for axis, (colour, region) in zip(axes, regions.items()):
    for word in names[1:]:
        maps = np.array([shares(step)[:, 1 + words.index(word)] for step in range(STEPS)])
        weight = region.reshape(8, 16, 8, 16).mean(axis=(1, 3)).ravel()
        axis.plot(np.arange(STEPS) + 1, 100 * maps @ weight / maps.sum(axis=1), label=f'"{word}"')
    axis.axhline(100 * region.mean(), color="0.4", linestyle=":", marker="")
    axis.set(title=f"in the {colour} pixels", xlabel="step")
axes[0].set(ylabel="part of the word's share (%)", ylim=(0, None))
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# The dotted line is the region's part of the picture: what a word would have if its share were
# spread evenly. The patches of the sphere ask for "red" and "sphere", those of the cube for "blue"
# and "cube": this is how each solid gets its own colour.
#
# **Read next:** [5. Noise and schedulers](05_noise_and_schedulers.ipynb), on what the steps do; in
# [7. A fast kernel](07_a_fast_kernel.ipynb) an op becomes fast. In the repository:
# [refsd/ops/attention.py](../refsd/ops/attention.py) beside
# [refsd/numba_ops/cpu/attention.py](../refsd/numba_ops/cpu/attention.py), whose first lines are
# the formulas above. Papers: Vaswani et al. 2017, *Attention Is All You Need*; Milakov and
# Gimelshein 2018, *Online normalizer calculation for softmax*; Dao et al. 2022, *FlashAttention*;
# Hertz et al. 2022, *Prompt-to-Prompt*, which draws with such maps.
