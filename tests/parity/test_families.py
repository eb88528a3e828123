"""Single files of the families beside diffusers, which reads them with its own converters."""

from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from original_names import SD2_BLOCKS, openclip, prefixed, unet, vae
from safetensors.torch import save_file
from tiny_diffusers import PROMPT, SIZE, clip_tokenizer, same_picture
from transformers import CLIPTextConfig, CLIPTextModel

import refsd
from refsd import families
from refsd.weights import load_checkpoint

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def small_sd2(root):
    """Stable Diffusion 2 is matrices, heads a level, gelu, v-prediction, padding with "!"."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(root)
    tokenizer.pad_token = "!"
    return StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(CLIPTextConfig(
            vocab_size=49408, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=77, hidden_act="gelu",
            projection_dim=16)),
        unet=UNet2DConditionModel(
            sample_size=SIZE // 8, block_out_channels=(32, 64), layers_per_block=1,
            cross_attention_dim=32, attention_head_dim=[2, 4], norm_num_groups=8,
            use_linear_projection=True, upcast_attention=True,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
        vae=AutoencoderKL(
            block_out_channels=(16, 16, 32, 32), norm_num_groups=8, layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4),
        scheduler=diffusers.DDIMScheduler(
            **NOISE, steps_offset=1, set_alpha_to_one=False, clip_sample=False,
            prediction_type="v_prediction"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def original(pipe):
    """The tensors of a small Stable Diffusion 2 as its training code saves them."""
    text = openclip(pipe.text_encoder.state_dict())
    last = {name: tensor for name, tensor in text.items() if ".resblocks.2." in name}
    text |= {n.replace(".2.", ".3."): torch.full_like(t, 9) for n, t in last.items()}
    text |= {"text_projection": torch.randn(32, 32), "logit_scale": torch.tensor(4.6)}
    return {**prefixed("model.diffusion_model.", unet(pipe.unet.state_dict(), SD2_BLOCKS)),
            **prefixed("first_stage_model.", vae(pipe.vae.state_dict())),
            **prefixed("cond_stage_model.model.", text)}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder, its tensors as in a single file, and that file; SD 2 is of the small one's size."""
    pipe = small_sd2(tmp_path)
    pipe.save_pretrained(tmp_path / "model")
    configs = {name: part.config for name, part in load_checkpoint(tmp_path / "model").items()}
    small = replace(families.sd2.SD2, configs=configs)
    monkeypatch.setattr(families, "FAMILIES", (families.SD1, small))
    return tmp_path / "model", original(pipe), tmp_path / "x.safetensors"


def test_a_folder_of_stable_diffusion_2(models):
    folder, *_ = models
    theirs = StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    ours = refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numpy")
    assert theirs.tokenizer.pad_token_id == 0
    same_picture(theirs, ours, prompt=PROMPT, negative_prompt="blurry", num_inference_steps=6)


def test_a_single_file_of_stable_diffusion_2(models, caplog):
    """It has the tensors of the folder, for diffusers as for refsd, and draws its picture."""
    folder, tensors, file = models
    save_file(tensors, file)
    theirs = StableDiffusionPipeline.from_single_file(str(file), config=str(folder))
    theirs.set_progress_bar_config(disable=True)
    parts, saved = load_checkpoint(file), load_checkpoint(folder)
    assert not caplog.records
    for name, part in saved.items():
        state = {n.removeprefix("text_model."): t.numpy()
                 for n, t in getattr(theirs, name).state_dict().items()}
        assert parts[name].tensors.keys() == part.tensors.keys()
        for tensor, array in part.tensors.items():
            assert (parts[name].tensors[tensor] == array).all(), tensor
            assert (state[tensor.removeprefix("text_model.")] == array).all(), tensor

    ours = refsd.StableDiffusionPipeline.from_pretrained(file, backend="numpy")
    assert ours.scheduler.config["prediction_type"] == "v_prediction"
    assert ours.tokenizer.pad_token_id == theirs.tokenizer.pad_token_id == 0
    assert ("predicts v_prediction, says its family alone (Stable Diffusion 2.x); prediction_type= "
            "(--prediction) overrules") in caplog.text
    same_picture(theirs, ours, prompt=PROMPT, negative_prompt="blurry", num_inference_steps=6)
