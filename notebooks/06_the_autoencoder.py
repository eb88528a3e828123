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
# # 6. The autoencoder
#
# Stable Diffusion never draws pixels. A variational autoencoder makes every 8 x 8 pixels into 4
# numbers, the diffusion happens there, and the decoder makes pixels of the result. Here you look
# at what those numbers are, what lies between two pictures, and why a picture decoded in tiles
# shows seams.

# %%
import matplotlib.pyplot as plt
import numpy as np
from pace import few  # few(full, fast) is full; the tests of these notebooks take fast
from pictures import show
from PIL import Image

from refsd import F, StableDiffusionPipeline
from refsd.random import TorchGenerator

plt.style.use("refsd.mplstyle")
pipe = StableDiffusionPipeline.from_pretrained()
vae, factor = pipe.vae, pipe.vae.config.scaling_factor


def draw(prompt, seed, steps=20, output_type="np", **options):
    """One picture (H, W, 3) in [0, 1], or its latents."""
    return pipe(prompt, num_inference_steps=few(steps, 2), guidance_scale=3, generator=seed,
                output_type=output_type, **options).images[0]


def encode(image):
    """(H, W, 3) in [0, 1] -> latents (1, 4, H / 8, W / 8), the posterior's mean"""
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None]
    return vae.encode(2 * pixels - 1).mode()


def decode(latents):
    """(N, 4, h, w) -> (N, 8 h, 8 w, 3) in [0, 1]"""
    return np.clip(vae.decode(latents) / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)


# %% [markdown]
# ## There and back

# %%
picture = draw("a glossy red sphere left of a small blue cube", 2)
z = encode(picture)
again = decode(z)[0]
print(f"{picture.size} pixel values -> {z.size} latents: one for every {picture.size // z.size}")
print(f"RMS error {255 * np.sqrt(np.mean((again - picture) ** 2)):.1f} of 255 grey levels")
show([picture, *z[0], again, np.abs(again - picture).mean(axis=2)],
     ["picture", *(f"channel {i}" for i in range(4)), "decoded", "error"])

# %% [markdown]
# Each channel is a small picture of the picture: what is left in the image is left in the
# latents.
#
# The encoder gives a **distribution** for each latent, $\mathcal N(\mu, e^{\text{logvar}})$, and
# training drew from it, so that the decoder learned to live with noise.
#
# **Question.** Are these clouds wide (the latents of one picture could be those of another) or
# narrow?

# %%
posterior = vae.encode(2 * picture.transpose(2, 0, 1)[None].astype(np.float32) - 1)
inside, between = np.exp(posterior.logvar / 2), posterior.mean.std(axis=(0, 2, 3))
figure, axis = plt.subplots(figsize=(5, 2.6))
axis.bar(np.arange(4) - 0.2, between, 0.4, color="0.35",
         label="deviation of the means, over the picture")
axis.bar(np.arange(4) + 0.2, inside.mean(axis=(0, 2, 3)), 0.4, color="0.8", edgecolor="black",
         label="deviation of one latent's distribution")
axis.set(xlabel="channel", ylabel="latent units", xticks=range(4), yscale="log")
axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=2)
plt.show()

# %% [markdown]
# Narrow: the autoencoder is very nearly a plain one, and the variational part mostly keeps the
# latents near each other. All of them times `scaling_factor` have about deviation 1, which is
# what the diffusion's noise schedule is made for.
#
# ## What each channel holds
#
# Raise one channel everywhere, leave the others.

# %%
steps = np.linspace(-2, 2, 5)
raised = []
for channel in range(4):
    for step in steps:
        moved = z.copy()
        moved[:, channel] += step * z.std()
        raised.append(decode(moved)[0])
show(raised, [f"{step:+.0f} deviations" for step in steps], columns=len(steps),
     rows=[f"channel {i}" for i in range(4)], side=1.0)

# %% [markdown]
# Channel 0 goes from warm to cold, 1 and 2 from dark to light, 3 changes little.
#
# **Question.** Could a linear map from 4 numbers to 3 replace the decoder, for a thumbnail? Fit
# one by least squares on pictures of all colours, and try it on others.

# %%
COLOURS = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"][:few(8, 1)]
PLACES = [("sphere", "white"), ("cube", "dark")]
samples = [draw(f"a large {colour} {solid} on a {ground} background", i, steps=10)
           for i, colour in enumerate(COLOURS) for solid, ground in PLACES]
others = [draw(prompt, i, steps=10) for i, prompt in enumerate((
    "a glossy green cone in front of a red torus", "a large blue cylinder left of a yellow cone",
    "a purple ball right of an orange cube"))]


def shrunk(image):
    """The mean of every 8 x 8 pixels.   (H, W, 3) -> (H / 8, W / 8, 3)"""
    h, w = image.shape[0] // 8, image.shape[1] // 8
    return image.reshape(h, 8, w, 8, 3).mean(axis=(1, 3))


def rows(image):
    """The latents and a 1, a row for each place.   (H, W, 3) -> (H W / 64, 5)"""
    z = encode(image)[0].reshape(4, -1).T
    return np.column_stack([z, np.ones(len(z))])


inputs = np.concatenate([rows(image) for image in samples])
colours = np.concatenate([shrunk(image).reshape(-1, 3) for image in samples])
weights, *_ = np.linalg.lstsq(inputs, colours, rcond=None)

mapped = [np.clip(rows(image) @ weights, 0, 1).reshape(shrunk(image).shape) for image in others]
show([*others, *mapped, *map(shrunk, others)], columns=3,
     rows=["picture", "linear map", "mean of 8 x 8"], side=1.2)
axes = {"dark - light": (1, 1, 1), "cold - warm": (1, 0, -1), "magenta - green": (-1, 2, -1)}
for name, axis in axes.items():
    seen, true = (np.concatenate([(image @ axis).ravel() for image in images])
                  for images in (mapped, map(shrunk, others)))
    print(f"{name:16} correlation with the true colours {np.corrcoef(seen, true)[0, 1]:.2f}")

# %% [markdown]
# Brightness is there, and warm or cold; which hue it is needs the decoder's non-linear layers. So
# four channels do not simply hold red, green, blue and one more. (In the large models such a map
# does better, and draws previews while a picture is being made.)
#
# How far does one latent reach? Change a single one and see which pixels move.

# %%
nudged = z.copy()
nudged[0, :, 8, 8] += z.std()
reach = np.abs(vae.decode(nudged) - vae.decode(z)).mean(axis=(0, 1))
distance = np.arange(reach.shape[0]) - (8 * 8 + 3.5)
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), width_ratios=(1, 2))
left.imshow(np.log10(reach + 1e-6))
left.set(xlabel="pixel", ylabel="pixel", title="change, logarithmic")
right.semilogy(distance, reach[:, 8 * 8 + 3], marker="")
right.axvspan(-4, 4, color="0.85", label="its own 8 pixels")
right.set(xlabel="distance (pixels)", ylabel="change of the pixel values")
right.legend()
plt.show()

# %% [markdown]
# A hill over its own 8 x 8 pixels with a foot of some 20 pixels, from the 3 x 3 convolutions; and
# a floor that reaches **everywhere**. Two ops see the whole picture: the attention in the middle
# block, and group normalisation, whose mean and variance are taken over all pixels. Remember the
# floor.
#
# ## Between two pictures
#
# **Question.** A sphere on the left, a sphere on the right. Half-way between their latents, where
# is the sphere?

# %%
blends = np.linspace(0, 1, 6)
ends = [draw(f"a red sphere {side} of a blue cube", seed, output_type="latent")
        for side, seed in (("left", 2), ("right", 2))]
show(decode(np.stack([(1 - w) * ends[0] + w * ends[1] for w in blends]) / factor),
     [f"{w:.1f}" for w in blends], title="between the latents")

# %% [markdown]
# Nowhere. Latents are a map with places, so a blend of them is a cross-fade: each place goes from
# what was there to what will be, by way of things that are neither. What moves things is the
# noise that a picture starts from.
#
# Two noises are blended along the circle, $\cos(w\pi/2)\,a + \sin(w\pi/2)\,b$: since $\cos^2 +
# \sin^2 = 1$, each blend has deviation 1 again, the noise that the model was trained on. (On the
# straight line it would be $1/\sqrt 2$ half-way.)

# %%
shape = (4, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
a, b = TorchGenerator(2).randn(*shape), TorchGenerator(5).randn(*shape)
circle = [np.cos(w * np.pi / 2) * a + np.sin(w * np.pi / 2) * b for w in blends]
show([draw("a red sphere left of a blue cube", 0, latents=start[None]) for start in circle],
     [f"{w:.1f}" for w in blends], title="between the noises")
print("deviations:", *(f"{x.std():.2f}" for x in circle))

# %% [markdown]
# Every point is a picture, and things grow and move.
#
# ## Why tiles make seams
#
# A decoder needs memory for its largest activations, so large pictures are decoded in tiles.
#
# **Question.** Cut the latents of this picture into 4 x 4 tiles, decode each alone, lay them side
# by side. Do they fit?

# %%
small = Image.fromarray((picture * 255).astype(np.uint8))
large = np.asarray(small.resize((256, 256), Image.LANCZOS), dtype=np.float32) / 255
latents = encode(large)
whole = vae.decode(latents)


def tiled(latents, tile, halo, decode=vae.decode):
    """Decode tiles with `halo` latents around each, and keep the tile."""
    _, _, h, w = latents.shape
    out = np.empty((1, 3, 8 * h, 8 * w), np.float32)
    for y in range(0, h, tile):
        for x in range(0, w, tile):
            top, left = max(y - halo, 0), max(x - halo, 0)
            part = decode(latents[:, :, top:y + tile + halo, left:x + tile + halo])
            out[:, :, 8 * y:8 * (y + tile), 8 * x:8 * (x + tile)] = part[
                :, :, 8 * (y - top):8 * (y - top + tile), 8 * (x - left):8 * (x - left + tile)]
    return out


def as_picture(image):
    return np.clip(image[0] / 2 + 0.5, 0, 1).transpose(1, 2, 0)


tiles = tiled(latents, 8, halo=0)
error = np.abs(tiles - whole).mean(axis=(0, 1))
show([as_picture(whole), as_picture(tiles), error], ["whole", "in tiles", "error"], side=2)

# %% [markdown]
# They do not, and the seams are not the worst of it: tiles of plain ground are covered with
# patterns that the picture does not have. There are two suspects. At a seam the **convolutions**
# see zeros in place of neighbours. And everywhere in a tile the **norms** take mean and variance
# from the tile alone; where there is nothing but ground the variance is tiny, and dividing by its
# root blows up what little there is.
#
# **Question.** Which is to blame for which error? An experiment: decode the whole once and keep
# the mean and variance of each norm; then decode the tiles with those.

# %%
plain, kept = F.group_norm, []


def recording(x, weight, bias, *, groups, eps):
    kept.append((x.reshape(1, groups, -1).mean(axis=-1), x.reshape(1, groups, -1).var(axis=-1)))
    return plain(x, weight, bias, groups=groups, eps=eps)


def with_kept(statistics):
    """group_norm with the mean and variance of the whole picture's, call by call."""
    def norm(x, weight, bias, *, groups, eps):
        mean, variance = (number[..., None] for number in next(statistics))
        y = (x.reshape(1, groups, -1) - mean) / np.sqrt(variance + np.float32(eps))
        return y.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
    return norm


def decode_with(norm, z):
    F.group_norm = norm  # the models look every op up in F when they call it
    try:
        return vae.decode(z)
    finally:
        F.group_norm = plain


decode_with(recording, latents)
cured = tiled(latents, 8, halo=0, decode=lambda z: decode_with(with_kept(iter(kept)), z))
errors = np.stack([error, np.abs(cured - whole).mean(axis=(0, 1))])[..., None].repeat(3, axis=-1)
show([as_picture(tiles), as_picture(cured), *(errors / errors.max())],
     ["in tiles", "with the whole's statistics", "error", "error, same scale"], side=1.7)

# %% [markdown]
# The patterns are the norms' doing, the thin lines the convolutions'. Against the lines there is
# a **halo**: decode each tile with some neighbours around it, and throw them away. How much of it
# is needed?

# %%
halos = [0, 1, 2, 3, 4, 6, 8][:few(7, 2)]
near = np.arange(whole.shape[2]) % 64
edge = (near < 2) | (near > 61)
seam = edge[:, None] | edge[None, :]
decoders = {"own statistics": vae.decode,
            "the whole's": lambda z: decode_with(with_kept(iter(kept)), z)}
figure, axis = plt.subplots(figsize=(5, 3))
for name, decoder in decoders.items():
    errors = [127.5 * np.abs(tiled(latents, 8, halo, decoder) - whole) for halo in halos]
    axis.semilogy(halos, [e[..., seam].mean() for e in errors], label=f"{name}, at the seams")
    axis.semilogy(halos, [e[..., ~seam].mean() for e in errors], label=f"{name}, inside")
axis.set(xlabel="halo (latents on each side)", ylabel="mean error (grey levels of 255)")
axis.legend()
plt.show()

# %% [markdown]
# With the whole's statistics, four latents of halo leave a fraction of a grey level: that is how
# far the convolutions reach in earnest. With its own, a tile is wrong at its seams and inside
# alike, and a halo helps only as far as it brings the rest of the picture into the statistics.
# That is why programs that decode in tiles make them large and blend their overlaps. (refsd
# decodes pictures whole.)
#
# ## Read next
#
# * `refsd/models/vae.py`: the encoder and the decoder, two screens.
# * [Notebook 3](03_norms.ipynb): what a norm's mean and variance do elsewhere.
# * [Notebook 2](02_convolution.ipynb): where the decoder's time goes.
# * Rombach et al. 2022, *High-Resolution Image Synthesis with Latent Diffusion Models*,
#   arXiv:2112.10752.
