"""Which model drew a picture: its name and the SHA-256 of its files of weights."""

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from refsd.errors import ResourceError
from refsd.pipelines.loading import BUNDLED, bundled_model
from refsd.weights import resolve
from refsd.weights.folder import component_headers, component_weights
from refsd.weights.model_index import networks_of

HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


def of(argument: str | None, *, variant: str | None, hashes: bool = True, ema: bool = False,
       parts: Mapping[str, str | None] | None = None,
       without: str | None = None) -> dict[str, Any]:
    """name, variant, hash and files of the model that --model names; it must be there.

    The name is a hub id, or the last part of a path: the rest of it is nobody's business. `files`
    gives the SHA-256 by the path in the model. `hash` is that of a single file, and for a folder
    that of the listing, as `sha256sum FILES | sha256sum` prints it. `parts` are the places of
    networks that replace the model's: their names and files are added. The files of the part that
    it was drawn without are none of it.
    """
    replaced = {part: resolve(place, variant=variant) for part, place in (parts or {}).items()
                if place is not None}
    place = bundled_model() if argument is None else resolve(argument, variant=variant)
    name = BUNDLED if argument is None else _name(argument, place)
    found = {"name": name, "variant": variant, **({"ema": "yes"} if ema else {}),
             **({"without": without} if without else {})}
    found |= {part: _name(parts[part], where) for part, where in replaced.items()}
    if not hashes:
        return found
    files = {path.relative_to(place).as_posix() if place.is_dir() else path.name: sha256(path)
             for path in weight_files(place, variant, {*replaced, without})}
    listing = "".join(f"{digest}  {file}\n" for file, digest in files.items())
    single = next(iter(files.values())) if place.is_file() else None
    for part, where in replaced.items():
        files |= {f"{part}: {path.name}": sha256(path) for path in part_files(where, part, variant)}
    return {**found, "hash": single or hashlib.sha256(listing.encode()).hexdigest(), "files": files}


def _name(argument: str, place: Path) -> str:
    if not Path(argument).exists():
        return str(argument)
    return place.resolve().stem if place.is_file() else place.resolve().name


def part_files(place: Path, part: str, variant: str | None) -> list[Path]:
    """The safetensors files of one network that is named by itself."""
    if place.is_file():
        return [place]
    folder = place if (place / "config.json").is_file() else place / part
    return [Path(header.path) for header in component_weights(folder, part, variant).headers]


def weight_files(place: Path, variant: str | None, without: Collection[str] = ()) -> list[Path]:
    """The safetensors files that this model is read from, sorted by path."""
    if place.is_file():
        return [place]
    headers = [h for part in networks_of(place) if part not in without
               for h in component_headers(place, part, variant)]
    return sorted(Path(header.path) for header in headers)


def sha256(path: Path, *, start: int = 0) -> str:
    """The SHA-256 of a file, or of it from a byte on, in hex."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ResourceError(f"{path}: cannot be read: {error.strerror}. See who may read "
                            "it") from None
