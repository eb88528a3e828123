"""Files that are of no family here, by what tells them: refsd says what they are and refuses."""

from collections.abc import Collection, Mapping
from typing import Any

from refsd.families.inputs import not_drawn
from refsd.families.latent_diffusion import UNET

# How a tensor's name begins -> what such a file is.
BEGINNINGS = {
    UNET.prefix + "double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "single_transformer_blocks.": "Flux",
    "conditioner.embedders.0.open_clip.": "Stable Video Diffusion",
    "lora_": "a LoRA, not a whole model",
    "control_model.": "a ControlNet",
    "transformer.h.": "GPT-2, whose folder refsd text -m takes",
    "h.0.attn.c_attn.": "GPT-2, whose folder refsd text -m takes",
}
# How a module's name begins in an adapter's file, dots as underscores -> what the file is for.
ADAPTERS = {"lora_te2_": "SDXL", "text_encoder_2_": "SDXL", "lora_te3_": "Stable Diffusion 3",
            "transformer_": "another kind of model (a transformer)",
            "lora_transformer_": "another kind of model (a transformer)",
            "bundle_emb": "an embedding in the file, which is not read"}
PARTS = ("down_blocks.", "text_model.", "encoder.", "decoder.", "embeddings.", "input_blocks.",
         "first_stage_model.", "cond_stage_model.", "conditioner.embedders.", "text_encoders.",
         "joint_blocks.", "transformer_blocks.", "unet.", "vae.", "text_encoder.", "model_ema.",
         UNET.prefix)  # fmt: skip


def kind_of(tensors: Mapping[str, Any], known: Collection[str]) -> str:
    """What a file of these tensors is that refsd does not draw with; empty where it may.

    known: what is in the names of files of the families that there are.
    """
    for beginning, kind in BEGINNINGS.items():
        if any(name.startswith(beginning) for name in tensors):
            return kind
    if any(".lora_" in name for name in tensors):
        return "a LoRA, not a whole model"
    if not any(name.startswith(PARTS) or any(mark in name for mark in known) for name in tensors):
        names = ", ".join(ascii(name)[1:-1][:60] for name in list(tensors)[:3])
        return f"no Stable Diffusion checkpoint (it holds {names or 'no tensor'})"
    if any(name.startswith("controlnet_cond_embedding.") for name in tensors):
        return "a ControlNet"
    first = tensors.get(UNET.prefix + UNET.landmark)
    channels = first.shape[1] if first and len(first.shape) == 4 else 4
    return not_drawn(channels, 4)
