"""The trained parts as an ordinary diffusers folder."""

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from training import diffusion, vae
from training.checkpoints import load, save
from training.latents import scaling
from training.tokenizer import load_tokenizer, write_tokenizer


def trained_vae(folder):
    """The averaged autoencoder of the last checkpoint."""
    model = vae.build()
    model.load_state_dict(load(Path(folder) / "vae.pt")["shadow"])
    return model.eval()


def pipeline(folder):
    """StableDiffusionPipeline in float32 from the checkpoints in `folder`."""
    write_tokenizer(Path(folder) / "tokenizer")
    state, model = load(Path(folder) / "diffusion.pt"), diffusion.build()
    if state:
        model.load_state_dict(state["shadow"])
    coder = trained_vae(folder)
    if (Path(folder) / "latents.npy").exists():
        coder.register_to_config(scaling_factor=round(scaling(folder), 6))
    pipe = StableDiffusionPipeline(
        vae=coder,
        text_encoder=model["text"].eval(),
        tokenizer=load_tokenizer(Path(folder) / "tokenizer"),
        unet=model["unet"].eval(),
        scheduler=diffusion.schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def open_model(target):
    """StableDiffusionPipeline in float32 from a model folder."""
    pipe = StableDiffusionPipeline.from_pretrained(target, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def begin_from(target, folder):
    """Write first checkpoints in `folder` from a model folder; never over old ones."""
    pipe = open_model(target)
    model = torch.nn.ModuleDict({"text": pipe.text_encoder, "unet": pipe.unet})
    save(Path(folder) / "text.pt", pipe.text_encoder.state_dict())
    for name, part in (("vae.pt", pipe.vae), ("diffusion.pt", model)):
        path, weights = Path(folder) / name, part.state_dict()
        if path.exists():
            raise FileExistsError(f"{path} exists; --init wants a folder without checkpoints")
        save(path, {"model": weights, "shadow": weights, "optimiser": None, "step": 0})


def export(folder, target):
    """Write the float16 model folder `target`; the tokenizer files are our own, not re-written."""
    target = Path(target)
    pipeline(folder).to(torch.float16).save_pretrained(target, safe_serialization=True)
    for old in (target / "tokenizer").iterdir():
        old.unlink()
    write_tokenizer(target / "tokenizer")
    for path in target.rglob("*.safetensors"):
        path.chmod(0o644)
    _tidy(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


def _tidy(target):
    """Take the machine's own paths out of the written configs."""
    for path in target.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
