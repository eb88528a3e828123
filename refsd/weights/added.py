"""Networks that no model has as a part, as diffusers saves them: each in a folder of its own."""

from pathlib import Path

from refsd.families import Location
from refsd.networks import validate
from refsd.weights.files import read_foreign_object
from refsd.weights.folder import component_weights
from refsd.weights.plan import Plan, Source, checked


def plan_added(path: Path, network: str, variant: str | None) -> Plan:
    """The network of a folder, checked. Raises ModelError."""
    file = path / "config.json"
    config = validate(network, read_foreign_object(file), str(file))
    headers, taken = component_weights(path, network, variant)
    sources = {name: Source(header, Location(name)) for header in headers
               for name in header.tensors}
    return checked(network, config, sources, str(path), variant=taken)
