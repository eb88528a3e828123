"""Tiny autoencoders with random weights against diffusers. The error bar is that of test_models.py.
"""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from test_models import allowed, compare, normal, randomised, tree  # noqa: F401  a fixture

from refsd.models import taesd

# configuration, size of the latents, batch
NETS = {
    "TAESD": ({}, (3, 2), 1),
    "three levels, other latents": (
        {"encoder_block_out_channels": (24,) * 3, "decoder_block_out_channels": (32,) * 3,
         "num_encoder_blocks": (1, 2, 1), "num_decoder_blocks": (2, 1, 1),
         "latent_channels": 16}, (5, 3), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_both_halves(name, allowed):  # noqa: F811
    config, size, batch = NETS[name]
    torch.manual_seed(0)
    model = randomised(AutoencoderTiny(**config))
    scale = 2 ** (len(model.config.decoder_block_out_channels) - 1)
    latents = 3 * normal(1, batch, model.config.latent_channels, *size)
    image = np.random.default_rng(2).uniform(-1, 1, (batch, 3, *(scale * n for n in size)))
    image = image.astype("float32")

    def ours(dtype):
        found = tree(model, dtype)
        return (taesd.encode(image.astype(dtype), **found["encoder"]),
                taesd.decode(latents.astype(dtype), **found["decoder"]))

    def theirs():
        dtype = next(model.parameters()).dtype
        with torch.no_grad():
            return (model.encode(torch.from_numpy(image).to(dtype)).latents.numpy(),
                    model.decode(torch.from_numpy(latents).to(dtype)).sample.numpy())

    narrow, wide, torch32 = ours("float32"), ours("float64"), theirs()
    model.double()
    torch64 = theirs()
    for half, *results in zip(("encode", "decode"), narrow, torch32, torch64, wide, torch64):
        compare(f"{name}, {half}", allowed, *results)
