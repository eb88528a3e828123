"""A model on disk as the parts of a pipeline."""

import logging
from importlib import resources
from pathlib import Path
from typing import Any

from refsd.arguments import shown
from refsd.errors import ModelError, UsageError
from refsd.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from refsd.pipelines.components import VAE, TextEncoder, UNet
from refsd.registry import lay_out, release
from refsd.schedulers import from_config, would_do
from refsd.text import CLIPTokenizer
from refsd.weights import load_checkpoint, resolve
from refsd.weights.files import read_foreign_object
from refsd.weights.model_index import part_class

logger = logging.getLogger(__name__)

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
                    hub: dict[str, Any] | None = None, scheduler: Any = None) -> dict[str, Any]:
    """Everything StableDiffusionPipeline is made of, from a folder, a file or a hub id.

    No path: the bundled model. `hub` holds cache_dir, revision and token, for ids; `scheduler` as
    in `load_scheduler`. Raises ModelError, ResourceError, UsageError (refsd.weights).
    """
    if dtype not in ("float32", "float64"):
        raise UsageError(f"dtype is {dtype!r}; give float32 or float64")
    if path is None:
        place, name = bundled_model(), "refsd bundled model"
    else:
        place, name = resolve(path, download=download, variant=variant, **(hub or {})), str(path)
    scheduler = load_scheduler(place, scheduler)
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
        "scheduler": scheduler,
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


def load_scheduler(place: Path, wanted: Any = None) -> Any:
    """The folder's scheduler; for a single file the one SD 1.x was published with.

    `wanted` replaces it: a scheduler, for which the folder's is not even looked at, or what makes
    one of the folder's config: a class, or a function. As in diffusers the class is the one that
    model_index.json names. Raises ModelError for a sampler or an option that refsd does not have.
    """
    if wanted is not None and not callable(wanted):
        if not hasattr(wanted, "set_timesteps"):
            raise UsageError(f"scheduler is {shown(wanted)}; give a scheduler, or a class of "
                             "refsd.schedulers")
        return wanted
    config, where = scheduler_config(place)
    make = getattr(wanted, "from_config", wanted) or _as_saved
    try:
        return make(config)
    except ModelError as problem:
        raise ModelError(f"{where}: {problem}") from None


def _as_saved(config: dict[str, Any]) -> Any:
    """The scheduler that the config names; what would do in its place where refsd has it not."""
    try:
        return from_config(config)
    except ModelError as problem:
        able = would_do(config)
        hint = (f"from_pretrained(..., scheduler=refsd.schedulers.{able[0]}) replaces it; "
                f"{', '.join(able)} would do") if able else "no other sampler would do"
        raise ModelError(f"{problem}. {hint}") from None


def scheduler_config(place: Path) -> tuple[dict[str, Any], str]:
    """The scheduler_config.json of a model, its class named as model_index.json names it."""
    if not place.is_dir():
        return SD1_SCHEDULER, str(place)
    path = place / "scheduler" / "scheduler_config.json"
    named, config = part_class(place, "scheduler"), read_foreign_object(path)
    saved = config.get("_class_name")
    if named in (None, saved):
        return config, str(path)
    if saved is not None:
        logger.warning("%s: of %s, which model_index.json says to read as %s", path,
                       ascii(saved)[:80], ascii(named)[:80])
    return {**config, "_class_name": named}, str(path)
