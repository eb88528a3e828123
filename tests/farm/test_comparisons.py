"""refsd golden compare over a suite, with --dask: the answer that one process gives."""

import json
import shutil

import chaos
import golden_suite_samples
import pytest


@pytest.fixture(scope="module")
def things(tmp_path_factory, model):
    folder = golden_suite_samples.write(tmp_path_factory.mktemp("things"), model)
    golden_suite_samples.spoil(folder / "mine" / "cube", "denoise/final")
    return folder


def compare(things, *options, packs="packs"):
    return chaos.run("golden", "compare", things / packs, things / "mine", *options)


def test_the_answer_is_that_of_one_process(things, tmp_path):
    report = "{name}.html"
    alone = compare(things, "--report", tmp_path / report, "--json")
    (tmp_path / "farmed").mkdir()
    farmed = compare(things, "--report", tmp_path / "farmed" / report, "--json", "--dask",
                     "local:2")
    assert farmed == alone and alone[0] == 1 and farmed[2] == b""
    assert [pack["ok"] for pack in json.loads(alone[1])["packs"]] == [True, False, True]
    for name in ("cone", "cube", "ring"):
        assert ((tmp_path / f"{name}.html").read_bytes()
                == (tmp_path / "farmed" / f"{name}.html").read_bytes())


def test_a_pack_of_another_suite_is_named(things):
    packs = shutil.copytree(things / "packs", things / "others")
    shutil.rmtree(packs / "ring")
    shutil.copytree(packs / "cube", packs / "ring")
    code, _, err = compare(things, "--dask", "local:1", packs="others")
    assert code == 3 and b"ring, at worker" in err and b"the manifest has the SHA-256" in err
