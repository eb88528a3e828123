"""Graphs as JSON, read back and run with the same bits; as DOT; and `refsd graph`."""

import inspect
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import refsd
from refsd import F
from refsd.__main__ import main
from refsd.contracts import Spec
from refsd.errors import ModelError
from refsd.families import short_names
from refsd.graph import dot, from_json, read, run, to_json, trace
from refsd.graph.dot import COLOURS, blocks_of
from refsd.graph.onnx_ops import COUNTERPARTS
from refsd.graph.passes import matching, optimize
from refsd.half import HALVES
from refsd.pipelines.loading import bundled_model
from refsd.pipelines.outline import outline
from refsd.pipelines.planned import calls, planned_networks, sized
from refsd.planning import WeightSpec
from refsd.registry import ops
from refsd.weights import load_checkpoint

F32 = "float32"


def layer(x, y, *, weight, table):
    """An input in a list, a mask, a pair as an option, infinity, and constants of three dtypes."""
    h = F.conv2d(x, weight, padding=((0, 1), (1, 1)))
    h = F.clamp(F.concat([h, y], axis=1), low=-math.inf, high=0.5)
    tokens = F.to_tokens(F.mul(h, 2.0))
    mask = F.add(np.array([[0.1, -3]], F32), F.embedding(np.array([1]), table))
    return F.attention(tokens, tokens, tokens, heads=1, mask=mask), h


@pytest.fixture
def graph():
    weight = WeightSpec((1, 1, 2, 3), F32)
    weight.name = "blocks.0.conv.weight"
    table = np.array([[0, 0], [1, 1e-45]], F32)
    return trace(layer, Spec((1, 1, 1, 2), F32), Spec((1, 1, 1, 2), F32), weight=weight,
                 table=table).check()


# -- JSON


def plain(graph):
    """What of a graph has an equality."""
    return graph.values, graph.nodes, graph.outputs, graph.single


def test_json_comes_back_and_runs_with_the_same_bits(graph, tmp_path):
    (tmp_path / "graph.json").write_text(to_json(graph))
    again = read(tmp_path / "graph.json")
    assert plain(again) == plain(graph)
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 1, 1, 1, 2)).astype(F32)
    weight = random.standard_normal((1, 1, 2, 3)).astype(F32)
    weights = {"blocks.0.conv.weight": weight}
    table = np.array([[0, 0], [1, 1e-45]], F32)
    expected = layer(x, y, weight=weight, table=table)
    for found in run(graph, x, y, weights=weights), run(again, x, y, weights=weights):
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_json_is(graph):
    found = json.loads(to_json(graph))
    assert list(found) == ["format", "schema", "single", "values", "nodes", "outputs"]
    assert (found["format"], found["schema"], found["single"]) == ("refsd.graph", 1, False)
    assert found["values"][0] == {"number": 0, "kind": "input", "name": "x", "shape": [1, 1, 1, 2],
                                  "dtype": F32}
    conv, concat, clamp = found["nodes"][:3]
    assert conv == {
        "op": "conv2d", "inputs": {"x": {"value": 0}, "weight": {"value": 2}, "bias": None},
        "options": {"stride": 1, "padding": [[0, 1], [1, 1]], "dilation": 1, "groups": 1,
                    "algorithm": "auto"}, "result": 3, "path": "blocks.0.conv"}
    assert concat["inputs"] == {"arrays": [{"value": 3}, {"value": 1}]}
    assert clamp["options"] == {"low": {"number": "-inf"}, "high": 0.5}
    constants = {value["data"] for value in found["values"] if value["kind"] == "constant"}
    assert constants == {"zczMPQAAQMA=", "AQAAAAAAAAA=", "AAAAAAAAAAAAAIA/AQAAAA=="}


@pytest.mark.parametrize("dtype", HALVES)
def test_constants_of_halves_come_back(dtype):
    table = np.array([1, 2.5], HALVES[dtype])
    again = from_json(to_json(trace(lambda x: F.add(x, table), Spec((2,), dtype))))
    assert again.held[1].dtype == HALVES[dtype] and np.array_equal(again.held[1], table)


@pytest.mark.parametrize("name", short_names())
def test_every_published_model_has_a_graph_that_comes_back(name):
    networks = planned_networks(outline(name).configs)
    for call, _, _ in calls(networks, sized(networks)).values():
        graph = trace(call)
        assert plain(from_json(to_json(graph))) == plain(graph)


WRONG = [
    (lambda g: g.update(schema=2), "schema is 2, expected an integer from 1 to 1"),
    (lambda g: g.update(format="onnx"), "format is 'onnx', expected 'refsd.graph'"),
    (lambda g: g.pop("single"), "missing key 'single'"),
    (lambda g: g.update(more=1), "unknown key 'more'"),
    (lambda g: g.update(single=True), "single, with 2 outputs"),
    (lambda g: g.update(outputs=[99, 0]), "the output %99 is never made"),
    (lambda g: g["values"][0].update(number=1), r"values\[1\]: a second %1"),
    (lambda g: g["values"][0].update(dtype="half"), "dtype is 'half'"),
    (lambda g: g["values"][0].update(shape=[1, -1]), "shape is"),
    (lambda g: g["values"][0].update(data="AAAA"), "a input; constants, and they alone, have data"),
    (lambda g: g["values"][0].update(shape=[1, 1, 1, 3]), "node 0, conv2d, gives float32"),
    (lambda g: g["values"][5].update(name=5), "name is 5"),
    (lambda g: constant(g).pop("data"), "a constant; constants, and they alone, have data"),
    (lambda g: constant(g).update(data="zczMPQAAQM"), r"data is no base64 of float32 \(1, 2\)"),
    (lambda g: constant(g).update(data="zczMPQ=="), r"data is no base64 of float32 \(1, 2\)"),
    (lambda g: constant(g).update(data="zczM PQAAQMA="), "data is no base64"),
    (lambda g: g["nodes"][0].update(op="conv3d"), r"nodes\[0\]: 'conv3d' is no op of this refsd"),
    (lambda g: g["nodes"][0]["inputs"].pop("bias"), "inputs of conv2d: missing key 'bias'"),
    (lambda g: g["nodes"][0]["options"].pop("stride"), "options of conv2d: missing key 'stride'"),
    (lambda g: g["nodes"][0]["options"].update(eps=1), "options of conv2d: unknown key 'eps'"),
    (lambda g: g["nodes"][0]["options"].update(stride=0), "stride"),
    (lambda g: g["nodes"][0]["inputs"].update(x={"value": 99}), "expected {\"value\": N} of a"),
    (lambda g: g["nodes"][0]["inputs"].update(x={"value": True}), "expected {\"value\": N} of a"),
    (lambda g: g["nodes"][2]["options"].update(low={"number": "1"}), "expected {\"value\": N}"),
    (lambda g: g["nodes"][0].update(path=3), "path is 3"),
    (lambda g: g["nodes"].reverse(), "which is made later or never"),
    (lambda g: g["nodes"].pop(), "no node makes %"),
]


def constant(found):
    return next(value for value in found["values"] if value.get("data") == "zczMPQAAQMA=")


@pytest.mark.parametrize("change, words", WRONG, ids=range(len(WRONG)))
def test_json_that_is_no_graph_is_refused(graph, change, words):
    found = json.loads(to_json(graph))
    change(found)
    with pytest.raises(ModelError, match=words) as error:
        from_json(json.dumps(found), "a.json")
    assert str(error.value).startswith("a.json")


def test_what_is_no_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1, "a": 2}')
    for path, words in ((tmp_path / "a.json", "appears twice"), (tmp_path / "b", "no such file")):
        with pytest.raises(ModelError, match=words):
            read(path)
    with pytest.raises(ModelError, match="expected an object"):
        from_json("[]")


# -- DOT

TOKEN = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|(->|[{}\[\]=])|([\w.]+))')


def parsed(text):
    """nodes: name -> attributes, edges, and by a frame the nodes in it, of what `dot` writes."""
    tokens, end = [], 0
    while text[end:].strip():
        found = TOKEN.match(text, end)
        assert found, text[end:end + 40]
        tokens.append(found.group(found.lastindex))
        end = found.end()
    nodes, edges, frames, open_frames = {}, [], {}, []
    assert tokens[:3] == ["digraph", "refsd", "{"] and tokens[-1] == "}"
    tokens = tokens[3:-1]
    while tokens:
        name = tokens.pop(0)
        if name == "subgraph":
            open_frames.append(tokens.pop(0))
            assert tokens.pop(0) == "{" and open_frames[-1].startswith("cluster ")
        elif name == "}":
            open_frames.pop()
        elif tokens[0] == "->":
            edges.append((name, tokens[1]))
            del tokens[:2]
        elif tokens[0] == "=":
            del tokens[:2]
        else:
            assert tokens.pop(0) == "["
            attributes = nodes[name] = {}
            while tokens[0] != "]":
                key, _, attributes[key] = tokens[:3]
                del tokens[:3]
            tokens.pop(0)
            for frame in open_frames:
                frames.setdefault(frame, []).append(name)
    assert not open_frames
    return nodes, edges, frames


def test_dot(graph):
    nodes, edges, frames = parsed(dot(graph))
    assert nodes["v0"] == {"label": r"x\n1 x 1 x 1 x 2 float32", "fillcolor": "#ffffff",
                           "shape": "ellipse"}
    assert nodes["v3"] == {"label": r"conv2d\nblocks.0.conv\n1 x 1 x 1 x 2 float32",
                           "fillcolor": COLOURS["conv"]}
    made = {f"v{node.result}" for node in graph.nodes}
    assert nodes.keys() == {"node", "edge", "v0", "v1", "out0", "out1"} | made
    assert set(edges) == {(f"v{n}", f"v{node.result}") for node in graph.nodes for n in node.reads
                          if f"v{n}" in nodes} | {(f"v{n}", f"out{i}")
                                                  for i, n in enumerate(graph.outputs)}
    assert len(edges) == len(set(edges))
    assert frames == {"cluster blocks.0": [f"v{node.result}" for node in graph.nodes]}


@pytest.mark.parametrize("path, blocks", [
    ("down_blocks.0.resnets.1.conv1", ("down_blocks.0", "down_blocks.0.resnets.1")),
    ("up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj",
     ("up_blocks.1", "up_blocks.1.attentions.2")),
    ("transformer_blocks.11.attn.to_out.0", ("transformer_blocks.11",)),
    ("encoder.block.3.layer.1.layer_norm", ("encoder.block.3", "encoder.block.3.layer.1")),
    ("mid_block.resnets.0.conv1", ("mid_block.resnets.0",)),
    ("h.7.attn.c_attn", ("h.7",)), ("conv_in", ()), ("time_embedding.linear_1", ()),
])
def test_blocks_of_a_path(path, blocks):
    assert blocks_of(path) == blocks


def test_blocks_are_frames_in_frames(capsys):
    assert main(["graph", "-m", "bundled", "--part", "unet", "--dot"]) == 0
    nodes, edges, frames = parsed(capsys.readouterr().out)
    inner, outer = frames["cluster down_blocks.1.resnets.0"], frames["cluster down_blocks.1"]
    assert set(inner) < set(outer) and len(outer) > len(inner) > 5
    assert not set(outer) & set(frames["cluster down_blocks.0"])
    ends = {end for _, end in edges}
    assert all(name in ends for name in nodes if name not in ("node", "edge", "v0", "v1", "v2"))


def test_every_family_of_ops_has_a_colour(own_ops):
    assert {op.family for op in ops().values()} <= COLOURS.keys()


# -- the command


def test_the_command_lists_a_step(capsys):
    assert main(["graph", "-m", short_names()[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "%0 = input sample                         (2, 4, 64, 64) float32"
    assert lines[-2].endswith("conv_out.weight, conv_out.bias, padding=1) (2, 4, 64, 64) float32")


@pytest.mark.parametrize("options, words", [
    (["-W", "64", "-H", "128", "-b", "3"], "input sample (6, 4, 16, 8) float32"),
    (["--dtype", "float16"], "input sample (2, 4, 16, 16) float16"),
    (["--part", "decode"], "input latents (1, 4, 16, 16) float32"),
    (["--part", "encode"], "input image (1, 3, 128, 128) float32"),
    (["--part", "text_encoder"], "input input_ids (2, 40) int64"),
])
def test_what_is_asked_for_is_traced(capsys, options, words):
    assert main(["graph", "-m", "bundled", *options]) == 0
    assert words in " ".join(capsys.readouterr().out.splitlines()[0].split())


def test_json_and_files_of_the_command(capsys, tmp_path):
    path = tmp_path / "g.json"
    assert main(["graph", "-m", "bundled", "--json", "-o", str(path)]) == 0
    graph = read(path)
    assert capsys.readouterr().out == f"{path}: {len(graph.nodes)} ops\n"
    assert main(["graph", "-m", "bundled", "--json"]) == 0
    assert capsys.readouterr().out == path.read_text()


@pytest.mark.parametrize("arguments, words", [
    (["-m", "gpt2", "-W", "64"], "writes texts, which have no width"),
    (["-m", "bundled", "--part", "unets"], "--part is 'unets'"),
    (["-m", "bundled", "--dot", "--json"], "three forms; give one"),
    (["-m", "bundled", "--dot", "--onnx", "-o", "x"], "three forms; give one"),
    (["-m", "bundled", "--onnx"], "--onnx writes a file; give -o FILE"),
    (["-m", "bundled", "--onnx", "-o", "x", "--passes"], "leave --passes out"),
    (["-m", "bundled", "-W", "63"], "--width"), (["-m", "bundled", "-H", "63"], "--height"),
    (["-m", "bundled", "-b", "0"], "--batch"),
    (["-m", "sd3", "--without", "vae"], "vae"),
])
def test_what_the_command_refuses(capsys, arguments, words):
    assert main(["graph", *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err + said.out


def test_the_command_says_what_passes_do(capsys, monkeypatch):
    command = ["graph", "-m", "bundled", "--passes", "--backend", "numba"]
    assert main(command) == 0
    said = capsys.readouterr().out.splitlines()
    graph, report = optimize(from_json(shown(capsys, "--json")), backend="numba")
    assert said == [*report.lines(), f"{report.nodes[0]} ops, {report.nodes[1]} after the passes"]
    assert {"group_norm_silu", "conv2d_add"} <= {node.op for node in graph.nodes}
    assert from_json(shown(capsys, "--json", "--passes", "--backend", "numba")) == graph
    monkeypatch.setattr(matching, "kernels", lambda *names: {})
    assert main(command) == 0
    assert ", not fused: numba has no kernel of linear_add" in capsys.readouterr().out


def shown(capsys, *options):
    assert main(["graph", "-m", "bundled", *options]) == 0
    return capsys.readouterr().out


def test_a_part_is_left_out(capsys):
    assert main(["graph", "-m", "sd3", "--without", "text_encoder_3", "--part",
                 "text_encoder_3"]) == 2
    assert "give one of text_encoder, text_encoder_2, transformer" in capsys.readouterr().err


# -- ONNX; tests/parity/test_graph_onnx.py runs it


def test_every_op_has_a_counterpart_of_its_signature():
    assert ops().keys() == COUNTERPARTS.keys()
    for name, op in ops().items():
        on, *names = inspect.signature(COUNTERPARTS[name]).parameters
        assert (on, names) == ("on", list(op.signature.parameters)), name


def test_onnx_says_what_it_needs(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    path = tmp_path / "x.onnx"
    assert main(["graph", "-m", short_names()[0], "--onnx", "-o", str(path)]) == 2
    assert "needs the onnx package: pip install refsd[onnx]" in capsys.readouterr().err
    assert not path.exists()


# -- docs/graph.md


def test_the_page_shows_what_its_lines_print(capsys):
    page = (Path(refsd.__file__).parents[1] / "docs" / "graph.md").read_text(encoding="utf-8")
    [(lines, shown)] = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", page, re.DOTALL)[:1]
    found = {}
    exec(lines, found)
    assert capsys.readouterr().out == shown
    node = json.loads(re.search(r"```json\n(.*?)```", page, re.DOTALL)[1])
    assert node in json.loads(to_json(found["graph"]))["nodes"]
    drawn = [line for line in re.search(r"```\n(digraph.*?)```", page, re.DOTALL)[1].splitlines()
             if "..." not in line]
    assert set(drawn) <= set(dot(found["graph"]).splitlines())


def test_weights_of_a_checkpoint_have_the_names_of_the_graph():
    tensors = load_checkpoint(bundled_model())["unet"].tensors
    networks = planned_networks(outline("bundled").configs)
    graph = trace(calls(networks, sized(networks))["unet"][0])
    weights = [graph.values[n] for n in graph.numbers("weight")]
    assert {v.name: v.shape for v in weights} == {n: t.shape for n, t in tensors.items()}
