"""The networks of models, one a file: their options, and every tensor that they must have.

The shapes are written as the trees that refsd.models takes apart, so the two can be read side by
side. Planning a model on Specs cannot make them: models take their structure from what is present
(conv_shortcut where two widths differ), so names must be there before a model runs, and contracts
infer results from weights, not weights from results. Tests plan the models on these trees instead:
every tensor must be read, and every shape fit. This is the one description of the topology beside
the models; names of single files are walked out of these trees.
"""

import logging
import math
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from refsd.arguments import shown
from refsd.errors import ModelError
from refsd.networks.network import Network, Shape
from refsd.rules import as_kind
from refsd.tree import flatten

__all__ = ["NETWORKS", "Network", "Shape", "check_class", "network_of", "relabelled", "shapes_of",
           "validate"]  # fmt: skip

logger = logging.getLogger(__name__)

MAX_PARAMETERS = 1 << 34
# Keys that any transformers configuration may carry and that say nothing about the numbers.
BOOKKEEPING = ("dtype", "torch_dtype", "transformers_version", "return_dict", "use_cache")


def _listed() -> dict[str, tuple[Network, ...]]:
    """Each part -> what the files of this folder have for it in their PARTS."""
    found: dict[str, tuple[Network, ...]] = {}
    for module in pkgutil.iter_modules(__path__):
        parts = getattr(import_module(f"{__name__}.{module.name}"), "PARTS", {})
        for part, network in parts.items():
            others = found.get(part, ())
            if others and _filed(others[0]) != _filed(network):
                raise ImportError(f"refsd.networks.{module.name}: {part} is {_filed(network)}, "
                                  f"elsewhere {_filed(others[0])}; write the same")
            found[part] = (*others, network)
    return found


def _filed(network: Network) -> tuple[Any, ...]:
    """What is said of a part, and its files, before it is known which network it is."""
    return network.word, network.stems, network.whole_first


# A part of a model, or what is added to one or put in its place -> the networks that it may be.
_NETWORKS = _listed()
# One of each, for what all networks of a part have alike: word, stems and whole_first.
NETWORKS: dict[str, Network] = {part: networks[0] for part, networks in _NETWORKS.items()}


def network_of(component: str, config: Mapping[str, Any]) -> Network:
    """The network that a part of a config is: by the class that this names.

    Where it names none, the one of whose options it has the most.
    """
    networks, label = _NETWORKS[component], _label(config)
    named = [network for network in networks if label in network.classes]
    return max(named or networks, key=lambda network: len(config.keys() & network.options.keys()))


def shapes_of(component: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    """name -> shape of every tensor that a network of this config has.

    Raises ModelError for a config that refsd does not compute, or beyond 2^34 parameters.
    """
    config = validate(component, config)
    shapes = flatten(network_of(component, config).shapes(config))
    total = sum(math.prod(shape) for shape in shapes.values())
    if total > MAX_PARAMETERS:
        raise ModelError(f"the config of the {component}: {total:,} parameters, at most "
                         f"{MAX_PARAMETERS:,} are allowed")
    return shapes


def validate(component: str, config: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The config of a network with all defaults filled in.

    Raises ModelError, naming the option, for a value that is no such option's, too large, or asks
    for something that refsd does not compute. Unknown options are logged, and gone.
    """
    where = where or f"the config of the {component}"
    if not isinstance(config, Mapping):
        raise ModelError(f"{where}: got {type(config).__name__}, expected a JSON object")
    check_class(component, _label(config), where)

    network = network_of(component, config)
    options = network.options
    filled = {name: _as_kind(config.get(name, default), default)
              for name, (default, _) in options.items()}
    for name, (_, rule) in options.items():
        if why := rule(filled[name]):
            raise ModelError(f"{where}: {name} is {shown(filled[name])}, expected {why}")
    unknown = [n for n in config if n not in options and n not in BOOKKEEPING and n[:1] != "_"]
    if unknown:
        logger.warning("%s: ignoring unknown options %s", where, shown(unknown))
    network.fits(filled, where)
    said = {n: value for n, value in config.items() if n not in options and n not in unknown}
    return said | filled


def _as_kind(value: Any, default: Any) -> Any:
    """The value as JSON could have said it too, with today's names of blocks."""
    if isinstance(value, (list, tuple)):
        return [_as_kind(item, default) for item in value]
    old = isinstance(value, str) and value.startswith("UNetRes")  # before 2023
    return value.removeprefix("UNetRes") if old else as_kind(value, default)


def check_class(component: str, name: Any, where: str) -> None:
    """ModelError for the name of a class that refsd does not compute; None is no name."""
    classes = [one for network in _NETWORKS[component] for one in network.classes]
    if name is not None and name not in classes:
        wanted = " or ".join(classes)
        raise ModelError(f"{where}: the class is {shown(name)}, expected {wanted}")


def relabelled(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The config as of the class that model_index.json names, whatever it says of itself."""
    if _label(config) == name:
        return config
    labels = ("_class_name", "architectures", "model_type")
    return {"_class_name": name} | {k: v for k, v in config.items() if k not in labels}


def _label(config: Mapping[str, Any]) -> Any:
    """The class that a config names, one of one or of a list."""
    found = config.get("_class_name") or (config.get("architectures") or [None])
    return found[0] if isinstance(found, list) else found
