"""Stable Diffusion 2.x: linear projections, heads of 64 channels, and OpenCLIP's text encoder.

Configs and scheduler are those of stable-diffusion-2-1, with which diffusers 0.42.1 reads every
single file of the family. Whether one predicts noise (the 512 x 512 base models) or v (the 768 x
768 ones) its weights do not tell: v is taken, but where the step of training is that of the base.
"""

from collections.abc import Mapping
from typing import Any

from refsd.families import latent_diffusion, sd1
from refsd.families.family import Family, Layout, Location
from refsd.families.latent_diffusion import renamed

UNET = {
    **sd1.UNET,
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}

VAE = {**sd1.VAE, "sample_size": 768}

# OpenCLIP's ViT-H/14 without its last layer, whose output the UNet does not read.
TEXT_ENCODER = {
    **sd1.TEXT_ENCODER,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    **latent_diffusion.NOISE,
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

_TEXT = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}
_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def openclip(tree: Mapping[str, Any]) -> dict[str, Location]:
    """OpenCLIP's names: q, k and v are thirds of one matrix, the projection stands transposed."""
    modules: dict[str, str | Location] = {f"text_model.{k}": there for k, there in _TEXT.items()}
    for i, _ in enumerate(tree["text_model"]["encoder"]["layers"]):
        here, there = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
        modules |= {f"{here}.{ours}": f"{there}.{theirs}" for ours, theirs in _LAYER.items()}
        modules |= {f"{here}.self_attn.{name}_proj.{leaf}":
                    Location(f"{there}.attn.in_proj_{leaf}", part, 3)
                    for part, name in enumerate("qkv") for leaf in ("weight", "bias")}
    modules["text_projection.weight"] = Location("text_projection", transposed=True)
    return renamed(tree, modules)


def _last_layer(tree: Mapping[str, Any]) -> str:
    return f"transformer.resblocks.{len(tree['text_model']['encoder']['layers'])}."


SD2 = Family(
    name="Stable Diffusion 2.x",
    configs={"text_encoder": TEXT_ENCODER, "unet": UNET, "vae": VAE},
    layouts={
        "text_encoder": Layout("cond_stage_model.model.",
                               "transformer.resblocks.0.attn.in_proj_weight", openclip,
                               _last_layer),
        "unet": latent_diffusion.UNET,
        "vae": latent_diffusion.VAE,
    },
    scheduler=SCHEDULER,
    text_width=1024,
    marks=("cond_stage_model.model.",),
    predictions={875000: "epsilon"},  # the base model's step, as diffusers' loader knows it
    pads={"tokenizer": "!"},
    published={"sd2": {}},
)
