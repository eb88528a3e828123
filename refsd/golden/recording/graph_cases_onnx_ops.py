"""What each kind of ONNX's nodes that compute is among refsd's ops: one short function a kind.

A function is given a node (graph_cases_onnx.Node) and gives calls: (op, inputs, options). It raises
Unread with the reason where the node is no such call, Covered where another node's case has it.
"""

import math
from collections.abc import Callable
from typing import Any

from refsd.contracts import Spec
from refsd.golden.recording.graph_cases_onnx_moves import MOVES, Calls, Covered, Unread, need


def _conv(node) -> Calls:
    x, weight = node.floats(0), node.spec(1)
    need(len(x.shape) == 4, f"a convolution over {len(x.shape) - 2} axes, conv2d has two")
    stride = node.attribute("strides", (1, 1))
    dilation = node.attribute("dilations", (1, 1))
    top, left, bottom, right = _pads(node, x, weight, stride, dilation)
    padding = (top if top == left == bottom == right else ((top, bottom), (left, right)))
    return [("conv2d", {"x": x, "weight": weight, "bias": node.spec(2) if node.has(2) else None},
             {"stride": _single(stride), "padding": padding, "dilation": _single(dilation),
              "groups": node.attribute("group", 1)})]


def _single(pair):
    return pair[0] if pair[0] == pair[1] else pair


def _pads(node, x, weight, stride, dilation):
    """ONNX's order: those before both axes, then those behind."""
    auto = node.attribute("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return node.attribute("pads", (0, 0, 0, 0))
    if auto == "VALID":
        return 0, 0, 0, 0
    before, behind = [], []
    for i in range(2):
        n, reach = x.shape[2 + i], (weight.shape[2 + i] - 1) * dilation[i] + 1
        total = max((math.ceil(n / stride[i]) - 1) * stride[i] + reach - n, 0)
        less = total // 2
        before.append(less if auto == "SAME_UPPER" else total - less)
        behind.append(total - before[-1])
    return *before, *behind


def _gemm(node) -> Calls:
    x, weight = node.floats(0), node.spec(1)
    need(not node.attribute("transA", 0) and node.attribute("alpha", 1.0) == 1.0
          and node.attribute("beta", 1.0) == 1.0, "of a transposed or scaled product")
    out, K = weight.shape if node.attribute("transB", 0) else weight.shape[::-1]
    bias = node.spec(2) if node.has(2) else None
    need(bias is None or bias.shape == (out,), "its third input is no bias")
    return [("linear", {"x": x, "weight": Spec((out, K), "float32"), "bias": bias}, {})]


def _weight(node) -> Spec | None:
    """The weight (out, K) of a MatMul that is a layer's."""
    turned = node.maker(1)
    kept = node.is_weight(1) or (turned is not None and turned.kind == "Transpose"
                                 and turned.is_weight(0))
    shape = node.spec(1).shape
    return Spec(shape[::-1], "float32") if kept and len(shape) == 2 else None


def _bias(node):
    """The Add behind a layer's MatMul, and the number of its input that is the bias."""
    users = node.users()
    weight = _weight(node)
    if weight is None or len(users) != 1 or users[0].kind != "Add":
        return None
    return next(((users[0], i) for i in (0, 1) if users[0].is_weight(i)
                 and users[0].spec(i).shape == weight.shape[:1]), None)


def _matmul(node) -> Calls:
    a, weight = node.floats(0), _weight(node)
    if weight is None:
        return [("matmul", {"a": a, "b": node.floats(1)}, {})]
    add = _bias(node)
    bias = None if add is None else add[0].spec(add[1])
    return [("linear", {"x": a, "weight": weight, "bias": bias}, {})]


def _add(node) -> Calls:
    for i in (0, 1):
        product = node.maker(i)
        if product is not None and product.kind == "MatMul" and _bias(product):
            raise Covered
    return _pair("add", True)(node)


def _gate(node):
    """silu or quick_gelu, which x, and what else is a part of it, if a Mul is one of these."""
    for i in (0, 1):
        sigmoid = node.maker(i)
        if sigmoid is None or sigmoid.kind != "Sigmoid":
            continue
        other = node.inputs[1 - i]
        if sigmoid.inputs[0] == other:
            return "silu", 1 - i
        scaled = sigmoid.maker(0)
        if scaled is not None and scaled.kind == "Mul":
            for j in (0, 1):
                if scaled.inputs[j] == other and abs((scaled.scalar(1 - j) or 0) - 1.702) < 1e-3:
                    return "quick_gelu", 1 - i
    return None


def _mul(node) -> Calls:
    if gate := _gate(node):
        op, i = gate
        return [(op, {"x": node.floats(i)}, {})]
    for user in node.users():
        if user.kind == "Sigmoid" and any(
                two.kind == "Mul" and (_gate(two) or ("",))[0] == "quick_gelu"
                for two in user.users()):
            raise Covered
    return _pair("mul", True)(node)


def _sigmoid(node) -> Calls:
    if any(user.kind == "Mul" and _gate(user) for user in node.users()):
        raise Covered
    raise Unread("a Sigmoid that is not a part of silu or quick_gelu")


def _erf(node) -> Calls:
    scaled = node.maker(0)
    if scaled is not None and scaled.kind in ("Div", "Mul"):
        wanted = math.sqrt(2.0 if scaled.kind == "Div" else 0.5)
        for i in (0, 1)[:1 if scaled.kind == "Div" else 2]:
            if abs((scaled.scalar(1 - i) or 0) - wanted) < 1e-3:
                return [("gelu", {"x": scaled.floats(i)}, {})]
    raise Unread("an Erf that is not a part of gelu")


def _gelu(node) -> Calls:
    op = "gelu_tanh" if node.attribute("approximate", "none") == "tanh" else "gelu"
    return [(op, {"x": node.floats(0)}, {})]


def _swish(node) -> Calls:
    need(node.attribute("alpha", 1.0) == 1.0, "a Swish with an alpha")
    return [("silu", {"x": node.floats(0)}, {})]


def _map(op: str) -> Callable:
    return lambda node: [(op, {"x": node.floats(0)}, {})]


def _pair(op: str, commutes: bool = False) -> Callable:
    def read(node) -> Calls:
        node.floats(0), node.floats(1)
        a, b = (node.scalar(i) for i in (0, 1))
        if b is not None:
            return [(op, {"a": node.spec(0), "b": b}, {})]
        need(a is None or commutes, f"{op} of a number and an array, in this order")
        if a is not None:
            return [(op, {"a": node.spec(1), "b": a}, {})]
        return [(op, {"a": node.spec(0), "b": node.spec(1)}, {})]
    return read


def _clip(node) -> Calls:
    low, high = node.scalar(1), node.scalar(2)
    need(low is not None and high is not None, "a Clip without two constant limits")
    return [("clamp", {"x": node.floats(0)}, {"low": low, "high": high})]


def _softmax(node) -> Calls:
    return [("softmax", {"x": node.floats(0)}, {"axis": node.attribute("axis", -1)})]


def _group_norm(node) -> Calls:
    x = node.floats(0)
    each = Spec(x.shape[1:2], "float32")
    return [("group_norm", {"x": x, "weight": each, "bias": each},
             {"groups": node.attribute("num_groups"), "eps": node.attribute("epsilon", 1e-5)})]


def _instance_norm(node) -> Calls:
    """Of groups that a Reshape has put into axis 1, as torch exports group norms."""
    reshape, grouped = node.maker(0), node.floats(0)
    need(reshape is not None and reshape.kind == "Reshape",
          "an InstanceNormalization that is not of groups behind a Reshape")
    x = reshape.floats(0)
    each = Spec(x.shape[1:2], "float32")
    return [("group_norm", {"x": x, "weight": each, "bias": each},
             {"groups": grouped.shape[1], "eps": node.attribute("epsilon", 1e-5)})]


def _layer_norm(node) -> Calls:
    x = node.floats(0)
    need(node.attribute("axis", -1) in (-1, len(x.shape) - 1), "of more axes than the last")
    return [("layer_norm", {"x": x, "weight": node.spec(1),
                            "bias": node.spec(2) if node.has(2) else None},
             {"eps": node.attribute("epsilon", 1e-5)})]


def _rms_norm(node) -> Calls:
    x = node.floats(0)
    need(node.attribute("axis", -1) in (-1, len(x.shape) - 1), "of more axes than the last")
    return [("rms_norm", {"x": x, "weight": node.spec(1)},
             {"eps": node.attribute("epsilon", 1e-5)})]


def _attention(node) -> Calls:
    q, k, v = (node.floats(i) for i in range(3))
    heads = node.attribute("q_num_heads", 0) or node.attribute("num_heads", 0)
    need(len(q.shape) == 3 and heads and node.attribute("kv_num_heads", heads) == heads
          and not any(node.has(i) for i in range(4, len(node.inputs))) and not (
              node.kind == "MultiHeadAttention" and node.has(3))
          and not node.attribute("softcap", 0.0), "an attention of another form")
    scale = node.attribute("scale", 0.0)
    need(not scale or abs(scale * math.sqrt(q.shape[2] // heads) - 1) < 1e-3, "of another scale")
    mask = {"mask": node.floats(3)} if node.has(3) else {}
    return [("attention", {"q": q, "k": k, "v": v, **mask},
             {"heads": heads, "causal": bool(node.attribute("is_causal", 0)
                                             or node.attribute("unidirectional", 0))})]


READ: dict[str, Callable[[Any], Calls]] = {
    "Conv": _conv, "Gemm": _gemm, "MatMul": _matmul, "Add": _add, "Mul": _mul, "Sigmoid": _sigmoid,
    "Sub": _pair("sub"), "Div": _pair("div"), "Exp": _map("exp"), "Sqrt": _map("sqrt"),
    "Tanh": _map("tanh"), "Erf": _erf, "Gelu": _gelu, "Swish": _swish, "Clip": _clip,
    "Softmax": _softmax, "GroupNormalization": _group_norm, "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm, "RMSNormalization": _rms_norm, "Attention": _attention,
    "MultiHeadAttention": _attention, **MOVES}  # fmt: skip
