"""A whole model, from a diffusers folder or a single file: checked first, then read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from refsd.errors import ModelError, UsageError
from refsd.sealed import seal
from refsd.weights import sd1
from refsd.weights.expect import SHAPES, Found, Shape, check
from refsd.weights.files import read_foreign_object
from refsd.weights.folder import check_variants, component_weights
from refsd.weights.header import Header, read_header
from refsd.weights.ldm import check_family, from_ldm
from refsd.weights.memory import check_memory, needed_bytes
from refsd.weights.model_index import part_class, remark
from refsd.weights.names import canonical_names, without_kernel
from refsd.weights.reader import read_tensors, warn_nonfinite
from refsd.weights.tree import to_tree
from refsd.weights.validate import check_class, relabelled, validate

COMPONENTS = ("text_encoder", "unet", "vae")


@dataclass(frozen=True)
class Component:
    """One network of a checkpoint: its config with all defaults, and its tensors by name.

    The tensors are sealed, read-only for good: backends keep what they make of weights. To change
    one, put a changed copy in its place.
    """

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    source: str

    @cached_property
    def tree(self) -> dict[str, Any]:
        """The tensors as nested dicts and lists, for the functions of refsd.models."""
        return to_tree(self.tensors)


@dataclass(frozen=True)
class Plan:
    """A component that was found and checked, and not read yet."""

    config: dict[str, Any]
    shapes: dict[str, Shape]
    places: dict[str, tuple[Header, str]]
    source: str
    variant: str | None = None


def load_checkpoint(
    path: str | Path,
    *,
    dtype: str | None = "float32",
    variant: str | None = None,
    ema: bool = False,
    force: bool = False,
    configs: Mapping[str, Mapping] | None = None,
) -> dict[str, Component]:
    """The text_encoder, unet and vae of a diffusers folder or a Stable Diffusion 1.x file.

    dtype: see `read_safetensors`. variant picks a folder's files ("fp16") in the parts that have
    it; ema the moving averages of a single file; configs are for single files of another size than
    SD 1.x. force skips the question whether it fits into memory.

    Every name, shape, type and config is checked before the first tensor is read. Raises
    ModelError for what is wrong with the files, ResourceError for too little memory, UsageError
    for a path that does not exist or an option that has no meaning for it.
    """
    path = Path(path)
    if path.is_dir():
        if ema or configs:
            raise UsageError(f"{path}: ema and configs are for single files, this is a folder")
        remark(path)
        plans = {name: plan_folder(path, name, variant=variant) for name in COMPONENTS}
        check_variants({name: plan.variant for name, plan in plans.items()}, variant, str(path))
    elif path.is_file():
        if variant is not None:
            raise UsageError(f"{path}: variant is for folders, this is a single file")
        plans = plan_file(path, ema=ema, configs=configs)
    else:
        raise UsageError(f"{str(path)[:200]}: no such file or folder")

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


def plan_folder(path: Path, component: str, *, variant: str | None = None) -> Plan:
    """A component of a diffusers folder, checked against its config.json; see `choose`."""
    file = path / component / "config.json"
    named = part_class(path, component)
    if named is not None:
        check_class(component, named, str(path / "model_index.json"))
    config = read_foreign_object(file)
    config = validate(component, config if named is None else relabelled(config, named), str(file))
    headers, taken = component_weights(path / component, component, variant, model=path)
    inside = {name: header for header in headers for name in header.tensors}
    source = str(path / component)
    names = canonical_names(component, inside, source)
    places = {ours: (inside[theirs], theirs) for ours, theirs in names.items()}
    return replace(_checked(component, config, places, source), variant=taken)


def plan_file(
    path: Path, *, ema: bool = False, configs: Mapping[str, Mapping] | None = None
) -> dict[str, Plan]:
    """The three components of a single file, checked against SD 1.x or the given configs."""
    header = read_header(path)
    configs = sd1.CONFIGS if configs is None else configs
    if set(configs) != set(COMPONENTS):
        raise UsageError(f"configs: expected those of {', '.join(COMPONENTS)}")
    configs = {name: validate(name, configs[name]) for name in COMPONENTS}
    check_family(header, configs["text_encoder"]["hidden_size"])
    if ema and not any(name.startswith("model_ema.") for name in header.tensors):
        raise UsageError(f"{path}: ema asked for, but the file has no moving averages (model_ema)")

    plans = {}
    for component in COMPONENTS:
        names = from_ldm(component, header.tensors, configs[component], ema=ema)
        places = {ours: (header, theirs) for ours, theirs in names.items()}
        source = f"{path} ({component})"
        plans[component] = _checked(component, configs[component], places, source)
    return plans


def _checked(component: str, config: dict, places: dict, source: str) -> Plan:
    shapes = SHAPES[component](config)
    found = {}
    for name, (header, theirs) in places.items():
        info = header.tensors[theirs]
        found[name] = without_kernel(name, Found(info.dtype, info.shape))
    check(found, shapes, source)
    return Plan(config, shapes, {name: places[name] for name in shapes}, source)


def check_together(configs: Mapping[str, Mapping], where: str) -> None:
    """ModelError when the three networks of a model do not fit each other."""
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    latent = vae["latent_channels"]
    if unet["in_channels"] != latent or unet["out_channels"] != latent:
        kind = " (an inpainting model)" if unet["in_channels"] == 9 else ""
        raise ModelError(
            f"{where}: the UNet takes {unet['in_channels']} channels and gives "
            f"{unet['out_channels']}, the VAE's latents have {latent}{kind}. "
            "Only text-to-image models are supported"
        )
    widths = unet["cross_attention_dim"]
    widths = set(widths) if isinstance(widths, (list, tuple)) else {widths}
    if widths != {text["hidden_size"]}:
        raise ModelError(
            f"{where}: the UNet reads text of width {', '.join(map(str, sorted(widths)))}, "
            f"the text encoder gives {text['hidden_size']}. They are of different models"
        )


def load(plans: Mapping[str, Plan], *, dtype: str | None, force: bool) -> dict[str, Component]:
    """Read what was planned, after a look at the memory; NaN weights are logged."""
    everything = [
        header.tensors[name] for plan in plans.values() for header, name in plan.places.values()
    ]
    source = next(iter(plans.values())).source
    check_memory(needed_bytes(everything, dtype), source, force=force)

    found = {}
    for component, plan in plans.items():
        tensors: dict[str, np.ndarray] = {}
        for header in {id(header): header for header, _ in plan.places.values()}.values():
            names = {theirs: ours for ours, (h, theirs) in plan.places.items() if h is header}
            read = read_tensors(header, dtype=dtype, names=names)
            tensors |= {ours: read[theirs] for theirs, ours in names.items()}
        tensors = {n: seal(tensors[n].reshape(shape)) for n, shape in plan.shapes.items()}
        warn_nonfinite(tensors, plan.source)
        found[component] = Component(plan.config, tensors, plan.source)
    return found
