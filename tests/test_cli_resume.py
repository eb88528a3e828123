"""--save-state and --resume: the same file, whether it was drawn in one go or in two."""

import json
from pathlib import Path

import pytest

from refsd.__main__ import main
from refsd.pipelines.resume import read_state
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline

HOW = ["--steps", "4", "--sampler", "dpm++2m", "-q"]
SAVE = ["--save-state", "s.safetensors", "--save-state-at", "2"]
RESUME = ["--resume", "s.safetensors"]


@pytest.fixture
def run(model, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def run(*args):
        code = main([*args, "-m", model])
        return code, capfd.readouterr().err

    return run


def test_the_rest_of_a_picture(run):
    assert run("a red cat", *HOW, "-o", "whole.png", "-s", "5")[0] == 0
    assert run("a red cat", *HOW, *SAVE, "-o", "saved.png", "-s", "5", "--preview", "1")[0] == 0
    code, err = run(*HOW, *RESUME, "-o", "resumed.png", "-v", "--preview", "1")
    assert code == 0 and err.splitlines()[-1:] == []
    assert Path("whole.png").read_bytes() == Path("saved.png").read_bytes()
    assert Path("whole.png").read_bytes() == Path("resumed.png").read_bytes()
    assert run("a red cat", *HOW, *RESUME, "-o", "again.png", "-s", "5", "-t", "1")[0] == 0


def test_a_variation_with_noise_in_each_step(run):
    how = ["a cat", "--steps", "3", "--sampler", "euler_a", "--subseed", "3", "--subseed-strength",
           "0.5", "-s", "5", "--rng", "numpy"]
    assert run(*how, *SAVE, "-o", "whole.png")[0] == 0
    code, err = run(*how, *RESUME, "-o", "resumed.png")
    assert code == 0 and "steps 0." in err and "(1 x " in err
    assert Path("whole.png").read_bytes() == Path("resumed.png").read_bytes()


@pytest.mark.parametrize("args, words", [
    ([*HOW, *RESUME, "-n", "red"], ["negative_prompt is 'red' here and '' there", "resume with"]),
    ([*HOW, *RESUME, "--steps", "5"], ["steps is 5 here and 4 there"]),
    ([*HOW, *RESUME, "--sampler", "ddim"], ["scheduler is"]),
    ([*HOW, *RESUME, "-s", "6"], ["seed is 6 here and 5 there"]),
    (["a cat", *HOW, *RESUME], ["prompt is 'a cat' here and 'a red cat' there"]),
    ([*HOW, *RESUME, "--dtype", "float64"], ["dtype is 'float64' here"]),
    ([*HOW, *RESUME, "-b", "2"], ["--batch-count 2", "leave it out"]),
    ([*HOW, *RESUME, "--prompts", "x.txt"], ["--resume is for one picture", "leave it out"]),
    (["a cat", *HOW, *SAVE, "--prompts", "x.txt"], ["both say what to draw"]),
    ([*HOW, *SAVE[:2]], ["--save-state-at N belong together"]),
    (["a cat", *HOW, *SAVE[:3], "4"], ["step 4 of 4 has none after it"]),
    (["a cat", *HOW, *SAVE[:3], "9"], ["--save-state-at 9: step 9 of 4", "give 1 to 3"]),
    ([*HOW, *RESUME, "--save-state", "t.safetensors", "--save-state-at", "2"],
     ["--save-state-at 2: s.safetensors is after step 2 already; give 3 to 3"]),
    (["a cat", *HOW, *SAVE[:3], "0"], ["--save-state-at is 0"]),
    (["a cat", *HOW, "--save-state", "x.npy", "--save-state-at", "1"], ["x.npy", ".safetensors"]),
    ([*HOW, "--resume", "none.safetensors"], ["none.safetensors: no such file"]),
    ([*HOW, "--resume", "python.safetensors"], ["saved from Python", "--save-state"]),
])
def test_what_is_refused(run, model, args, words):
    from refsd.pipelines.resume import SaveState

    assert run("a red cat", *HOW, *SAVE, "-o", "whole.png", "-s", "5")[0] == 0
    if "python.safetensors" in args:
        StableDiffusionPipeline.from_pretrained(model)(
            "x", num_inference_steps=2, callback_on_step_end=SaveState("python.safetensors", 1))
    code, err = run(*args)
    assert code == 2 and err.count("\n") == 1 and all(word in err for word in words), err


def test_the_file_has_the_recipe(run):
    run("a red cat", *HOW, *SAVE, "-o", "whole.png", "-s", "5")
    kept = read_state("s.safetensors").about
    assert kept["step"] == 2 and kept["notes"]["recipe"]["prompt"] == "a red cat"
    assert json.loads(json.dumps(kept["notes"]["recipe"]))["steps"] == 4
