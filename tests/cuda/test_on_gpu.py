"""What is run on a GPU, rehearsed without one: its own code is proven here, its figures are not."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import driver_standin
import numpy as np
import pytest

from benchmarks import __main__ as benchmarks_command
from benchmarks import tables
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import carried, intrinsics, probes, sections, session, variants
from benchmarks.gpu.sections import SECTIONS, Section
from refsd.numba_ops.cuda import compiler, meaning, meaning_hopper, store
from refsd.numba_ops.cuda.pointwise import pointwise_kernel

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


def test_all_files_that_compare_have_tests_on_a_gpu():
    """What is given to pytest there, and what conftest.py leaves of it."""
    files = variants.comparing()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", "addopts=-qq --strict-markers", "-p",
         "no:cacheprovider", "--collect-only", *map(str, files)], cwd=ROOT, capture_output=True,
        text=True, env=os.environ | {"REFSD_TESTS_ON": "device"})
    counts = dict(line.split(": ") for line in done.stdout.splitlines() if ".py: " in line)
    assert {Path(name).name for name in counts} == {path.name for path in files}, done.stdout


ATTACH = """
import sys
if "benchmarks.gpu.child" in sys.orig_argv:
    import driver_standin
    attached = driver_standin.attach()
"""


def test_the_same_on_a_driver_that_pretends(tmp_path):
    """Our driver's code is what runs there; kernels are Python's all the same."""
    pytest.importorskip("cuda.core")
    (tmp_path / "sitecustomize.py").write_text(ATTACH)
    found = driver_standin.environment(REFSD_CACHE=str(tmp_path), STANDIN_CAPABILITY="90")
    found["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    run = session.Session(tmp_path / "out.json", True, say=lambda text: None)
    run.run(["versions", "intrinsics", "load", "launch", "copies"], found)
    sections = run.data["sections"]
    assert all(section["finished"] for section in sections.values()), sections
    assert sections["versions"]["rows"]["device"] == {"name": "Stand-in", "capability": 90}
    assert not [row for section in sections.values() for row in section["rows"].values()
                if "red" in row]


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
    import numpy as np
    yield "first", {"value": np.float32(2), "share": [np.float64("nan")]}
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
    assert found["raises"]["rows"] == {"first": {"value": 2.0, "share": ["nan"]},
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
    known = {name for module in (meaning, meaning_hopper) for name, value in vars(module).items()
             if getattr(value, "__module__", "") == module.__name__ and name[0] != "_"
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


def test_every_probe_is_compiled():
    """For the oldest GPU that has the instruction, and for Hopper."""
    if not compiler.versions():
        pytest.skip("no compiler is installed: refsd[cuda-compile]")
    for factory, constants in probes.factories():
        for capability in {factory.since, 90}:
            assert compiler.compiled(factory, constants, capability).registers > 0, constants


def test_kernels_of_another_compiler_are_adopted(tmp_path, monkeypatch):
    """The store finds what was compiled elsewhere, once it has the name of the compiler here."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("REFSD_CACHE", str(tmp_path))
    here = {"numba-cuda": "0.31", "cuda-core": "2.0"}
    wanted = pointwise_kernel, ("silu", "float32"), 90
    monkeypatch.setattr(compiler, "versions", lambda: here | {"numba-cuda": "0.30"})
    name = store.file_name(pointwise_kernel, ("silu", "float32"), "90")
    monkeypatch.setattr(compiler, "versions", lambda: here)
    assert not store.kept(*wanted)
    (tmp_path / "cubins" / name).write_bytes(b"x")
    assert not store.kept(*wanted)
    carried.adopt(tmp_path / "cubins", carried.tag_of(here))
    assert store.kept(*wanted)


def test_what_is_missing_is_taken_from_the_folder(tmp_path, monkeypatch):
    """Two wheels of one name space, and a package that is there already."""
    monkeypatch.setattr(carried, "WHEELS", {"one-half": "halves.one", "other-half": "halves.other",
                                            "known": "json"})
    (tmp_path / "wheels").mkdir()
    (tmp_path / "cubins").mkdir()
    for name in ("one", "other"):
        with zipfile.ZipFile(tmp_path / "wheels" / f"{name}_half-1-py3.whl", "w") as wheel:
            wheel.writestr(f"halves/{name}.py", f"value = '{name}'")
    found = carried.unpack(tmp_path, tmp_path / "there", {"PYTHONPATH": str(ROOT)})
    said = subprocess.run([sys.executable, "-c", "from halves import one, other; "
                           "print(one.value, other.value)"], env=found, capture_output=True)
    assert said.stdout == b"one other\n"
    assert Path(found["REFSD_CACHE"]).stat().st_mode & 0o777 == 0o700


def test_the_tables_of_a_results_file(tmp_path, monkeypatch, capsys):
    data = {"schema": 1, "kind": "gpu", "rehearsal": False, "date": "2027-01-02 03:04 UTC",
            "sections": {
                "versions": {"finished": True, "rows": {
                    "device": {"name": "A card", "capability": 90},
                    "packages": {"torch": "2.13.0", "numpy": None}}},
                "intrinsics": {"finished": True, "rows": {
                    "exp": {"share": 0.5}, "mma": {"red": "9 bytes differ"}}},
                "step": {"finished": False, "stopped": "after 110 s", "rows": {
                    "refsd": {"seconds": [0.008, 0.010, 0.009]},
                    "torch eager": {"seconds": [0.018]},
                    "torch": {"skipped": "torch is not installed"}}},
                "ops": {"finished": True, "rows": {"linear 2x5 5x5": {
                    "count": 3, "flops": 10**9, "bytes": 10**6, "ratio": 0.5,
                    "seconds": {"refsd": [1e-5], "torch": [2e-5]}}}}}}
    (tmp_path / "gpu").mkdir()
    path = tmp_path / "gpu" / "a-card.json"
    path.write_text(json.dumps(data))
    benchmarks_command.main(["table", "--show", str(path)])
    said = capsys.readouterr().out
    assert "A card, compute capability 9.0, torch 2.13.0; 2027-01-02." in said
    assert "| each instruction by its meaning | 2 | 1 red | mma: 9 bytes differ |" in said
    assert "| refsd | 9 ms |  |" in said and "| torch eager | 18 ms | 0.50 |" in said
    assert "| a UNet step in halves, and torch's | 3 | 2 right | stopped after 110 s" in said
    assert "stopped after 110 s" in said and "torch is not installed" in said
    assert "| linear 2x5 5x5 | 3 | 10 us | 20 us | 0.50 | 100 TFLOP/s, 0.1 TB/s |" in said
    page = tables.rendered("docs/cuda-speed.md", tables.results_of("docs/cuda-speed.md", tmp_path))
    assert said.strip() in page
    assert "No figure from a GPU exists yet." in tables.rendered("docs/cuda-speed.md", [])


def test_a_results_file_has_the_name_of_its_device():
    data = {"sections": {"versions": {"rows": {"device": {"name": "NVIDIA H100 80GB HBM3"}}}}}
    assert session.file_name(data) == "nvidia-h100-80gb-hbm3"
    assert session.file_name({"sections": {}}) == "unknown-device"
    assert set(sections.SECTIONS) >= {"versions", "intrinsics"}
