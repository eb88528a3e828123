"""The porting kit: the plan behind it, the folder it writes, and what it makes of results."""

import importlib
import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tiny

from refsd import functional as F
from refsd import registry
from refsd.__main__ import main
from refsd.contracts import Spec
from refsd.errors import ModelError, UsageError
from refsd.golden.porting.port import kind_of, new, plan
from refsd.golden.porting.port_status import KINDS, status
from refsd.pipelines.outline import outline
from refsd.pipelines.planned import calls, plan_model, planned_networks, sized
from refsd.planning import planning

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A port of Stable Diffusion 1.5 without results."""
    return new("my chip", tmp_path_factory.mktemp("port") / "chip")


@pytest.fixture
def port(folder):
    """The same, with an empty folder for results."""
    for path in (folder / "results").glob("*.*"):
        if path.name != "README.md":
            path.unlink()
    return folder


# -- the plan


def test_the_plan_names_weights_and_counts_work():
    """FLOPs against those of the published architecture: tests/test_models_structure.py."""
    plans = plan_model()
    assert [part for part, found in plans.items() if found[-1].path] == [
        "text_encoder", "unet", "decode"]  # the encoder ends in a clamp
    unet = plans["unet"]
    assert sum(p.op == "conv2d" for p in unet) == 98
    assert {p.path for p in unet if p.op == "conv2d"} >= {"conv_in", "conv_out",
                                                          "up_blocks.3.resnets.2.conv_shortcut"}
    assert all(p.path is None for p in unet if p.op in ("add", "silu", "concat"))
    networks = planned_networks(outline().configs)
    found = {name: [tuple(spec.shape) for spec in call.args]
             for name, (call, *_) in calls(networks, sized(networks)).items()}
    assert found == {"text_encoder": [(2, 77)], "unet": [(2, 4, 64, 64), (2,), (2, 77, 768)],
                     "decode": [(1, 4, 64, 64)], "encode": [(1, 3, 512, 512)]}


def test_planning_inside_planning_and_errors():
    x = Spec((2, 3), "float32")
    with planning() as outer:
        F.silu(x)
        with planning() as inner:
            F.gelu(x)
        F.exp(x)
    assert [p.op for p in outer] == ["silu", "exp"] and [p.op for p in inner] == ["gelu"]
    assert F.silu(np.zeros(2, "float32")).tolist() == [0, 0]


def test_configs_of_a_folder_are_read_without_its_weights(tmp_path):
    place = tiny.write_model(tmp_path / "tiny")
    for path in place.rglob("*.safetensors"):  # headers stay, numbers go
        with open(path, "r+b") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            file.write(b"\xff" * (path.stat().st_size - file.tell()))
    found = outline(str(place))
    assert found.configs["unet"]["block_out_channels"] == [8, 16]
    assert type(found.scheduler).__name__ == "DDIMScheduler"
    assert [entry["name"] for entry in plan("tiny", str(place))["ops"]][:2] == ["embedding", "add"]


# -- the folder


def test_ops_come_in_the_order_of_their_first_use(folder):
    known = json.loads((folder / "status.json").read_text())
    names = [op["name"] for op in known["ops"]]
    assert names[:6] == ["embedding", "add", "layer_norm", "linear", "attention", "quick_gelu"]
    assert set(names) == set(registry.ops())
    used = [op for op in known["ops"] if op["calls"]]
    assert names[:len(used)] == [op["name"] for op in used]
    assert sum(op["share"] for op in used) == pytest.approx(1, abs=1e-5)  # rounded to 1e-6 each
    assert sum(op["flops"] for op in used) == known["flops"]
    assert {"rope", "matmul", "pad"} <= {op["name"] for op in known["ops"] if not op["calls"]}


def test_blocks_are_those_of_packs(folder):
    known = json.loads((folder / "status.json").read_text())
    names = [block["name"] for block in known["blocks"]]
    assert names[:3] == ["text/text_model.embeddings", "text/text_model.encoder.layers.*",
                         "text/text_model.final_layer_norm"]
    assert names.index("unet/time_embedding") < names.index("unet/conv_in") < names.index(
        "unet/mid_block.attentions.*") < names.index("decode/decoder.conv_in")
    assert len(names) == len(set(names))
    assert kind_of("unet/000/down_blocks.1.attentions.0") == "unet/down_blocks.*.attentions.*"
    assert kind_of("decode/decoder.conv_out") == "decode/decoder.conv_out"
    assert kind_of("unet/000/down_blocks.1.resnets.0.conv1") == "unet/down_blocks.*.resnets.*"
    assert kind_of("denoise/003/eps_cond") is None


def test_the_page_says_what_to_do(folder):
    page = (folder / "README.md").read_text()
    assert page.startswith("# my chip: bringing Stable Diffusion up")
    for command in ("refsd golden make", "refsd golden bisect", "refsd golden compare",
                    "refsd export weights", "refsd port status", "pytest test_contracts.py"):
        assert command in page
    assert "| `decode` | latents float32 (1, 4, 64, 64) | float32 (1, 512, 512, 3) in [0, 1] |" in (
        page)
    assert {path.name for path in (folder / "contracts").iterdir()} == {
        "adapters.py", "cases.json", "cases.npz", "contracts.json", "refsd.h", "test_contracts.py"}


def commands(text):
    """The refsd commands of a page, as words, without remarks and where their output goes."""
    for line in text.splitlines():
        if re.match(r"\s*refsd (golden|export|port) [a-z]+ ", line):
            command = re.split(r" {3,}|  #| > ", line.strip())[0]
            yield shlex.split(command)[1:]


@pytest.mark.parametrize("page", ["port", "docs/porting.md", "docs/golden-bisect.md",
                                  "docs/golden-compare.md", "docs/golden-make.md",
                                  "golden/README.md"])
def test_the_pages_commands_have_such_options(folder, page):
    path = folder / "README.md" if page == "port" else ROOT / page
    found = list(commands(path.read_text()))
    assert found
    for family, action, *rest in found:
        module = importlib.import_module(f"refsd.cli.{family}_{action}")
        module.parser().parse_args(rest)


def test_the_bundled_model_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = outline("bundled").configs
    assert configs["unet"]["block_out_channels"] != outline().configs["unet"]["block_out_channels"]
    tiny.write_model(tmp_path / "bundled")  # a path of that name goes before
    assert outline("bundled").configs["unet"]["block_out_channels"] == [8, 16]


def test_a_port_of_several_text_encoders_and_none_of_a_model_that_writes():
    stages = plan("chip", "sd3")["stages"]
    assert stages == ["tokens", "tokens_2", "tokens_3", "text", "text_2", "text_3", "schedule",
                      "transformer", "denoise", "decode", "picture"]
    with pytest.raises(UsageError, match="draws no pictures"):
        plan("chip", "gpt2")


def test_names_and_folders_that_are_refused(folder, tmp_path):
    for name in ("", "../x", "a\nb", "x" * 90, "-o"):
        with pytest.raises(UsageError, match="the name is"):
            new(name, tmp_path / "x")
    with pytest.raises(UsageError, match="is not empty"):
        new("chip", folder)
    assert list(tmp_path.iterdir()) == []


# -- the status


def junit(path, outcomes):
    """A JUnit file as pytest writes it."""
    inside = {"passed": "", "failed": "<failure message='no'/>", "skipped": "<skipped/>"}
    cases = "".join(f'<testcase classname="test_contracts" name="{name}">{inside[outcome]}'
                    "</testcase>" for name, outcome in outcomes.items())
    path.write_text(f"<?xml version='1.0'?><testsuites><testsuite>{cases}</testsuite></testsuites>")


def comparison(path, rows, key="tensors"):
    """The part of a comparison's JSON that is read."""
    path.write_text(json.dumps({"kind": "golden-compare", key: [
        {"name": name, "op": op, "status": found} for name, op, found in rows]}))


def states(rows):
    return {row["name"]: tuple(row[kind]["state"] for kind in KINDS if kind in row)
            for row in rows}


def test_nothing_is_proven_at_first(port):
    found = status(port)
    assert set(states(found["ops"]).values()) == {("open", "open", "open")}
    assert found["next"] == ("embedding: fill in contracts/adapters.py and run the contract tests")
    assert found["read"] == []


def test_results_fill_the_table(port):
    junit(port / "results" / "contracts.xml", {
        "test_result[embedding-0]": "passed", "test_refuses[embedding-0]": "passed",
        "test_result[add-0]": "passed", "test_result[add-1]": "failed",
        "test_result[linear-0]": "skipped", "test_result[conv2d-0]": "passed",
        "test_result[conv2d-1]": "skipped", "test_something_else": "failed"})
    comparison(port / "results" / "ops.json", [
        ("ops/conv2d/odd", "conv2d", "equal"), ("ops/conv2d/odd:x", None, "equal"),
        ("ops/linear/wide", "linear", "wrong"), ("ops/silu/zeros", "silu", "missing")])
    comparison(port / "results" / "net.json", [
        ("unet/000/conv_in", "conv2d", "explained"), ("unet/000/time_embedding", "block", "equal"),
        ("unet/000/mid_block.attentions.0", "block", "wrong"),
        ("denoise/000/guided", "guide", "explained"), ("tokens/000", None, "equal")], key="rows")
    found = status(port)
    ops, blocks, stages = states(found["ops"]), states(found["blocks"]), states(found["stages"])
    assert ops["embedding"] == ("ok", "open", "open")
    assert ops["add"] == ("wrong", "open", "open")
    assert ops["linear"] == ("open", "wrong", "open")
    assert ops["conv2d"] == ("part", "ok", "ok")
    assert ops["silu"] == ("open", "open", "open")
    assert blocks["unet/time_embedding"] == blocks["unet/conv_in"] == ("ok",)
    assert blocks["unet/mid_block.attentions.*"] == ("wrong",)
    assert stages["denoise"] == stages["tokens"] == ("ok",) and stages["unet"] == ("open",)
    assert found["next"].startswith("add is wrong: test_result[add-1].")


def test_a_port_that_refuses_nothing_has_nothing_left(port):
    """REFUSES = False in adapters.py skips all tests of refusals."""
    junit(port / "results" / "c.xml", {
        "test_result[embedding-0]": "passed", "test_refuses[embedding-0]": "skipped",
        "test_refuses[embedding-1]": "skipped", "test_result[add-0]": "passed",
        "test_refuses[add-0]": "failed", "test_refuses[linear-0]": "skipped"})
    ops = states(status(port)["ops"])
    assert [ops[name][0] for name in ("embedding", "add", "linear")] == ["ok", "wrong", "open"]


def test_ops_that_were_fused_are_proven_with_the_op_after_them(port):
    """bisect computes what was not dumped from the port's own inputs, and says what."""
    def row(name, op, status, *computed):
        return {"name": name, "op": op, "status": status, "computed": list(computed)}

    (port / "results" / "b.json").write_text(json.dumps({"rows": [
        row("unet/000/a.norm1", "group_norm", "missing"), row("unet/000/a.silu", "silu", "missing"),
        row("unet/000/a.conv1", "conv2d", "explained", "unet/000/a.norm1", "unet/000/a.silu"),
        row("unet/000/b.norm", "layer_norm", "missing"),
        row("unet/000/b.to_q", "linear", "wrong", "unet/000/b.norm"),
        row("unet/000/b:x", "geglu", "missing")]}))
    ops = states(status(port)["ops"])
    assert {name: ops[name][2] for name in (
        "group_norm", "silu", "conv2d", "layer_norm", "linear", "geglu")} == {
            "group_norm": "ok", "silu": "ok", "conv2d": "ok", "layer_norm": "open",
            "linear": "wrong", "geglu": "open"}


@pytest.mark.parametrize("case", ["conv2d/conv_in", "conv2d/conv_out", "linear/quant_conv"])
def test_calls_of_the_pack_of_ops_are_no_blocks(port, case):
    known = len(status(port)["blocks"])
    comparison(port / "results" / "o.json", [(f"ops/{case}", case.split("/")[0], "equal"),
                                             (f"ops/{case.split('/')[1]}", "conv2d", "given")])
    found = status(port)
    assert len(found["blocks"]) == known and states(found["blocks"])["unet/conv_in"] == ("open",)


def test_later_results_overrule_earlier_ones(port):
    for k, (name, outcome) in enumerate([("z.xml", "failed"), ("a.xml", "passed")]):
        junit(port / "results" / name, {"test_result[embedding-0]": outcome})
        os.utime(port / "results" / name, (1000 + k, 1000 + k))
    assert states(status(port)["ops"])["embedding"][0] == "ok"


def test_what_comes_next_follows_the_order_of_bringing_up(port):
    needed = [row["name"] for row in status(port)["ops"] if row["needed"]]
    junit(port / "results" / "c.xml", {f"test_result[{name}-0]": "passed" for name in needed})
    assert status(port)["next"].startswith("embedding: run it on the inputs of a pack of ops")
    comparison(port / "results" / "o.json", [
        (f"ops/{name}/plain", name, "equal") for name in needed])
    assert status(port)["next"].startswith("embedding: dump it from the whole network")
    comparison(port / "results" / "n.json", [
        (f"unet/000/{name}", name, "equal") for name in needed])
    assert status(port)["next"].startswith("text/text_model.embeddings: dump it")
    found = status(port)
    comparison(port / "results" / "b.json", [
        *((row["name"].replace("*", "0"), "block", "equal") for row in found["blocks"]),
        *((f"{row['name']}/x", None, "equal") for row in found["stages"])])
    assert status(port)["next"].startswith("Everything that is in the packs is proven")


@pytest.mark.parametrize("name, text, message", [
    ("bomb.xml", '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "no DOCTYPE"),
    ("cut.xml", "<testsuites><testsuite>", "not readable XML"),
    ("cut.json", '{"tensors": [', "not valid JSON"),
    ("odd.json", '{"tensors": [{"name": 3}]}', "not what refsd golden compare"),
    ("bytes.json", "\udcff", "not UTF-8"),
])
def test_results_that_cannot_be_read(port, name, text, message):
    """They do not keep the others from being read."""
    (port / "results" / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    junit(port / "results" / "good.xml", {"test_result[embedding-0]": "passed"})
    found = status(port)
    assert found["read"] == ["good.xml"] and states(found["ops"])["embedding"][0] == "ok"
    assert len(found["unreadable"]) == 1 and re.search(f"{name}.*{message}", found["unreadable"][0])
    assert main(["port", "status", str(port)]) == 1


@pytest.mark.parametrize("kind", ["folder", "link", "hidden"])
def test_results_that_are_no_files(port, kind):
    path = port / "results" / ("._net.json" if kind == "hidden" else "net.json")
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(port / "gone.json")
    else:
        path.write_bytes(b"\0\5")
    junit(port / "results" / "good.xml", {"test_result[embedding-0]": "passed"})
    found = status(port)
    path.rmdir() if kind == "folder" else path.unlink()
    assert found["read"] == ["good.xml"] and len(found["unreadable"]) == (kind != "hidden")


def test_other_json_is_left_alone(port):
    (port / "results" / "notes.json").write_text('{"by": "me"}')
    (port / "results" / "list.json").write_text("[1, 2]")
    # two runs of a port that are alike: both may be wrong
    comparison(port / "results" / "runs.json", [("ops/silu/plain", "silu", "equal")])
    runs = json.loads((port / "results" / "runs.json").read_text())
    (port / "results" / "runs.json").write_text(json.dumps({**runs, "kind": "golden-same"}))
    assert status(port)["read"] == []


def test_a_folder_that_is_no_port(port, tmp_path):
    with pytest.raises(UsageError, match="no port's folder"):
        status(tmp_path)
    (tmp_path / "status.json").write_text('{"schema": 2}')
    with pytest.raises(ModelError, match="schema is 2, this refsd reads 1"):
        status(tmp_path)


def test_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny.write_model(tmp_path / "tiny")
    assert main(["port", "new", "tiny one", "-m", str(model), "--json"]) == 0
    place = tmp_path / json.loads(capsys.readouterr().out)["folder"]
    assert place.name == "port-tiny-one"
    assert main(["port", "status", str(place)]) == 0
    out = capsys.readouterr().out
    assert "tiny one: 0 results read" in out and "next: embedding: fill in" in out
    junit(place / "results" / "contracts.xml", {"test_result[add-0]": "failed",
                                                "test_result[add-1]": "passed"})
    assert main(["port", "status", str(place), "--all"]) == 1
    out = capsys.readouterr().out
    assert "WRONG 1 of 2" in out and "rope" in out
    assert main(["port", "status", str(place), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    add = next(op for op in found["ops"] if op["name"] == "add")
    assert add["contract"] == {"state": "wrong", "passed": 1, "failed": ["test_result[add-0]"],
                               "left": 0}
