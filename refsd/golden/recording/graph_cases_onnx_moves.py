"""What each kind of ONNX's nodes that move numbers is among refsd's ops, as graph_cases_onnx_ops.
"""

from collections.abc import Callable
from typing import Any

Calls = list[tuple[str, dict[str, Any], dict[str, Any]]]


class Unread(Exception):
    """Why there is no case of a node."""


class Covered(Exception):
    """A node is a part of another one's case."""


def need(condition: bool, why: str) -> None:
    """Unread with the reason unless the condition holds."""
    if not condition:
        raise Unread(why)


def concat(node) -> Calls:
    return [("concat", {"arrays": [node.floats(i) for i in range(len(node.inputs))]},
             {"axis": node.attribute("axis")})]


def slice(node) -> Calls:
    x = node.floats(0)
    starts, stops = (node.values(i).reshape(-1).tolist() for i in (1, 2))
    axes = node.values(3).reshape(-1).tolist() if node.has(3) else list(range(len(starts)))
    steps = node.values(4).reshape(-1).tolist() if node.has(4) else [1] * len(starts)
    need(len(axes) == 1 and steps == [1], "a Slice of several axes, or with a step")
    n = x.shape[axes[0]]
    start, stop = (min(max(at + n if at < 0 else at, 0), n) for at in (starts[0], stops[0]))
    return [("slice", {"x": x}, {"axis": axes[0], "start": start, "stop": stop})]


def split(node) -> Calls:
    x, axis = node.floats(0), node.attribute("axis", 0)
    calls, at = [], 0
    for i in range(len(node.proto.output)):
        n = node.result(i).shape[axis]
        calls.append(("slice", {"x": x}, {"axis": axis, "start": at, "stop": at + n}))
        at += n
    return calls


def pad(node) -> Calls:
    x = node.floats(0)
    need(node.attribute("mode", "constant") == "constant" and (
        not node.has(2) or node.scalar(2) == 0.0) and not node.has(3),
        "a Pad with anything but zeros, or of some axes")
    widths = [int(n) for n in node.values(1).reshape(-1)]
    half = len(widths) // 2
    return [("pad", {"x": x}, {"widths": tuple(zip(widths[:half], widths[half:]))})]


def transpose(node) -> Calls:
    x = node.floats(0)
    axes = node.attribute("perm", tuple(range(len(x.shape)))[::-1])
    return [("transpose", {"x": x}, {"axes": axes})]


def reshape(node) -> Calls:
    return [("reshape", {"x": node.floats(0)}, {"shape": node.result().shape})]


def gather(node) -> Calls:
    weight, ids = node.floats(0), node.spec(1)
    need(len(weight.shape) == 2 and node.attribute("axis", 0) == 0,
          "a Gather that is no table's rows")
    return [("embedding", {"ids": ids, "weight": weight}, {})]


def resize(node) -> Calls:
    x, mode = node.floats(0), node.attribute("mode", "nearest")
    how = node.attribute("coordinate_transformation_mode", "half_pixel")
    result = node.result().shape
    need(len(x.shape) == 4 and result[:2] == x.shape[:2], "a Resize of other axes than two")
    size = {"height": result[2], "width": result[3]}
    if mode == "nearest" and how == "asymmetric" and node.attribute(
            "nearest_mode", "round_prefer_floor") == "floor":
        return [("upsample_nearest", {"x": x}, size)]
    if mode == "linear" and how in ("half_pixel", "pytorch_half_pixel", "align_corners") and (
            not node.attribute("antialias", 0)):
        return [("upsample_bilinear", {"x": x}, size | {"align_corners": how == "align_corners"})]
    raise Unread(f"a Resize of mode {mode}, {how}")


MOVES: dict[str, Callable[[Any], Calls]] = {
    "Concat": concat, "Slice": slice, "Split": split, "Pad": pad, "Transpose": transpose,
    "Reshape": reshape, "Flatten": reshape, "Squeeze": reshape, "Unsqueeze": reshape,
    "Gather": gather, "Resize": resize}  # fmt: skip
