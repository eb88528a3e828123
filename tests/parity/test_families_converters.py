"""Small networks in their original names, read by diffusers' converters and by refsd's rules."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils
from original_names import SDXL_BLOCKS, mmdit, openclip, prefixed, unet, vae
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from refsd.families import sd3, sdxl
from refsd.tree import to_tree
from refsd.weights.names import is_pixel_projection


def same(layout, state, file, theirs):
    """The file read by refsd's rules and by diffusers is the network, bit for bit."""
    file = prefixed(layout.prefix, file)
    read = theirs(dict(file))
    assert read.keys() == state.keys()
    found = layout.locate(to_tree(state))
    assert found.keys() == state.keys()
    assert {layout.prefix + location.name for location in found.values()} == file.keys()
    for name, tensor in state.items():
        ours = found[name].take(file[layout.prefix + found[name].name].numpy())
        assert found[name].shape(file[layout.prefix + found[name].name].shape) == ours.shape
        ours = ours[..., 0, 0] if is_pixel_projection(name) else ours
        assert np.array_equal(ours, tensor.numpy()), name
        assert torch.equal(read[name], tensor), name


def random_unet(**config):
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=24,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64, **config)


@pytest.mark.parametrize("depth", [(1, 2), 3], ids=["base", "refiner"])
def test_a_unet_of_sdxl(depth):
    """Several transformer blocks in a row, and the embedding of sizes and of the pooled text."""
    real = random_unet(transformer_layers_per_block=depth)
    state = real.state_dict()
    same(sdxl.SDXL.layouts["unet"], state, unet(state, SDXL_BLOCKS),
         lambda file: single_file_utils.convert_ldm_unet_checkpoint(file, real.config))


@pytest.mark.parametrize("family, prefix", [
    (sdxl.SDXL, "conditioner.embedders.1.model."), (sdxl.REFINER, "conditioner.embedders.0.model.")
], ids=["base", "refiner"])
def test_the_second_text_encoder_of_sdxl(family, prefix):
    torch.manual_seed(0)
    real = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, projection_dim=16,
        num_attention_heads=2, max_position_embeddings=9))
    state, layout = real.state_dict(), family.layouts["text_encoder_2"]
    assert layout.prefix == prefix
    same(layout, state, openclip(state),
         lambda file: single_file_utils.convert_open_clip_checkpoint(real, file, prefix))


# SD 3 has no norms of queries and keys; 3.5 medium attends twice in its first blocks.
@pytest.mark.parametrize("options", [
    {}, {"qk_norm": "rms_norm"}, {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}],
    ids=["SD 3", "3.5 large", "3.5 medium"])
def test_a_transformer_of_sd3(options):
    """Another way than the config's: its own sizes are found in the tensors of the file."""
    torch.manual_seed(0)
    real = diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=24,
        pooled_projection_dim=12, pos_embed_max_size=6, **options)
    state = real.state_dict()
    file = mmdit(state)
    same(sd3.SD3.layouts["transformer"], state, file,
         single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers)
    given = {**sd3.TRANSFORMER, "attention_head_dim": 8, "sample_size": 8}
    found = sd3.transformer_config(given, file)
    assert {name: tuple(value) if isinstance(value, list) else value
            for name, value in found.items() if name[0] != "_"} == {
        name: value for name, value in real.config.items() if name[0] != "_"}


def test_a_vae_of_sd3():
    """Without the convolutions on either side of the latents."""
    torch.manual_seed(0)
    real = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=16, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False, use_post_quant_conv=False)
    state = real.state_dict()
    same(sd3.SD3.layouts["vae"], state, vae(state),
         lambda file: single_file_utils.convert_ldm_vae_checkpoint(file, real.config))
