"""A tiny autoencoder (TAESD) found in a folder or a file, and checked, before any tensor is read.

Folders, and files with their names, are diffusers' AutoencoderTiny. madebyollin's own files hold
the numbered layers of one half, `taesd_decoder.safetensors` and `taesd_encoder.safetensors`: the
decoder's counted with the clamp that comes before the first. One without the other is half a VAE.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from refsd.errors import ModelError, UsageError
from refsd.families import Location
from refsd.networks import NETWORKS, shapes_of, validate
from refsd.weights.added import plan_added
from refsd.weights.files import read_foreign_object
from refsd.weights.header import Header, read_header
from refsd.weights.model_index import part_class
from refsd.weights.plan import Plan, Source, checked, config_beside

NAME = "taesd"
BARE = re.compile(r"\d+\.(conv\.\d+\.)?(weight|bias)")


def is_taesd(path: Path) -> bool:
    """Whether a path, or the VAE's folder of a model there, is a tiny autoencoder's."""
    if path.is_dir():
        own = _own_folder(path)
        if own != path and part_class(path, "vae") in NETWORKS[NAME].classes:
            return True
        file = own / "config.json"
        found = read_foreign_object(file) if file.is_file() else {}
        return found.get("_class_name") in NETWORKS[NAME].classes
    if not path.is_file():
        return False
    names = read_header(path).tensors
    return _is_bare(names) or any(name.startswith("decoder.layers.") for name in names)


def _is_bare(names: Collection[str]) -> bool:
    """Whether a file is of one half, with numbered layers."""
    return bool(names) and all(BARE.fullmatch(name) for name in names)


def _own_folder(path: Path) -> Path:
    """Where the VAE is in a folder: in that of a model, below vae."""
    inside = (path / "vae").is_dir() and not (path / "config.json").is_file()
    return path / "vae" if inside else path


def plan_taesd(path: Path, *, variant: str | None = None) -> Plan:
    """A tiny autoencoder, or the half that a file holds. Raises ModelError, UsageError.

    A file is read with the config.json beside it if that is of such a network, else as TAESD's.
    """
    if path.is_dir():
        return plan_added(_own_folder(path), NAME, variant)
    if not path.is_file():
        raise UsageError(f"{str(path)[:200]}: no such file or folder. Give one that there is")
    header = read_header(path)
    sources = _halves(header)
    config = config_beside(path, NAME) or _config_of(sources)
    config = validate(NAME, config, str(path))
    halves = {name.partition(".")[0] for name in sources} & {"encoder", "decoder"}
    if not halves:
        raise ModelError(f"{path}: there is no tiny autoencoder in it. Give one: a folder, or a "
                         ".safetensors file")
    shapes = {name: shape for name, shape in shapes_of(NAME, config).items()
              if name.partition(".")[0] in halves}
    return checked(NAME, config, sources, str(path), shapes)


def _halves(header: Header) -> dict[str, Source]:
    """The tensors of a file by diffusers' names; of a half's own file those beside it too."""
    names = header.tensors
    if not _is_bare(names):
        return {name: Source(header, Location(name)) for name in names}
    path = Path(header.path)
    decoder = "0.weight" not in names  # the clamp has none
    mine, other = ("decoder", "encoder") if decoder else ("encoder", "decoder")
    found = _numbered(header, mine)
    beside = path.with_name(path.name.replace(mine, other))
    if beside != path and beside.is_file():
        found |= _numbered(read_header(beside), other)
    return found


def _numbered(header: Header, half: str) -> dict[str, Source]:
    before = 1 if half == "decoder" else 0
    found = {}
    for name in header.tensors:
        index, _, rest = name.partition(".")
        ours = f"{half}.layers.{int(index) - before}.{rest}" if index.isdecimal() else name
        found[ours] = Source(header, Location(name))
    return found


def _config_of(sources: Mapping[str, Source]) -> dict[str, Any]:
    """TAESD's config, with the channels of latents that a file has."""
    first = sources.get("decoder.layers.0.weight")
    if first is not None and len(first.info.shape) == 4:
        return {"latent_channels": first.info.shape[1]}
    return {}
