"""A whole model, from a diffusers folder or a single file: checked first, then read."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from refsd.errors import ModelError, ResourceError, UsageError
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
from refsd.weights.single import Part, adapted, find_parts, missing_part, outer_prefix, say_rest
from refsd.weights.tree import to_tree
from refsd.weights.validate import CLASSES, check_class, relabelled, validate

logger = logging.getLogger(__name__)

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
    replaced: Mapping[str, Path | None] | None = None,
) -> dict[str, Component]:
    """The text_encoder, unet and vae of a diffusers folder or a Stable Diffusion 1.x file.

    dtype: see `read_safetensors`. variant picks a folder's files ("fp16") in the parts that have
    it; ema the moving averages of a single file; configs are for single files of another size than
    SD 1.x. force skips the question whether it fits into memory. replaced gives components another
    place, or None to leave them out: the model's own are then not looked at.

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

    for name, place in replaced.items():
        if place is not None:
            like = (configs or {}).get(name) or _own_config(path, name)
            plans[name] = plan_replacement(place, name, variant=variant, like=like)
    check_together({name: plan.config for name, plan in plans.items()}, str(path))
    return load(plans, dtype=dtype, force=force)


def _own_config(path: Path, component: str) -> dict[str, Any] | None:
    """What the replaced component's config.json says, if it can be read: a file carries none."""
    try:
        return validate(component, read_foreign_object(path / component / "config.json"))
    except (ModelError, ResourceError):
        return None


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
    named = part_class(path, component)
    if named is not None:
        check_class(component, named, str(path / "model_index.json"))
    if component != "unet" and not (path / component).is_dir():
        raise missing_part(str(path), component, [n for n in COMPONENTS if (path / n).is_dir()])
    return _plan_component(path / component, component, variant, path, named)


def _plan_component(
    place: Path, component: str, variant: str | None, model: Path, named: str | None = None
) -> Plan:
    file = place / "config.json"
    config = _text_part(component, read_foreign_object(file))
    config = validate(component, config if named is None else relabelled(config, named), str(file))
    headers, taken = component_weights(place, component, variant, model=model)
    inside = {name: header for header in headers for name in header.tensors}
    names = canonical_names(component, inside, str(place))
    places = {ours: (inside[theirs], theirs) for ours, theirs in names.items()}
    return replace(_checked(component, config, places, str(place)), variant=taken)


def plan_file(
    path: Path,
    *,
    ema: bool = False,
    configs: Mapping[str, Mapping] | None = None,
    components: Collection[str] = COMPONENTS,
) -> dict[str, Plan]:
    """The components of a single file, checked against SD 1.x or the given configs.

    ModelError names a component that the file does not hold.
    """
    header = read_header(path)
    configs = sd1.CONFIGS if configs is None else configs
    if set(configs) != set(COMPONENTS):
        raise UsageError(f"configs: expected those of {', '.join(COMPONENTS)}")
    configs = {name: validate(name, configs[name]) for name in COMPONENTS}
    parts = find_parts(header.tensors, ema=ema)
    outer = outer_prefix(parts)
    check_family(header, configs["text_encoder"]["hidden_size"], outer)
    averages = any(name.startswith(f"{outer}model_ema.") for name in header.tensors)
    if ema and not averages:
        raise UsageError(f"{path}: ema asked for, but the file has no moving averages (model_ema)")
    if averages and not ema and "unet" in components:
        logger.warning("%s: it holds moving averages of the UNet too, which are not taken: ask for "
                       "them with ema=True (--ema)", path)  # fmt: skip
    for component in sorted(components, key=("unet", "vae", "text_encoder").index):
        if component not in parts:
            raise missing_part(str(path), component, parts)
    say_rest(header, parts)
    return {name: _plan_part(name, header, parts, configs[name], ema) for name in components}


def plan_replacement(
    place: Path, component: str, *, variant: str | None = None, like: Mapping | None = None
) -> Plan:
    """A component from a place of its own: its folder, a model's folder, or a .safetensors file.

    A file is read under the names of diffusers or of the latent diffusion code, with the
    config.json beside it if that is of such a network, else with `like`, else with SD 1.x's.
    """
    if place.is_dir():
        inside = (place / component).is_dir() and not (place / "config.json").is_file()
        if inside:
            return plan_folder(place, component, variant=variant)
        return _plan_component(place, component, variant, place)
    if not place.is_file():
        raise UsageError(f"{component}: {str(place)[:200]}: no such file or folder")
    header = read_header(place)
    parts = find_parts(header.tensors)
    if component not in parts:
        raise missing_part(str(place), component, parts)
    config = _config_beside(place, component) or like or sd1.CONFIGS[component]
    return _plan_part(component, header, parts, validate(component, config), False)


def _config_beside(file: Path, component: str) -> dict[str, Any] | None:
    """The config.json in the folder of a file, if it is one of such a network."""
    try:
        config = _text_part(component, read_foreign_object(file.parent / "config.json"))
    except ModelError:
        return None
    said = config.get("_class_name") or (config.get("architectures") or [None])[0]
    return config if said in CLASSES[component] else None


def _text_part(component: str, config: dict[str, Any]) -> dict[str, Any]:
    """A whole CLIP's config.json keeps the text encoder's under text_config."""
    inner = config.get("text_config")
    if component == "text_encoder" and config.get("model_type") == "clip" and inner:
        return {"architectures": ["CLIPTextModel"], **inner, "model_type": "clip_text_model"}
    return config


def _plan_part(
    component: str, header: Header, parts: Mapping[str, Part], config: dict, ema: bool
) -> Plan:
    part = parts[component]
    prefix = part.prefix
    longer = tuple(p.prefix for p in parts.values() if len(p.prefix) > len(prefix))
    mine = [name for name in header.tensors
            if not (longer and name.startswith(longer))]  # fmt: skip
    source = f"{header.path} ({component})"
    if part.ldm or component == "text_encoder":
        config = validate(component, adapted(component, config, header, part))
        names = from_ldm(component, dict.fromkeys(mine), config, ema=ema, prefix=prefix)
    else:
        bare = {name.removeprefix(prefix): name for name in mine if name.startswith(prefix)}
        names = {new: bare[old] for new, old in canonical_names(component, bare, source).items()}
    places = {new: (header, theirs) for new, theirs in names.items()}
    return _checked(component, config, places, source)


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
