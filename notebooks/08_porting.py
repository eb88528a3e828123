# %% [markdown]
# # 8. Porting
#
# You bring Stable Diffusion to a new machine. It draws, and the pictures look right. Is the port
# right? Here you port a part, the decoder that turns latents into a picture, in the style of an
# engine that keeps channels last. The port has two mistakes, as ports have, and you find them
# without looking for them in its code: with a golden pack and `refsd golden bisect`.

# %%
import math
import os
import shlex
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
from pace import few
from pictures import show

from refsd.__main__ import main
from refsd.golden.comparing.bisect import bisect
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.packs.pack import Pack

plt.style.use("refsd.mplstyle")
os.chdir(mkdtemp())  # where all files go


def refsd(line):
    """A command of refsd, as in a terminal."""
    code = main(shlex.split(line))
    print(f"(exit code {code})\n")

# %% [markdown]
# ## The golden pack
#
# A pack holds what a right run computes on the way: here every op of the decoder (level 3), in
# float64, under the checkpoint's names, with what each op was given. The weights come in the
# port's own layout: HWIO is (height, width, in, out) for kernels and (in, out) for matrices.

# %%
SIZE, STEPS = few(128, 64), few(10, 2)
refsd(f"""golden make -o pack "a glossy red sphere left of a small blue cube" --seed 2
          --steps {STEPS} --cfg-scale 3 --width {SIZE} --height {SIZE} --level 3
          --include 'decode/*' --include 'picture/*' --spread 0 --no-tolerances --quiet""")
refsd("export weights -o weights --part vae --to npz --layout HWIO")
weights = dict(np.load("weights/tensors.npz"))
print(weights["vae.decoder.conv_in.weight"].shape)

# %% [markdown]
# ## The port
#
# First its ops, on arrays $(N, H, W, C)$. Two of them are wrong. **Question.** Which?

# %%
def linear(x, weight, bias):
    return x @ weight + bias


def conv(x, weight, bias):
    """(N, H, W, I), (k, k, I, O) -> (N, H, W, O): a product for each place of the kernel"""
    k, (_, H, W, _) = len(weight), x.shape
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    return sum(x[:, i:i + H, j:j + W] @ weight[i, j] for i in range(k) for j in range(k)) + bias


def group_norm(x, weight, bias, eps=1e-5):
    """(N, H, W, C) -> the same, in 8 groups"""
    N, H, W, C = x.shape
    g = x.reshape(N, H * W, 8, C // 8)
    g = g - g.mean(axis=(1, 3), keepdims=True)
    g = g / np.sqrt((g * g).mean(axis=(1, 3), keepdims=True) + eps)
    return g.reshape(x.shape) * weight + bias


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(q, k, v):
    """(N, L, C) three times -> (N, L, C), one head"""
    return softmax(q @ k.swapaxes(1, 2)) @ v


def twice(x):
    """Nearest neighbours.   (N, H, W, C) -> (N, 2 H, 2 W, C)"""
    return x.repeat(2, axis=1).repeat(2, axis=2)

# %% [markdown]
# Then the network. What an op gives goes through `keep`, which files it under the pack's name for
# it. That is all that a port must do to be checked.

# %%
class Decoder:
    """(N, h, w, 4) -> (N, 8 h, 8 w, 3). `dump` has what each op gave, `store` rounds it."""

    def __init__(self, weights, store):
        self.weights, self.store, self.dump = weights, store, {}

    def keep(self, name, y):
        self.dump[f"decode/{name}"] = y = self.store(y)
        return y

    def layer(self, op, name, x):
        w, b = (self.weights[f"vae.{name}.{part}"] for part in ("weight", "bias"))
        return self.keep(name, op(x, w, b))

    def resnet(self, name, x):
        h = self.keep(f"{name}.silu", silu(self.layer(group_norm, f"{name}.norm1", x)))
        h = self.layer(conv, f"{name}.conv1", h)
        h = self.keep(f"{name}.silu.2", silu(self.layer(group_norm, f"{name}.norm2", h)))
        h = self.layer(conv, f"{name}.conv2", h)
        if f"vae.{name}.conv_shortcut.weight" in self.weights:
            x = self.layer(conv, f"{name}.conv_shortcut", x)
        return self.keep(f"{name}.add", x + h)

    def look_around(self, name, x):
        N, H, W, C = x.shape
        h = self.layer(group_norm, f"{name}.group_norm", x)
        h = self.keep(f"{name}.to_tokens", h.reshape(N, H * W, C))
        q, k, v = (self.layer(linear, f"{name}.to_{letter}", h) for letter in "qkv")
        h = self.keep(f"{name}.attention", attention(q, k, v))
        h = self.layer(linear, f"{name}.to_out.0", h)
        return self.keep(f"{name}.add", self.keep(f"{name}.to_image", h.reshape(x.shape)) + x)

    def __call__(self, latents):
        h = self.layer(conv, "post_quant_conv", self.store(latents))
        h = self.layer(conv, "decoder.conv_in", h)
        h = self.resnet("decoder.mid_block.resnets.0", h)
        h = self.look_around("decoder.mid_block.attentions.0", h)
        h = self.resnet("decoder.mid_block.resnets.1", h)
        for block in (f"decoder.up_blocks.{level}" for level in range(4)):
            for i in range(2):
                h = self.resnet(f"{block}.resnets.{i}", h)
            if f"vae.{block}.upsamplers.0.conv.weight" in self.weights:
                h = self.keep(f"{block}.upsamplers.0.upsample_nearest", twice(h))
                h = self.layer(conv, f"{block}.upsamplers.0.conv", h)
        h = self.keep("decoder.silu", silu(self.layer(group_norm, "decoder.conv_norm_out", h)))
        return self.layer(conv, "decoder.conv_out", h)

# %% [markdown]
# It is given the pack's latents, and writes what it kept to a file.
#
# **Question.** Which of the two pictures is the port's?

# %%
with Pack.open("pack") as pack:
    latents = pack.read("decode/latents").transpose(0, 2, 3, 1)
    golden = pack.read("picture/image")[0]


def run(name, store=np.float32):
    """The port's picture; NAME.npz has what its ops gave."""
    decoder = Decoder(weights, store)
    picture = decoder(latents)[0]
    np.savez(f"{name}.npz", **decoder.dump)
    return np.clip(picture / 2 + 0.5, 0, 1)


mine = run("first")
show([mine, golden, np.clip(10 * abs(mine - golden), 0, 1)], ["A", "B", "|A - B| x 10"], side=1.5)

# %% [markdown]
# A is. Nobody would send it back. But how far are its tensors from the golden ones? We divide the
# root mean square of the difference by that of the golden tensor.

# %%
def opened(name):
    """The port's file, for reading under the pack's names."""
    return Candidate.open(f"{name}.npz", layout="NHWC")


errors = {}
with Pack.open("pack") as pack, opened("first") as port:
    for name, entry in pack.entries.items():
        array, truth = port.read(name, entry.shape), pack.read(name)
        if array is not None:
            errors[entry.index] = np.linalg.norm(array - truth) / np.linalg.norm(truth)
figure, axis = plt.subplots(figsize=(7, 2.6))
axis.semilogy(errors.keys(), errors.values(), ".", linestyle="none")
axis.set(xlabel="tensor, in the order of execution", ylabel="relative error (rms)")
plt.show()

# %% [markdown]
# The first norm brings a small jump, and a dozen tensors later comes a large one, which all that
# follows inherits. To find every mistake, an op's own error must be told from what it was handed:
#
# $$\text{port} - \text{golden} =
# \underbrace{\text{port} - \text{op}(\text{port's inputs})}_{\text{its own error}} +
# \underbrace{\text{op}(\text{port's inputs}) - \text{golden}}_{\text{inherited}}$$
#
# `bisect` computes each op again, in float64, on the inputs that the port had, and holds its own
# error to a bound derived for this op, these inputs and this format.
#
# **Question.** How many mistakes will it find after the large jump, where everything is off?

# %%
refsd("golden bisect pack first.npz --layout NHWC")

# %% [markdown]
# The first line is the sentence to read: the op by its path in the checkpoint, how far its error
# is beyond what rounding can do, and what the mistake looks like (known mistakes are computed too,
# and one that explains the error is named). Below it is every op that is wrong on its own inputs,
# with the root mean squares of both errors. Two mistakes are in it: the norms' $\varepsilon$, and
# the attention's scale. Behind the attention everything inherits much, and only norms do wrong.

# %%
with Pack.open("pack") as pack, opened("first") as port:
    rows = [row for row in bisect(pack, port).rows if row.times > 0]
figure, axis = plt.subplots(figsize=(7, 3))
for op, marker in (("group_norm", "o"), ("attention", "s"), ("other ops", ".")):
    of = [row for row in rows if op == row.entry.op or
          op == "other ops" and row.entry.op not in ("group_norm", "attention")]
    axis.semilogy([row.entry.index for row in of], [row.times for row in of], marker,
                  linestyle="none", label=op)
axis.axhline(1, color="0.4", linewidth=0.8, marker="")
axis.set(xlabel="tensor, in the order of execution", ylabel="own error / tolerance")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## Mending it
#
# PyTorch's `GroupNorm` takes $\varepsilon = 10^{-5}$ unless it is told, and this decoder was
# trained with $10^{-6}$. We mend that first, and ask again.

# %%
broken = group_norm, attention


def group_norm(x, weight, bias):
    return broken[0](x, weight, bias, eps=1e-6)


run("second")
refsd("golden bisect pack second.npz --layout NHWC")

# %% [markdown]
# One is left: the scores were not divided by $\sqrt d$.

# %%
def attention(q, k, v):
    return softmax(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])) @ v


mine = run("third")
refsd("golden bisect pack third.npz --layout NHWC")
print(f"the picture differs from the golden one by {abs(mine - golden).max():.1e} at most")

# %% [markdown]
# The port is right: no op is further off than its own rounding explains.
#
# ## Another format
#
# Now it moves to a chip that stores bfloat16, 8 significant bits in place of 24: each result is
# rounded $2^{16}$ times as coarsely. Held to float32 such a port must fail, held to `--format
# bf16` it should pass.

# %%
def bfloat16(x):
    """The nearest bfloat16, ties to even, as float32: its upper 16 bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


coarse = run("bfloat16", bfloat16)
refsd("golden bisect pack bfloat16.npz --layout NHWC --first")
refsd("golden bisect pack bfloat16.npz --layout NHWC --format bf16")
show([coarse, golden, np.clip(10 * abs(coarse - golden), 0, 1)],
     ["bfloat16", "golden", "|difference| x 10"], side=1.5)

# %% [markdown]
# **Question.** Give the bfloat16 port both mistakes back. Which of them is found?

# %%
mended, (group_norm, attention) = (group_norm, attention), broken
run("both", bfloat16)
group_norm, attention = mended
refsd("golden bisect pack both.npz --layout NHWC --format bf16")

# %% [markdown]
# The attention. The wrong $\varepsilon$ changes a norm's result by some millionths, and bfloat16
# rounds it by up to 1/512: no check of such a run can see the mistake. So a port is proven in
# float32 first, as far as the machine lets you, and in its own format afterwards.
#
# ## What to take along
#
# * Dump what each op gives, under a name that says which op it is. Everything else follows.
# * After the first mistake all tensors are off. Judge each op on the inputs that it had.
# * A tolerance that was derived is tight enough to see a factor of 0.999995.
#
# With your own port begin with `refsd port new "my chip"`: it writes the order of work, tests for
# every op, and keeps count of what is proven.
#
# **Read next:** [docs/porting.md](../docs/porting.md),
# [docs/golden-bisect.md](../docs/golden-bisect.md) (inputs that were not dumped, fused ops, whole
# blocks), [docs/tolerances.md](../docs/tolerances.md), [golden/README.md](../golden/README.md)
# (the format, with readers in C and Python). The notebook on norms, [3](03_norms.ipynb), shows the
# same from inside refsd.
