"""refsd golden make --suite --dask: the packs are those that one process makes."""

import json
import os
import signal
import time

import chaos
import psutil
import pytest

RUNS = [{"name": f"run{i}", "prompt": f"a cone number {i}", "seed": i} for i in range(6)]
SUITE = {"schema": 1, "title": "cones", "level": 1, "runs": RUNS,
         "defaults": {"sampler": "ddim", "steps": 3, "width": 32, "height": 32}}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    path = tmp_path_factory.mktemp("suite") / "suite.json"
    path.write_text(json.dumps(SUITE))
    return path


@pytest.fixture(scope="module")
def options(suite, model):
    return ["--suite", suite, "-m", model, "--spread", "2", "--spread-formats", "float32"]


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory):
    """Made by one process."""
    folder = tmp_path_factory.mktemp("alone")
    code, _, err = chaos.run("golden", "make", "-o", folder, *options)
    assert code == 0, err
    return contents(folder)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def start(folder, options, **streams):
    return chaos.start("golden", "make", "-o", folder, *options, "--dask", "local:2", **streams)


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_one_worker_is_killed_in_the_middle(options, alone, tmp_path):
    process = start(tmp_path, options)
    wait_for(lambda: len(list(tmp_path.glob(".refsd-*/*/*/*"))) >= 2)
    workers = [each for each in psutil.Process(process.pid).children(recursive=True)
               if "spawn_main" in " ".join(each.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0 and contents(tmp_path) == alone
    assert [line.split()[0] for line in out.decode().splitlines()] == [
        str(tmp_path / run["name"]) for run in RUNS]
    lines = err.decode().splitlines()
    assert len(lines) == 2, lines  # and nothing of Dask
    assert lines[0].startswith("refsd: warning: run") and lines[0].endswith("it ended")
    assert lines[1].startswith("refsd: 6 packs in ")


def test_ctrl_c_ends_it_at_once_and_it_goes_on(options, alone, tmp_path):
    process = start(tmp_path, options, start_new_session=True)
    wait_for(lambda: len(list(tmp_path.glob("run*/manifest.json"))) >= 1)
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < 3
    assert (process.returncode, out, err) == (130, b"", b"refsd: error: stopped by SIGINT\n")
    assert not list(tmp_path.glob(".*"))
    there = json.loads((tmp_path / "suite.json").read_text())["packs"]
    done = [row["name"] for row in there if row["manifest"] is not None]
    assert 0 < len(done) < 6
    before = {name: (tmp_path / name / "manifest.json").stat().st_mtime_ns for name in done}

    code, _, err = chaos.run("golden", "make", "-o", tmp_path, *options, "--dask", "local:2",
                             "--resume")
    assert code == 0 and contents(tmp_path) == alone, err
    assert before == {name: (tmp_path / name / "manifest.json").stat().st_mtime_ns
                      for name in done}


def refused(folder, options, *more):
    code, _, err = chaos.run("golden", "make", "-o", folder, *options, "--dask", "local:2", *more)
    return code, err.decode()


def test_what_is_there_is_never_overwritten(options, alone, tmp_path):
    for path, data in alone.items():
        if path.startswith("run3/"):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(data)
    code, err = refused(tmp_path, options)
    assert code == 2 and "run3: is not empty. Give another folder, or --resume" in err
    code, err = refused(tmp_path, options, "--resume", "--eta", "1")
    assert code == 2 and "run3: there is a pack of another recipe, model or version" in err
    (tmp_path / "run3" / "manifest.json").unlink()
    code, err = refused(tmp_path, options, "--resume")
    assert code == 2 and "run3: there is a part of a pack" in err
    assert not list(tmp_path.glob("run[0124]"))


@pytest.mark.parametrize("more", [["--shard", "1/2"], ["--dask", "nowhere"]])
def test_what_does_not_go_together(options, tmp_path, more):
    code, err = refused(tmp_path / "new", options, *more)
    assert code == 2 and "--dask" in err and not (tmp_path / "new").exists()
    code, err = refused(tmp_path / "new", ["a cone"])
    assert code == 2 and "--dask deals out the packs of a --suite" in err
