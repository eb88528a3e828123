"""Networks that no model has as a part, as diffusers saves them: each in a folder of its own."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refsd.families import Location
from refsd.weights.expect import Shape
from refsd.weights.files import read_foreign_object
from refsd.weights.folder import component_weights
from refsd.weights.plan import Plan, Source, checked
from refsd.weights.validate import validate


def plan_added(path: Path, network: str, table: Mapping[str, tuple],
               shapes: Callable[[Mapping[str, Any]], dict[str, Shape]],
               variant: str | None) -> Plan:
    """The network of a folder, checked: its `table` of options, its `shapes` of a config.

    Raises ModelError.
    """
    file = path / "config.json"
    config = validate(network, read_foreign_object(file), str(file), table)
    headers, taken = component_weights(path, network, variant)
    sources = {name: Source(header, Location(name)) for header in headers
               for name in header.tensors}
    return checked(network, config, sources, str(path), shapes(config), taken)
