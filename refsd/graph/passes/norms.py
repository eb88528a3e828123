"""Normalisations and what follows them."""

from refsd.graph.graph import Node
from refsd.graph.passes.matching import Found, View, pattern


@pattern("group_norm_silu")
def group_norm_silu(view: View, silu: Node) -> Found:
    """silu(group_norm(x))"""
    if silu.op != "silu" or (norm := view.maker(silu.inputs["x"], "group_norm")) is None:
        return None
    return view.fuse("group_norm_silu", norm.inputs, norm.options, norm, silu)
