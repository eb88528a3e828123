"""Packs of the calls of a port's own graph, out of JSON.

Out of ONNX: parity/test_golden_graph_cases_onnx.py.
"""

import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import refsd
from refsd import F
from refsd.__main__ import main
from refsd.cli import golden_cases
from refsd.contracts import Spec
from refsd.errors import ModelError, UsageError
from refsd.golden.packs.pack import Pack
from refsd.golden.recording import graph_cases
from refsd.golden.recording.cases import numbers
from refsd.golden.recording.graph_cases import Call, different, made
from refsd.golden.recording.graph_cases_json import calls_in_json
from refsd.golden.recording.replay import arrays_of, compute
from refsd.golden.tolerances import tolerance
from refsd.golden.tolerances.formats import round_to
from refsd.graph import to_json, trace

CONV = {"op": "conv2d", "node": "down.0/conv1", "options": {"padding": [[0, 1], [0, 1]]},
        "inputs": {"x": [1, 8, 6, 6], "weight": [4, 8, 3, 3], "bias": None}}
LIST = [
    CONV, {**CONV, "node": "down.1/conv1"}, {**CONV, "dtype": "bfloat16"},
    {"op": "concat", "options": {"axis": 1}, "inputs": {"arrays": [[1, 2, 3], [1, 4, 3]]}},
    {"op": "add", "inputs": {"a": {"shape": [2, 3], "dtype": "float16"}, "b": 0.5}},
    {"op": "attention", "options": {"heads": 2}, "node": "attn",
     "inputs": {"q": [1, 5, 8], "k": [1, 7, 8], "v": [1, 7, 8], "mask": [1, 1, 5, 7]}},
    {"op": "embedding", "inputs": {"ids": {"shape": [2, 4], "dtype": "int64"}, "weight": [9, 3]}},
    {"op": "sqrt", "inputs": {"x": [5]}},
    {"op": "div", "inputs": {"a": [5], "b": [5]}},
    {"op": "timestep_embedding", "inputs": {"timesteps": {"shape": [2], "dtype": "int64"}},
     "options": {"dim": 4, "flip_sin_to_cos": True, "freq_shift": 0, "dtype": "bfloat16"}},
]
NAMES = ["conv2d/down.0.conv1", "conv2d/down.0.conv1.2", "concat/call.3", "add/call.4",
         "attention/attn", "embedding/call.6", "sqrt/call.7", "div/call.8",
         "timestep_embedding/call.9"]


def write(path, found):
    path.write_text(json.dumps(found))
    return path


def make(tmp_path, file, *options):
    return main(["golden", "make", "-o", str(tmp_path / "pack"), "--ops", "--cases", str(file),
                 *options])


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    place = tmp_path_factory.mktemp("cases")
    assert make(place, write(place / "calls.json", LIST), "-q") == 0
    with Pack.open(place / "pack") as pack:
        yield pack


def test_a_pack_of_a_list_of_calls(packed):
    cases = {name: entry for name, entry in packed.entries.items() if entry.op}
    assert list(cases) == [f"ops/{name}" for name in NAMES]
    first = cases["ops/conv2d/down.0.conv1"]
    assert (first.shape, first.note) == ((1, 4, 5, 5), "of down.0/conv1, down.1/conv1")
    assert first.options == {"padding": [[0, 1], [0, 1]]} and first.inputs["bias"] is None
    assert cases["ops/timestep_embedding/call.9"].options["dtype"] == "float32"
    for name, entry in cases.items():
        arrays = arrays_of(entry, tensor=packed.read, weight=None)
        truth = compute(name, entry.op, arrays, entry.options)
        assert np.array_equal(packed.read(name), truth.astype("float32"))
        assert entry.tolerance.keys() == {"float32", "float16", "bfloat16", "int8"}
    recipe = packed.manifest.recipe
    assert (recipe["seed"], recipe["left_out"], recipe["cases"]["file"]) == (0, [], "calls.json")
    assert "OP/CASE:PARAMETER" in recipe["generator"]
    assert packed.verify() == []


def test_numbers_fit_the_contract_and_the_format(packed):
    def read(name):
        return packed.read(f"ops/{name}")

    x, weight = (read(f"conv2d/down.0.conv1:{name}") for name in ("x", "weight"))
    assert np.array_equal(x, numbers("conv2d/down.0.conv1:x", (1, 8, 6, 6)))
    # 72 products: 2^-3 is the power of two next to 72^-1/2
    assert np.array_equal(weight, numbers("conv2d/down.0.conv1:weight", (4, 8, 3, 3),
                                          "plain", 2.0**-3))
    short = read("conv2d/down.0.conv1.2:x")
    assert np.array_equal(short, round_to(numbers(
        "conv2d/down.0.conv1.2:x", x.shape), "bfloat16"))
    a = read("add/call.4:a")
    assert np.array_equal(a, a.astype("float16")) and np.abs(a).max() > 0
    assert read("attention/attn:mask").std() > 3
    assert read("embedding/call.6:ids").dtype == "int64" and read("embedding/call.6:ids").max() < 9
    assert read("embedding/call.6:weight").std() > 0.6
    assert read("sqrt/call.7:x").min() > 0 and read("div/call.8:b").min() > 0
    assert read("timestep_embedding/call.9:timesteps").max() > 9


def test_other_seeds_and_one_op(tmp_path, packed, capsys):
    file = write(tmp_path / "calls.json", LIST)
    assert make(tmp_path, file, "--seed", "7", "--op", "conv2d", "--no-tolerances") == 0
    assert capsys.readouterr().err.startswith("refsd: 2 cases of 3 nodes, 0.0 MB; the largest, ")
    with Pack.open(tmp_path / "pack") as pack:
        assert [entry.op for entry in pack.entries.values() if entry.op] == ["conv2d", "conv2d"]
        name = "ops/conv2d/down.0.conv1:x"
        assert not np.array_equal(pack.read(name), packed.read(name))
        assert np.array_equal(pack.read(name), numbers("conv2d/down.0.conv1#7:x", (1, 8, 6, 6)))
        assert pack.manifest.recipe["seed"] == 7
        assert "OP/CASE#SEED:PARAMETER" in pack.manifest.recipe["generator"]


def test_a_graph_of_refsd(tmp_path):
    """Constants are taken as they are, a call that comes again is one case."""
    mask = np.triu(np.full((4, 4), -9.0, "float16"), 1)[None, None]

    def function(x, w):
        x = F.linear(F.linear(x, w), w)
        y = F.attention(x, x, x, heads=2, mask=mask)
        return F.concat([x, F.mul(y, 0.5)], axis=1)

    graph = trace(function, Spec((1, 4, 6), "float16"), Spec((6, 6), "float16"))
    (tmp_path / "graph.json").write_text(to_json(graph))
    calls = calls_in_json(tmp_path / "graph.json")
    assert [call.op for call in calls] == ["linear", "linear", "attention", "mul", "concat"]
    assert [call.dtype for call in calls] == ["float16"] * 5
    cases, left = different(calls)
    assert [case.nodes for case in cases] == [["linear.0", "linear.1"], ["attention.2"],
                                              ["mul.3"], ["concat.4"]] and left == []
    found = made(cases[1], 0)
    assert found.inputs["mask"].dtype == "float32"
    assert np.array_equal(found.inputs["mask"], mask) and found.options["heads"] == 2
    assert found.inputs["q"].shape == (1, 4, 6)


def test_the_calls_of_contracts(tmp_path):
    rows = [{"inputs": {"x": {"shape": [1, 4], "dtype": "float32"},
                        "weight": {"shape": [2, 4], "dtype": "float32"}, "bias": None},
             "options": {}, "output": {}, "flops": 16, "first": first}
            for first in ("unet.time", None)]
    calls = calls_in_json(write(tmp_path / "c.json", {"schema": 3, "calls": {"linear": rows}}))
    assert [call.node for call in calls] == ["unet.time", "linear.1"]
    assert calls[0].inputs["weight"] == Spec((2, 4), "float32")


@pytest.mark.parametrize("row, error, words", [
    ({**CONV, "inputs": {"x": [1, 9, 6, 6], "weight": [4, 8, 3, 3]}}, UsageError,
     r"node down.0/conv1: conv2d: .*Mend this call"),
    ({**CONV, "op": "conv3d"}, UsageError, "conv3d is no op of this refsd"),
    ({**CONV, "inputs": {"y": [1]}}, UsageError,
     r"node down.0/conv1: conv2d\(\) missing a required argument"),
    ({**CONV, "shape": [1]}, ModelError, "call 0: unknown key 'shape'"),
    ({"inputs": {}}, ModelError, "call 0: missing key 'op'"),
    ({**CONV, "inputs": {"x": "1x8x6x6"}}, ModelError, "x is '1x8x6x6', expected a shape"),
    ({**CONV, "inputs": {"x": {"shape": [-1]}}}, ModelError, "shape is"),
    ({**CONV, "dtype": "int4"}, ModelError, "dtype is 'int4', expected"),
])
def test_calls_that_are_none(row, error, words, tmp_path):
    with pytest.raises(error, match=words):
        calls_in_json(write(tmp_path / "calls.json", [row]))


@pytest.mark.parametrize("found", [{"a": 1}, {"calls": {"add": [{"inputs": {}}]}},
                                   {"calls": {"add": {}}}, 3])
def test_json_of_another_kind(found, tmp_path):
    with pytest.raises(ModelError, match="expected (a graph|lists of calls)"):
        calls_in_json(write(tmp_path / "calls.json", found))


def test_names_are_of_a_pack_and_one_each():
    calls = [Call("add", {"a": Spec((n,), "float32"), "b": 1.0}, {}, node)
             for n, node in enumerate(["/a//b c", "a.b.c", "a.b.c", "", "x" * 400], 1)]
    cases, _ = different(calls)
    assert [case.name for case in cases] == ["a.b.c", "a.b.c.2", "a.b.c.3", "node", "x" * 150]


def test_what_takes_too_much_is_left_out(tmp_path, capsys):
    large = {"op": "add", "node": "big", "inputs": {"a": [1 << 16, 1 << 14], "b": 1.0}}
    file = write(tmp_path / "calls.json", [large, LIST[-1]])
    assert make(tmp_path, file, "--json", "--no-tolerances") == 0
    [pack] = json.loads(capsys.readouterr().out)["packs"]
    assert pack["left_out"] == [{"node": "big", "kind": "add", "why": (
        "it takes up to 128.1 GiB to be made, more than --memory 4GiB")}]
    with Pack.open(tmp_path / "pack") as opened:
        assert opened.manifest.recipe["left_out"] == pack["left_out"]
    (tmp_path / "b").mkdir()
    assert make(tmp_path / "b", write(tmp_path / "b.json", [large]), "--memory", "1GiB") == 2
    assert ("none of its 2 nodes is an op's call that can be made; the first, big: it takes up to "
            "384.1 GiB to be made, more than --memory 1GiB") in capsys.readouterr().err
    assert not (tmp_path / "b" / "pack").exists()
    assert make(tmp_path / "b", file) == 0
    assert "refsd: left out 1 add, such as big: it takes up to 384.1" in capsys.readouterr().err


@pytest.mark.parametrize("bounds, call", [
    (True, Call("group_norm", {"x": Spec((1, 64, 96, 96), "float32"), **{
        name: Spec((64,), "float32") for name in ("weight", "bias")}}, {
            "groups": 8, "eps": 1e-5}, "norm")),
    (False, Call("conv2d", {"x": Spec((1, 48, 96, 96), "float32"), "bias": None,
                            "weight": Spec((48, 48, 3, 3), "float32")}, {"padding": 1}, "conv")),
])
def test_making_a_case_takes_no_more_than_said(bounds, call):
    """Nor far less than a case of this size is said to take besides."""
    [case], _ = different([call])
    tracemalloc.start()
    try:
        found = made(case, 0)
        truth = compute("case", found.op, found.inputs, found.options)
        if bounds:
            tolerance.of(found.op, found.inputs, found.options, truth, formats=("float32",))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (case.memory(bounds) - graph_cases.AT_LEAST) / 4 < peak < case.memory(bounds)


def test_options_that_go_together(tmp_path, capsys):
    file = write(tmp_path / "calls.json", LIST)
    for options, words in ((["--dim", "batch=2"], "--dim is for an ONNX model"),
                           (["--memory", "much"], "--memory is 'much'; give a size"),
                           (["--op", "gather"], "none of its 10 nodes")):
        assert make(tmp_path, file, *options) == 2
        assert words in capsys.readouterr().err
    command = ["golden", "make", "-o", str(tmp_path / "pack")]
    for options, words in ((["--cases", "x"], "--cases is for --ops"),
                           (["--ops", "--dim", "a=1"], "--dim is for --cases"),
                           (["--ops", "--memory", "1GiB"], "--memory is for --cases")):
        assert main([*command, *options]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "pack").exists()


def test_the_page_shows_calls_that_are_taken(tmp_path, monkeypatch):
    page = (Path(refsd.__file__).parents[1] / "docs/golden-make.md").read_text(encoding="utf-8")
    text = re.search(r"(?ms)^    \[\{\"op\".*?\}\]$", page)[0]
    calls = calls_in_json(write(tmp_path / "calls.json", json.loads(text)))
    assert [call.op for call in calls] == ["conv2d", "add", "embedding"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(golden_cases, "run", lambda options, tolerance: pytest.fail(options.cases))
    lines = re.findall(r"(?m)^refsd (golden make .*--cases [^#\n]*)", page)
    assert len(lines) == 3
    for line in lines:
        with pytest.raises(pytest.fail.Exception, match=r"^(my-unet.onnx|calls.json|graph.json)$"):
            main(line.split())
