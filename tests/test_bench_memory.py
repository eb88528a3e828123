"""make bench-memory: cells measured in fresh processes, resumed, and a table that nobody types."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from benchmarks import bounded, bounded_model, bounded_table, models, tables
from refsd.networks import shapes_of
from refsd.weights import load_folder


def run(gigabytes, seconds=2.0, picture="a"):
    return {"bytes": int(gigabytes * 1e9), "load": 1.0, "seconds": {"encode": 0.5, "decode": 1.5},
            "step_seconds": [9.0, seconds, seconds], "picture": picture}


def results(**rows):
    made = {name.replace("_", "-"): {"source": "x", "quiet": True, "estimated": None, **row}
            for name, row in rows.items()}
    return {"schema": 1, "threads": 2, "machine": {"cpu": "a processor"},
            "sections": {"cells": {"rows": made}}}


RESULTS = results(
    sd1_float32={"runs": [run(5.0), run(5.2, 4.0)], "estimated": 5_000_000_000},
    sd1_block={"runs": [run(1.4, 3.0), run(1.3, 5.0)]},
    sd1_bfloat16={"runs": [run(3.0, 1.0, "b")] * 2, "estimated": 2_000_000_000},
    sd1_bfloat16_block={"runs": [run(1.1, 1.0, "b")] * 2},
    sd1_bfloat16_block_bands={"runs": [run(0.7, 1.0, "other")] * 2}, gone={"runs": [run(1)]})


def test_the_table_says_what_was_measured():
    page = bounded_table.page([RESULTS])
    lines = {line.split(" | ")[0].strip("| "): [cell.strip(" |") for cell in line.split(" | ")[1:]]
             for line in page.splitlines() if line.startswith("|")}
    assert lines["float32, all in memory"] == [
        "5.20", "5.00", "1.04", "", "3.00 s", "", "", "3.0 s"]
    assert lines['`offload="block"`'] == ["1.40", "", "", "", "4.00 s", "1.38", "1.38", "3.0 s"]
    assert lines['`dtype="bfloat16"`'][2:4] == ["1.50", "under 4: yes"]
    assert lines['`dtype="bfloat16"`, `offload="block"`'] == [
        "1.10", "", "", "under 1: no", "1.00 s", "1.00", "0.38", "3.0 s"]
    bad = '`dtype="bfloat16"`, `offload="block"`, `vae.tiling="exact"`'
    assert f"{bad}: another picture than in memory" in lines and "0.70" not in page
    assert len(lines) == 7 and "2 rounds of all rows" in page and "not quiet" not in page
    busy = results(sd1_float32={"runs": [run(5)], "quiet": False})
    assert "1 round of" in bounded_table.page([busy])
    assert "The machine was not quiet" in bounded_table.page([busy])


def test_a_figure_that_was_changed_by_hand_is_found(tmp_path):
    for folder in ("docs", "results/memory"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "results" / "memory" / "x.json").write_text(json.dumps(RESULTS))
    for page in tables.PAGES:
        (tmp_path / page).write_text(f"{tables.BEGIN}\n{tables.END}\n")
    tables.write(tmp_path, tmp_path / "results")
    page = tmp_path / "docs" / "memory.md"
    text = page.read_text()
    assert "5.20" in text and tables.stale(tmp_path, tmp_path / "results") == {}
    page.write_text(text.replace("5.20", "4.20"))
    assert list(tables.stale(tmp_path, tmp_path / "results")) == ["docs/memory.md"]


def test_every_row_is_compared_with_the_same_in_memory():
    for cell in bounded.CELLS.values():
        own = {key: value for key, value in cell.options.items() if key != "offload"}
        bounds = "offload" in cell.options or cell.tiling != "auto"
        assert (cell.whole is not None) == bounds
        if bounds:
            whole = bounded.CELLS[cell.whole]
            assert (whole.model, whole.options, whole.tiling) == (cell.model, own, "auto")


def test_cells_of_options_that_there_are_not_are_left_out():
    assert bounded.available() == bounded.CELLS  # all that are listed can be measured now
    cell = bounded.Cell("sd1", {"weights": "int8", "telepathy": True})
    assert bounded.available({"x": cell, "y": bounded.Cell("sd1", {})}).keys() == {"y"}
    assert bounded.estimated(Path("nowhere"), cell) is None


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A tiny model in the place of Stable Diffusion 1.5."""
    folder = tiny.write_model(tmp_path / "model")
    monkeypatch.setattr(bounded_model, "make", lambda cache, name: folder)
    monkeypatch.setattr(bounded, "SIDES", {"sd1": 32, "sdxl": 32})
    return tmp_path


def test_a_cell_is_a_process_of_its_own(small, capsys):
    out = small / "out.json"
    code = bounded.main(["--cells", "sd1-float32", "sd1-block", "--threads", "1",
                         "--out", str(out), "--cache", str(small / "cache")])
    rows = json.loads(out.read_text())["sections"]["cells"]["rows"]
    assert code == 0 and rows.keys() == {"sd1-float32", "sd1-block"}
    whole, block = rows["sd1-float32"]["runs"][0], rows["sd1-block"]["runs"][0]
    assert whole["picture"] == block["picture"] and len(whole["step_seconds"]) == 2
    assert 5e7 < whole["bytes"] < 1e9  # Python, libraries and kernels
    assert 5e7 < rows["sd1-float32"]["estimated"] < 1e9
    assert "sd1-block: 0." in capsys.readouterr().out


def test_it_goes_on_where_it_was_stopped(small, monkeypatch, capsys):
    asked, sources = [], ["one"]

    def measure(folder, cell, threads):
        name = next(name for name, one in bounded.CELLS.items() if one is cell)
        asked.append(name)
        if name in failing:
            raise RuntimeError("it broke")
        return run(1)

    monkeypatch.setattr(bounded, "measure", measure)
    monkeypatch.setattr(bounded.machine, "fingerprint",
                        lambda: {"source": sources[-1], "versions": {},
                                 "machine": {"cpu": "a", "target": "b"}})
    failing = {"sd1-int8"}
    command = ["--cells", "sd1-float32", "sd1-int8", "--out", str(small / "out.json"),
               "--cache", str(small)]

    def again(*more):
        asked.clear()
        code = bounded.main([*command, *more])
        return code, [*asked]

    assert again() == (1, ["sd1-float32", "sd1-int8"])
    assert "sd1-int8: it broke" in capsys.readouterr().out
    assert again() == (1, ["sd1-int8"])
    failing = set()
    assert again("--rounds", "2") == (0, ["sd1-int8", "sd1-float32", "sd1-int8"])
    assert again("--rounds", "2") == (0, [])
    assert again("--fresh") == (0, ["sd1-float32", "sd1-int8"])
    sources.append("two")
    assert again() == (0, ["sd1-float32", "sd1-int8"])


def test_a_model_is_written_complete_and_once(tmp_path, monkeypatch):
    family = type("Small", (), {"configs": tiny.CONFIGS, "scheduler": tiny.SCHEDULER})
    monkeypatch.setitem(bounded_model.FAMILIES, "sd1", (family, "StableDiffusionPipeline"))
    folder = bounded_model.make(tmp_path, "sd1")
    for part, config in tiny.CONFIGS.items():
        found = load_folder(folder, part, dtype=None).tensors
        for i, (name, shape) in enumerate(shapes_of(part, config).items()):
            wanted = models.random_weight(name, shape, i).astype("float16")
            np.testing.assert_array_equal(np.asarray(found[name]), wanted)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"]
    stamp = (folder / "model_index.json").stat().st_mtime_ns
    bounded_model.make(tmp_path, "sd1")
    assert (folder / "model_index.json").stat().st_mtime_ns == stamp
