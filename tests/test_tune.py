"""refsd tune: what is measured, what is kept, and that nobody reads it unasked."""

import json
import threading
import time

import numpy as np
import pytest

import refsd
from refsd import algorithms
from refsd.__main__ import main
from refsd.cli.png import read_png
from refsd.cli.recipe import parse_recipe
from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.numba_ops.cpu import conv, tuning

OPTIONS = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
SHAPES = Spec((2, 24, 12, 12), "float32"), Spec((40, 24, 3, 3), "float32")
PLACE = "12x12 40x24x3x3 1x1 1x1 1"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A file of its own for the choices."""
    monkeypatch.setattr(tuning, "path", lambda: tmp_path / "tuned.json")
    return tmp_path / "tuned.json"


def run(capfd, *args):
    capfd.readouterr()
    code = main(list(args))
    said = capfd.readouterr()
    return code, said.out, said.err


def test_every_right_algorithm_is_timed():
    found = tuning.measure(*SHAPES, OPTIONS, algorithms.ALGORITHMS, 1)
    assert set(found) == set(algorithms.ALGORITHMS) and all(t > 0 for t in found.values())


@pytest.mark.parametrize("spoil", [
    lambda y: y + 1e-3 * np.abs(y).max(), lambda y: y[:, :, ::-1], lambda y: 0.99 * y,
    lambda y: np.where(y == y.max(), np.nan, y),
], ids=["offset", "flipped", "scaled", "nan"])
def test_a_wrong_algorithm_is_left_out(monkeypatch, spoil):
    right = tuning.conv2d
    monkeypatch.setattr(tuning, "conv2d", lambda *arrays, algorithm, **options: (
        spoil if algorithm == "winograd4" else np.asarray)(
            right(*arrays, algorithm=algorithm, **options)))
    found = tuning.measure(*SHAPES, OPTIONS, algorithms.ALGORITHMS, 1)
    assert set(found) == {"im2col", "winograd2", "fft"}


def test_choices_are_kept_by_place(kept):
    with pytest.raises(UsageError, match="nothing was measured .* Run refsd tune first"):
        tuning.load()
    assert tuning.save({"a": "fft", "b": "fft"}, measured={"a", "b", "c"}) == kept
    tuning.save({"c": "im2col"}, measured={"b", "c"})  # now b is as the rule has it
    assert tuning.load() == {"a": "fft", "c": "im2col"}
    assert [path.name for path in kept.parent.iterdir()] == ["tuned.json"]


def test_two_that_save_at_once_keep_both_findings(kept, monkeypatch):
    """The second waits until the first has written what it read and changed."""
    first_reads, read = threading.Event(), tuning.load

    def slow():
        found = read()
        first_reads.set()
        time.sleep(0.1)
        return found

    kept.write_text('{"a": "fft"}')
    monkeypatch.setattr(tuning, "load", slow)
    first = threading.Thread(target=tuning.save, args=({"b": "fft"},), kwargs={"measured": {"b"}})
    first.start()
    assert first_reads.wait(5)
    monkeypatch.setattr(tuning, "load", read)
    tuning.save({"c": "fft"}, measured={"c"})
    first.join()
    assert read() == {"a": "fft", "b": "fft", "c": "fft"}


def test_a_disk_that_is_full_leaves_the_old_file_and_no_draft(kept, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    kept.write_text('{"a": "fft"}')
    monkeypatch.setattr(tuning.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        tuning.save({"b": "fft"}, measured={"b"})
    assert tuning.load() == {"a": "fft"}
    assert [path.name for path in kept.parent.iterdir()] == ["tuned.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "\0"])
def test_a_damaged_file_is_an_error(kept, text):
    kept.write_text(text)
    with pytest.raises(UsageError, match="damaged. Remove it"):
        tuning.load()


def test_the_file_is_of_this_machine_and_these_threads(monkeypatch):
    path = tuning.path()
    assert path == tuning.path() and path.parent == tuning.cache_folder()
    monkeypatch.setattr(tuning.numba, "get_num_threads", lambda: 77)
    assert tuning.path() != path
    monkeypatch.setattr(tuning, "cache_folder", lambda: None)
    with pytest.raises(UsageError, match="no cache folder is safe"):
        tuning.path()


def chosen(**options):
    return algorithms.explain_conv2d(*SHAPES, backend="numba", padding=1, **options)


def test_choices_are_taken_where_they_are_asked_for_and_never_in_exact_mode(kept):
    kept.write_text(json.dumps({PLACE: "fft"}))
    rule = chosen().algorithm
    assert rule != "fft"  # kept is not asked for
    with conv.conv2d_policy(tuned=tuning.load()):
        assert chosen()[2:4] == ("fft", "it was measured to be the fastest here")
        assert chosen(exact=True).algorithm == "im2col"
        with refsd.use("numba", exact=True):
            assert chosen().algorithm == "im2col"
        assert chosen(algorithm="winograd4").algorithm == "winograd4"
        assert algorithms.explain_conv2d(*SHAPES, backend="numba", padding=0).algorithm != "fft"
        more = Spec((9, 24, 12, 12), "float32"), SHAPES[1]  # pictures: the choice is not theirs
        assert algorithms.explain_conv2d(*more, backend="numba", padding=1).algorithm == "fft"
    assert chosen().algorithm == rule


@pytest.mark.parametrize("algorithm", ["winograd4", "abacus"])
def test_a_choice_that_cannot_be_is_refused(algorithm):
    x, weight = np.ones((1, 16, 9, 9), "f4"), np.ones((16, 16, 3, 3), "f4")
    place = conv.shape_key((1, 4, 4, 16), weight.shape, (2, 2), (1, 1), 1)
    with refsd.use("numba"), conv.conv2d_policy(tuned={place: algorithm}), \
            pytest.raises(UsageError, match=algorithm):
        refsd.F.conv2d(x, weight, stride=2)


def test_the_command(model, kept, capfd):
    code, out, err = run(capfd, "tune", "-m", model, "--repeat", "1", "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)["convolutions"]
    assert len(rows) == len({row["place"] for row in rows}) > 10
    for row in rows:
        assert row["wrong"] == [] and {row["rule"], row["fastest"]} <= set(row["seconds"])
    better = {row["place"]: row["fastest"] for row in rows if row["fastest"] != row["rule"]}
    assert tuning.load() == better

    code, out, err = run(capfd, "tune", "-m", model, "--repeat", "1")
    assert (code, err) == (0, "")
    assert f"of {len(rows)} (*) differ from the rule" in out.splitlines()[-1]
    marked = sum(line.startswith("* ") for line in out.splitlines())
    assert marked == int(out.splitlines()[-1].split()[0])
    assert run(capfd, "tune", "--repeat", "0")[0] == 2


def test_a_tuned_picture_says_so_and_needs_no_file_again(model, kept, tmp_path, capfd,
                                                         monkeypatch):
    """The recipe holds the choices: what refsd tune finds later or elsewhere is no matter."""
    path, place = str(tmp_path / "x.png"), "4x4 8x4x3x3 1x1 1x1 1"  # the UNet's conv_in
    kept.write_text(json.dumps({place: "fft"}))
    args = ["a cat", "-m", model, "--steps", "1", "-s", "3", "-q", "-o", path]
    taken, choose = [], conv.choose

    def hear(result, kernel, **options):
        found = choose(result, kernel, **options)
        if kernel == (8, 4, 3, 3) and result[1:3] == (4, 4):
            taken.append(found.algorithm)
        return found

    monkeypatch.setattr(conv, "choose", hear)
    assert main(args) == 0 and set(taken) == {"im2col"}  # nobody asked
    assert parse_recipe(read_png(path).texts["refsd"], path).tuned == {}

    taken.clear()
    assert main([*args, "--tuned"]) == 0 and set(taken) == {"fft"}
    assert parse_recipe(read_png(path).texts["refsd"], path).tuned == {place: "fft"}
    assert f"'{place}': 'fft'" in run(capfd, "info", path)[1]
    kept.unlink()
    taken.clear()
    assert main(["repro", path, "-m", model, "-q"]) == 0 and set(taken) == {"fft"}

    code, _, err = run(capfd, *args, "--tuned")
    assert code == 2 and "Run refsd tune first" in err
    for more in (["--exact"], ["--backend", "numpy"]):
        code, _, err = run(capfd, *args, "--tuned", *more)
        assert code == 2 and "--tuned is for the backend numba without --exact" in err
    code, _, err = run(capfd, *args, "--tuned", "--dtype", "bfloat16")
    assert code == 2 and "--tuned is not for bfloat16, which refsd tune does not measure" in err
