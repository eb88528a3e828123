"""bisect answers as compare does: reports, a floor, a tolerance that was given, raw files."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from golden_compare_samples import B, W, X, right

from refsd.__main__ import main
from refsd.golden.packs.pack import Writer


@pytest.fixture
def run(capsys):
    def command(*args):
        code = main(["golden", "bisect", *map(str, args)])
        return code, *capsys.readouterr()

    return command


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    place = tmp_path_factory.mktemp("wrong")
    np.savez(place / "right.npz", **right())
    np.savez(place / "c.npz", **{**right(), "unet/000/proj": X @ W.T})
    return place


def test_reports(run, network, wrong, tmp_path):
    files = [tmp_path / f"r{end}" for end in (".json", ".md", ".xml", ".html")]
    code, out, err = run(network, wrong / "c.npz", *(w for f in files for w in ("--report", f)))
    assert code == 1 and err.count("refsd: wrote") == 4
    found = json.loads(files[0].read_text())
    assert found["kind"] == "golden-bisect" and found["first"]["name"] == "unet/000/proj"
    assert not found["ok"] and found["judged"] == 4 and found["sentence"] in out
    assert found["first"]["finding"]["reason"] == "missing_bias"
    suite = ElementTree.parse(files[2]).getroot().find("testsuite")
    assert suite.get("name") == "refsd golden bisect float32"
    # the three inputs that the port was given are no tests
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("5", "1", "1")
    failure = next(suite.iter("failure"))
    assert "wrong on its own inputs" in failure.get("message")
    assert "missing_bias" in failure.get("message")
    page = files[3].read_text()
    assert "<h1>Golden bisection</h1>" in page and page.count("<section ") == 1
    assert page.count("data:image/png;base64") == 1
    assert "## `unet/000/proj`" in files[1].read_text()


def test_a_floor(run, network, wrong):
    assert run(network, wrong / "right.npz", "--at-least", "80%")[0] == 0
    code, out, _ = run(network, wrong / "right.npz", "--at-least", "5")
    assert code == 1 and out.startswith("Only 4 tensors could be judged, and 5 are wanted. All")


def test_a_tolerance_that_was_given(run, network, wrong):
    most = float(np.abs(B).max())
    code, out, _ = run(network, wrong / "c.npz", "--accept-tolerance", 1.01 * most)
    assert code == 0 and "within what was accepted" in out
    code, out, _ = run(network, wrong / "c.npz", "--accept-tolerance", 0.5 * most)
    assert code == 1 and re.search(r"unet/000/proj .*, 2 times what was accepted", out)
    # blocks have no inputs to compute them from: they are held to the golden tensor
    code, out, _ = run(network, wrong / "right.npz", "--accept-tolerance", 1e-5)
    assert code == 1 and "unet/000/mid_block or before it" in out


def test_raw_files_in_a_given_type(run, network, tmp_path):
    (tmp_path / "unet" / "000").mkdir(parents=True)
    for name, array in right().items():
        if name == "unet/000/proj":
            (tmp_path / f"{name}.bin").write_bytes(array.astype("<f8").tobytes())
    assert run(network, tmp_path, "--dtype", "float64")[0] == 0
    assert run(network, tmp_path)[0] == 1


@pytest.mark.parametrize("args, said", [
    (["--report", "x.pdf"], "is to end in .json or .md or .xml or .html"),
    (["--accept-tolerance", "nan"], "give ABS or ABS,REL"),
    (["--at-least", "101%"], "give a number such as 500, or a share"),
    (["--format", "denoise/*=fp15"], "did you mean fp1"),
])
def test_refusals(run, network, wrong, args, said):
    code, out, err = run(network, wrong / "right.npz", *args)
    assert code == 2 and said in err and out == ""


def test_missing_ids_are_not_given(run, tmp_path):
    """Only NAME:PARAMETER is what a port need not write."""
    with Writer(tmp_path / "p", recipe={}, model={}) as pack:
        for name in ("a/ids", "a/noise"):
            pack.add(name, X, stage="a", step=0)
    np.savez(tmp_path / "c.npz", **{"a/noise": X})
    assert run(tmp_path / "p", tmp_path / "c.npz", "--at-least", "100%")[0] == 1
