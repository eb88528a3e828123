"""The pack of ops, suites of prompts, and `refsd golden make` on the command line."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from refsd.__main__ import main
from refsd.errors import UsageError
from refsd.golden.packs.pack import Pack
from refsd.golden.recording import replay
from refsd.golden.recording.case_table import rows
from refsd.golden.recording.cases import GENERATOR, cases, families, make_ops, numbers
from refsd.golden.recording.suites import read_suite
from refsd.kinds import call
from refsd.registry import ops

ROOT = Path(__file__).parent.parent


# The pack of ops.

def test_every_op_has_cases_with_names_of_their_own():
    for op in ops().values():
        names = [name for name, _, _ in rows(op)]
        assert names and len(set(names)) == len(names), op.name
    heavy = ("conv2d", "linear", "matmul", "attention", "group_norm", "layer_norm", "rms_norm")
    for op in heavy:  # zeros mixed in, small beside big
        assert {"zeros", "big"} <= {name for name, _, _ in rows(ops()[op])}, op


def test_an_op_without_hard_inputs_has_its_examples():
    """Lists, numbers and indices below what they point into."""
    found = {name: rows(ops()[name]._replace(name="new"))
             for name in ("concat", "gather", "timestep_embedding")}
    assert found["concat"] == [
        ("example_0", {"arrays": [((2, 3, 4), "plain"), ((2, 2, 4), "plain")]}, {"axis": 1})]
    assert found["gather"][0][1] == {"x": ((2, 5, 4), "plain"), "index": ((2,), "below_5")}
    assert found["timestep_embedding"][0][1] == {"timesteps": ((3,), "below_1000")}
    bias = ops()["add"]._replace(name="new", kind=None, examples=[call((2, 3), 0.5)])
    assert rows(bias) == [("example_0", {"a": ((2, 3), "plain"), "b": 0.5}, {})]


def test_cases_are_accepted_and_finite(tmp_path):
    make_ops(tmp_path / "pack")
    with Pack.open(tmp_path / "pack") as pack:
        results = [entry for entry in pack.entries.values() if entry.op is not None]
        assert {entry.op for entry in results} == set(ops())
        for entry in pack.entries.values():
            assert entry.stats["nan"] == entry.stats["inf"] == 0, entry.name
        for entry in results:
            inputs = replay.arrays_of(entry, tensor=pack.read, weight=None)
            again = np.asarray(replay.replay(entry, inputs), "f4")
            # The stored inputs are the inputs. (BLAS may work with more threads here.)
            size = np.abs(again).max(initial=0)
            assert np.allclose(again, pack.read(entry.name), rtol=2.0**-22, atol=2.0**-40 * size)


def test_one_op_alone(tmp_path):
    make_ops(tmp_path / "pack", op="geglu")
    with Pack.open(tmp_path / "pack") as pack:
        assert set(pack.entries) == {f"ops/geglu/{kind}{x}" for kind in
                                     ("plain", "zeros", "wide", "big") for x in ("", ":x")}


def test_one_family_alone(tmp_path, capfd):
    assert families() == sorted({op.family for op in ops().values()})
    make_ops(tmp_path / "pack", family="linear")
    with Pack.open(tmp_path / "pack") as pack:
        assert {entry.op for entry in pack.entries.values()} == {"linear", "matmul", None}
    code, _, err = refsd(capfd, "--ops", "--family", "liner", "-o", str(tmp_path / "other"))
    assert code == 2 and "did you mean linear?" in err
    code, _, err = refsd(capfd, "--family", "linear", "-o", str(tmp_path / "other"))
    assert code == 2 and "--family is for --ops" in err


def test_numbers_are_those_of_the_documented_generator():
    """Philox4x64-10 written again from the paper's description, on Python's integers."""
    assert "Philox4x64-10" in GENERATOR
    where = "conv2d/unet_3x3:x"
    key = int.from_bytes(hashlib.sha256(where.encode()).digest()[:16], "little")
    # Words come in fours; NumPy counts up before the first of them.
    words = [word for block in range(1, 4) for word in philox((block, 0, 0, 0), key)][:10]
    plain = [(sum(word >> shift & 0xFFFF for shift in (0, 16, 32, 48)) - 131070) / 32768
             for word in words]
    assert numbers(where, (5,)).tolist() == plain[:5]
    zeros = [0.0 if word % 3 == 0 else x for x, word in zip(plain, words[5:])]
    assert numbers(where, (5,), "zeros").tolist() == zeros
    wide = [float(np.float32(x * 2.0 ** (word % 33 - 16))) for x, word in zip(plain, words[5:])]
    assert numbers(where, (5,), "wide").tolist() == wide
    big = [float(np.float32(1024 + x / 64)) for x in plain[:5]]
    assert numbers(where, (5,), "big", 0.5).tolist() == [x / 2 for x in big]
    assert numbers(where, (5,), "below_7").tolist() == [word % 7 for word in words[5:]]


def philox(counter, key):
    """Ten rounds of Philox with 64-bit words."""
    a, b, mask = 0xD2E7470EE14C6C93, 0xCA5A826395121157, 2**64 - 1
    low, high = key & mask, key >> 64
    for _ in range(10):
        x, y = counter[0] * a, counter[2] * b
        counter = ((y >> 64) ^ counter[1] ^ low, y & mask, (x >> 64) ^ counter[3] ^ high, x & mask)
        low, high = (low + 0x9E3779B97F4A7C15) & mask, (high + 0xBB67AE8584CAA73B) & mask
    return counter


def test_kinds():
    border = numbers("a", (2, 5, 6), "border")
    assert (border[:, 1:-1, 1:-1] == 0).all() and (border[:, 0] != 0).any()
    assert (numbers("a", (99,), "positive") >= 2.0**-10).all()
    assert numbers("a", (4000,)).std() == pytest.approx(2 / 3**0.5, rel=0.05)
    for case in cases("matmul"):
        assert all(x.dtype == np.float32 for x in case.inputs.values())


# Suites.

@pytest.mark.parametrize("name", ["bundled", "sd-ddim"])
def test_the_suites_that_are_there_can_be_read(name):
    suite = read_suite(ROOT / "golden" / "suites" / f"{name}.json")
    assert len(suite.runs) >= 8 and suite.title
    assert {run["sampler"] for run in suite.runs} == {"ddim"}
    assert all("seed" in run for run in suite.runs)
    assert (suite.model is None) == (name == "bundled")


@pytest.mark.parametrize("change, message", [
    ({"schema": 2}, "this refsd reads 1"),
    ({"runs": []}, "runs is []"), ({"runs": ["a"]}, "run 1: got 'a', expected an object"),
    ({"runs": [{"seed": 1}]}, "no prompt"), ({"prompts": []}, "unknown key 'prompts'"),
    ({"runs": [{"prompt": "a", "cfg": 3}]}, "unknown key 'cfg'"),
    ({"runs": [{"prompt": "a", "steps": "3"}]}, "steps is '3', expected an integer from 1 to 1000"),
    ({"runs": [{"prompt": "a", "steps": True}]}, "steps is True"),
    ({"runs": [{"prompt": "a", "name": "../a"}]}, "name is '../a'"),
    ({"runs": [{"prompt": "a", "name": "b"}] * 2}, "name is 'b'; give one of its own"),
    ({"defaults": {"width": None}}, "width is None"), ({"level": 1.5}, "level is 1.5"),
])
def test_bad_suites(tmp_path, change, message):
    path = tmp_path / "suite.json"
    path.write_text(json.dumps({"schema": 1, "runs": [{"prompt": "a"}]} | change))
    with pytest.raises(UsageError, match=re.escape(message)):
        read_suite(path)


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "suite.json"
    path.write_text(json.dumps({
        "schema": 1, "title": "Two cats", "level": 0,
        "defaults": {"sampler": "euler", "steps": 2, "width": 32, "height": 32},
        "runs": [{"name": "red", "prompt": "red cat", "seed": 1},
                 {"prompt": "cat", "seed": 2, "cfg_scale": 2.5, "steps": 3}]}))
    return str(path)


def refsd(capfd, *args):
    capfd.readouterr()
    code = main(["golden", "make", *args])
    said = capfd.readouterr()
    return code, said.out, said.err


def test_a_suite_makes_a_pack_a_prompt_and_an_index(capfd, tmp_path, model, suite):
    out = tmp_path / "packs"
    options = ["-o", str(out), "--suite", suite, "-m", model, "--spread", "0", "--json"]
    code, said, _ = refsd(capfd, *options, "--shard", "1/2")  # three steps take longer than two
    assert code == 0 and [pack["folder"] for pack in json.loads(said)["packs"]] == [
        str(out / "run-002")]
    rows = json.loads((out / "suite.json").read_text())["packs"]
    assert [row["manifest"] is None for row in rows] == [True, False]

    before = (out / "run-002" / "manifest.json").stat().st_mtime_ns
    assert refsd(capfd, *options, "--resume")[0] == 0
    assert (out / "run-002" / "manifest.json").stat().st_mtime_ns == before  # it was whole
    rows = json.loads((out / "suite.json").read_text())["packs"]
    for row in rows:
        manifest = (out / row["folder"] / "manifest.json").read_bytes()
        assert row["manifest"] == hashlib.sha256(manifest).hexdigest()
        recipe = json.loads(manifest)["recipe"]
        assert recipe["seed"] == row["seed"] and recipe["prompt"] == row["prompt"]
        assert recipe["scheduler"]["_class_name"] == "EulerDiscreteScheduler"
        assert recipe["steps"] == row["steps"]
    assert [json.loads((out / row["folder"] / "manifest.json").read_text())["recipe"]["cfg_scale"]
            for row in rows] == [7.0, 2.5]  # the command line's default for other models, and its


# The command line.

def test_make_says_what_it_made(capfd, tmp_path, model):
    out = str(tmp_path / "pack")
    code, said, err = refsd(capfd, "red cat", "-m", model, "-o", out, "--steps", "2", "--level",
                            "2", "--record-steps", "0-1", "--spread", "2")
    assert code == 0 and said.startswith(f"{out} (") and "1 pack in" in err
    with Pack.open(out) as pack:
        assert "unet/001/conv_in" in pack.entries and pack.verify() == []
        conv = pack.entries["unet/000/conv_in"].tolerance
        assert conv["float32"]["worst"] > conv["float32"]["likely"] > 0
        assert conv["float32"]["spread"]["runs"] == 2
        assert pack.manifest.title == "red cat"
    code, _, err = refsd(capfd, "red cat", "-m", model, "-o", out, "--steps", "2")
    assert code == 2 and "not empty" in err


def test_without_tolerances(capfd, tmp_path, model):
    out = str(tmp_path / "pack")
    assert refsd(capfd, "-m", model, "-o", out, "--steps", "1", "--level", "2", "-q",
                 "--no-tolerances", "--spread", "0")[0] == 0
    with Pack.open(out) as pack:
        assert all(entry.tolerance == {} for entry in pack.entries.values())


def test_ops_on_the_command_line(capfd, tmp_path):
    code, said, _ = refsd(capfd, "--ops", "--op", "silu", "-o", str(tmp_path / "ops"), "--json")
    assert code == 0 and json.loads(said)["packs"][0]["tensors"] == 12
    with Pack.open(tmp_path / "ops") as pack:
        assert pack.entries["ops/silu/wide"].tolerance["bfloat16"]["worst"] > 0


@pytest.mark.parametrize("args, message", [
    ([], "no folder"), (["-o", "x", "--level", "5"], "--level is 5"),
    (["-o", "x", "--ops", "a cat"], "--ops records no model"),
    (["-o", "x", "--suite", "s.json", "a cat"], "the prompts are in the suite"),
    (["-o", "x", "--suite", "missing.json"], "no such file"),
    (["-o", "x", "--attention", "*"], "--level 4"), (["-o", "x", "--shard", "3/2"], "I/N"),
    (["-o", "x", "--record-steps", "3-1"], "0,5,10-12"), (["-o", "x", "--op", "silo"], "silu"),
    (["-o", "x", "--spread", "1"], "--spread"), (["-o", "x", "--backend", "numba"], "no such"),
    (["-o", "x", "-W", "33"], "width is 33"), (["-o", "x", "--steps", "0"], "--steps is 0"),
    (["-o", "x", "--sampler", "dim"], "ddim"), (["-o", "x", "-m", "/nowhere"], "/nowhere"),
])
def test_refusals(capfd, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    code, said, err = refsd(capfd, *args)
    assert (code, said) == (2, "") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
