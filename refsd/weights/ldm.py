"""Single files as their families' training code names them: where each tensor of ours lies in them.

The rules are the families' (refsd.families), from the names of diffusers to those of a file; the
names are those of a config's tensors, so reading and writing follow from one table.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from refsd.errors import ModelError
from refsd.families import DEFAULT, Family, Location
from refsd.networks import network_of, shapes_of
from refsd.tree import to_tree
from refsd.weights.names import is_pixel_projection


def ldm_locations(
    component: str, config: Mapping[str, Any], family: Family = DEFAULT
) -> dict[str, Location]:
    """diffusers name -> location in a single file, for every tensor of the config."""
    layout, shapes = family.layouts[component], shapes_of(component, config)
    found = ({name: Location(name) for name in shapes} if layout.locate is None
             else layout.locate(to_tree(shapes)))
    return {name: found[name]._replace(name=layout.prefix + found[name].name) for name in shapes}


def ema_name(name: str) -> str:
    """Where the training code keeps the moving average of one of the UNet's tensors."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def to_ldm(
    component: str, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None,
    family: Family = DEFAULT,
) -> dict[str, np.ndarray]:  # fmt: skip
    """A component's tensors under the names, and in the shapes, of a single file.

    Without a config those of the family. Raises ModelError when tensors lacks one.
    """
    config = config or family.configs[component]
    today = {network_of(component, config).today(name): array for name, array in tensors.items()}
    locations = ldm_locations(component, config, family)
    if missing := [name for name in locations if name not in today]:
        raise ModelError(f"{len(missing)} tensors of the {component} missing, first "
                         f"{missing[0]!r}. Fetch it again")
    parts: dict[str, list[np.ndarray]] = {}
    for name, location in sorted(locations.items(), key=lambda item: item[1].part):
        array = location.turned(today[name])
        kernel = (1, 1) if is_pixel_projection(name) else ()
        parts.setdefault(location.name, []).append(array.reshape(array.shape + kernel))
    order = dict.fromkeys(location.name for location in locations.values())
    return {name: np.concatenate(parts[name]) if len(parts[name]) > 1 else parts[name][0]
            for name in order}


def from_ldm(
    component: str, names: Mapping[str, Any], config: Mapping[str, Any], family: Family, *,
    prefix: str, ema: bool = False,
) -> dict[str, Location]:  # fmt: skip
    """diffusers name -> location in this file, for the tensors of a component that it has.

    names are the file's, prefix what stands before the component's; ema takes the moving averages
    of the UNet. Names of the component that no rule gives stand for themselves.
    """
    layout, found = family.layouts[component], {}
    usual, averages = layout.prefix, ema and component == "unet"
    for ours, location in ldm_locations(component, config, family).items():
        theirs = prefix + location.name.removeprefix(usual)
        if averages:
            theirs = prefix.removesuffix(usual) + ema_name(location.name)
        if theirs in names:
            found[ours] = location._replace(name=theirs)
    if averages:
        return found
    known = {location.name for location in found.values()}
    unused = None if layout.unused is None else layout.unused(
        to_tree(shapes_of(component, config)))
    known |= {n for n in names if unused is not None and n.startswith(prefix + unused)}
    return found | {name: Location(name) for name in names
                    if name.startswith(prefix) and name not in known}
