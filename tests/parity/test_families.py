"""Single files of the families beside diffusers, which reads them with its own converters."""

from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
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


# The original names of the small model, written by hand from the latent diffusion code's modules.
UNET_BLOCKS = {
    "down_blocks.0.resnets.0.": "input_blocks.1.0.", "down_blocks.0.attentions.0.":
    "input_blocks.1.1.", "down_blocks.0.downsamplers.0.conv.": "input_blocks.2.0.op.",
    "down_blocks.1.resnets.0.": "input_blocks.3.0.", "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.", "mid_block.resnets.1.": "middle_block.2.",
    "up_blocks.0.resnets.0.": "output_blocks.0.0.", "up_blocks.0.resnets.1.": "output_blocks.1.0.",
    "up_blocks.0.upsamplers.0.": "output_blocks.1.1.", "up_blocks.1.resnets.0.":
    "output_blocks.2.0.", "up_blocks.1.attentions.0.": "output_blocks.2.1.",
    "up_blocks.1.resnets.1.": "output_blocks.3.0.", "up_blocks.1.attentions.1.":
    "output_blocks.3.1.", "time_embedding.linear_": "time_embed.", "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.", "conv_in.": "input_blocks.0.0.",
}  # fmt: skip
RESNET = {"norm1.": "in_layers.0.", "conv1.": "in_layers.2.", "time_emb_proj.": "emb_layers.1.",
          "norm2.": "out_layers.0.", "conv2.": "out_layers.3.",
          "conv_shortcut.": "skip_connection."}  # fmt: skip
VAE_NAMES = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1", "conv_norm_out": "norm_out",
    ".conv_shortcut": ".nin_shortcut", ".group_norm": ".norm", ".to_q.": ".q.", ".to_k.": ".k.",
    ".to_v.": ".v.", ".to_out.0.": ".proj_out.", "samplers.0.": "sample.", ".resnets.": ".block.",
    **{f"encoder.down_blocks.{i}": f"encoder.down.{i}" for i in range(4)},
    **{f"decoder.up_blocks.{i}": f"decoder.up.{3 - i}" for i in range(4)},
}  # fmt: skip
CLIP_NAMES = {"layers.": "transformer.resblocks.", "layer_norm": "ln_", "mlp.fc1": "mlp.c_fc",
              "mlp.fc2": "mlp.c_proj", "self_attn.out": "attn.out",
              "embeddings.token_embedding": "token_embedding", "final_ln_": "ln_final",
              "embeddings.position_embedding.weight": "positional_embedding",
              "encoder.": ""}  # fmt: skip


def renamed(name, table):
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


def original(pipe):
    """The tensors of a small Stable Diffusion 2 as its training code saves them."""
    file = {}
    for name, tensor in pipe.unet.state_dict().items():
        start = next(start for start in UNET_BLOCKS if name.startswith(start))
        rest = name.removeprefix(start)
        if start == "time_embedding.linear_":
            rest = {"1": "0", "2": "2"}[rest[0]] + rest[1:]
        rest = renamed(rest, RESNET) if "resnets" in start else rest
        file[f"model.diffusion_model.{UNET_BLOCKS[start]}{rest}"] = tensor
    for name, tensor in pipe.vae.state_dict().items():
        kernel = "attentions" in name and tensor.dim() == 2
        tensor = tensor[:, :, None, None] if kernel else tensor
        file[f"first_stage_model.{renamed(name, VAE_NAMES)}"] = tensor
    clip = "cond_stage_model.model."
    state = {n.removeprefix("text_model."): t for n, t in pipe.text_encoder.state_dict().items()}
    for name, tensor in state.items():
        if "q_proj" in name:
            fused = torch.cat([state[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            there = name.replace("self_attn.q_proj.", "attn.in_proj_")
            file[clip + renamed(there, CLIP_NAMES)] = fused
        elif "k_proj" not in name and "v_proj" not in name:
            file[clip + renamed(name, CLIP_NAMES)] = tensor
    last = {n: t for n, t in file.items() if ".resblocks.2." in n}
    file |= {n.replace(".2.", ".3."): torch.full_like(t, 9) for n, t in last.items()}
    file[f"{clip}text_projection"] = torch.randn(32, 32)
    file[f"{clip}logit_scale"] = torch.tensor(4.6)
    return {name: tensor.clone().contiguous() for name, tensor in file.items()}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder, its tensors as in a single file, and that file; SD 2 is of the small one's size."""
    pipe = small_sd2(tmp_path)
    pipe.save_pretrained(tmp_path / "model")
    configs = {name: part.config for name, part in load_checkpoint(tmp_path / "model").items()}
    small = replace(families.SD2, configs=configs)
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
