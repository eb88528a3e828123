"""A ControlNet, textual inversion, a LoRA and a tiny autoencoder at once, against diffusers."""

import diffusers
import numpy as np
from test_controlnet_pipelines import nets, pair, picture  # noqa: F401  fixtures
from test_pipelines import folder, same_picture  # noqa: F401  a fixture
from test_taesd_pipelines import tiny  # noqa: F401  a fixture

import refsd
from refsd.weights import write_safetensors


def values(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def test_all_at_once(folder, nets, tiny, tmp_path):  # noqa: F811
    theirs, ours = pair(folder, nets, "plain", kind="Img2Img")
    theirs.vae = diffusers.AutoencoderTiny.from_pretrained(tiny)
    ours.vae = refsd.StableDiffusionPipeline.from_pretrained(folder, vae=tiny, backend="numpy").vae
    attention = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    write_safetensors(tmp_path / "lora.safetensors", {
        f"{attention}.to_q.lora_A.weight": 0.5 * values(1, 2, 32),
        f"{attention}.to_q.lora_B.weight": 0.5 * values(2, 32, 2)})
    write_safetensors(tmp_path / "word.safetensors", {"<new>": values(3, 2, 32)})
    for pipe in (theirs, ours):
        pipe.load_textual_inversion(str(tmp_path / "word.safetensors"))
        pipe.load_lora_weights(str(tmp_path / "lora.safetensors"))
    same_picture(theirs, ours, prompt="a <new> bowl of soup", negative_prompt="<new>",
                 num_inference_steps=4, guess_mode=True, image=picture(3), control_image=picture(1))
