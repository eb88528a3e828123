"""Where a model is: a path, or a repository of the hub that lies in the local cache."""

import glob
import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from refsd.errors import ModelError, ResourceError, UsageError
from refsd.families import PARTS
from refsd.weights.choice import check_variant, choose
from refsd.weights.folder import read_weight_map
from refsd.weights.model_index import networks_of

FILES = (".safetensors", ".gguf")

logger = logging.getLogger(__name__)


def resolve(
    model: str | os.PathLike,
    *,
    download: bool = False,
    variant: str | None = None,
    cache_dir: str | Path | None = None,
    parts: Collection[str] | None = None,
    without: Collection[str] = (),
    revision: str | None = None,
    token: str | bool | None = None,
    files: Collection[str] = (),
) -> Path:
    """The folder or file of a model, given by path or by hub id ("owner/name").

    A path that exists is taken first. Only download=True touches the network, and then fetches the
    json and txt files of the components and the weights that would be read: those of the variant
    where there are any, of the networks that `parts` names, by default the model's own, but not of
    those `without`; and `files` of the root. Raises UsageError for a file that is not there and for
    what is neither a path nor a valid id, ModelError for a model that is not in the cache,
    ResourceError when a download fails.
    """
    text = os.fspath(model) if isinstance(model, (str, bytes, os.PathLike)) else model
    if not isinstance(text, str):
        raise UsageError(f"model: got {type(text).__name__}, expected a path or a hub id")
    if _exists(text):
        return Path(text)
    shown = ascii(text) if len(text) <= 120 else ascii(text[:117]) + "..."
    if text.endswith(FILES):  # the hub is not asked for what is meant as a file
        raise UsageError(f"model: {shown}: no such file; give the path of one")

    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        raise UsageError(
            f"model: {shown} is neither an existing path nor a hub id; give one, such as "
            "'owner/name'"
        ) from None
    check_variant(variant)
    # Never a pickle, and of the root only what describes it: the single files are whole models.
    small = [f"{folder}/*.{kind}" for folder in PARTS for kind in ("json", "txt")]
    hub = {"cache_dir": cache_dir}
    hub |= {k: v for k, v in (("revision", revision), ("token", token)) if v is not None}
    described = ["model_index.json", "config.json", *files, *small]
    found = _snapshot(text, shown, download, hub, described)
    if download and (names := _listing(text, shown, hub)):
        if parts is None:
            parts = networks_of(found, {name.partition("/")[0] for name in names if "/" in name})
        parts = [part for part in parts if part not in without]
        wanted = weights_of(names, found, variant, parts, f"model {shown}")
        _snapshot(text, shown, download, hub, [glob.escape(name) for name in wanted])
    return found


def weights_of(
    names: Collection[str], folder: Path, variant: str | None, parts: Collection[str], where: str
) -> list[str]:
    """The weight files that would be read of a repository's files; its indices lie in `folder`.

    A repository of one network has it at the root. ModelError where a part has no weights.
    """
    found = []
    for part in parts:
        prefix = f"{part}/"
        if len(parts) == 1 and "config.json" in names and f"{prefix}config.json" not in names:
            prefix = ""
        inside = [n.removeprefix(prefix) for n in names
                  if n.startswith(prefix) and "/" not in n.removeprefix(prefix)]  # fmt: skip
        if not inside or (prefix and not any(name.startswith(prefix) for name in names)):
            raise ModelError(f"{where}: {_no_part(part, names)}")

        def read_index(name: str, prefix: str = prefix) -> dict[str, str]:
            return read_weight_map(folder / f"{prefix}{name}")

        choice = choose(part, inside, variant, read_index, f"{where}, {part}")
        found += [f"{prefix}{name}" for name in choice.files]
    return found


def _no_part(part: str, names: Collection[str]) -> str:
    single = sorted(n for n in names if "/" not in n and n.endswith(".safetensors"))
    why = f"the repository has no folder {part}, so it is no diffusers model"
    return f"{why}. It holds {', '.join(single[:3])}: fetch it, give its path" if single else (
        f"{why}. Give another id")


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _listing(text: str, shown: str, hub: dict) -> list[str]:
    """The names of a repository's files; none, with a line, when the hub cannot be asked."""
    import huggingface_hub

    try:
        asked = {key: value for key, value in hub.items() if key != "cache_dir"}
        return huggingface_hub.list_repo_files(text, **asked)
    except Exception as error:  # those of the HTTP library underneath, whichever it is
        logger.warning("model %s: the hub cannot be asked (%s); what the cache holds is taken",
                       shown, _cause(error))  # fmt: skip
        return []


def _snapshot(text: str, shown: str, download: bool, hub: dict, patterns: list[str]) -> Path:
    """The folder of a repository in the cache, after fetching what fits the patterns."""
    import huggingface_hub

    return from_hub(huggingface_hub.snapshot_download, text, where=f"model {shown}",
                    download=download, allow_patterns=patterns, **hub)


def from_hub(fetch: Callable[..., str], *names: str, where: str, missing: str = "not",
             download: bool, **options: Any) -> Path:
    """What a function of huggingface_hub fetches, or finds in the cache, its errors as refsd's."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(fetch(*names, **options, local_files_only=not download))
    except LocalEntryNotFoundError as error:
        if download:
            raise ResourceError(f"{where}: {_cause(error)}. Try again, or fetch it by other means "
                                "and give its path") from None
        raise ModelError(f"{where}: no such path, and {missing} in the local hub cache. "
                         "Download it with download=True (--download)") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ResourceError(f"{where}: cannot be had: {_cause(error)}. Try again, or give the path "
                            "of a copy") from None


def _cause(error: BaseException) -> str:
    """The first line of an error's message, or of what it came from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
