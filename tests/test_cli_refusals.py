"""Requests that cannot be met: one line, the right exit code, the same from Python, no file."""

import json
import math
import os
import re
import stat

import numpy as np
import pytest

from refsd.__main__ import main
from refsd.errors import ResourceError, UsageError
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.random.by_name import GENERATORS


@pytest.fixture
def refused(model, tmp_path, monkeypatch, capfd):
    """The command fails with this code, and its one line has these words; leaves no file."""
    monkeypatch.chdir(tmp_path)

    def check(code, words, args, *, files=()):
        args = args if "-m" in args else [*args, "-m", model]
        assert main(args) == code
        said = capfd.readouterr()
        *notes, line = said.err.splitlines()
        assert said.out == ""
        # what was found and drawn may be said before: "refsd: PATH is Stable Diffusion 1.x"
        assert all(re.fullmatch(r"refsd: (seed \d+|.+ is .+)", note) for note in notes)
        assert line.startswith("refsd: error: ") and line.isprintable()
        assert all(word in line for word in words), line
        assert not re.search(r"0x[0-9a-f]{4}|Traceback|object at", line)
        assert {path.name for path in tmp_path.iterdir()} == set(files)

        assert main([*args, "--json"]) == code
        found = json.loads(capfd.readouterr().out)["error"]
        assert (found["exit_code"], found["message"]) == (code, line.removeprefix("refsd: error: "))
        assert found["code"] == {2: "usage", 3: "model", 4: "resource"}[code]

    return check


# What is wrong: option and value on the command line, the same as a keyword in Python (or None),
# and words that the message has in both.
BAD_NUMBERS = [
    ("--width", "0", {"width": 0}, ["width", "0"]),
    ("--width", "-8", {"width": -8}, ["width", "-8"]),
    ("--width", "7", {"width": 7}, ["width", "7", "multiple of 8"]),
    ("--width", "1000000000", {"width": 10**9}, ["width", "1000000000", "4096"]),
    ("--width", "8.5", {"width": 8.5}, ["width", "8.5"]),
    ("--width", "wide", {"width": "wide"}, ["width", "wide"]),
    ("--height", "4104", {"height": 4104}, ["height", "4104", "4096"]),
    ("--height", "12", {"height": 12}, ["height", "12", "multiple of 8"]),
    ("--steps", "0", {"num_inference_steps": 0}, ["steps", "0", "1 to 1000"]),
    ("--steps", "-1", {"num_inference_steps": -1}, ["steps", "-1"]),
    ("--steps", "1000000000", {"num_inference_steps": 10**9}, ["steps", "1000000000"]),
    ("--steps", "1.5", {"num_inference_steps": 1.5}, ["steps", "1.5"]),
    ("--cfg-scale", "nan", {"guidance_scale": math.nan}, ["scale", "nan"]),
    ("--cfg-scale", "inf", {"guidance_scale": math.inf}, ["scale", "inf"]),
    ("--cfg-scale", "1e9", {"guidance_scale": 1e9}, ["scale", "1000000000"]),
    ("--cfg-scale", "much", {"guidance_scale": "much"}, ["scale", "much"]),
    ("--guidance-rescale", "-0.1", {"guidance_rescale": -0.1}, ["rescale", "-0.1"]),
    ("--guidance-rescale", "nan", {"guidance_rescale": math.nan}, ["rescale", "nan"]),
    ("--eta", "1.5", {"eta": 1.5}, ["eta", "1.5", "0 to 1"]),
    ("--clip-skip", "-1", {"clip_skip": -1}, ["clip", "-1"]),
    ("--clip-skip", "2", {"clip_skip": 2}, ["clip_skip", "2", "0 to 1"]),
    ("--batch-count", "0", {"num_images_per_prompt": 0}, ["0", "1 to 1000"]),
    ("--batch-count", "1000000", {"num_images_per_prompt": 10**6}, ["1000000", "1000"]),
    ("--seed", "18446744073709551616", {"generator": 2**64}, ["seed", "18446744073709551616"]),
    ("--seed", "1.5", {"generator": 1.5}, ["seed", "1.5"]),
    ("--seed", "", {"generator": ""}, ["seed", "''"]),
    ("--dtype", "float8", None, ["dtype", "float8", "did you mean"]),
    ("--rng", "torch", None, ["rng", "torch", "did you mean torch-cpu"]),
    ("--backend", "abacus", None, ["backend", "abacus", "numpy"]),
    ("--sampler", "eulr", None, ["sampler", "eulr", "did you mean euler"]),
    ("--sampler", "xyz", None, ["sampler", "xyz", "give one of ddim, ddpm"]),
    ("--threads", "0", None, ["threads", "0", "1 to"]),
    ("--threads", "-1", None, ["threads", "-1", "1 to"]),
    ("--threads", "5000", None, ["threads", "5000", "processors"]),
    ("--threads", "many", None, ["threads", "many"]),
    ("--variant", "../x", None, ["variant", "../x"]),
]


@pytest.mark.parametrize("option, value, _, words", BAD_NUMBERS,
                         ids=[f"{row[0]} {row[1]}" for row in BAD_NUMBERS])
def test_bad_values_on_the_command_line(refused, option, value, _, words):
    refused(2, words, ["a red cat", f"{option}={value}"])


@pytest.fixture(scope="module")
def pipe(model):
    return StableDiffusionPipeline.from_pretrained(model)


@pytest.mark.parametrize("keywords, words", [(row[2], row[3]) for row in BAD_NUMBERS if row[2]],
                         ids=str)
def test_bad_values_in_python(pipe, keywords, words):
    with pytest.raises(UsageError) as caught:
        pipe("a red cat", num_inference_steps=keywords.pop("num_inference_steps", 1), **keywords)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("args, words", [
    ([], ["no prompt", "--help"]),
    (["a", "red cat"], ["'red cat'", "quotes"]),
    (["a", "-p", "b"], ["prompt is given twice"]),
    (["a", "--stepz", "3"], ["--stepz", "did you mean --steps?"]),
    (["a", "--step", "3"], ["--step", "did you mean --steps?"]),
    (["a", "-Q"], ["-Q", "no such option"]),
    (["a", "--guidance-scale", "7"], ["--guidance-scale", "did you mean --cfg-scale?"]),
    (["a", "--guidance_scale=7"], ["did you mean --cfg-scale?"]),
    (["a", "--num_inference_steps", "7"], ["did you mean --steps?"]),
    (["a", "-N", "2"], ["-N", "did you mean --batch-count?"]),
    (["a", "--neg", "x"], ["did you mean --negative-prompt?"]),
    (["a", "--size", "64x64"], ["did you mean --width and --height?"]),
    (["a", "--device", "cuda"], ["did you mean --backend?"]),
    (["a", "--seed=--"], ["--seed", "got '--'"]),
    (["a", "--steps=--"], ["--steps", "got '--'"]),
    (["a", "-n"], ["--negative-prompt", "a value is missing"]),
    (["a", "-n", "-x"], ["--negative-prompt=-value"]),
    (["a", "-o", ""], ["--output", "empty"]),
    (["a", "-o", "x.jpg"], ["x.jpg", ".png"]),
    (["a", "-o", "new"], ["new", "a folder has to exist"]),
    (["a", "-o", "x\0.png"], ["x\\x00.png", "not a file name"]),
    (["a", "--output-latents", "x.bin"], ["x.bin", ".npy or .safetensors"]),
    (["a", "-m", "no/such/model"], ["no/such/model"]),
    (["a\udcff"], ["prompt", "surrogate", "U+DCFF"]),
    (["a", "-n", "b\udcff"], ["surrogate"]),
])
def test_bad_command_lines(refused, args, words):
    refused(2, words, args)


def test_options_after_two_dashes_are_text(capfd):
    assert main(["--", "a", "--steps", "3"]) == 2
    assert "--steps: options are to come before --" in capfd.readouterr().err


@pytest.mark.parametrize("args, words", [
    (["-o", "none/x.png"], ["none/x.png", "folder", "does not exist"]),
    (["-o", "none/"], ["none", "does not exist"]),
    (["-o", "file/x.png"], ["file/x.png", "Not a directory"]),
    (["-o", "y" * 300 + ".png"], ["yyy", "File name too long"]),
    (["--output-latents", "folder.npy"], ["folder.npy", "is a folder"]),
    (["--output-latents", "none/x.npy"], ["none/x.npy", "does not exist"]),
    (["-o", "{seed}"], ["5", "is a folder"]),
    (["-o", "/proc/x.png"], ["/proc/x.png", "cannot be written"]),
])
def test_places_are_tried_before_the_model_is_read(refused, tmp_path, monkeypatch, args, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "5").mkdir()

    def never(*args, **options):
        raise AssertionError("the model was read")

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", never)
    refused(4, words, ["a red cat", "-s", "5", *args], files=("file", "folder.npy", "5"))


@pytest.mark.parametrize("seed, count, code", [(2**64 - 2, 2, 0), (2**64 - 2, 3, 2)])
def test_the_last_seed_of_a_batch_exists_too(model, tmp_path, capfd, seed, count, code):
    args = ["a", "-m", model, "--steps", "1", "-s", str(seed), "-b", str(count)]
    assert main([*args, "-o", str(tmp_path)]) == code


def test_stdout_is_not_for_two(capfd):
    assert main(["a", "-o", "-", "--json"]) == 2
    assert "both want stdout" in json.loads(capfd.readouterr().out)["error"]["message"]
    assert main(["a", "-o", "-", "-b", "2"]) == 2
    assert "stdout takes one picture, not 2" in capfd.readouterr().err


def test_a_terminal_gets_no_png(monkeypatch, capfd):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["a", "-o", "-"]) == 2
    assert "stdout is a terminal" in capfd.readouterr().err


def test_too_little_memory_is_known_before_the_first_step(refused, monkeypatch):
    monkeypatch.setattr("refsd.weights.memory.available_bytes", lambda: 5 << 20)
    monkeypatch.setattr("refsd.pipelines.stages.denoise", None)
    refused(4, ["512 x 512", "GiB are free", "smaller"], ["a", "-W", "512", "-H", "512"])


def test_memory_that_runs_out_on_the_way(refused, monkeypatch):
    def decode(*args):
        raise MemoryError

    monkeypatch.setattr("refsd.pipelines.stages.decode", decode)
    refused(4, ["out of memory", "32 x 32 needs about 0.2 GiB", "smaller"], ["a", "--steps", "1"])


def test_a_bug_is_called_one(model, monkeypatch, tmp_path, capfd):
    def broken(*args, **options):
        raise ZeroDivisionError("line\nbreak")

    monkeypatch.setattr("refsd.pipelines.stages.decode", broken)
    args = ["a", "-m", model, "--steps", "1", "-q", "-o", str(tmp_path)]
    assert main(args) == 70
    assert capfd.readouterr().err == (
        "refsd: error: ZeroDivisionError: line\\nbreak. This is a bug in refsd: please report it "
        "with what -v shows\n")
    assert main([*args, "-v"]) == 70
    assert "Traceback" in capfd.readouterr().err


def test_a_picture_that_cannot_be_saved_is_kept(model, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    args = ["a", "-m", model, "--steps", "1", "-s", "5", "-o", "/dev/full"]
    for name in ("refsd-kept.png", "refsd-kept-2.png"):
        assert main(args) == 4
        line = capfd.readouterr().err.splitlines()[-1]
        assert "/dev/full: cannot be written: No space left on device" in line
        assert line.endswith(f"The picture of seed 5 is kept as {tmp_path / name}")
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_dev_null_stays_a_device(model):
    assert main(["a", "-m", model, "--steps", "1", "-o", "/dev/null"]) == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_batch_keeps_what_is_done(model, tmp_path, monkeypatch, capfd):
    """The second picture fails: the first is there, nothing else is."""
    real, done = GENERATORS["torch-cpu"], []

    def second_fails(seed):
        done.append(seed)
        if len(done) == 2:
            raise ResourceError("no more")
        return real(seed)

    monkeypatch.setitem(GENERATORS, "torch-cpu", second_fails)
    args = ["a", "-m", model, "--steps", "1", "-s", "5", "-b", "3", "-o", str(tmp_path)]
    assert main([*args, "--output-latents", str(tmp_path / "x.npy")]) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["refsd-5.png"]
    assert np.array_equal(done, [5, 6])
