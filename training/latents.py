"""What the diffusion sees: a latent a picture, and the token ids of several captions of it."""

from pathlib import Path

import numpy as np
import torch

from training.captions import describe
from training.pictures import open_pictures
from training.scenes import sample_scene
from training.tokenizer import LENGTH, tokens
from training.vae import to_tensor

CAPTIONS = 8


def encode_pictures(folder, vae, *, batch=32):
    """latents.npy: (N, 4, 16, 16) float16, the modes of the posteriors; gives scaling = 1 / std."""
    pictures, path = open_pictures(folder), Path(folder) / "latents.npy"
    out = np.empty((len(pictures), 4, 16, 16), np.float16)
    with torch.inference_mode():
        for first in range(0, len(pictures), batch):
            x = to_tensor(pictures[first : first + batch])
            out[first : first + batch] = vae.encode(x).latent_dist.mode().numpy()
    np.save(path, out)
    return scaling(folder)


def scaling(folder):
    """One over the standard deviation of all latents."""
    return float(1.0 / np.load(Path(folder) / "latents.npy").astype(np.float32).std())


def encode_captions(folder, tokenizer, count):
    """tokens.npy: (count, CAPTIONS, LENGTH) int16, padded with the end token."""
    path, out = Path(folder) / "tokens.npy", np.empty((count, CAPTIONS, LENGTH), np.int16)
    for seed in range(count):
        scene, rng = sample_scene(seed), np.random.default_rng([1618, seed])
        texts = [describe(scene, rng).text for _ in range(CAPTIONS)]
        out[seed] = tokens(tokenizer, texts)
    np.save(path, out)
