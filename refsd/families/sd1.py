"""Stable Diffusion 1.x: the configs of its published folder, for single files, which carry none.

What is a default of the class that wrote a config.json is left to refsd.networks.
"""

from refsd.families import latent_diffusion
from refsd.families.family import Family, Layout

UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
}

VAE = {
    "_class_name": "AutoencoderKL",
    "sample_size": 512,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}

TEXT_ENCODER = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    **latent_diffusion.NOISE,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}

SD1 = Family(
    name="Stable Diffusion 1.x",
    configs={"text_encoder": TEXT_ENCODER, "unet": UNET, "vae": VAE},
    layouts={
        "text_encoder": Layout("cond_stage_model.transformer."),
        "unet": latent_diffusion.UNET,
        "vae": latent_diffusion.VAE,
    },
    scheduler=SCHEDULER,
    text_width=768,
    published={"sd1": {}},
)
