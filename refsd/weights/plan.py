"""A model's networks found in a folder or in a file, and checked, before any tensor is read."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from refsd.errors import ModelError, ResourceError, UsageError
from refsd.families import DEFAULT, FAMILIES, Family, Location, other_family, recognise
from refsd.networks import Shape, check_class, network_of, relabelled, shapes_of, validate
from refsd.weights.files import read_foreign_object
from refsd.weights.folder import component_weights
from refsd.weights.found import Stored, check
from refsd.weights.header import Header, TensorInfo, read_header
from refsd.weights.ldm import from_ldm
from refsd.weights.model_index import family_of, networks_of, part_class
from refsd.weights.names import canonical_names, without_kernel
from refsd.weights.single import Contents, adapted, contents, missing_part, say_rest

logger = logging.getLogger(__name__)


class Source(NamedTuple):
    """Where a tensor is read from: a file and a location in it; of int8 values their scale too."""

    header: Header
    location: Location
    scale: "Source | None" = None

    @property
    def info(self) -> TensorInfo:
        """What the file says of the tensor."""
        return self.header.tensors[self.location.name]


@dataclass(frozen=True)
class Plan:
    """A component that was found and checked, and not read yet."""

    config: dict[str, Any]
    shapes: dict[str, Shape]
    sources: dict[str, Source]
    source: str
    variant: str | None = None


def family_at(path: Path) -> Family:
    """The family of the model in a folder or a file."""
    return family_of(path) if path.is_dir() else recognise(read_header(path).tensors)


def own_config(path: Path, component: str) -> Mapping[str, Any] | None:
    """What the replaced component's config.json says, if it can be read; of a file the family's."""
    if path.is_file():
        return family_at(path).configs.get(component)
    try:
        return validate(component, read_foreign_object(path / component / "config.json"))
    except (ModelError, ResourceError):
        return None


def plan_whole(path: Path, *, variant: str | None = None) -> dict[str, Plan]:
    """All networks of a folder or a file."""
    if path.is_dir():
        return {part: plan_folder(path, part, variant=variant) for part in networks_of(path)}
    return plan_file(path)


def plan_folder(path: Path, component: str, *, variant: str | None = None) -> Plan:
    """A component of a diffusers folder, checked against its config.json; see `choose`."""
    named = part_class(path, component)
    if named is not None:
        check_class(component, named, str(path / "model_index.json"))
    if component != "unet" and not (path / component).is_dir():
        held = [name for name in networks_of(path) if (path / name).is_dir()]
        raise missing_part(str(path), component, held)
    return _plan_component(path / component, component, variant, path, named)


def _plan_component(
    path: Path, component: str, variant: str | None, model: Path, named: str | None = None
) -> Plan:
    file = path / "config.json"
    config = _text_part(component, read_foreign_object(file))
    config = validate(component, config if named is None else relabelled(config, named), str(file))
    headers, taken = component_weights(path, component, variant, model=model)
    inside = {name: header for header in headers for name in header.tensors}
    names = canonical_names(network_of(component, config), inside, str(path))
    sources = {ours: Source(inside[name], Location(name)) for ours, name in names.items()}
    return checked(component, config, sources, str(path), variant=taken)


def plan_file(
    path: Path,
    *,
    ema: bool = False,
    configs: Mapping[str, Mapping] | None = None,
    without: Collection[str] = (),
) -> dict[str, Plan]:
    """The components of a single file, checked against its family's or the given configs.

    All but those `without`. ModelError names a component that the file does not hold.
    """
    header = read_header(path)
    held = contents(header, ema=ema)
    family, parts, outer = held
    configs = family.configs if configs is None else configs
    if set(configs) != set(family.networks):
        raise UsageError(f"configs: expected those of {', '.join(family.networks)}")
    configs = {name: validate(name, configs[name]) for name in family.networks}
    components = [name for name in family.networks if name not in without
                  and (name in parts or name not in family.optional)]
    tensors = {name.removeprefix(outer): info for name, info in header.tensors.items()}
    if kind := other_family(tensors):
        known = " and ".join(family.name for family in FAMILIES)
        raise ModelError(f"{path}: this is {kind}. Give a whole {known} checkpoint")
    averages = any(name.startswith(f"{outer}model_ema.") for name in header.tensors)
    if ema and not averages:
        raise UsageError(f"{path}: ema asked for, but the file has no moving averages "
                         "(model_ema); leave it out")
    if averages and not ema and "unet" in components:
        logger.warning("%s: it holds moving averages of the UNet too, which are not taken: ask for "
                       "them with ema=True (--ema)", path)  # fmt: skip
    for component in sorted(components, key=lambda part: part.startswith("text_encoder")):
        if component not in parts:
            raise missing_part(str(path), component, parts)
    say_rest(header, parts, outer)
    return {name: _plan_part(name, header, held, configs[name], ema) for name in components}


def plan_replacement(
    path: Path, component: str, *, variant: str | None = None, like: Mapping | None = None,
    family: Family = DEFAULT,
) -> Plan:  # fmt: skip
    """A component from a path of its own: its folder, a model's folder, or a .safetensors file.

    A file is read under the names of diffusers or of its family's training code, with the
    config.json beside it if that is of such a network, else with `like`, else with its family's:
    that of the model, `family`, where the file does not tell.
    """
    if path.is_dir():
        inside = (path / component).is_dir() and not (path / "config.json").is_file()
        if inside:
            return plan_folder(path, component, variant=variant)
        return _plan_component(path, component, variant, path)
    if not path.is_file():
        raise UsageError(f"{component}: {str(path)[:200]}: no such file or folder. Give one that "
                         "there is")
    header = read_header(path)
    held = contents(header, default=family)
    if component not in held.parts:
        raise missing_part(str(path), component, held.parts)
    config = config_beside(path, component) or like or held.family.configs[component]
    return _plan_part(component, header, held, validate(component, config), False)


def config_beside(file: Path, component: str) -> dict[str, Any] | None:
    """The config.json in the folder of a file, if it is one of such a network."""
    try:
        config = _text_part(component, read_foreign_object(file.parent / "config.json"))
    except ModelError:
        return None
    said = config.get("_class_name") or (config.get("architectures") or [None])[0]
    return config if said in network_of(component, config).classes else None


def _text_part(component: str, config: dict[str, Any]) -> dict[str, Any]:
    """A whole CLIP's config.json keeps the text encoder's under text_config."""
    inner = config.get("text_config")
    if config.get("model_type") == "clip" and inner:
        kind = "CLIPTextModel" if component == "text_encoder" else "CLIPTextModelWithProjection"
        return {**inner, "architectures": [kind], "model_type": "clip_text_model"}
    return config


def _plan_part(
    component: str, header: Header, held: Contents, config: dict, ema: bool
) -> Plan:
    part = held.parts[component]
    prefix = part.prefix
    longer = tuple(p.prefix for p in held.parts.values() if len(p.prefix) > len(prefix))
    mine = [name for name in header.tensors
            if not (longer and name.startswith(longer))]  # fmt: skip
    source = f"{header.path} ({component})"
    if part.ldm:
        config = validate(component, adapted(held.family.layouts[component], config, header, part))
        locations = from_ldm(component, dict.fromkeys(mine), config, held.family, prefix=prefix,
                             ema=ema)
    else:
        bare = {name.removeprefix(prefix): name for name in mine if name.startswith(prefix)}
        names = canonical_names(network_of(component, config), bare, source)
        locations = {ours: Location(bare[name]) for ours, name in names.items()}
    sources = {ours: Source(header, location) for ours, location in locations.items()}
    return checked(component, config, sources, source)


def checked(component: str, config: dict, sources: Mapping[str, Source], source: str,
            shapes: Mapping[str, Shape] | None = None, variant: str | None = None) -> Plan:
    """The plan of what was found; ModelError where it is not the network of these shapes."""
    shapes = shapes_of(component, config) if shapes is None else shapes
    sources = _with_scales(sources, shapes)
    stored = {}
    for name, (_, location, scale) in sources.items():
        info = sources[name].info
        stored[name] = Stored(info.dtype, without_kernel(name, location.shape(info.shape)),
                              None if scale is None else scale.info)
    check(stored, shapes, source)
    return Plan(config, shapes, {name: sources[name] for name in shapes}, source, variant)


def _with_scales(sources: Mapping[str, Source], shapes: Mapping[str, Shape]) -> dict[str, Source]:
    """The sources, each int8 tensor's NAME_scale at the tensor: the layout of `refsd quantize`."""
    found = dict(sources)
    for name in shapes:
        if name in found and found[name].info.dtype == "I8" and name + "_scale" in found:
            found[name] = found[name]._replace(scale=found.pop(name + "_scale"))
    return found
