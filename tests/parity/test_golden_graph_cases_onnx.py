"""Calls read out of ONNX models: each gives what its nodes give, by ONNX's own evaluator."""

import json

import numpy as np
import onnx
import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from onnx import parser
from onnx.reference import ReferenceEvaluator

from refsd import F, examples
from refsd.__main__ import main
from refsd.contracts import Spec
from refsd.errors import ModelError, UsageError
from refsd.golden.packs.pack import Pack
from refsd.golden.recording.graph_cases import different
from refsd.golden.recording.graph_cases_json import calls_in_json
from refsd.golden.recording.graph_cases_onnx import calls_in_onnx
from refsd.graph import to_json, trace
from refsd.graph.onnx import write_onnx
from refsd.pipelines.outline import outline
from refsd.pipelines.planned import calls, planned_networks, sized
from refsd.registry import ops

RANDOM = np.random.default_rng(5)


def model(tmp_path, text, constants=None, opset=21):
    """A model in ONNX's text form; constants become initializers."""
    others = ', "com.microsoft": 1, "mine": 1'
    found = parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}{others}]> {text}')
    for name, array in (constants or {}).items():
        found.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    path = tmp_path / "m.onnx"
    onnx.save(found, path)
    return path


X4, X3 = "float[2,4,6,5] x", "float[2,5,8] x"
W = RANDOM.standard_normal((4, 2, 3, 2)).astype("float32")
V4, V8 = (RANDOM.standard_normal(n).astype("float32") for n in (4, 8))
M = RANDOM.standard_normal((8, 3)).astype("float32")
# A graph's inputs, its nodes (the last gives y), constants; and the call, by names of the graph:
# "w.T" is turned, a number or None is itself.
READ = {
    "conv": (X4, "y = Conv<group=2, pads=[1,0,2,1], strides=[2,1], dilations=[1,2]>(x, w, b)",
             {"w": W, "b": V4}, "conv2d", {"x": "x", "weight": "w", "bias": "b"},
             {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "dilation": (1, 2), "groups": 2}),
    "conv same upper": (X4, 'y = Conv<group=2, auto_pad="SAME_UPPER", strides=[2,2]>(x, w)',
                        {"w": W}, "conv2d", {"x": "x", "weight": "w", "bias": None},
                        {"stride": 2, "padding": ((0, 1), (0, 1)), "dilation": 1, "groups": 2}),
    "conv same lower": (X4, 'y = Conv<group=2, auto_pad="SAME_LOWER">(x, w)',
                        {"w": W}, "conv2d", {"x": "x", "weight": "w", "bias": None},
                        {"stride": 1, "padding": ((1, 1), (1, 0)), "dilation": 1, "groups": 2}),
    "conv valid": (X4, 'y = Conv<group=2, auto_pad="VALID">(x, w)', {"w": W}, "conv2d",
                   {"x": "x", "weight": "w", "bias": None},
                   {"stride": 1, "padding": 0, "dilation": 1, "groups": 2}),
    "gemm": ("float[5,8] x", "y = Gemm(x, w, b)", {"w": M, "b": V4[:3]}, "linear",
             {"x": "x", "weight": "w.T", "bias": "b"}, {}),
    "gemm turned": ("float[5,8] x", "y = Gemm<transB=1>(x, w)", {"w": M.T.copy()}, "linear",
                    {"x": "x", "weight": "w", "bias": None}, {}),
    "linear": (X3, "p = MatMul(x, w) y = Add(b, p)", {"w": M, "b": V4[:3]}, "linear",
               {"x": "x", "weight": "w.T", "bias": "b"}, {}),
    "linear turned": (X3, "t = Transpose(w) i = Identity(t) y = MatMul(x, i)",
                      {"w": M.T.copy()}, "linear", {"x": "x", "weight": "w", "bias": None}, {}),
    "matmul": (f"{X3}, float[2,8,3] z", "y = MatMul(x, z)", {}, "matmul", {"a": "x", "b": "z"}, {}),
    "add": (f"{X4}, float[4,1,1] z", "y = Add(x, z)", {}, "add", {"a": "x", "b": "z"}, {}),
    "add number": (X4, "y = Add(c, x)", {"c": np.float32(2.5)}, "add", {"a": "x", "b": 2.5}, {}),
    "sub": (X4, "y = Sub(x, c)", {"c": np.float32([2.5])}, "sub", {"a": "x", "b": 2.5}, {}),
    "mul": (f"{X4}, float[5] z", "y = Mul(x, z)", {}, "mul", {"a": "x", "b": "z"}, {}),
    "div": (f"{X4}, float[5] z", "y = Div(x, z)", {}, "div", {"a": "x", "b": "z"}, {}),
    "silu": (X4, "s = Sigmoid(x) y = Mul(x, s)", {}, "silu", {"x": "x"}, {}),
    "silu turned": (X4, "s = Sigmoid(x) y = Mul(s, x)", {}, "silu", {"x": "x"}, {}),
    "quick_gelu": (X4, "a = Mul(c, x) s = Sigmoid(a) y = Mul(x, s)", {"c": np.float32(1.702)},
                   "quick_gelu", {"x": "x"}, {}),
    "gelu": (X4, "y = Gelu(x)", {}, "gelu", {"x": "x"}, {}),
    "gelu_tanh": (X4, 'y = Gelu<approximate="tanh">(x)', {}, "gelu_tanh", {"x": "x"}, {}),
    "tanh": (X4, "y = Tanh(x)", {}, "tanh", {"x": "x"}, {}),
    "exp": (X4, "y = Exp(x)", {}, "exp", {"x": "x"}, {}),
    "clip": (X4, "y = Clip(x, l, h)", {"l": np.float32(-1), "h": np.float32(0.5)}, "clamp",
             {"x": "x"}, {"low": -1.0, "high": 0.5}),
    "softmax": (X4, "y = Softmax<axis=1>(x)", {}, "softmax", {"x": "x"}, {"axis": 1}),
    "group_norm": (X4, "y = GroupNormalization<num_groups=2, epsilon=0.25>(x, w, b)",
                   {"w": V4, "b": V4 + 1}, "group_norm", {"x": "x", "weight": "w", "bias": "b"},
                   {"groups": 2, "eps": 0.25}),
    "layer_norm": (X3, "y = LayerNormalization<epsilon=0.25>(x, w, b)", {"w": V8, "b": V8 + 1},
                   "layer_norm", {"x": "x", "weight": "w", "bias": "b"}, {"eps": 0.25}),
    "layer_norm no bias": (X3, "y = LayerNormalization<axis=2>(x, w)", {"w": V8}, "layer_norm",
                           {"x": "x", "weight": "w", "bias": None}, {"eps": 1e-5}),
    "concat": (f"{X4}, float[2,3,6,5] z", "y = Concat<axis=1>(x, z)", {}, "concat",
               {"arrays": ["x", "z"]}, {"axis": 1}),
    "slice": (X4, "y = Slice(x, s, e, a)", {"s": [-3], "e": [2**40], "a": [2]}, "slice", {"x": "x"},
              {"axis": 2, "start": 3, "stop": 6}),
    "pad": (X3, "y = Pad(x, p)", {"p": [0, 1, 0, 0, 2, 3]}, "pad", {"x": "x"},
            {"widths": ((0, 0), (1, 2), (0, 3))}),
    "transpose": (X3, "y = Transpose<perm=[0,2,1]>(x)", {}, "transpose", {"x": "x"},
                  {"axes": (0, 2, 1)}),
    "transpose all": (X3, "y = Transpose(x)", {}, "transpose", {"x": "x"}, {"axes": (2, 1, 0)}),
    "reshape": (X3, "y = Reshape(x, s)", {"s": [0, -1]}, "reshape", {"x": "x"},
                {"shape": (2, 40)}),
    "reshape by arithmetic": (
        X3, "s = Shape(x) n = Gather(s, i) d = Mul(n, c) k = Concat<axis=0>(d, m) "
        "y = Reshape(x, k)", {"i": [0], "c": [4], "m": [-1]}, "reshape", {"x": "x"},
        {"shape": (8, 10)}),
    "flatten": (X3, "y = Flatten(x)", {}, "reshape", {"x": "x"}, {"shape": (2, 40)}),
    "unsqueeze": (X3, "y = Unsqueeze(x, a)", {"a": [1]}, "reshape", {"x": "x"},
                  {"shape": (2, 1, 5, 8)}),
    "embedding": ("int64[2,3] x", "y = Gather(w, x)", {"w": M}, "embedding",
                  {"ids": "x", "weight": "w"}, {}),
    "nearest": (X4, 'y = Resize<mode="nearest", nearest_mode="floor", '
                'coordinate_transformation_mode="asymmetric">(x, , s)',
                {"s": np.float32([1, 1, 2, 2])}, "upsample_nearest", {"x": "x"},
                {"height": 12, "width": 10}),
    "bilinear": (X4, 'y = Resize<mode="linear", coordinate_transformation_mode="half_pixel">'
                 '(x, , , s)', {"s": [2, 4, 12, 10]}, "upsample_bilinear", {"x": "x"},
                 {"height": 12, "width": 10, "align_corners": False}),
    "corners": (X4, 'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">'
                '(x, , , s)', {"s": [2, 4, 12, 10]}, "upsample_bilinear", {"x": "x"},
                {"height": 12, "width": 10, "align_corners": True}),
}  # fmt: skip


def values(graph):
    for value in graph.input:
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        yield value.name, (RANDOM.integers(0, 8, shape) if kind.elem_type == onnx.TensorProto.INT64
                           else RANDOM.standard_normal(shape).astype("float32"))


@pytest.mark.parametrize("name", READ)
def test_a_call_gives_what_its_nodes_give(name, tmp_path):
    """To 32 roundings of float32 of the largest number: sums of at most 12 products."""
    inputs, nodes, constants, op, arguments, options = READ[name]
    path = model(tmp_path, f"g ({inputs}) => (float y) {{ {nodes} }}", constants)
    [call], left = calls_in_onnx(path, {})
    assert (call.op, call.options, left) == (op, options, [])
    given = dict(values(onnx.load(path).graph))
    known = {**given, **{key: np.asarray(array) for key, array in constants.items()}}

    def array(value):
        if isinstance(value, list):
            return [array(one) for one in value]
        if not isinstance(value, str):
            return value
        return known[value[:-2]].T if value.endswith(".T") else known[value]

    arrays = {key: array(value) for key, value in arguments.items()}
    for key, value in arrays.items():
        each, specs = ([value], [call.inputs[key]]) if not isinstance(value, list) else (
            value, call.inputs[key])
        for one, spec in zip(each, specs, strict=True):
            assert spec == (Spec(one.shape, str(one.dtype)) if hasattr(one, "shape") else one)
    [y] = ReferenceEvaluator(str(path)).run(None, given)
    found = ops()[op].definition(**{key: value.astype("float64") if getattr(
        value, "dtype", None) == "float32" else value for key, value in arrays.items()}, **options)
    assert found.shape == y.shape
    assert np.abs(found - y).max() <= 32 * 2.0**-24 * max(1, np.abs(y).max())


def test_groups_behind_a_reshape(tmp_path):
    """As torch exports group norms for older opsets; weight and bias follow as a Mul and an Add."""
    path = model(tmp_path, f"""g ({X4}) => (float y) {{
        a = Reshape(x, s) b = InstanceNormalization<epsilon=0.25>(a, one, zero)
        c = Reshape(b, t) d = Mul(c, w) y = Add(d, w) }}""", {
            "s": [0, 2, -1], "one": np.float32([1, 1]), "zero": np.float32([0, 0]),
            "t": [2, 4, 6, 5], "w": V4.reshape(4, 1, 1)})
    found, left = calls_in_onnx(path, {})
    assert [call.op for call in found] == ["reshape", "group_norm", "reshape", "mul", "add"]
    assert left == [] and found[1].options == {"groups": 2, "eps": 0.25}
    assert found[1].inputs == {"x": Spec((2, 4, 6, 5), "float32"),
                               "weight": Spec((4,), "float32"), "bias": Spec((4,), "float32")}


def test_gelu_in_parts_and_a_split(tmp_path):
    path = model(tmp_path, f"""g ({X4}) => (float y) {{
        p, q = Split<axis=1>(x, n) d = Div(p, r) e = Erf(d) f = Add(e, o) y = Mul(q, f) }}""",
                 {"n": [1, 3], "r": np.float32(1.4142135), "o": np.float32(1)})
    found, left = calls_in_onnx(path, {})
    assert [call.op for call in found] == ["slice", "slice", "div", "gelu", "add", "mul"]
    assert [call.options for call in found[:2]] == [
        {"axis": 1, "start": 0, "stop": 1}, {"axis": 1, "start": 1, "stop": 4}]
    assert found[3].inputs["x"].shape == (2, 1, 6, 5) and left == []


ATTENTION = "float[2,5,8] q, float[2,7,8] k, float[2,7,8] v"


def test_attention(tmp_path):
    """An operator of opset 23."""
    path = model(tmp_path, f"g ({ATTENTION}) => (float y) {{ y = "
                 "Attention<q_num_heads=2, kv_num_heads=2>(q, k, v) }", opset=23)
    [call], left = calls_in_onnx(path, {})
    assert (call.op, call.options) == ("attention", {"heads": 2, "causal": False})
    given = dict(values(onnx.load(path).graph))
    found = ops()["attention"].definition(**given, **call.options)
    [y] = ReferenceEvaluator(str(path)).run(None, given)
    assert np.abs(found - y).max() <= 32 * 2.0**-24 * np.abs(y).max()


@pytest.mark.parametrize("nodes, op, options", [
    ("Attention<q_num_heads=2, kv_num_heads=2, is_causal=1>(q, k, k)", "attention",
     {"heads": 2, "causal": True}),
    ("Attention<q_num_heads=2, kv_num_heads=2, scale=0.5>(q, k, k, m)", "attention",
     {"heads": 2, "causal": False}),
    ("com.microsoft.MultiHeadAttention<num_heads=2>(q, k, k)", "attention",
     {"heads": 2, "causal": False}),
    ("RMSNormalization<epsilon=0.25>(q, w)", "rms_norm", {"eps": 0.25}),
    ("Swish(q)", "silu", {}),
])
def test_operators_of_later_opsets(nodes, op, options, tmp_path):
    path = model(tmp_path, "g (float[2,5,8] q, float[2,5,8] k, float[2,1,5,5] m) => (float y) "
                 f"{{ y = {nodes} }}", {"w": V8}, opset=24)
    [call], left = calls_in_onnx(path, {})
    assert (call.op, call.options, left) == (op, options, []) and different([call])[1] == []
    assert [*call.inputs.values()][0] == Spec((2, 5, 8), "float32")
    assert ("mask" in call.inputs) == ("m)" in nodes)


@pytest.mark.parametrize("nodes, why", [
    ("Attention<q_num_heads=2, kv_num_heads=1>(q, k, k)", "of another form"),
    ("Attention<q_num_heads=2, kv_num_heads=2, scale=1.0>(q, k, k)", "of another scale"),
    ("com.microsoft.MultiHeadAttention<num_heads=2>(q, k, k, w)", "of another form"),
    ("Swish<alpha=2.0>(q)", "a Swish with an alpha"),
])
def test_operators_of_later_opsets_that_are_others(nodes, why, tmp_path):
    path = model(tmp_path, "g (float[2,5,8] q, float[2,5,8] k) => (float y) "
                 f"{{ y = {nodes} }}", {"w": V8}, opset=24)
    found, [left] = calls_in_onnx(path, {})
    assert found == [] and why in left.why


@pytest.mark.parametrize("inputs, nodes, constants, why", [
    (X4, "y = Sin(x)", {}, "no op of refsd is its counterpart"),
    (X4, "y = mine.Tanh(x)", {}, "no op of refsd is its counterpart"),
    (X4, "y = com.microsoft.Tanh(x)", {}, "no op of refsd is its counterpart"),
    (X4, "c = mine.Constant<value_float=2.0>() y = Mul(x, c)", {}, "cannot be inferred: export"),
    (X3, "y = Conv(x, w)", {"w": np.ones((2, 5, 3), "f4")}, "over 1 axes, conv2d has two"),
    ("float[5,8] x", "y = Gemm<alpha=0.5>(x, w)", {"w": M}, "transposed or scaled product"),
    ("float[5,8] x", "y = Gemm(x, w, b)", {"w": M, "b": np.ones((5, 3), "f4")}, "is no bias"),
    (X4, "y = Sub(c, x)", {"c": np.float32(1)}, "sub of a number and an array, in this order"),
    ("int64[3] x", "y = Add(x, x)", {}, "it computes with int64"),
    (X4, "y = Sigmoid(x)", {}, "a Sigmoid that is not a part"),
    (X4, "y = Erf(x)", {}, "an Erf that is not a part"),
    (X4, "y = Clip(x)", {}, "without two constant limits"),
    (X3, "y = LayerNormalization<axis=1>(x, w)", {"w": np.ones((5, 8), "f4")}, "more axes than"),
    (X3, "y = InstanceNormalization(x, w, w)", {"w": np.ones(5, "f4")}, "not of groups behind"),
    (X4, "y = Slice(x, s, e, a, t)", {"s": [0], "e": [6], "a": [2], "t": [2]}, "or with a step"),
    (f"{X4}, int64[1] s", "y = Slice(x, s, e)", {"e": [6]}, "its input 1 is no small constant"),
    (X3, 'y = Pad<mode="reflect">(x, p)', {"p": [0, 1, 0, 0, 1, 0]}, "anything but zeros"),
    (X4, "y = Gather<axis=1>(x, i)", {"i": [0, 2]}, "a Gather that is no table's rows"),
    (X4, 'y = Resize<mode="cubic">(x, , s)', {"s": np.float32([1, 1, 2, 2])}, "mode cubic"),
    (f"{X3}, int64[2] s", "a = Reshape(x, s) y = Tanh(a)", {}, "cannot be inferred: export it"),
    (X4, "y = GroupNormalization<num_groups=3>(x, w, w)", {"w": V4}, "group_norm: "),
])
def test_nodes_that_are_left_out(inputs, nodes, constants, why, tmp_path):
    path = model(tmp_path, f"g ({inputs}) => (float y) {{ {nodes} }}", constants)
    found, left = calls_in_onnx(path, {})
    cases, refused = different(found)
    assert cases == [] or "Reshape" in nodes
    assert why in [*left, *refused][-1].why


def test_sizes_that_are_open(tmp_path):
    path = model(tmp_path, "g (float[batch,4,h,5] x) => (float y) { y = Tanh(x) }")
    with pytest.raises(UsageError, match="leave sizes open; give --dim batch=N --dim h=N"):
        calls_in_onnx(path, {})
    with pytest.raises(UsageError, match="open; give --dim h=N"):
        calls_in_onnx(path, {"batch": 2})
    with pytest.raises(UsageError, match="no input has a size called 'w'; there are: batch, h"):
        calls_in_onnx(path, {"w": 2})
    [call], _ = calls_in_onnx(path, {"batch": 2, "h": 3})
    assert call.inputs["x"].shape == (2, 4, 3, 5)


def test_what_is_no_model(tmp_path):
    path = model(tmp_path, f"g ({X4}) => (float y) {{ y = Tanh(x) }}")
    found = onnx.load(path)
    del found.opset_import[:]
    onnx.save(found, path)
    with pytest.raises(ModelError, match="shapes cannot be inferred: .*No opset import"):
        calls_in_onnx(path, {})
    path.write_bytes(b"\x00\xffno model")
    with pytest.raises(ModelError, match="no ONNX model"):
        calls_in_onnx(path, {})


# What refsd writes as one operator, or as a pattern that is read back.
BACK = ["linear", "conv2d", "matmul", "layer_norm", "silu", "quick_gelu", "softmax", "embedding",
        "upsample_bilinear", "concat", "slice", "pad", "transpose", "reshape", "add", "sub", "mul",
        "div", "exp", "sqrt", "tanh", "clamp", "gelu"]


@pytest.mark.parametrize("name", BACK)
def test_what_refsd_writes_comes_back(name, tmp_path):
    for i, call in enumerate(examples.calls(ops()[name])):
        path = tmp_path / f"{i}.onnx"
        write_onnx(trace(lambda *arrays, **keywords: getattr(F, name)(*arrays, **keywords),
                         *call.inputs.values(), **call.options), path)
        found, _ = calls_in_onnx(path, {})
        [back] = [one for one in found if one.op == name or (name, one.op) == ("linear", "matmul")]
        first = next(iter(call.inputs.values()))
        assert next(iter(back.inputs.values())) == first


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The tiny UNet out of torch, for any batch."""
    config = {key: value for key, value in tiny.CONFIGS["unet"].items() if key[0] != "_"}
    unet = UNet2DConditionModel(**config).eval()

    class Call(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = unet

        def forward(self, sample, times, states):
            return self.unet(sample, times, states, return_dict=False)[0]

    path = tmp_path_factory.mktemp("torch") / "unet.onnx"
    size, length = config["sample_size"], tiny.CONFIGS["text_encoder"]["max_position_embeddings"]
    arrays = (torch.zeros(2, 4, size, size), torch.tensor([3, 3]),
              torch.zeros(2, length, config["cross_attention_dim"]))
    names = ["sample", "times", "states"]
    torch.onnx.export(Call(), arrays, str(path), dynamo=False, opset_version=17, input_names=names,
                      dynamic_axes={name: {0: "batch"} for name in names})
    return path


def test_a_unet_that_torch_exported(exported, tmp_path, capsys):
    """Its layers are those of refsd's own graph, and what else there is is named."""
    assert main(["golden", "make", "-o", str(tmp_path / "pack"), "--ops", "--cases", str(exported),
                 "--dim", "batch=2", "--no-tolerances", "--json"]) == 0
    [made] = json.loads(capsys.readouterr().out)["packs"]
    assert {one["kind"] for one in made["left_out"]} <= {"Cast", "Expand", "Sin", "Cos",
                                                         "Unsqueeze", "Slice"}
    with Pack.open(tmp_path / "pack") as pack:
        theirs = {(entry.op, tuple(pack.entries[entry.inputs["x"].removeprefix("tensor:")].shape),
                   pack.entries[entry.inputs["weight"].removeprefix("tensor:")].shape)
                  for entry in pack.entries.values()
                  if entry.op in ("conv2d", "linear", "group_norm", "layer_norm")}
        assert pack.verify() == []
    networks = planned_networks(outline(str(tiny.write_model(tmp_path / "model"))).configs)
    graph = trace(calls(networks, sized(networks))["unet"][0])
    (tmp_path / "graph.json").write_text(to_json(graph))
    own = {(call.op, call.inputs["x"].shape, call.inputs["weight"].shape)
           for call in calls_in_json(tmp_path / "graph.json")
           if call.op in ("conv2d", "linear", "group_norm", "layer_norm")}
    assert theirs == own
