"""`refsd --prompts FILE --dask`: the pictures of a file, drawn by processes of a cluster."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import chaos
import distributed
import pytest

from refsd.__main__ import main
from refsd.farm import cluster

LINES = [{"prompt": "a cat", "steps": steps, "seed": seed} for steps in (1, 2, 3)
         for seed in (1, 2)]
LINES += [{"prompt": "a red cat", "width": 64}, LINES[0]]


@pytest.fixture(scope="module")
def two():
    """A cluster of two processes."""
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=":0",
                                  memory_limit=None, silence_logs=60) as made:
        yield made


@pytest.fixture
def draw(model, tmp_path, monkeypatch, capfd):
    """Draw lines into a folder; gives (exit code, objects on stdout by their index, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(folder, *args, lines=LINES):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
        code = main(["--prompts", "prompts.jsonl", "-m", os.path.relpath(model), "-o", folder,
                     "-t", "1", "--backend", "numpy", *args])
        said = capfd.readouterr()
        found = [json.loads(line) for line in said.out.splitlines() if line.startswith("{")]
        return code, sorted(found, key=lambda one: one.get("index", 0)), said.err

    return run


def closing(err):
    """The last line of what was said, without its time."""
    return re.sub(r" in \d+\.\d s(?=$|;)", "", err.splitlines()[-1].removeprefix("refsd: "))


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_processes_draw_what_one_draws_to_the_byte(draw, tmp_path):
    code, alone, _ = draw("alone", "-q")
    assert code == 0
    code, farmed, err = draw("farmed", "--dask", "local:2", "-q")
    assert (code, err) == (0, "")
    moved = [{**one, "path": one["path"].replace("alone", "farmed")} for one in alone]
    assert farmed == moved and [one["drawn"] for one in farmed] == [True] * 7 + [False]
    assert bytes_of(tmp_path / "farmed") == bytes_of(tmp_path / "alone")


def test_what_is_there_is_not_drawn_again(draw, two, tmp_path):
    assert draw("out", "-q", "--shard", "1/2")[0] == 0
    there = {f"out/{path.name}": path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    code, said, err = draw("out", "--dask", two.scheduler_address, "--results", "r.jsonl")
    assert code == 0 and closing(err) == (
        f"{7 - len(there)} of 7 pictures drawn; the others were there")
    said = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert sorted(one["index"] for one in said) == [*range(8)]
    assert there.keys() <= {one["path"] for one in said if not one["drawn"]} and len(there) < 7
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in there} == there
    code, said, err = draw("out", "--dask", "127.0.0.1:1")  # nobody answers there, or is asked
    assert closing(err) == "0 of 7 pictures drawn; the others were there"
    assert code == 0 and not any(one["drawn"] for one in said)


def test_a_worker_that_is_killed_takes_no_picture_with_it(draw, two, tmp_path):
    lines = [{"prompt": "a cat", "steps": 4, "seed": seed} for seed in range(16)]

    def kill_one():
        while not list((tmp_path / "out").glob("*.png")):
            time.sleep(0.005)
        os.kill(next(iter(two.workers.values())).pid, signal.SIGKILL)

    (tmp_path / "out").mkdir()
    killer = threading.Thread(target=kill_one)
    killer.start()
    code, said, err = draw("out", "--dask", two.scheduler_address, lines=lines)
    killer.join()
    assert code == 0 and [one["index"] for one in said] == [*range(16)], err
    assert closing(err) == "16 of 16 pictures drawn"
    assert len(bytes_of(tmp_path / "out")) == 16


def test_a_worker_with_another_model_draws_nothing(draw, two, model, tmp_path, monkeypatch):
    """Each worker is asked what it has before it is given a picture."""
    from refsd.cli import units_pictures

    real = units_pictures.identity
    monkeypatch.setattr(units_pictures, "identity",
                        lambda session: {**real(session), "model": "f" * 32})
    monkeypatch.setitem(cluster.run.__kwdefaults__, "patience", 1.0)
    code, said, err = draw("out", "--dask", two.scheduler_address)
    assert (code, said) == (4, []) and "model is " in err and "is not used" in err
    assert bytes_of(tmp_path / "out") == {}


def test_a_line_that_workers_cannot_draw_is_said(draw, two, tmp_path, monkeypatch):
    """Another file than the caller's under a name of the command line."""
    from refsd.cli import naming, units_pictures

    monkeypatch.setattr(units_pictures, "name_of", lambda recipe: naming.name_of(recipe)[::-1])
    code, _, err = draw("out", "--dask", two.scheduler_address)
    assert code == 3 and "here it would be another picture than was asked for" in err


@pytest.mark.parametrize("args, message", [
    (["--dask", "nowhere"], "--dask: got 'nowhere'; give the scheduler's address"),
    (["--dask", "local:2", "--shard", "1/2"], "leave one of them out"),
    (["--dask", "local:2", "--preview", "1"], "leave it out with --dask"),
])
def test_refusals(draw, tmp_path, args, message):
    code, said, err = draw("out", *args)
    assert (code, said) == (2, []) and message in err


def test_dask_is_for_prompts(capfd):
    assert main(["a cat", "--dask", "local:2"]) == 2
    assert "--dask is for the pictures of --prompts" in capfd.readouterr().err


def test_processes_of_one_machine_share_its_processors(monkeypatch):
    from refsd import parallel
    from refsd.cli.farming import threads_of

    monkeypatch.setattr(parallel, "cores", lambda: 8)
    monkeypatch.setattr(parallel, "quota", lambda: None)
    assert [threads_of(f"local:{n}", None) for n in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert threads_of("local:2", 7) == 7 and threads_of("tcp://host:8786", None) is None
    monkeypatch.setattr(parallel, "quota", lambda: 2)
    assert threads_of("local:2", None) == 1


def test_ctrl_c_ends_the_workers_too(model, tmp_path):
    """What is drawn by then is there, and nothing that is not whole."""
    lines = [{"prompt": "a cat", "steps": 9, "seed": seed} for seed in range(200)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    process = chaos.start("--prompts", tmp_path / "p.jsonl", "-m", model, "-o", tmp_path, "--dask",
                          "local:2", "--backend", "numpy", "-q", start_new_session=True)
    while not list(tmp_path.glob("*.png")):
        assert process.poll() is None
        time.sleep(0.05)
    workers = children(process.pid)
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - begun < 5
    assert err.decode() == "refsd: error: stopped by SIGINT\n"
    while any(map(alive, workers)):  # the last is Python's own, which ends when the others have
        assert time.monotonic() - begun < 5
        time.sleep(0.05)
    assert len(workers) >= 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".jsonl"}


def children(pid):
    """The processes that a process has started, and those that they have."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found + [each for child in found for each in children(child)]


def alive(pid):
    """Whether a process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
