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
from refsd.rules import anything, boolean, number
from refsd.weights.added import plan_added
from refsd.weights.expect import Shape, conv, flat
from refsd.weights.files import read_foreign_object
from refsd.weights.header import Header, read_header
from refsd.weights.model_index import part_class
from refsd.weights.networks import NETWORKS
from refsd.weights.plan import Plan, Source, checked, config_beside
from refsd.weights.validate import count, each, only, validate, width

NAME = "taesd"
TABLE = {
    "in_channels": (3, only(3)),
    "out_channels": (3, only(3)),
    "encoder_block_out_channels": ((64, 64, 64, 64), each(width)),
    "decoder_block_out_channels": ((64, 64, 64, 64), each(width)),
    "act_fn": ("relu", only("relu")),
    "upsample_fn": ("nearest", only("nearest")),
    "latent_channels": (4, count),
    "upsampling_scaling_factor": (2, only(2)),
    "num_encoder_blocks": ((1, 3, 3, 3), each(count)),
    "num_decoder_blocks": ((3, 3, 3, 1), each(count)),
    "latent_magnitude": (3, anything),  # of bytes that hold latents, which nobody asks for here
    "latent_shift": (0.5, anything),
    "force_upcast": (False, boolean),
    "scaling_factor": (1.0, number(1e-6, 1e6)),
    "shift_factor": (0.0, only(0.0, None)),
    "block_out_channels": (None, anything),
}
BARE = re.compile(r"\d+\.(conv\.\d+\.)?(weight|bias)")


def taesd_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """name -> shape of an AutoencoderTiny whose config is complete."""
    found = {half: config[f"{half}_block_out_channels"] for half in ("encoder", "decoder")}
    blocks = {half: config[f"num_{half}_blocks"] for half in found}
    for half, widths in found.items():
        if len(widths) != len(blocks[half]) or len(set(widths)) > 1:
            raise ModelError(f"the config of a tiny autoencoder: {half}_block_out_channels is "
                             f"{list(widths)} for num_{half}_blocks {list(blocks[half])}, expected "
                             "one width, as often as there are levels")
    latent, wide = config["latent_channels"], found["encoder"][0]
    encoder: list[Any] = []
    for level, many in enumerate(blocks["encoder"]):
        encoder += [conv(wide, 3) if level == 0 else _bare(wide)] + [_block(wide)] * many
    encoder.append(conv(latent, wide))

    wide = found["decoder"][0]
    decoder: list[Any] = [conv(wide, latent), None]  # a ReLU
    for level, many in enumerate(blocks["decoder"]):
        last = level == len(blocks["decoder"]) - 1
        decoder += [_block(wide)] * many + ([conv(3, wide)] if last else [None, _bare(wide)])
    layers = {str(i): layer for i, layer in enumerate(decoder) if layer is not None}
    return flat(NAME, {"encoder": {"layers": encoder}, "decoder": {"layers": layers}})


def _bare(wide: int) -> dict[str, Shape]:
    """A convolution without a bias: it halves, or follows an upsampling."""
    return {"weight": (wide, wide, 3, 3)}


def _block(wide: int) -> dict[str, Any]:
    return {"conv": {key: conv(wide, wide) for key in ("0", "2", "4")}}


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
        return plan_added(_own_folder(path), NAME, TABLE, taesd_shapes, variant)
    if not path.is_file():
        raise UsageError(f"{str(path)[:200]}: no such file or folder. Give one that there is")
    header = read_header(path)
    sources = _halves(header)
    config = config_beside(path, NAME) or _config_of(sources)
    config = validate(NAME, config, str(path), TABLE)
    halves = {name.partition(".")[0] for name in sources} & {"encoder", "decoder"}
    if not halves:
        raise ModelError(f"{path}: there is no tiny autoencoder in it. Give one: a folder, or a "
                         ".safetensors file")
    shapes = {name: shape for name, shape in taesd_shapes(config).items()
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
