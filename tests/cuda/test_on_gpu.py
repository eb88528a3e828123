"""What is run on a GPU, rehearsed without one: its own code is proven here, its figures are not."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import carried, intrinsics, sections, session
from benchmarks.gpu.sections import SECTIONS, Section
from refsd.numba_ops.cuda import meaning

ROOT = Path(__file__).parents[2]


def test_all_sections_in_a_rehearsal(tmp_path, capsys):
    out = tmp_path / "rehearsal.json"
    code = command.main(["run", "--rehearse", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["rehearsal"] and list(found["sections"]) == list(SECTIONS)
    for name, section in found["sections"].items():
        red = {row: said["red"] for row, said in section["rows"].items() if "red" in said}
        assert section["finished"] and section["rows"] and not red, (name, section)
    assert code == 0 and f"results: {out}" in capsys.readouterr().out


def test_a_rehearsal_is_no_result(capsys):
    with pytest.raises(SystemExit):
        command.main(["run", "--rehearse"])
    assert "wants --out" in capsys.readouterr().err


BAD = '''
import os, time
def crashes(work):
    yield "first", work.guarded(lambda: {"value": 1})
    yield "second", work.guarded(lambda: 1 / 0)
    os._exit(11)
def raises(work):
    print("noise")
    yield "first", {"value": 2}
    raise ValueError("what was wrong")
def hangs(work):
    yield "first", {"value": 3}
    time.sleep(600)
'''


def test_one_failure_does_not_lose_the_rest(tmp_path, monkeypatch):
    (tmp_path / "bad_sections.py").write_text(BAD)
    for name, seconds in (("crashes", 60), ("raises", 60), ("hangs", 2)):
        monkeypatch.setitem(SECTIONS, name, Section(f"bad_sections.{name}", seconds, "fails"))
    run = session.Session(tmp_path / "out.json", True, say=lambda text: None)
    monkeypatch.setattr(run, "rehearse", True)
    run.run(["hangs", "crashes", "raises"], os.environ | {
        "REFSD_CUDA": "lockstep", "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"})
    found = json.loads((tmp_path / "out.json").read_text())["sections"]
    assert [section["finished"] for section in found.values()] == [False] * 3
    assert found["hangs"]["rows"] in ({"first": {"value": 3}}, {})  # if it has begun in time
    assert "after" in found["hangs"]["stopped"]
    assert found["crashes"]["rows"] == {
        "first": {"value": 1}, "second": {"red": "ZeroDivisionError: division by zero"}}
    assert found["crashes"]["stopped"] == "exit code 11"
    assert found["raises"]["rows"] == {"first": {"value": 2},
                                       "raises": {"red": "ValueError: what was wrong"}}


def test_sections_end_in_eight_minutes():
    assert session.LIMIT <= 8 * 60 - 15
    early = 0.0
    for name, section in SECTIONS.items():
        early += section.seconds
        if name == "step":
            break
    assert early <= 5 * 60 and sum(s.seconds for s in SECTIONS.values()) <= 1.1 * session.LIMIT


def test_every_instruction_has_a_probe():
    known = {name for name, value in vars(meaning).items()
             if getattr(value, "__module__", "") == meaning.__name__ and name[0] != "_"
             and callable(value)}
    probed = {part for name in intrinsics.PROBES for part in name.split(".")}
    assert known - probed == set()


@pytest.mark.parametrize("name", intrinsics.PROBES)
def test_a_wrong_instruction_is_seen(name):
    """Two results in each other's place, and one bit of a result that has to be exact."""
    given = intrinsics.inputs(name)
    right = intrinsics.meaning(name, *given)
    assert "red" not in intrinsics.judge(name, right, *given)
    k = next(k for k in range(2) if (right[k].view(np.uint8) != intrinsics.UNSET).any())
    wrong = [y.copy() for y in right]
    if intrinsics.PROBES[name].ulp or intrinsics.PROBES[name].sums:
        wrong[k][:2] = right[k][:2][::-1]
    else:
        wrong[k].view(np.uint8)[0] ^= 1
    assert "red" in intrinsics.judge(name, wrong, *given)
    unset = [np.full_like(y.view(np.uint8), intrinsics.UNSET).view(y.dtype) for y in right]
    assert "red" in intrinsics.judge(name, unset, *given)


def test_kernels_of_another_compiler_are_adopted(tmp_path):
    for name in ("silu-sm_90-abc-11111111.cubin", "conv-sm_80-def-22222222.cubin"):
        (tmp_path / name).write_bytes(b"x")
    carried.adopt(tmp_path, "99999999")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "conv-sm_80-def-99999999.cubin", "silu-sm_90-abc-99999999.cubin"]


def test_a_results_file_has_the_name_of_its_device():
    data = {"sections": {"versions": {"rows": {"device": {"name": "NVIDIA H100 80GB HBM3"}}}}}
    assert session.file_name(data) == "nvidia-h100-80gb-hbm3"
    assert session.file_name({"sections": {}}) == "unknown-device"
    assert set(sections.SECTIONS) >= {"versions", "intrinsics"}
