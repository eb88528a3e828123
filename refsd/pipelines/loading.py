"""A model on disk as the parts of a pipeline."""

from importlib import resources
from pathlib import Path
from typing import Any

from refsd.errors import ModelError, UsageError
from refsd.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from refsd.pipelines.components import VAE, TextEncoder, UNet
from refsd.registry import lay_out, release
from refsd.schedulers import from_config
from refsd.text import CLIPTokenizer
from refsd.weights import load_checkpoint, resolve
from refsd.weights.files import read_foreign_object

# What Stable Diffusion 1.x was published with, for single files, which carry no scheduler.
SD1_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
CLIP_ROWS = 49408


def bundled_model() -> Path:
    """The folder of the small model that ships with refsd."""
    return Path(str(resources.files("refsd"))) / "data" / "model"


def load_components(path: str | Path | None, *, backend: str, dtype: str, download: bool,
                    variant: str | None, ema: bool, force: bool, exact: bool = False,
                    hub: dict[str, Any] | None = None) -> dict[str, Any]:
    """Everything StableDiffusionPipeline is made of, from a folder, a file or a hub id.

    No path: the bundled model. `hub` holds cache_dir, revision and token, for ids. Raises
    ModelError, ResourceError, UsageError (refsd.weights).
    """
    if dtype not in ("float32", "float64"):
        raise UsageError(f"dtype is {dtype!r}; give float32 or float64")
    if path is None:
        place, name = bundled_model(), "refsd bundled model"
    else:
        place, name = resolve(path, download=download, variant=variant, **(hub or {})), str(path)
    parts = load_checkpoint(place, dtype=dtype, variant=variant, ema=ema, force=force)
    for part in parts.values():
        lay_out(backend, part.tensors)
    release(backend)  # the memory that weights lay in before

    text = parts["text_encoder"]
    config = CLIPTextConfig.from_json(text.config)
    encoder = TextEncoder(text.tree["text_model"], config, backend, exact)
    rows = encoder.tree["embeddings"]["token_embedding"]["weight"].shape[0]
    tokenizer = load_tokenizer(place, rows)
    tokenizer.require_rows(rows, encoder.config.max_length)
    return {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "unet": UNet(parts["unet"].tree, UNetConfig.from_json(parts["unet"].config), backend,
                     exact),
        "vae": VAE(parts["vae"].tree, VAEConfig.from_json(parts["vae"].config), backend, exact),
        "scheduler": load_scheduler(place),
        "name": name,
    }


def load_tokenizer(place: Path, rows: int) -> CLIPTokenizer:
    """The folder's tokenizer; where there is none, CLIP's own if the text encoder fits it."""
    if (place / "tokenizer").is_dir():
        return CLIPTokenizer.from_folder(place / "tokenizer")
    if rows != CLIP_ROWS:
        raise ModelError(f"{place}: no tokenizer folder, and with {rows} embeddings the text "
                         f"encoder is not CLIP's ({CLIP_ROWS}): the vocabulary cannot be known")
    return CLIPTokenizer.clip()


def load_scheduler(place: Path) -> Any:
    """The folder's scheduler; for a single file the one SD 1.x was published with."""
    if not place.is_dir():
        return from_config(SD1_SCHEDULER)
    return from_config(read_foreign_object(place / "scheduler" / "scheduler_config.json"))
