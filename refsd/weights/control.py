"""A ControlNet found in a folder or a file, and checked, before any tensor is read.

Folders are diffusers'. Files have its names too, or those of the training code (lllyasviel's
control_*.safetensors and ComfyUI's): `control_model.` before the names of the UNet's way down.
"""

import logging
from pathlib import Path
from typing import Any

from refsd.errors import ModelError, UsageError
from refsd.families import CONTROLNET, Location, recognise
from refsd.networks import NETWORKS, shapes_of, validate
from refsd.tree import to_tree
from refsd.weights.added import plan_added
from refsd.weights.header import Header, read_header
from refsd.weights.plan import Plan, Source, checked, config_beside

logger = logging.getLogger(__name__)

NAME = "controlnet"
# Tensors of what is like a ControlNet, and what that is.
_OTHERS = {
    "lora_controlnet": "a Control-LoRA, which is applied to the UNet's own weights",
    "difference": "a ControlNet stored as its difference from the UNet's weights",
    "body.0.in_conv.weight": "a T2I-Adapter", "adapter.body.0.in_conv.weight": "a T2I-Adapter",
    "body.0.resnets.0.block1.weight": "a T2I-Adapter",
    "adapter.body.0.resnets.0.block1.weight": "a T2I-Adapter",
    "controlnet_blocks.0.weight": "a ControlNet of a transformer",
}  # fmt: skip


def plan_controlnet(path: Path, *, variant: str | None = None) -> Plan:
    """A ControlNet of a diffusers folder, or of a single file.

    A file is read with the config.json beside it if that is of a ControlNet, else as of its
    family. Raises ModelError for what is none, or one that refsd does not compute.
    """
    if path.is_dir():
        return plan_added(path, NAME, variant)
    if not path.is_file():
        raise UsageError(f"{str(path)[:200]}: no such file or folder. Give one that there is")
    header = read_header(path)
    prefix, ldm = _place(header)
    config = config_beside(path, NAME) or _of_family(header, prefix, ldm)
    config = validate(NAME, config, str(path))
    shapes = shapes_of(NAME, config)
    locations = {name: Location(name) for name in shapes}
    if ldm:
        locations = CONTROLNET.locate(to_tree(shapes))
    known = {prefix + there.name: ours for ours, there in locations.items()}
    sources = {known.get(name, name): Source(header, Location(name))
               for name in header.tensors if name.startswith(prefix)}
    if len(sources) < len(header.tensors):
        logger.warning("%s: %d tensors are not the ControlNet's and are not read", path,
                       len(header.tensors) - len(sources))
    return checked(NAME, config, sources, str(path), shapes)


def _place(header: Header) -> tuple[str, bool]:
    """What stands before the ControlNet's names in a file, and whether they are the training's."""
    names = header.tensors
    for mark, what in _OTHERS.items():
        if mark in names:
            raise ModelError(f"{header.path}: this is {what}. Give a ControlNet")
    for landmark in (CONTROLNET.landmark, *NETWORKS[NAME].landmarks):
        heads = [name.removesuffix(landmark) for name in names if name.endswith(landmark)]
        heads = [head for head in heads if head == "" or head[-1] == "."]
        if heads:
            return min(heads, key=lambda head: (len(head), head)), landmark == CONTROLNET.landmark
    raise ModelError(f"{header.path}: there is no ControlNet in it. Give one: a folder, or a "
                     ".safetensors file")


def _of_family(header: Header, prefix: str, ldm: bool) -> dict[str, Any]:
    """The config of a ControlNet of the file's family."""
    config = {key: value for key, value in recognise(header.tensors).configs["unet"].items()
              if key in NETWORKS[NAME].options}
    first = "input_blocks.1.1.proj_in.weight" if ldm else (
        "down_blocks.0.attentions.0.proj_in.weight")
    found = header.tensors.get(prefix + first)
    return config | ({} if found is None else {"use_linear_projection": len(found.shape) == 2})
