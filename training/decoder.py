"""The decoder's last lesson: rings and cubes, from latents with the noise a UNet leaves in them.

The encoder stays, so the UNet stays right. Small rings lose their holes first; scenes without ring
or cube come up three times in ten only.
"""

from pathlib import Path

import numpy as np
import torch

from training.checkpoints import average, learning_rate, load, save
from training.pictures import open_pictures
from training.scenes import sample_scene
from training.vae import build, picture_loss, to_tensor

NOISE = 0.12  # of latents whose deviation is 2.5


def _scene_to_learn_from(count, rng):
    while True:
        seed = int(rng.integers(count))
        hard = any(solid.shape in ("torus", "cube") for solid in sample_scene(seed).solids)
        if hard or rng.random() < 0.3:
            return seed


def train(folder, *, steps, batch=5, peak=4e-4):
    """Go on with the decoder of vae.pt for `steps` and mark it as done there; encoder unchanged."""
    path, pictures = Path(folder) / "vae.pt", open_pictures(folder)
    state, model, shadow = load(path), build(), build()
    if state.get("decoder"):
        return
    for part in (model, shadow):
        part.load_state_dict(state["shadow"])
    for part in (model.encoder, model.quant_conv):
        part.requires_grad_(False)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)
    for step in range(steps):
        rng = np.random.default_rng([1414, step])
        torch.manual_seed(step)
        rows = [_scene_to_learn_from(len(pictures), rng) for _ in range(batch)]
        x = to_tensor(np.stack([pictures[row] for row in rows]))
        with torch.no_grad():
            z = model.encode(x).latent_dist.mode()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, peak=peak, warmup=20)
        loss = picture_loss(model.decode(z + NOISE * torch.randn_like(z)).sample, x)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        average(model, shadow, step, decay=0.97)
    save(path, {**state, "shadow": shadow.state_dict(), "decoder": steps})
