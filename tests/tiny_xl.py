"""Complete random models of Stable Diffusion XL's kind, of a few thousand weights, as folders."""

import json
from pathlib import Path

import tiny

from refsd.weights import write_safetensors

IDS = 8  # numbers that stand for a size
SECOND = {**tiny.TEXT_ENCODER, "architectures": ["CLIPTextModelWithProjection"], "hidden_size": 24,
          "intermediate_size": 32, "num_hidden_layers": 3, "projection_dim": 12,
          "hidden_act": "gelu"}
VAE = {**tiny.VAE, "scaling_factor": 0.13025}


def configs(*, refiner=False, in_channels=4):
    """config.json a network, of a base model or of a refiner."""
    first = {} if refiner else {"text_encoder": tiny.TEXT_ENCODER}
    unet = {**tiny.UNET, "cross_attention_dim": 24 if refiner else 40, "in_channels": in_channels,
            "use_linear_projection": True, "transformer_layers_per_block": [2, 1],
            "addition_embed_type": "text_time", "addition_time_embed_dim": IDS,
            "projection_class_embeddings_input_dim": 12 + (5 if refiner else 6) * IDS}
    return {**first, "text_encoder_2": SECOND, "unet": unet, "vae": VAE}


def write_model(folder, *, refiner=False, in_channels=4, scheduler=tiny.SCHEDULER, vae=None,
                **entries):
    """The model as a folder that `-m` takes; `entries` are more of its model_index.json."""
    folder = Path(folder)
    found = configs(refiner=refiner, in_channels=in_channels)
    for part, config in found.items():
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        tensors = vae if part == "vae" and vae else tiny.tensors(part, config=config)
        write_safetensors(folder / part / f"{stem}.safetensors", tensors)
        if part.startswith("text"):
            tiny.write_tokenizer(folder / part.replace("text_encoder", "tokenizer"))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": "StableDiffusionXLPipeline", **entries}
    if refiner:
        index |= {"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None],
                  "tokenizer": [None, None], "force_zeros_for_empty_prompt": False}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
