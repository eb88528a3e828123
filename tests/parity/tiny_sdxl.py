"""Tiny Stable Diffusion XLs of random weights, as diffusers saves them: base, refiner, turbo."""

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_diffusers import SD1, SIZE, clip_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

IDS = 16  # numbers that stand for a size

SCHEDULERS = {
    "base": diffusers.EulerDiscreteScheduler(**SD1, steps_offset=1, timestep_spacing="leading"),
    "refiner": diffusers.EulerDiscreteScheduler(**SD1, steps_offset=1, timestep_spacing="leading"),
    "turbo": diffusers.EulerAncestralDiscreteScheduler(**SD1, steps_offset=1,
                                                       timestep_spacing="trailing"),
}


def write_model(root, kind, *, in_channels=4):
    """The folder of a tiny model: levels without attention, several transformers in a level."""
    torch.manual_seed(len(kind))
    refiner = kind == "refiner"
    width = 48 if refiner else 32 + 48
    options = {"force_zeros_for_empty_prompt": not refiner, "add_watermarker": False}
    if refiner:
        options |= {"requires_aesthetics_score": True}
    tokenizer = clip_tokenizer(root)
    second = clip_tokenizer(root)
    second.pad_token = "!"
    model = (StableDiffusionXLImg2ImgPipeline if refiner else StableDiffusionXLPipeline)(
        tokenizer=None if refiner else tokenizer, tokenizer_2=second,
        text_encoder=None if refiner else CLIPTextModel(_clip(32, 3, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(_clip(48, 4, "gelu", projection_dim=40)),
        unet=_unet(width, 40 + (5 if refiner else 6) * IDS, in_channels, refiner), vae=_vae(),
        scheduler=SCHEDULERS[kind], **options)
    model.save_pretrained(root / "model")
    return root / "model"


def _clip(width, layers, act, **more):
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=77, hidden_act=act, bos_token_id=0,
        eos_token_id=2, **more)


def _unet(width, added, in_channels, refiner):
    down = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    more = {"transformer_layers_per_block": (1, 2, 3)}
    if refiner:
        down, more = ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"), {
            "transformer_layers_per_block": 2}
    return UNet2DConditionModel(
        sample_size=SIZE // 8, in_channels=in_channels, block_out_channels=(16, 32, 32),
        layers_per_block=1, cross_attention_dim=width, attention_head_dim=(2, 4, 4),
        norm_num_groups=8, use_linear_projection=True, down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        addition_embed_type="text_time", addition_time_embed_dim=IDS,
        projection_class_embeddings_input_dim=added, **more)


def _vae():
    return AutoencoderKL(
        block_out_channels=(16, 16, 32, 32), norm_num_groups=8, layers_per_block=1,
        scaling_factor=0.13025, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4)
