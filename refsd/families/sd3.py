"""Stable Diffusion 3 and 3.5: a transformer, up to three text encoders, a VAE of 16 channels.

Files have the names of Stability AI's own code (mmdit.py of its repository sd3.5); the sizes that
tell SD 3 medium, 3.5 medium and 3.5 large apart are those of their tensors. Configs and scheduler
are those of the published folders stable-diffusion-3-medium-diffusers, -3.5-medium, -3.5-large.
"""

import math
from collections.abc import Mapping
from typing import Any

from refsd.families import latent_diffusion, sd1, sdxl
from refsd.families.family import Family, Layout, Location
from refsd.families.latent_diffusion import renamed

# That of SD 3 medium; `transformer_config` has the others.
TRANSFORMER = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "dual_attention_layers": [],
    "qk_norm": None,
}

VAE = {
    **sd1.VAE,
    "sample_size": 1024,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

# What differs in the transformers of 3.5; both have norms of queries and keys.
_MEDIUM = {"pos_embed_max_size": 384, "dual_attention_layers": [*range(13)], "qk_norm": "rms_norm"}
_LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
          "qk_norm": "rms_norm"}  # fmt: skip

# Its pooled vector is not projected: the published folder's projection is the identity.
TEXT_ENCODER = sdxl.TEXT_ENCODER

# The encoder of google/t5-v1_1-xxl.
TEXT_ENCODER_3 = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
}

SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
}

_MODULES = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
}
_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
}  # fmt: skip
# Where queries, keys and values are thirds of one matrix.
_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def transformer(tree: Mapping[str, Any]) -> dict[str, Location]:
    """name here -> Location there.

    A norm of its own scales and shifts (the last, and the last block's of the text) has the scale
    first here, and the shift first there.
    """
    modules: dict[str, str | Location] = {**_MODULES, **_exchanged(
        "norm_out.linear", "final_layer.adaLN_modulation.1")}
    for i, block in enumerate(tree["transformer_blocks"]):
        here, there = f"transformer_blocks.{i}", f"joint_blocks.{i}"
        modules |= {f"{here}.{ours}": f"{there}.{theirs}" for ours, theirs in _BLOCK.items()}
        modules |= {f"{here}.{ours}.{leaf}": Location(f"{there}.{theirs}.{leaf}", part, 3)
                    for theirs, thirds in _FUSED.items() for part, ours in enumerate(thirds)
                    for leaf in ("weight", "bias")}
        if "ff_context" not in block:
            modules |= _exchanged(f"{here}.norm1_context.linear",
                                  f"{there}.context_block.adaLN_modulation.1")
    return renamed(tree, modules)


def _exchanged(here: str, there: str) -> dict[str, Location]:
    return {f"{here}.{leaf}": Location(f"{there}.{leaf}", exchanged=True)
            for leaf in ("weight", "bias")}


def transformer_config(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what a file's tensors, by their names there, say by being there and by shape.

    Where one of those that say it is missing, or has other axes, the config is left as it is.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    blocks = [name.split(".")[1:] for name in shapes if name.startswith("joint_blocks.")]
    try:
        width, channels, patch, _ = shapes["x_embedder.proj.weight"]
        context, read = shapes["context_embedder.weight"]
        _, pooled = shapes["y_embedder.mlp.0.weight"]
        _, patches, _ = shapes["pos_embed"]
        (out,) = shapes["final_layer.linear.bias"]
        return {
            **config,
            "patch_size": patch,
            "in_channels": channels,
            "out_channels": out // patch**2,
            "num_layers": 1 + max(int(index) for index, *_ in blocks),
            "num_attention_heads": width // config["attention_head_dim"],
            "joint_attention_dim": read,
            "caption_projection_dim": context,
            "pooled_projection_dim": pooled,
            "pos_embed_max_size": math.isqrt(patches),
            "dual_attention_layers": sorted({int(index) for index, *rest in blocks
                                             if "attn2" in rest}),
            "qk_norm": "rms_norm" if any("ln_q" in rest for rest in blocks) else None,
        }  # fmt: skip
    except (KeyError, ValueError, ZeroDivisionError):
        return dict(config)


SD3 = Family(
    name="Stable Diffusion 3",
    configs={"text_encoder": TEXT_ENCODER, "text_encoder_2": sdxl.TEXT_ENCODER_2,
             "text_encoder_3": TEXT_ENCODER_3, "transformer": TRANSFORMER, "vae": VAE},
    layouts={
        "text_encoder": Layout("text_encoders.clip_l.transformer."),
        "text_encoder_2": Layout("text_encoders.clip_g.transformer."),
        "text_encoder_3": Layout("text_encoders.t5xxl.transformer."),
        "transformer": Layout("model.diffusion_model.", "joint_blocks.0.x_block.attn.qkv.weight",
                              transformer, adapt=transformer_config),
        "vae": latent_diffusion.VAE,
    },
    scheduler=SCHEDULER,
    text_width=4096,
    marks=("joint_blocks.", "pos_embed.pos_embed", "text_encoders.t5xxl."),
    pads={"tokenizer_2": "!"},
    optional=("text_encoder_3",),
    pipelines={"text": "StableDiffusion3Pipeline", "image": "StableDiffusion3Img2ImgPipeline",
               "mask": "StableDiffusion3InpaintPipeline"},
    published={"sd3": {}, "sd3.5-medium": {"transformer": _MEDIUM},
               "sd3.5-large": {"transformer": _LARGE}},
)  # fmt: skip
