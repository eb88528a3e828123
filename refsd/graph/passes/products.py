"""Linear layers, and what is done to their sums."""

from refsd.graph.graph import Node
from refsd.graph.passes.matching import Found, Fusion, View, pattern


@pattern("linear_add")
def linear_add(view: View, add: Node) -> Found:
    """linear(x) + addend, or addend + linear(x), which has the same bits"""
    return _with_addend(view, add, "linear", "linear_add")


@pattern("linear_geglu")
def linear_geglu(view: View, geglu: Node) -> Found:
    """geglu(linear(x))"""
    if geglu.op != "geglu" or (linear := view.maker(geglu.inputs["x"], "linear")) is None:
        return None
    return view.fuse("linear_geglu", linear.inputs, linear.options, linear, geglu)


def _with_addend(view: View, add: Node, op: str, fused: str) -> Found:
    """Of two products the later one that can: the other's result is there by then."""
    a, b = add.inputs.values() if add.op == "add" else (None, None)
    sides = [(node, addend) for read, addend in ((a, b), (b, a))
             if (node := view.maker(read, op)) is not None]
    found: Found = None
    for node, addend in sorted(sides, key=lambda side: -view.index(side[0])):
        found = view.fuse(fused, {**node.inputs, "addend": addend}, node.options, node, add)
        if isinstance(found, Fusion):
            break
    return found
