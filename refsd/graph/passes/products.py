"""Convolutions and linear layers, what they read, and what is done to their sums."""

from refsd.graph.graph import Node
from refsd.graph.passes.matching import Found, Fusion, View, pattern


@pattern("upsample_conv2d")
def upsample_conv2d(view: View, conv: Node) -> Found:
    """conv2d(upsample_nearest(x))"""
    if conv.op != "conv2d" or (up := view.maker(conv.inputs["x"], "upsample_nearest")) is None:
        return None
    return view.fuse("upsample_conv2d", conv.inputs | up.inputs, conv.options | up.options, up,
                     conv)


@pattern("conv2d_add")
def conv2d_add(view: View, add: Node) -> Found:
    """conv2d(x) + addend, or addend + conv2d(x), which has the same bits"""
    return _with_addend(view, add, "conv2d", "conv2d_add")


@pattern("linear_add")
def linear_add(view: View, add: Node) -> Found:
    """linear(x) + addend, or addend + linear(x)"""
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
