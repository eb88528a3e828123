"""Where a model is: a path, or a repository of the hub that lies in the local cache."""

import os
from pathlib import Path

from refsd.errors import ModelError, ResourceError, UsageError
from refsd.weights.folder import check_variant

FOLDERS = ("scheduler", "tokenizer", "text_encoder", "unet", "vae")
VARIANTS = ("fp16", "bf16", "non_ema")


def resolve(
    model: str | os.PathLike,
    *,
    download: bool = False,
    variant: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """The folder or file of a model, given by path or by hub id ("owner/name").

    A path that exists is taken first. Only download=True touches the network, and then fetches the
    safetensors, json and txt files of the components: the plain ones, or those of a variant.
    Raises UsageError for what is neither a path nor a valid id, ModelError for a model that is not
    in the cache, ResourceError when a download fails.
    """
    text = os.fspath(model)
    if not isinstance(text, str):
        raise UsageError(f"model: got {type(text).__name__}, expected a path or a hub id")
    if _exists(text):
        return Path(text)
    shown = ascii(text) if len(text) <= 120 else ascii(text[:117]) + "..."

    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        raise UsageError(
            f"model: {shown} is neither an existing path nor a hub id such as 'owner/name'"
        ) from None
    return _snapshot(text, shown, download, variant, cache_dir)


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _snapshot(text: str, shown: str, download: bool, variant: str | None, cache_dir) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    check_variant(variant)
    # Never a pickle, and of the root only the index: the single files there are whole models.
    kinds = ("json", "txt", f"{variant}*safetensors" if variant else "safetensors")
    files = [f"{folder}/*.{kind}" for folder in FOLDERS for kind in kinds]
    try:
        return Path(
            snapshot_download(
                text,
                cache_dir=cache_dir,
                local_files_only=not download,
                allow_patterns=["model_index.json", *files],
                ignore_patterns=[f"*.{name}*" for name in VARIANTS if name != variant],
            )
        )
    except LocalEntryNotFoundError as error:
        if download:
            raise ResourceError(f"model {shown}: {_cause(error)}") from None
        raise ModelError(
            f"model {shown}: no such path, and not in the local hub cache. "
            "Download it with download=True (--download)"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ResourceError(f"model {shown}: cannot be had: {_cause(error)}") from None


def _cause(error: BaseException) -> str:
    """The first line of an error's message, or of what it came from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
