"""A comparison on paper: text, JSON, Markdown, JUnit; the command; the memory it takes."""

import json
import subprocess
import sys
from xml.etree import ElementTree

import chaos
import numpy as np
import pytest
from golden_compare_samples import NETWORK, B, W, X, changed_at, compared, right

from refsd.__main__ import main
from refsd.golden.comparing.junit import junit
from refsd.golden.comparing.markdown import markdown
from refsd.golden.comparing.report import as_json, sentence, sheet, text
from refsd.golden.packs.pack import Writer


@pytest.fixture
def failing(pack, tmp_path):
    wrong = {"unet/000/proj": X @ W.T, "unet/000/mid_block": changed_at(
        NETWORK, (0, 0, 0, 0), np.nan), "<b>`|mine": X}
    return compared(pack, tmp_path, maps=True, **{k: v for k, v in wrong.items() if "/" in k})


def test_text(failing):
    lines = list(text(failing))
    assert lines[0] == sentence(failing)
    table = {line.split()[-1]: line.split() for line in lines[3:lines.index("", 2)]}
    assert table["unet/000/proj"][0] == "WRONG" and "unet/001/conv_out" not in table
    assert any(line.startswith("unet/001") is False and "unet/001/conv_out" in line
               for line in text(failing, everything=True))
    # a likeness is cut off, never rounded up to one
    assert table["unet/000/proj"][7] < "1.0"


def test_json(failing):
    found = json.loads(json.dumps(as_json(failing), allow_nan=False))
    assert (found["ok"], found["first"], found["schema"]) == (False, "unet/000/proj", 1)
    by_name = {one["name"]: one for one in found["tensors"]}
    proj = by_name["unet/000/proj"]
    assert proj["status"] == "wrong" and not proj["ok"] and proj["op"] == "linear"
    assert proj["findings"][0]["reason"] == "missing_bias"
    assert proj["metrics"]["count"] == 80 and proj["metrics"]["max_abs"] == pytest.approx(
        float(np.abs(B).max()), abs=1e-5)
    assert by_name["unet/000/mid_block"]["times"] == "inf"
    assert by_name["unet/000/conv_out"]["metrics"] is None


def test_markdown(failing):
    page = markdown(sheet(failing))
    assert "| WRONG |" in page and "## `unet/000/proj`" in page
    cells = {line.count("|") - line.count("\\|") for line in page.splitlines() if line[:1] == "|"}
    assert cells == {11}


def test_junit(failing, tmp_path):
    root = ElementTree.fromstring(junit(sheet(failing)))
    suite = root.find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("5", "2", "1")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    failure = cases["unet/000/proj"].find("failure")
    assert failure.get("type") == "wrong" and "missing_bias" in failure.get("message")
    assert cases["unet/000/conv_out"].find("skipped") is not None
    assert cases["tokens/000/ids"].find("failure") is None


# The command


@pytest.fixture
def run(capsys):
    def command(*args):
        code = main(["golden", "compare", *map(str, args)])
        return code, *capsys.readouterr()

    return command


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    place = tmp_path_factory.mktemp("candidates")
    np.savez(place / "right.npz", **right())
    np.savez(place / "wrong.npz", **{**right(), "unet/000/proj": X @ W.T})
    np.savez(place / "object.npz", a=np.array([None]))
    return place


def test_the_command_says_yes_and_no(run, network, candidates, tmp_path):
    code, out, err = run(network, candidates / "right.npz")
    assert (code, err) == (0, "") and out.startswith("All 4 tensors are within")
    reports = [tmp_path / f"r{end}" for end in (".json", ".md", ".xml", ".html")]
    code, out, err = run(network, candidates / "wrong.npz", *(
        word for path in reports for word in ("--report", path)))
    assert code == 1 and "It looks like missing_bias" in out
    assert err.count("refsd: wrote") == 4
    assert json.loads(reports[0].read_text())["first"] == "unet/000/proj"
    assert ElementTree.parse(reports[2]).getroot().tag == "testsuites"
    code, out, err = run(network, candidates / "wrong.npz", "--json", "--only", "tokens/*")
    assert code == 0 and json.loads(out)["counts"] == {"equal": 1}
    code, out, err = run(network, candidates / "wrong.npz", "--accept-tolerance", "9,0.5")
    assert code == 0, err


@pytest.mark.parametrize("wanted, code", [("4", 0), ("5", 1), ("80%", 0), ("80.1%", 1),
                                          ("0", 0), ("100%", 1)])
def test_a_floor(run, network, candidates, tmp_path, wanted, code):
    """Four of the five tensors that a port can write are there."""
    got, out, _ = run(network, candidates / "right.npz", "--at-least", wanted, "--report",
                      tmp_path / "r.xml")
    assert got == code
    said = "Only 4 of 5 tensors could be compared, and 5 are wanted. All 4 tensors are within"
    assert out.startswith(said if code else "All 4 tensors are within")
    suite = ElementTree.parse(tmp_path / "r.xml").getroot().find("testsuite")
    assert suite.get("failures") == str(code)


@pytest.mark.parametrize("args, code, said", [
    (["object.npz"], 3, "pickled Python objects"),
    (["none.npz"], 2, "no such file or folder"),
    (["right.npz", "--report", "x.pdf"], 2, "is to end in .json or .md or .xml or .html"),
    (["right.npz", "--report", "/nowhere/x.json"], 4, "the folder /nowhere does not exist"),
    (["right.npz", "--accept-tolerance", "nan"], 2, "give ABS or ABS,REL"),
    (["right.npz", "--accept-tolerance", "1,2,3"], 2, "give ABS or ABS,REL"),
    (["right.npz", "--at-least", "101%"], 2, "give a number such as 500, or a share"),
    (["right.npz", "--at-least", "-1"], 2, "give a number such as 500, or a share"),
    (["right.npz", "--format", "fp15"], 2, "did you mean fp1"),
    (["right.npz", "--layout", "CHWN"], 2, "layout 'CHWN' is not one of"),
    (["right.npz", "--map", "none.json"], 2, "name map: none.json: no such file"),
])
def test_refusals(run, network, candidates, args, code, said):
    got, out, err = run(network, candidates / args[0], *args[1:])
    assert got == code and said in err and err.count("\n") == 1 and out == ""


# Memory


MEASURE = """
import resource, sys
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.packs.pack import Pack
import refsd.golden.tolerances.bounds, refsd.ops
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
with Pack.open(sys.argv[1]) as pack, Candidate.open(sys.argv[2]) as candidate:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = compare(pack, candidate)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, found.counts)
"""


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    """16 tensors of 2 MB, twice. The size of a pack does not matter, only that of its tensors."""
    shape, count = (2, 512, 512), 16
    zeros = np.zeros(shape, "float32")
    with Writer(tmp_path / "p", recipe={}, model={}, shard_bytes=1 << 20) as writer:
        for i in range(count):
            writer.add(f"unet/{i:03d}/x", zeros, stage="unet", step=i, op="block")
    for i in range(count):
        place = tmp_path / "c" / "unet" / f"{i:03d}"
        place.mkdir(parents=True)
        with open(place / "x.f32", "wb") as file:
            file.truncate(zeros.nbytes)
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / "p", tmp_path / "c"],
                          capture_output=True, text=True, env=chaos.environment(), check=True)
    grown, counts = done.stdout.split(" ", 1)
    assert counts.strip() == "{'equal': 16}"
    # two tensors of 2 MB, the bytes that are hashed, and a dozen pieces of 2 MB in float64
    assert int(grown) * 1024 < 16 * zeros.nbytes < 2 * count * zeros.nbytes
