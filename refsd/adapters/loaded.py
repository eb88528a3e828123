"""The adapters of a pipeline: files loaded into its networks, and the strength of each there."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from refsd.adapters import formats, names
from refsd.adapters.applied import Applied
from refsd.adapters.blocks import Blocks, blocks, number_of
from refsd.adapters.file import Source
from refsd.arguments import shown
from refsd.errors import UsageError
from refsd.leaf import Away
from refsd.tree import flatten


def adapted(parts: Iterable[str]) -> tuple[str, ...]:
    """Those of a model's parts that adapters may change, the denoiser first."""
    return tuple(part for part in names.PREFIXES if part in parts)


def applied(pipe: Any) -> dict[str, Applied]:
    """The adapters of each network; they belong to it, not to the pipeline, which may share it."""
    pipe.require("adapters")
    found = {}
    for network in adapted(pipe.networks):
        part = getattr(pipe, network)
        if any(isinstance(leaf, Away) for leaf in flatten(part.tree).values()):
            raise UsageError(f"adapters change weights, and those of the {network} are read from "
                             "their file while they are used: load the model without offload")
        if "adapters" not in vars(part):
            part.adapters = Applied(_tree(network, part), part.backend)
        found[network] = part.adapters
    return found


def _tree(network, part):
    """With the names of files: a text encoder's lie below text_model, but for its projection."""
    if network == "unet":
        return part.tree
    beside = {key: part.tree[key] for key in ("text_projection",) if key in part.tree}
    return {"text_model": {key: branch for key, branch in part.tree.items() if key not in beside},
            **beside}


def load(pipe: Any, source: Source, name: str | None, *, strict: bool = True) -> str:
    """Read an adapter into the pipeline, without putting it into the networks; its name.

    strict=False leaves out, with a line, what has no place in the model. Raises ModelError for what
    is damaged or of another model, UsageError for a name that is taken; then nothing is changed.
    """
    networks = applied(pipe)
    taken = adapters(pipe)
    name = f"default_{len(taken)}" if name is None else name
    if not isinstance(name, str) or not name or "." in name or name in taken:
        raise UsageError(f"adapter_name is {shown(name)}; give a text without points that no "
                         f"adapter has ({', '.join(taken) or 'there is none'})")
    trees = {network: found.tree for network, found in networks.items()}
    known = names.targets(trees)
    plan = formats.plan(source.shapes, known, shapes(trees), metadata=source.metadata,
                        where=source.name)
    if strict or not plan.parts:
        formats.require_known(plan, source.name)
    elif plan.unknown:
        pipe.remark(f"{source.name}: {len(plan.unknown)} tensors without a place in this model are "
                    "left out")
    changes = formats.changes(plan, source.read(plan.keys))
    for network, found in networks.items():
        found.changes = {**found.changes, name: {
            weight: change for (part, weight), change in changes.items() if part == network}}
    return name


def shapes(trees: Mapping[str, Any]) -> dict[names.Target, dict[str, tuple[int, ...]]]:
    """The shapes of each module's weight and bias."""
    found: dict[names.Target, dict[str, tuple[int, ...]]] = {}
    for network, tree in trees.items():
        for name, leaf in flatten(tree).items():
            module, _, kind = name.rpartition(".")
            shape = leaf if isinstance(leaf, tuple) else tuple(leaf.shape)
            found.setdefault(names.Target(network, module), {})[kind] = shape
    return found


def adapters(pipe: Any) -> list[str]:
    """The names of all that are loaded, in the order of loading."""
    found: dict[str, None] = {}
    for network in applied(pipe).values():
        found |= dict.fromkeys(network.changes)
    return [*found]


def show(pipe: Any, strengths: Mapping[str, Mapping[str, float]],
         without: Sequence[str] = ()) -> None:
    """network -> adapter -> strength: have these in the networks, and forget those `without`.

    All of it or nothing.
    """
    networks = applied(pipe)
    before = {network: (found.strengths, found.changes) for network, found in networks.items()}
    try:
        for network, found in networks.items():
            left = {name: what for name, what in found.changes.items() if name not in without}
            found.show(strengths.get(network, {}), left)
    except BaseException:
        for network, found in networks.items():
            found.show(*before[network])
        raise


def strengths_of(pipe: Any, given: Sequence[str], weights: Any,
                 where: str) -> dict[str, dict[str, float | Blocks]]:
    """set_adapters' weights as network -> adapter -> strength.

    A number for all, a list with one each, None for 1; for one adapter a dict may say a number for
    each network, of the UNet for its blocks; what it leaves out is 1.
    """
    each = list(weights) if isinstance(weights, (list, tuple)) else [weights] * len(given)
    if len(each) != len(given):
        raise UsageError(f"{where}: {len(each)} weights for {len(given)} adapters; give one each")
    networks = adapted(pipe.networks)
    found: dict[str, dict[str, float | Blocks]] = {network: {} for network in networks}
    for name, weight in zip(given, each):
        parts = weight if isinstance(weight, Mapping) else dict.fromkeys(networks, weight)
        if other := set(parts) - set(networks):
            raise UsageError(f"{where}: weights for {shown(sorted(map(str, other)))}; give them "
                             f"for {' and '.join(networks)}")
        for network in networks:
            one = parts.get(network)
            if network == "unet" and isinstance(one, Mapping):
                found[network][name] = blocks(one, pipe.unet.tree, where)
            else:
                found[network][name] = 1.0 if one is None else number_of(one, f"{where}: a weight")
    return found
