"""Whole single files of random weights, as diffusers' from_single_file reads them."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from original_names import SDXL_BLOCKS, mmdit, openclip, prefixed, unet, vae
from safetensors.torch import save_file
from tiny_diffusers import clip_tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from refsd import families
from refsd.families import sd3, sdxl
from refsd.weights import load_checkpoint

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def clip(kind, width, **more):
    return kind(CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=77, projection_dim=width, bos_token_id=0,
        eos_token_id=2, **more))


def small_vae(**more):
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        **more)


def small_sdxl(root, refiner):
    """The base reads both text encoders' states, the refiner the second one's alone."""
    torch.manual_seed(0)
    second = clip(CLIPTextModelWithProjection, 24, hidden_act="gelu")
    ids = 5 if refiner else 6
    parts = {
        "tokenizer": None if refiner else clip_tokenizer(root),
        "tokenizer_2": clip_tokenizer(root),
        "text_encoder": None if refiner else clip(CLIPTextModel, 32),
        "text_encoder_2": second,
        "unet": diffusers.UNet2DConditionModel(
            block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
            attention_head_dim=[2, 4], cross_attention_dim=24 if refiner else 56,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), use_linear_projection=True,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_time_embed_dim=8,
            transformer_layers_per_block=3 if refiner else [1, 2],
            addition_embed_type="text_time", projection_class_embeddings_input_dim=24 + 8 * ids),
        "vae": small_vae(scaling_factor=0.13025),
        "scheduler": diffusers.EulerDiscreteScheduler(**NOISE, steps_offset=1,
                                                      timestep_spacing="leading"),
    }
    kind = diffusers.StableDiffusionXLImg2ImgPipeline if refiner else (
        diffusers.StableDiffusionXLPipeline)
    pipe = kind(**parts, requires_aesthetics_score=True) if refiner else kind(**parts)
    pipe.save_pretrained(root / "model")
    return pipe


def original_sdxl(pipe):
    """As Stability AI's generative-models saves them."""
    second = {**openclip(pipe.text_encoder_2.state_dict()), "logit_scale": torch.tensor(4.6)}
    refiner = pipe.text_encoder is None
    first = {} if refiner else {n if n.startswith("text_model.") else f"text_model.{n}": t for n, t
                                in pipe.text_encoder.state_dict().items()}
    return {**prefixed("model.diffusion_model.", unet(pipe.unet.state_dict(), SDXL_BLOCKS)),
            **prefixed("first_stage_model.", vae(pipe.vae.state_dict())),
            **prefixed("conditioner.embedders.0.transformer.", first),
            **prefixed(f"conditioner.embedders.{0 if refiner else 1}.model.", second)}


def same(theirs, parts, saved):
    """Every tensor of a file is the folder's, for diffusers as for refsd."""
    assert parts.keys() == saved.keys()
    for name, part in saved.items():
        state = {n.removeprefix("text_model."): t.numpy()
                 for n, t in getattr(theirs, name).state_dict().items()}
        assert parts[name].tensors.keys() == part.tensors.keys()
        for tensor, array in part.tensors.items():
            assert (parts[name].tensors[tensor] == array).all(), tensor
            assert (state[tensor.removeprefix("text_model.")] == array).all(), tensor


@pytest.mark.parametrize("refiner", [False, True], ids=["base", "refiner"])
def test_a_single_file_of_sdxl(tmp_path, monkeypatch, caplog, refiner):
    pipe = small_sdxl(tmp_path, refiner)
    family = sdxl.REFINER if refiner else sdxl.SDXL
    saved = load_checkpoint(tmp_path / "model")
    small = replace(family, configs={name: part.config for name, part in saved.items()})
    monkeypatch.setattr(families, "FAMILIES", (families.SD1, small))
    file = tmp_path / "x.safetensors"
    save_file(original_sdxl(pipe), file)
    theirs = type(pipe).from_single_file(str(file), config=str(tmp_path / "model"))
    same(theirs, load_checkpoint(file), saved)
    assert not caplog.records


def small_sd3(root, options):
    """Its first text encoder has no projection of its own: the identity stands there."""
    torch.manual_seed(0)
    first = clip(CLIPTextModelWithProjection, 32)
    torch.nn.init.eye_(first.text_projection.weight)
    tokenizer = clip_tokenizer(root)
    pipe = diffusers.StableDiffusion3Pipeline(
        tokenizer=tokenizer, tokenizer_2=tokenizer, tokenizer_3=tokenizer, text_encoder=first,
        text_encoder_2=clip(CLIPTextModelWithProjection, 24, hidden_act="gelu"),
        text_encoder_3=T5EncoderModel(T5Config(
            vocab_size=64, d_model=64, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8, in_channels=16, out_channels=16, num_layers=3, attention_head_dim=64,
            num_attention_heads=1, caption_projection_dim=64, joint_attention_dim=64,
            pooled_projection_dim=56, pos_embed_max_size=6, **options),
        vae=small_vae(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False,
                      scaling_factor=1.5305, shift_factor=0.0609),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe.save_pretrained(root / "model")
    return pipe


def original_sd3(pipe):
    """As Stability AI's files that hold everything, whose text encoders ComfyUI saved."""
    first = pipe.text_encoder.state_dict()
    first.pop("text_projection.weight")
    return {**prefixed("model.diffusion_model.", mmdit(pipe.transformer.state_dict())),
            **prefixed("first_stage_model.", vae(pipe.vae.state_dict())),
            **prefixed("text_encoders.clip_l.transformer.", first),
            **prefixed("text_encoders.clip_g.transformer.", pipe.text_encoder_2.state_dict()),
            **prefixed("text_encoders.t5xxl.transformer.", pipe.text_encoder_3.state_dict()),
            "text_encoders.clip_l.logit_scale": torch.tensor(4.6)}


# The family's own config is that of the published SD 3; sizes and structure are the file's.
@pytest.mark.parametrize("options", [
    {}, {"qk_norm": "rms_norm"}, {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}],
    ids=["SD 3", "3.5 large", "3.5 medium"])
def test_a_single_file_of_sd3(tmp_path, monkeypatch, caplog, options):
    pipe, folder = small_sd3(tmp_path, options), tmp_path / "model"
    saved = load_checkpoint(folder)
    configs = {name: part.config for name, part in saved.items()}
    configs["text_encoder"] = {**configs["text_encoder"], "architectures": ["CLIPTextModel"]}
    small = replace(sd3.SD3, configs={**configs, "transformer": sd3.TRANSFORMER})
    monkeypatch.setattr(families, "FAMILIES", (families.SD1, small))
    projection = saved["text_encoder"].tensors.pop("text_projection.weight")
    assert np.array_equal(projection, np.eye(32))

    tensors, file = original_sd3(pipe), tmp_path / "x.safetensors"
    save_file(tensors, file)
    theirs = diffusers.StableDiffusion3Pipeline.from_single_file(str(file), config=str(folder))
    parts = load_checkpoint(file)
    same(theirs, parts, saved)
    wanted = {**configs["transformer"], "sample_size": 128}
    assert {key: parts["transformer"].config[key] for key in sd3.TRANSFORMER if key[0] != "_"} == {
        key: wanted[key] for key in sd3.TRANSFORMER if key[0] != "_"}

    save_file({n: t for n, t in tensors.items() if "t5xxl" not in n}, file)
    assert load_checkpoint(file).keys() == saved.keys() - {"text_encoder_3"}
    assert not caplog.records
