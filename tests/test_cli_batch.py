"""`refsd --prompts FILE`: pictures under names made of their recipes, resumed after a check."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_metadata import RECIPE

from refsd.__main__ import main
from refsd.cli import drawing, interrupt, naming
from refsd.errors import ResourceError


@pytest.fixture
def draw(model, tmp_path, monkeypatch, capfd):
    """Write the lines to a file and draw them; gives (exit code, objects on stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()

    def run(lines, *args, name="prompts.txt"):
        (tmp_path / name).write_bytes(lines if isinstance(lines, bytes) else lines.encode())
        code = main(["--prompts", name, "-m", model, "-o", "out", "--steps", "1", "-q", *args])
        said = capfd.readouterr()
        return code, [json.loads(line) for line in said.out.splitlines()
                      if line.startswith('{"index"')], said.err

    return run


def test_a_prompt_a_line(draw, tmp_path, capfd, model):
    code, said, _ = draw("\ufeffa red cat\n\n  a cat \r\n", "-s", "5")
    assert code == 0
    assert [(one["index"], one["line"], one["prompt"], one["seed"], one["drawn"])
            for one in said] == [(0, 1, "a red cat", 5, True), (1, 3, "a cat", 5, True)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        one["path"].removeprefix("out/") for one in said)
    main(["a red cat", "-m", model, "--steps", "1", "-s", "5", "-q", "-o", "alone.png"])
    with Image.open(said[0]["path"]) as ours, Image.open("alone.png") as alone:
        assert ours.text["refsd"] == alone.text["refsd"]
        assert drawing.digest(np.asarray(ours)) == said[0]["pixels"]


def test_json_lines_say_what_differs(draw):
    lines = [{"prompt": "a cat", "seed": 3, "width": 16, "height": 24, "steps": 2.0},
             {"prompt": "a cat", "cfg": 3, "sampler_name": "Euler a", "rng": "cuda", "seed": None},
             {"negative_prompt": "red", "clip_skip": 1, "sampler": "dpm++2m_karras"},
             {"prompt": "a cat"}]
    text = "\n".join(map(json.dumps, lines))
    code, said, _ = draw(text, "-p", "a red cat", "--sampler", "euler")
    assert code == 0
    recipes = [json.loads(Image.open(one["path"]).text["refsd"]) for one in said]
    assert [one["scheduler"]["_class_name"] for one in recipes] == [
        "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler"]
    first, second, third, _ = recipes
    assert (first["seed"], first["width"], first["height"], first["steps"]) == (3, 16, 24, 2)
    assert (second["cfg_scale"], second["rng"], second["seed"]) == (3, "cuda", 0)
    assert (third["prompt"], third["negative_prompt"], third["clip_skip"]) == ("a red cat", "red",
                                                                              1)
    assert not recipes[3]["scheduler"]["use_karras_sigmas"]
    # the name does not depend on what the command line says of other lines
    alone = draw(json.dumps(lines[2]), "-p", "a red cat", name="x.jsonl")[1][0]
    assert alone["path"] == said[2]["path"] and not alone["drawn"]


def test_what_is_finished_is_not_drawn_again(draw, monkeypatch):
    drawn = []
    real = drawing.draw
    monkeypatch.setattr(drawing, "draw", lambda *args, **options: drawn.append(args) or real(*args))
    _, first, _ = draw("a cat\na red cat\na cat", "-b", "2")
    assert [one["drawn"] for one in first] == [True] * 4 + [False] * 2 and len(drawn) == 4
    assert [one["seed"] for one in first] == [0, 1] * 3
    _, second, _ = draw("a red cat\na cat\n", "-b", "2", "-t", "1")
    assert [one["drawn"] for one in second] == [False] * 4 and len(drawn) == 4
    assert second[0] | {"index": 2, "line": 2, "drawn": True} == first[2]


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(path.read_bytes()[:-40]),
    lambda path: Image.open(path).save(path),  # without its recipe
    lambda path: path.write_bytes(path.with_name("other.png").read_bytes()),
    lambda path: _painted(path),
], ids=["cut short", "no recipe", "another picture", "painted"])
def test_what_is_not_the_picture_of_its_name_is_drawn_again(draw, tmp_path, damage):
    _, said, _ = draw("a cat\na red cat")
    path = tmp_path / said[0]["path"]
    (path.with_name("other.png")).write_bytes((tmp_path / said[1]["path"]).read_bytes())
    whole = path.read_bytes()
    damage(path)
    code, again, err = draw("a cat\na red cat")
    assert code == 0 and [one["drawn"] for one in again] == [True, False]
    assert path.read_bytes() == whole and "is not the picture of its name" in err


def _painted(path):
    from refsd.cli.png import encode_png

    with Image.open(path) as image:
        pixels, texts = np.array(image), dict(image.text)
    pixels[0, 0] ^= 1
    path.write_bytes(encode_png(pixels, texts))


def test_ctrl_c_keeps_what_is_done(draw, tmp_path, monkeypatch):
    real, count = drawing.draw, []

    def second_is_stopped(*args, **options):
        count.append(1)
        if len(count) == 2:
            raise interrupt.Stopped(2)
        return real(*args)

    monkeypatch.setattr(drawing, "draw", second_is_stopped)
    code, said, _ = draw("a cat\na red cat", "--results", "results.jsonl")
    assert code == 130
    done = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [one["prompt"] for one in done] == ["a cat"]
    assert [str(path.relative_to(tmp_path)) for path in (tmp_path / "out").iterdir()] == [
        done[0]["path"]]
    code, _, _ = draw("a cat\na red cat", "--results", "results.jsonl")
    assert code == 0
    done = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [one["drawn"] for one in done] == [False, True]


@pytest.mark.parametrize("line, words", [
    ('{"prompt": "x", "stepz": 3}', ["no field 'stepz'", "did you mean steps?"]),
    ('{"prompt": "x", "steps": 0}', ["steps is 0", "1 to 1000"]),
    ('{"prompt": "x", "seed": -1}', ["seed is -1", "0 to"]),
    ('{"prompt": "x", "seed": 18446744073709551615}', ["seed is 18446744073709551615", "1614"]),
    ('{"prompt": "x", "cfg": 7, "cfg_scale": 7}', ["cfg_scale is given twice"]),
    ('{"prompt": "x", "sampler": "eulr"}', ["did you mean euler"]),
    ('{"prompt": "x", "rng": "torch"}', ["rng is 'torch'", "did you mean torch-cpu"]),
    ('{"prompt": 3}', ["prompt is 3", "a text"]),
    ('{"prompt": "\\ud800"}', ["prompt is", "a text"]),
    ('{"steps": 3}', ["no prompt"]),
    ('["x"]', ["a JSON list", "object"]),
    ('{"prompt": "x"', ["not valid JSON", "Give an object"]),
    ('{"prompt": "x", "prompt": "y"}', ["appears twice"]),
    (b'{"prompt": "\xff"}', ["not UTF-8"]),
    ('{"prompt": "x", "width": 12}', ["width is 12", "multiple of 8"]),
    ('{"prompt": "x", "sampler": "lcm", "steps": 60}', ["num_inference_steps is 60"]),
])
def test_bad_lines_are_refused_before_any_is_drawn(draw, tmp_path, monkeypatch, line, words):
    monkeypatch.setattr(drawing, "draw", lambda *args, **options: pytest.fail("drawn"))
    line = line if isinstance(line, bytes) else line.encode()
    code, said, err = draw(b'{"prompt": "a cat"}\n' + line + b"\n\n" + line, "-b", "2")
    errors = err.splitlines()
    assert (code, said, len(errors)) == (2, [], 2)
    for number, error in zip((2, 4), errors):
        assert error.startswith(f"refsd: error: prompts.txt, line {number}: ")
        assert all(word in error for word in words), error
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("args, words", [
    (["a cat"], ["both say what to draw"]),
    (["--output-latents", "x.npy"], ["--output-latents", "leave it out"]),
    (["--disable-image-metadata"], ["--disable-image-metadata", "leave it out"]),
    (["--audit"], ["--audit", "leave it out"]),
    (["--save-state-at", "2"], ["--save-state-at", "leave it out"]),
    (["-o", "x.png"], ["x.png", "folder"]),
    (["-o", "-"], ["folder"]),
    (["--results", "x.csv"], ["x.csv", ".jsonl"]),
    (["--prompts", "none.txt"], ["none.txt", "no such file"]),
    (["--prompts", "empty.txt"], ["0 lines", "1 to"]),
])
def test_bad_command_lines(draw, tmp_path, args, words):
    (tmp_path / "empty.txt").write_text("\n \n")
    code, said, err = draw("a cat", *args)
    assert (code, said) == (2, []) and all(word in err for word in words), err


def test_results_are_for_prompts(capfd):
    assert main(["a cat", "--results", "x.jsonl"]) == 2
    assert "give --prompts" in capfd.readouterr().err


def test_with_json_all_bad_lines_are_in_one_object(draw, capfd, model):
    (draw("a cat"))
    assert main(["--prompts", "prompts.txt", "-m", model, "--json", "-W", "12"]) == 2
    error = json.loads(capfd.readouterr().out)["error"]
    assert "prompts.txt, line 1: width is 12" in error["message"]


def test_names_are_of_what_decides_the_picture():
    name = naming.name_of(RECIPE)
    assert len(name) == 32 and name == naming.name_of(replace(
        RECIPE, threads=64, backend="cuda", versions={}, pixels="x", allow_nonfinite=True,
        tuned={"a": "b"}, cfg_scale=int(RECIPE.cfg_scale),
        model={**RECIPE.model, "name": "moved"}))
    for change in ({"seed": 1}, {"prompt": "x"}, {"dtype": "float64"}, {"exact": True},
                   {"weights": "int8"}, {"model": {"files": {"a": "b"}}},
                   {"model": {**RECIPE.model, "ema": "yes"}},
                   {"scheduler": {**RECIPE.scheduler, "steps_offset": 7}}):
        assert naming.name_of(replace(RECIPE, **change)) != name
    # A name must not change from one version to the next: pictures would be drawn again.
    assert name == "c90323f6138e57a0c134aa8925189fbc"


def test_a_results_file_that_cannot_be_written_is_said(draw, monkeypatch):
    def full(path, parts):
        raise ResourceError(f"{path}: cannot be written: No space left on device. Give another")

    monkeypatch.setattr("refsd.atomic.write_file", full)
    code, _, err = draw("a cat", "--results", "r.jsonl")
    assert code == 4 and "r.jsonl: cannot be written" in err
