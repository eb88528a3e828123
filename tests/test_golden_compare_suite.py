"""refsd golden compare over a suite: every pack, one answer."""

import json
import shutil

import golden_suite_samples
import pytest

from refsd.__main__ import main


@pytest.fixture(scope="module")
def things(tmp_path_factory, model):
    return golden_suite_samples.write(tmp_path_factory.mktemp("things"), model)


@pytest.fixture
def mine(things, tmp_path):
    """What the port wrote; a test may change it."""
    return shutil.copytree(things / "mine", tmp_path / "mine")


@pytest.fixture
def compare(things, mine, capfd):
    """refsd golden compare: (exit code, lines, stderr)."""

    def run(*options, pack=None, candidate=None):
        capfd.readouterr()
        code = main(["golden", "compare", str(pack or things / "packs"), str(candidate or mine),
                     *map(str, options)])
        out, err = capfd.readouterr()
        return code, out.splitlines(), err

    return run


def test_all_are_well(compare):
    code, lines, err = compare()
    assert code == 0 and [line.split(": ")[0] for line in lines] == [
        "ok    cone", "ok    cube", "ok    ring"]
    assert all(" are within the tolerance of float32" in line for line in lines)
    assert "refsd: 3 of 3 packs are within the tolerance" in err


def test_one_is_wrong_one_absent_and_one_not_made(compare, mine, things, tmp_path):
    golden_suite_samples.spoil(mine / "cone", "denoise/final")
    shutil.rmtree(mine / "cube")
    packs = shutil.copytree(things / "packs", tmp_path / "packs")
    index = json.loads((packs / "suite.json").read_text())
    index["packs"][2]["manifest"] = None
    (packs / "suite.json").write_text(json.dumps(index))
    code, lines, err = compare(pack=packs)
    assert code == 1 and "0 of 3 packs" in err
    assert lines[0].startswith("WRONG cone: denoise/final")
    assert lines[1] == f"WRONG cube: There is nothing of the port: {mine / 'cube'}."
    assert lines[2] == f"WRONG ring: The pack has not been made yet: {packs / 'ring'}."

    code, lines, _ = compare("--json", pack=packs)
    said = json.loads("\n".join(lines))
    assert code == 1 and not said["ok"] and said["kind"] == "golden-compare-suite"
    assert [(pack["name"], pack["ok"]) for pack in said["packs"]] == [
        ("cone", False), ("cube", False), ("ring", False)]
    assert said["packs"][0]["comparison"]["first"] == "denoise/final"
    assert said["packs"][1]["comparison"] is None


def test_a_candidate_may_be_a_file(compare, mine):
    file = next((mine / "cube").glob("*.safetensors"))
    file.rename(mine / "cube.safetensors")
    shutil.rmtree(mine / "cube")
    assert compare()[0] == 0


def test_shards_together_are_the_suite(compare):
    names = []
    for part in (1, 2):
        code, lines, _ = compare("--shard", f"{part}/2")
        assert code == 0 and lines
        names += [line.split()[1].rstrip(":") for line in lines]
    assert sorted(names) == ["cone", "cube", "ring"]


def test_each_pack_has_its_reports(compare, mine, tmp_path):
    golden_suite_samples.spoil(mine / "ring", "denoise/final")
    (tmp_path / "out").mkdir()
    code, *_ = compare("--report", tmp_path / "out" / "{name}.json",
                       "--report", tmp_path / "out" / "of-{name}.html")
    assert code == 1 and {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{of}{name}.{end}" for name in ("cone", "cube", "ring")
        for of, end in (("", "json"), ("of-", "html"))}
    assert json.loads((tmp_path / "out" / "ring.json").read_text())["first"] == "denoise/final"
    assert "denoise/final" in (tmp_path / "out" / "of-ring.html").read_text()


def test_the_same_options_hold_for_all(compare, mine):
    for name in ("cone", "cube", "ring"):
        golden_suite_samples.spoil(mine / name, "denoise/final")
    assert compare("--accept-tolerance", "2")[0] == 0


@pytest.mark.parametrize("options, why", [
    (["--every"], "--every is for one pack"),
    (["--report", "all.html"], "write {name} where its name is to stand"),
    (["--report", "{name}.txt"], ".json"),
    (["--dask", "local:2", "--shard", "1/2"], "--dask"),
    (["--map", "none.json"], "none.json")])
def test_what_makes_no_sense_for_a_suite(compare, options, why):
    code, lines, err = compare(*options)
    assert code == 2 and not lines and why in err, err


def test_options_of_a_suite_are_refused_for_one_pack(compare, things, mine):
    for option in (["--shard", "1/2"], ["--dask", "local:2"]):
        code, _, err = compare(*option, pack=things / "packs" / "cone", candidate=mine / "cone")
        assert code == 2 and f"{option[0]} is for the packs of a suite" in err


def test_mine_is_to_be_a_folder(compare, mine):
    code, _, err = compare(candidate=next(mine.glob("cone/*")))
    assert code == 2 and "is no folder; for a suite give one" in err


@pytest.mark.parametrize("change, why", [
    ({"folder": "../cone"}, "folder is '../cone', expected small letters"),
    ({"manifest": "x"}, "manifest is 'x', expected a SHA-256"),
    ({"seed": "x"}, "seed is 'x'"), ({"more": 1}, "unknown key 'more'")])
def test_an_index_that_somebody_else_wrote(compare, things, tmp_path, change, why):
    packs = shutil.copytree(things / "packs", tmp_path / "packs")
    index = json.loads((packs / "suite.json").read_text())
    index["packs"][0].update(change)
    (packs / "suite.json").write_text(json.dumps(index))
    code, _, err = compare(pack=packs)
    assert code == 3 and "suite.json: pack 1" in err and why in err


def test_a_pack_of_another_suite(compare, things, tmp_path):
    packs = shutil.copytree(things / "packs", tmp_path / "packs")
    shutil.rmtree(packs / "cone")
    shutil.copytree(packs / "cube", packs / "cone")
    code, _, err = compare(pack=packs)
    assert code == 3 and "cone: " in err and "the manifest has the SHA-256" in err
