"""Stable Diffusion XL, its base and its refiner: two families, whose UNets read other texts.

The base reads both encoders side by side (768 + 1280 channels), the refiner the second alone; both
add the second's pooled vector, and sizes, to the time. Configs and schedulers are those of the
published folders stable-diffusion-xl-base-1.0, -refiner-1.0, sdxl-turbo and SDXL-Lightning.
"""

from refsd.families import latent_diffusion, sd1
from refsd.families.family import Family, Layout
from refsd.families.sd2 import openclip

UNET = {
    **sd1.UNET,
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}

REFINER_UNET = {
    **UNET,
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
                         "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "attention_head_dim": [6, 12, 24, 24],
    "projection_class_embeddings_input_dim": 1280 + 5 * 256,  # a score in the place of a size
}  # fmt: skip

VAE = {**sd1.VAE, "sample_size": 1024, "scaling_factor": 0.13025}

# Both say that their text ends at 2, as old configs do: it ends at the largest id.
TEXT_ENCODER = {**sd1.TEXT_ENCODER, "projection_dim": 768, "bos_token_id": 0, "eos_token_id": 2}

# OpenCLIP's ViT-bigG/14.
TEXT_ENCODER_2 = {
    **TEXT_ENCODER,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    **latent_diffusion.NOISE,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
# What the distilled ones are drawn with. Their tensors are the base's, so only metadata can tell.
DISTILLED = {
    "turbo": {**SCHEDULER, "_class_name": "EulerAncestralDiscreteScheduler",
              "timestep_spacing": "trailing"},
    "lightning": {**SCHEDULER, "timestep_spacing": "trailing"},
}  # fmt: skip
PIPELINES = {"text": "StableDiffusionXLPipeline", "image": "StableDiffusionXLImg2ImgPipeline",
             "mask": "StableDiffusionXLInpaintPipeline"}

def _openclip(prefix: str) -> Layout:
    return Layout(prefix, "transformer.resblocks.0.attn.in_proj_weight", openclip)


SDXL = Family(
    name="Stable Diffusion XL",
    configs={"text_encoder": TEXT_ENCODER, "text_encoder_2": TEXT_ENCODER_2, "unet": UNET,
             "vae": VAE},
    layouts={
        "text_encoder": Layout("conditioner.embedders.0.transformer."),
        "text_encoder_2": _openclip("conditioner.embedders.1.model."),
        "unet": latent_diffusion.UNET,
        "vae": latent_diffusion.VAE,
    },
    scheduler=SCHEDULER,
    text_width=2048,
    marks=("conditioner.embedders.1.",),
    distilled=DISTILLED,
    pads={"tokenizer_2": "!"},
    pipelines=PIPELINES,
    published={"sdxl": {}},
    settings={"force_zeros_for_empty_prompt": True},
)  # fmt: skip

REFINER = Family(
    name="Stable Diffusion XL refiner",
    configs={"text_encoder_2": TEXT_ENCODER_2, "unet": REFINER_UNET, "vae": VAE},
    layouts={
        "text_encoder_2": _openclip("conditioner.embedders.0.model."),
        "unet": latent_diffusion.UNET,
        "vae": latent_diffusion.VAE,
    },
    scheduler=SCHEDULER,
    text_width=1280,
    marks=("conditioner.embedders.0.model.",),
    pads={"tokenizer_2": "!"},
    pipelines=PIPELINES,
    published={"sdxl-refiner": {}},
    settings={"force_zeros_for_empty_prompt": False},
)
