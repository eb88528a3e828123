"""The weight files of one component of a diffusers folder: one file, or shards with an index."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from refsd.errors import ModelError, ResourceError, damaged
from refsd.weights.choice import choose
from refsd.weights.files import read_foreign_object
from refsd.weights.header import Header, read_header

MAX_INDEX = 16 << 20
MAX_SHARDS = 1000

logger = logging.getLogger(__name__)


class Weights(NamedTuple):
    """The headers of a component's weight files, one or one a shard, and the variant they are."""

    headers: list[Header]
    variant: str | None


def component_weights(
    folder: Path, component: str, variant: str | None, *, model: Path | None = None
) -> Weights:
    """What `choose` chooses in a component's folder; no other file there is opened.

    model: the folder that shards must lie in, if it is a larger one. Raises ModelError when there
    is nothing to read, or the index is damaged or points out of the model's folder.
    """
    maps: dict[str, dict[str, str]] = {}

    def read_index(name: str) -> dict[str, str]:
        maps[name] = read_weight_map(folder / name)
        return maps[name]

    choice = choose(component, _files(folder), variant, read_index, str(folder))
    if choice.index is None:
        return Weights([read_header(folder / choice.files[0])], choice.variant)
    headers = _shards(folder / choice.index, maps[choice.index], choice.files, model or folder)
    return Weights(headers, choice.variant)


def component_headers(folder: Path, component: str, variant: str | None) -> list[Header]:
    """The headers of a component's weight files: one, or one a shard; see `component_weights`."""
    return component_weights(folder / component, component, variant, model=folder).headers


def check_variants(found: Mapping[str, str | None], wanted: str | None, where: str) -> None:
    """One line where some parts are of another variant than asked for; ModelError where all are."""
    if wanted is not None and found and wanted not in found.values():
        there = sorted({"plain" if name is None else name for name in found.values()})
        raise ModelError(
            f"{where}: no part has weights of the variant {wanted!r}, there are "
            f"{' and '.join(there)} ones. Leave the variant out"
        )
    other: dict[str | None, list[str]] = {}
    for part, name in found.items():
        if name != wanted:
            other.setdefault(name, []).append(part)
    if other:
        kind = "plain weights" if wanted is None else f"weights of the variant {wanted}"
        taken = "; ".join(
            f"for {', '.join(parts)} those of {f'the variant {name}' if name else 'no variant'}"
            for name, parts in other.items()
        )
        logger.warning("%s: no %s everywhere: %s are taken", where, kind, taken)


def _files(folder: Path) -> list[str]:
    """The names of the files in a folder, links to files included."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_file())
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{folder}: no such folder. Is the model complete? Fetch it "
                         "again") from None
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be read: {error.strerror}. See who may read "
                            "it") from None


def read_weight_map(index: Path) -> dict[str, str]:
    """tensor -> file of an index, each a plain name; ModelError for anything else."""
    weight_map = read_foreign_object(index, limit=MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(f"{index}: no weight_map of tensor: file")
    for name, file in weight_map.items():
        if not _plain_name(file):
            raise ModelError(
                f"{index}: tensor {ascii(name)[:100]} lies in {ascii(file)[:100]}, "
                "expected the name of a .safetensors file beside the index"
            )
    if (count := len(set(weight_map.values()))) > MAX_SHARDS:
        raise ModelError(f"{index}: {count} shards, at most {MAX_SHARDS} are allowed")
    return weight_map


def _shards(
    index: Path, weight_map: dict[str, str], files: tuple[str, ...], model: Path
) -> list[Header]:
    """The headers of all shards, each holding exactly the tensors that the index gives it."""
    headers = []
    for file in files:
        _check_inside(index.parent / file, model)
        header = read_header(index.parent / file)
        listed = {name for name, shard in weight_map.items() if shard == file}
        differing = sorted(listed ^ (header.tensors.keys() | header.applied))
        if differing:
            raise ModelError(
                f"{index}: {file} and the index differ in {len(differing)} tensors, "
                f"first {ascii(differing[0])[:100]}. Are the files of one download?"
            )
        headers.append(header)
    return headers


def _plain_name(file: object) -> bool:
    """A file name without any folder, drive or stream in it."""
    return (
        isinstance(file, str)
        and len(file) <= 200
        and re.fullmatch(r"[^/\\:\0]+\.safetensors", file) is not None
    )


def _check_inside(path: Path, model: Path) -> None:
    """ModelError when a link leads out of the model's folder.

    A snapshot in the hub's cache is made of links into the `blobs` folder beside `snapshots`.
    """
    try:
        real, root = path.resolve(), model.resolve()
    except (OSError, RuntimeError):
        raise ModelError(f"{path}: a link that leads nowhere. Fetch the file again") from None
    allowed = [root]
    for snapshot in (root, root.parent):  # the whole model, or one component of it
        if snapshot.parent.name == "snapshots":
            allowed.append(snapshot.parent.parent / "blobs")
    if not any(real.is_relative_to(parent) for parent in allowed):
        raise ModelError(f"{path}: a link out of the model's folder is not followed. Copy the "
                         "file there")
