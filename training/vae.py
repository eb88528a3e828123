"""The autoencoder: pictures (B, 3, 128, 128) in [-1, 1] <-> latents (B, 4, 16, 16)."""

import copy
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from training.checkpoints import average, learning_rate, load, save, state_of
from training.pictures import held_out, open_pictures

CROP = 64
KL = 2e-4


def build():
    """AutoencoderKL of 1.7 M parameters, eight times smaller latents."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=128,
    ).to(memory_format=torch.channels_last)


def to_tensor(pictures):
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1], channels last in memory."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2) / 127.5 - 1.0


def _batch(pictures, rng, *, size, batch):
    out = np.empty((batch, size, size, 3), np.uint8)
    for slot in out:
        picture = pictures[rng.integers(len(pictures))]
        j, i = rng.integers(0, 128 - size + 1, 2)
        slot[:] = picture[j : j + size, i : i + size]
    return to_tensor(out)


def picture_loss(y, x):
    """Weighted mean of |y - x| + 4 (y - x)^2.

    Solids weigh four times as much as the ground: a sixth of the pixels, and all of the sense.
    """
    d = y - x
    solid = (x.amax(dim=1, keepdim=True) - x.amin(dim=1, keepdim=True) > 0.4).float()
    weight = 1.0 + 3.0 * F.max_pool2d(solid, 5, stride=1, padding=2)
    return (weight * (d.abs() + 4.0 * d.square())).mean() / 1.5


def loss_of(model, x):
    """The picture's loss plus the mean KL of the posterior against N(0, 1)."""
    posterior = model.encode(x).latent_dist
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
    return picture_loss(model.decode(posterior.sample()).sample, x) + KL * kl


def psnr(model, pictures):
    """Mean PSNR in dB of decode(mode(encode(x))) against x, over pictures, on 8 bit levels."""
    out = []
    with torch.no_grad():
        for first in range(0, len(pictures), 8):
            x = to_tensor(pictures[first : first + 8])
            y = model.decode(model.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
            levels = ((y + 1.0) * 127.5).round() - ((x + 1.0) * 127.5).round()
            out.append(levels.square().mean(dim=(1, 2, 3)))
    return float((10.0 * torch.log10(255.0**2 / torch.cat(out))).mean())


def train(folder, *, steps, peak=1e-3, batch=16, whole=0.7, report=200):
    """Train to `steps`; from `whole` of them on with whole pictures instead of crops."""
    path, model = Path(folder) / "vae.pt", build()
    shadow = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)
    step, state = 0, load(path)
    if state:
        model.load_state_dict(state["model"])
        shadow.load_state_dict(state["shadow"])
        if state["optimiser"]:
            optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    seen, clock, total = held_out(32), time.time(), 0.0
    while step < steps:
        rng = np.random.default_rng([3141, step])
        torch.manual_seed(step)
        full = step >= whole * steps
        size, count = (128, batch // 4) if full else (CROP, batch)
        x = _batch(open_pictures(folder), rng, size=size, batch=count)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, peak=peak)
        loss = loss_of(model, x)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average(model, shadow, step, decay=0.995)
        step, total = step + 1, total + loss.item()
        if step % report == 0 or step == steps:
            pace = (time.time() - clock) / report
            save(path, state_of(model, shadow, optimiser, step))
            print(
                f"vae {step}/{steps} loss {total / report:.4f} psnr {psnr(shadow, seen):.2f} dB"
                f" {pace:.3f} s/step",
                flush=True,
            )
            clock, total = time.time(), 0.0
    return shadow
