"""Stable Diffusion 1.5 with random weights, as a folder that all runners load; its inputs."""

import json
from pathlib import Path

import numpy as np

from benchmarks.calls import IDS, LATENTS, PERIOD, PICTURE, SAMPLE, TEXT
from refsd.families import sd1
from refsd.networks import shapes_of
from refsd.weights import write_safetensors

STEMS = {"text_encoder": "model", "unet": "diffusion_pytorch_model",
         "vae": "diffusion_pytorch_model"}
CLASSES = {"text_encoder": ["transformers", "CLIPTextModel"], "scheduler": [
    "diffusers", sd1.SCHEDULER["_class_name"]], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"]}
# A part of the model as a section names it, and the component that computes it.
COMPONENT = {"clip": "text_encoder", "unet": "unet", "decode": "vae", "encode": "vae"}
PROMPT, STEPS, GUIDANCE, SEED = "a glossy red sphere left of a small blue cube", 20, 3.0, 7


def precision_and_form(variant: str) -> tuple[str, str]:
    """What a variant of a runner computes in, and how: "bfloat16 channels_last", "contiguous"."""
    *precision, form = variant.split()
    return "".join(precision) or "float32", form


def make_model(folder: Path) -> Path:
    """Write the model unless it is there: 4.3 GB. model_index.json comes last."""
    if (folder / "model_index.json").is_file():
        return folder
    for component, config in sd1.SD1.configs.items():
        place = folder / component
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(config))
        shapes = shapes_of(component, config)
        tensors = {name: random_weight(name, shape, i)
                   for i, (name, shape) in enumerate(shapes.items())}
        write_safetensors(place / f"{STEMS[component]}.safetensors", tensors, {"format": "pt"})
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(sd1.SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(
        {"_class_name": "StableDiffusionPipeline"} | CLASSES))
    return folder


_BLOCK = np.random.default_rng(0).uniform(-1, 1, PERIOD).astype("float32")


def random_weight(name, shape, i):
    """Uniform within 1 / sqrt(inputs), as layers are before training; norms leave the scale."""
    if "norm" in name:
        return np.full(shape, float(name.endswith("weight")), "float32")
    scale = np.float32(1 / np.sqrt(max(np.prod(shape[1:]), 1)))
    return np.resize(np.roll(_BLOCK, -7919 * i) * scale, int(np.prod(shape))).reshape(shape)


def inputs(part: str) -> dict[str, np.ndarray]:
    """What one run of a part takes, the same for all runners."""
    random = np.random.default_rng(1)

    def normal(shape):
        return random.standard_normal(shape, dtype="float32")

    if part == "clip":
        ids = random.integers(0, sd1.TEXT_ENCODER["bos_token_id"], IDS)
        ids[:, 0] = sd1.TEXT_ENCODER["bos_token_id"]
        ids[:, -1] = sd1.TEXT_ENCODER["eos_token_id"]
        return {"ids": ids}
    if part == "unet":
        return {"sample": normal(SAMPLE), "timestep": np.full(SAMPLE[0], 981), "text": normal(TEXT)}
    if part == "decode":
        return {"latents": normal(LATENTS)}
    return {"picture": random.uniform(-1, 1, PICTURE).astype("float32")}
