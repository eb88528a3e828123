"""ControlNets and tiny autoencoders in halves against diffusers in the same, as test_halves.py has
the other networks."""

import numpy as np
import pytest
import torch
from bounds import rms
from diffusers import AutoencoderTiny, ControlNetModel
from test_controlnet import without_zeros
from test_halves import as_array, backend, inputs, judge, narrowed  # noqa: F401  a fixture
from test_models import levels, normal, randomised

from refsd.half import HALVES, to_float32
from refsd.models import taesd
from refsd.models.controlnet import ControlNetConfig, controlnet, embed_hint


def as_tensors(model, *arrays):
    return [torch.from_numpy(to_float32(x)).to(next(model.parameters()).dtype) for x in arrays]


@pytest.mark.parametrize("dtype", HALVES)
def test_controlnets(dtype, backend):  # noqa: F811
    """Each net counts once, by its middle: the skips on the way there round as it does."""
    errors = []
    for seed in range(24):
        torch.manual_seed(seed)
        shared = levels([32, 64], [1, 0], layers_per_block=1, attention_head_dim=4)
        model, tree = narrowed(without_zeros(randomised(ControlNetModel(
            conditioning_embedding_out_channels=(16, 24), **{
                key: value for key, value in shared.items()
                if key not in ("up_block_types", "sample_size")}))), dtype)
        sample, text, picture = inputs(dtype, normal(seed, 1, 4, 8, 8), normal(9, 1, 20, 48),
                                       normal(5, 1, 3, 16, 16))
        steps, config = np.array([500]), ControlNetConfig.from_json(model.config)
        hint = embed_hint(picture, **tree.pop("controlnet_cond_embedding"), config=config)
        skips, middle = controlnet(sample, steps, text, hint, **tree, config=config)

        def ask(model=model, arrays=(sample, text, picture)):
            x, text, picture = as_tensors(model, *arrays)
            with torch.no_grad():
                skips, middle = model(x, torch.tensor([500]), text, picture, return_dict=False)
            return [as_array(y) for y in (*skips, middle)]

        narrow = ask()
        model.double()
        assert all(x.dtype == HALVES[dtype] for x in (*skips, middle))
        truth = ask()[-1]
        errors.append((rms(to_float32(middle) - truth), rms(narrow[-1] - truth)))
    judge(f"ControlNets, {dtype}, {backend}", errors)


@pytest.mark.parametrize("dtype", HALVES)
def test_tiny_autoencoders(dtype, backend):  # noqa: F811
    errors = []
    for seed in range(6):
        torch.manual_seed(seed)
        model, tree = narrowed(randomised(AutoencoderTiny(
            encoder_block_out_channels=(24,) * 3, num_encoder_blocks=(1, 2, 1),
            decoder_block_out_channels=(32,) * 3, num_decoder_blocks=(2, 1, 1))), dtype)
        image, latents = inputs(dtype, normal(seed, 1, 3, 16, 24).clip(-1, 1),
                                2 * normal(seed + 9, 1, 4, 4, 6))
        ours = (taesd.encode(image, **tree["encoder"]), taesd.decode(latents, **tree["decoder"]))

        def ask(model=model, arrays=(image, latents)):
            image, latents = as_tensors(model, *arrays)
            with torch.no_grad():
                return as_array(model.encode(image).latents), as_array(model.decode(latents).sample)

        narrow = ask()
        model.double()
        for mine, theirs, truth in zip(ours, narrow, ask()):
            errors.append((rms(to_float32(mine) - truth), rms(theirs - truth)))
    judge(f"tiny autoencoders, {dtype}, {backend}", errors)
