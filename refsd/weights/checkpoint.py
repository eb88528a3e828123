"""A whole model, from a diffusers folder or a single file: checked first, then read."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from refsd.errors import ModelError, UsageError
from refsd.families import COMPONENTS
from refsd.leaf import Weight, seal
from refsd.weights.folder import check_variants
from refsd.weights.memory import check_memory, needed_bytes
from refsd.weights.model_index import remark
from refsd.weights.plan import Plan, own_config, plan_file, plan_folder, plan_replacement
from refsd.weights.reader import read_tensors, warn_nonfinite
from refsd.weights.tree import to_tree


@dataclass(frozen=True)
class Component:
    """One network of a checkpoint: its config with all defaults, and its tensors by name.

    The tensors are leaves (refsd.leaf), which never change: backends keep what they make of them.
    To change one, put a changed copy in its place in the tree.
    """

    config: dict[str, Any]
    tensors: dict[str, Weight]
    source: str

    @cached_property
    def tree(self) -> dict[str, Any]:
        """The tensors as nested dicts and lists, for the functions of refsd.models."""
        return to_tree(self.tensors)


def load_checkpoint(
    path: str | Path,
    *,
    dtype: str | None = "float32",
    variant: str | None = None,
    ema: bool = False,
    force: bool = False,
    configs: Mapping[str, Mapping] | None = None,
    replaced: Mapping[str, Path | None] | None = None,
) -> dict[str, Component]:
    """The text_encoder, unet and vae of a diffusers folder or a single file.

    dtype: see `read_safetensors`. variant picks a folder's files ("fp16") in the parts that have
    it; ema the moving averages of a single file; configs are for single files of another size than
    their family's. force skips the question whether it fits into memory. replaced gives components
    another path, or None to leave them out: the model's own are then not looked at.

    Every name, shape, type and config is checked before the first tensor is read. Raises
    ModelError for what is wrong with the files, ResourceError for too little memory, UsageError
    for a path that does not exist or an option that has no meaning for it.
    """
    path, replaced = Path(path), replaced or {}
    own = [name for name in COMPONENTS if name not in replaced]
    if path.is_dir():
        if ema or configs:
            raise UsageError(f"{path}: ema and configs are for single files, this is a folder (its "
                             "plain weights are the averages where it was trained with some)")
        remark(path)
        plans = {name: plan_folder(path, name, variant=variant) for name in own}
        check_variants({name: plan.variant for name, plan in plans.items()}, variant, str(path))
    elif path.is_file():
        if variant is not None:
            raise UsageError(f"{path}: variant is for folders, this is a single file")
        plans = plan_file(path, ema=ema, configs=configs, components=own)
    else:
        raise UsageError(f"{str(path)[:200]}: no such file or folder")

    for name, other in replaced.items():
        if other is not None:
            like = (configs or {}).get(name) or own_config(path, name)
            plans[name] = plan_replacement(other, name, variant=variant, like=like)
    check_together({name: plan.config for name, plan in plans.items()}, str(path))
    return load(plans, dtype=dtype, force=force)


def load_folder(
    path: str | Path,
    component: str,
    *,
    dtype: str | None = "float32",
    variant: str | None = None,
    force: bool = False,
) -> Component:
    """One component of a diffusers folder; raises as `load_checkpoint`."""
    if component not in COMPONENTS:
        raise UsageError(f"component: got {component!r}, expected one of {', '.join(COMPONENTS)}")
    plan = plan_folder(Path(path), component, variant=variant)
    check_variants({component: plan.variant}, variant, str(path))
    return load({component: plan}, dtype=dtype, force=force)[component]


def check_together(configs: Mapping[str, Mapping], where: str) -> None:
    """ModelError when the three networks of a model do not fit each other."""
    unet, vae, text = configs["unet"], configs.get("vae"), configs.get("text_encoder")
    latent = unet["in_channels"] if vae is None else vae["latent_channels"]
    if unet["in_channels"] != latent or unet["out_channels"] != latent:
        kind = " (an inpainting model)" if unet["in_channels"] == 9 else ""
        raise ModelError(
            f"{where}: the UNet takes {unet['in_channels']} channels and gives "
            f"{unet['out_channels']}, the VAE's latents have {latent}{kind}. "
            "Only text-to-image models are supported"
        )
    widths = unet["cross_attention_dim"]
    widths = set(widths) if isinstance(widths, (list, tuple)) else {widths}
    if text is not None and widths != {text["hidden_size"]}:
        raise ModelError(
            f"{where}: the UNet reads text of width {', '.join(map(str, sorted(widths)))}, "
            f"the text encoder gives {text['hidden_size']}. They are of different models"
        )


def load(plans: Mapping[str, Plan], *, dtype: str | None, force: bool) -> dict[str, Component]:
    """Read what was planned, after a look at the memory; NaN weights are logged."""
    everything = {(id(header), location.name): header.tensors[location.name]
                  for plan in plans.values() for header, location in plan.sources.values()}
    source = next(iter(plans.values())).source
    check_memory(needed_bytes(everything.values(), dtype), source, force=force)

    components = {}
    for component, plan in plans.items():
        tensors: dict[str, np.ndarray] = {}
        for header in {id(header): header for header, _ in plan.sources.values()}.values():
            here = {name: location for name, (h, location) in plan.sources.items() if h is header}
            stored = read_tensors(header, dtype=dtype, names={at.name for at in here.values()})
            tensors |= {name: location.take(stored[location.name])
                        for name, location in here.items()}
        leaves = {name: Weight(seal(tensors[name].reshape(shape)), f"{component}.{name}")
                  for name, shape in plan.shapes.items()}
        warn_nonfinite(leaves, plan.source)
        components[component] = Component(plan.config, leaves, plan.source)
    return components
