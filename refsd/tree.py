"""Checkpoint names as a tree: "conv1.weight" lies at tree["conv1"]["weight"]."""

from collections.abc import Mapping
from typing import Any

from refsd.errors import ModelError

MAX_DEPTH = 64


def to_tree(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts by the dots of the names; the leaves are the very values.

    A level whose keys are 0, 1, .. n-1 becomes a list. Another level of numbers stays a dict, as
    the feed-forward's `net` with its 0 and 2 (1 is a dropout). Raises ModelError when one name is
    both a tensor and a level.

    >>> to_tree({"conv.weight": 1, "conv.bias": 2, "down.0.proj": 3, "down.1.proj": 4})
    {'conv': {'weight': 1, 'bias': 2}, 'down': [{'proj': 3}, {'proj': 4}]}
    """
    root: dict[str, Any] = {}
    for name, value in tensors.items():
        *levels, last = name.split(".")
        if len(levels) > MAX_DEPTH:
            raise ModelError(f"tensor {name[:80]!r}... has more than {MAX_DEPTH} levels; "
                             "rename it")
        node = root
        for level in levels:
            node = node.setdefault(level, {})
            if not isinstance(node, dict):
                raise ModelError(f"tensor {name!r} lies below another tensor; rename one")
        if last in node:
            raise ModelError(f"tensor {name!r} is also the beginning of another name; rename one")
        node[last] = value
    return _lists(root)


def _lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    node = {key: _lists(child) for key, child in node.items()}
    indices = [str(i) for i in range(len(node))]
    return [node[i] for i in indices] if node and node.keys() == set(indices) else node


def flatten(tree: Mapping[str, Any] | list) -> dict[str, Any]:
    """The inverse of `to_tree`: dotted name -> leaf, in the tree's order."""
    found: dict[str, Any] = {}
    for key, child in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        if isinstance(child, (Mapping, list)):
            found |= {f"{key}.{name}": leaf for name, leaf in flatten(child).items()}
        else:
            found[str(key)] = child
    return found
