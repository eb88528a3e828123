"""ControlNets with random weights against diffusers: the network, and the UNet that it is added to.

The error bar is that of test_models.py. The parts of a ControlNet that begin as 0 are drawn too.
"""

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from test_models import (  # noqa: F401  allowed is a fixture
    CROSS_DOWN,
    DOWN,
    allowed,
    compare,
    levels,
    normal,
    randomised,
    tree,
    with_our_sinusoids,
)

from refsd.models import unet
from refsd.models.config import UNetConfig
from refsd.models.controlnet import ControlNetConfig, controlnet, embed_hint

# configuration, size of the latents, batch, timestep
NETS = {
    "SD 1.x, small": (dict(widths=[32, 64, 96, 96], cross=[1, 1, 1, 0], layers_per_block=2,
                           attention_head_dim=8), {}, (16, 16), 2, 500),
    "heads a level, bgr, odd hints": (
        dict(widths=[32, 64], cross=[1, 1], layers_per_block=1, attention_head_dim=[2, 4],
             use_linear_projection=True),
        {"controlnet_conditioning_channel_order": "bgr",
         "conditioning_embedding_out_channels": (5, 7, 9, 16)}, (9, 13), 1, 999),
}  # fmt: skip


def without_zeros(net):
    """The ControlNet with weights also where training begins with 0."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in (net.controlnet_cond_embedding.conv_out, net.controlnet_mid_block,
                     *net.controlnet_down_blocks):
            part.weight += 0.1 * torch.randn(part.weight.shape, generator=generator)
    return net


def both(name):
    shape, more, size, batch, step = NETS[name]
    config = levels(**shape)
    torch.manual_seed(0)
    model = randomised(UNet2DConditionModel(**config))
    shared = {key: value for key, value in config.items()
              if key not in ("up_block_types", "sample_size")}
    net = randomised(ControlNetModel(**shared, **more))
    without_zeros(net)
    picture = np.random.default_rng(4).random((batch, 3, *(8 * n for n in size)), "float32")
    return model, net, (normal(1, batch, 4, *size), normal(2, batch, 77, 48), picture,
                        np.full(batch, step))


def ask(model, net, sample, text, picture, steps):
    dtype = next(model.parameters()).dtype
    sample, text, picture = (torch.from_numpy(x).to(dtype) for x in (sample, text, picture))
    steps = torch.from_numpy(steps)
    with torch.no_grad():
        skips, middle = net(sample, steps, text, picture, return_dict=False)
        predicted = model(sample, steps, text, down_block_additional_residuals=skips,
                          mid_block_additional_residual=middle).sample
    return [x.numpy() for x in (*skips, middle, predicted)]


@pytest.mark.parametrize("name", NETS)
def test_controlnet(name, allowed):  # noqa: F811
    model, net, inputs = both(name)
    steps = inputs[-1]

    def ours(dtype):
        sample, text, picture = (x.astype(dtype) for x in inputs[:-1])
        found, config = tree(net, dtype), ControlNetConfig.from_json(net.config)
        hint = embed_hint(picture, **found.pop("controlnet_cond_embedding"), config=config)
        skips, middle = controlnet(sample, steps, text, hint, **found, config=config)
        return [*skips, middle, unet.unet(
            sample, steps, text, **tree(model, dtype), config=UNetConfig.from_json(model.config),
            down_block_additional_residuals=skips, mid_block_additional_residual=middle)]

    narrow, wide = ours("float32"), ours("float64")
    torch32 = ask(model, net, *inputs)
    model.double(), net.double()
    torch64 = ask(model, net, *inputs)
    net.time_proj.forward = with_our_sinusoids(model, steps).time_proj.forward
    same64 = ask(model, net, *inputs)
    assert len(narrow) == len(torch64) == len(net.controlnet_down_blocks) + 2
    for i, results in enumerate(zip(narrow, torch32, torch64, wide, same64)):
        compare(f"{name}, {i}", allowed, *results)
