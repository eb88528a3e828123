"""A complete random model with the parts of Stable Diffusion 3, written as a real diffusers folder.
"""

import json
from pathlib import Path

import numpy as np
import t5_samples
import tiny

from refsd.networks import shapes_of
from refsd.weights import write_safetensors

CLIP = {**tiny.TEXT_ENCODER, "architectures": ["CLIPTextModelWithProjection"],
        "num_hidden_layers": 3, "max_position_embeddings": tiny.LENGTH, "projection_dim": 6}
CONFIGS = {
    "text_encoder": CLIP,
    "text_encoder_2": {**CLIP, "hidden_size": 12, "projection_dim": 10, "hidden_act": "gelu"},
    "text_encoder_3": {
        "architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": 32, "d_kv": 8,
        "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 200,
        "feed_forward_proj": "gated-gelu"},
    "transformer": {
        "_class_name": "SD3Transformer2DModel", "sample_size": 4, "in_channels": 16,
        "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8,
        "joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 16,
        "pos_embed_max_size": 6},
    "vae": {**tiny.VAE, "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609,
            "use_quant_conv": False, "use_post_quant_conv": False},
}  # fmt: skip
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def write_model(folder, *, seed=0, without=(), scheduler=SCHEDULER, **changes):
    """The folder; changes of configs, a dict a part, and parts to leave out."""
    folder, index = Path(folder), {"_class_name": "StableDiffusion3Pipeline"}
    random = np.random.default_rng(seed)
    for part, config in CONFIGS.items():
        if part in without:
            index[part] = index[part.replace("text_encoder", "tokenizer")] = [None, None]
            continue
        config = {**config, **changes.get(part, {})}
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        write_safetensors(folder / part / f"{stem}.safetensors", {
            name: tiny._weight(name, shape, random)
            for name, shape in shapes_of(part, config).items()})
        if part == "text_encoder_3":
            t5_samples.write(folder / "tokenizer_3", config={"model_max_length": 512})
        elif part.startswith("text_encoder"):
            tiny.write_tokenizer(folder / part.replace("text_encoder", "tokenizer"))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
