# %% [markdown]
# # 8. Porting
#
# You bring Stable Diffusion to a new machine. It draws, and the pictures look right. Is the port right? In this
# notebook you port a part, the decoder that turns latents into a picture, in the style of an engine
# that keeps channels last. The port has two mistakes in it, as ports have, and you find them without
# reading its code: with a golden pack and `refsd golden bisect`.

# %%
import shlex
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
from pace import few
from pictures import show

from refsd.__main__ import main

plt.style.use("refsd.mplstyle")
FOLDER = Path(mkdtemp())


def refsd(line):
    """A command of refsd, as in a terminal."""
    return main(shlex.split(line.format(folder=FOLDER)))


# %% [markdown]
# ## The golden pack
#
# A pack holds what a right run computes on the way: here every op of the decoder (level 3), in float64,
# under the checkpoint's names, with what each op was given. The weights can be had in the port's own layout:
# HWIO is (height, width, in, out) for kernels, and (in, out) for matrices.

# %%
SIZE = few(128, 64)
refsd(f"golden make -o {{folder}}/pack 'a glossy red sphere left of a small blue cube' --seed 2 --steps {few(10, 3)} "
      f"--cfg-scale 3 --width {SIZE} --height {SIZE} --level 3 --include 'decode/*' --include 'picture/*' --spread 0 --quiet")
refsd("golden info {folder}/pack")
refsd("export weights -o {folder}/weights --part vae --to npz --layout HWIO")

# %% [markdown]
# ## The port
#
# First the ops: arrays are $(N, H, W, C)$. Two of them are wrong. Can you see it?

# %%
def conv(x, weight, bias):
    """(N, H, W, I), (k, k, I, O) -> (N, H, W, O): a product for each place of the kernel"""
    k, (_, H, W, _) = len(weight), x.shape
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    return sum(x[:, i:i + H, j:j + W] @ weight[i, j] for i in range(k) for j in range(k)) + bias


def group_norm(x, weight, bias, groups=8):
    """(N, H, W, C) -> the same"""
    N, H, W, C = x.shape
    g = x.reshape(N, H * W, groups, C // groups)
    g = g - g.mean(axis=(1, 3), keepdims=True)
    g = g / np.sqrt((g * g).mean(axis=(1, 3), keepdims=True) + np.float32(1e-5))
    return g.reshape(x.shape) * weight + bias


def silu(x):
    return x / (1 + np.exp(-x))


def attention(q, k, v):
    """(N, L, C) three times -> (N, L, C), one head"""
    scores = q @ k.swapaxes(1, 2)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True) @ v


def twice(x):
    """Nearest neighbours.   (N, H, W, C) -> (N, 2 H, 2 W, C)"""
    return x.repeat(2, axis=1).repeat(2, axis=2)


# %% [markdown]
# Then the network. Whatever an op gives goes through `keep`, which files it under the pack's name. That is
# all that a port must do to be checked.

# %%
class Decoder:
    """The decoder, channels last. `dump` has what each op gave."""

    def __init__(self, weights, store=lambda x: x):
        self.weights, self.store, self.dump = weights, store, {}

    def keep(self, name, y):
        self.dump[f"decode/{name}"] = y = self.store(y)
        return y

    def layer(self, op, name, x):
        return self.keep(name, op(x, self.weights[f"vae.{name}.weight"], self.weights[f"vae.{name}.bias"]))

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
        q, k, v = (self.layer(lambda h, w, b: h @ w + b, f"{name}.to_{which}", h) for which in "qkv")
        h = self.keep(f"{name}.attention", attention(q, k, v))
        h = self.layer(lambda h, w, b: h @ w + b, f"{name}.to_out.0", h)
        return self.keep(f"{name}.add", self.keep(f"{name}.to_image", h.reshape(N, H, W, C)) + x)

    def __call__(self, latents):
        """(N, h, w, 4) -> (N, 8 h, 8 w, 3)"""
        h = self.layer(conv, "post_quant_conv", self.store(latents))
        h = self.layer(conv, "decoder.conv_in", h)
        h = self.resnet("decoder.mid_block.resnets.0", h)
        h = self.look_around("decoder.mid_block.attentions.0", h)
        h = self.resnet("decoder.mid_block.resnets.1", h)
        for level in range(4):
            block = f"decoder.up_blocks.{level}"
            for i in range(2):
                h = self.resnet(f"{block}.resnets.{i}", h)
            if level < 3:
                h = self.keep(f"{block}.upsamplers.0.upsample_nearest", twice(h))
                h = self.layer(conv, f"{block}.upsamplers.0.conv", h)
        h = self.keep("decoder.silu", silu(self.layer(group_norm, "decoder.conv_norm_out", h)))
        return self.layer(conv, "decoder.conv_out", h)


# %% [markdown]
# It is given the pack's own latents, and writes an `.npz` file. **Question.** Which picture is the port's?

# %%
from refsd.golden.packs.pack import Pack

weights = dict(np.load(FOLDER / "weights" / "tensors.npz"))
with Pack.open(FOLDER / "pack") as pack:
    latents = pack.read("decode/latents").transpose(0, 2, 3, 1)
    golden = pack.read("picture/image")[0]


def run(name, **options):
    """The port's picture; what its ops gave is in NAME.npz."""
    decoder = Decoder(weights, **options)
    picture = decoder(latents)
    np.savez(FOLDER / f"{name}.npz", **decoder.dump)
    return np.clip(picture[0] / 2 + 0.5, 0, 1)


mine = run("first")
show([mine, golden, abs(mine - golden)], ["A", "B", f"|A - B|, white is {abs(mine - golden).max():.2f}"], side=1.6)

# %% [markdown]
# A is the port's. ... And it is wrong. Compare each tensor with the golden one:

# %%
refsd("golden compare {folder}/pack {folder}/first.npz --layout NHWC")

# %% [markdown]
# bisect

# %%
refsd("golden bisect {folder}/pack {folder}/first.npz --layout NHWC")
