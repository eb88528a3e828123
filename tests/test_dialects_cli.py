"""--compat: whose prompts and noise on the command line, and what the picture says of it."""

import json

import numpy as np
import pytest
from PIL import Image

from refsd.__main__ import main
from refsd.cli.infotext import parse_infotext
from refsd.cli.recipe import Recipe, parse_recipe
from refsd.errors import UsageError
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline

PROMPT = "(red:1.3) [cat:1] AND red"


@pytest.fixture
def draw(model, tmp_path, monkeypatch, capfd):
    """Draw in an empty folder; gives (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        code = main([PROMPT, "-m", model, "--steps", "3", "-s", "5", "--sampler", "euler_a", "-o",
                     "x.png", *args])
        return code, capfd.readouterr().err

    return run


def read(path):
    """The settings of A1111's line, the recipe, and the pixels."""
    with Image.open(path) as image:
        return (parse_infotext(image.text["parameters"]).settings, json.loads(image.text["refsd"]),
                np.asarray(image))


@pytest.mark.parametrize("compat, rng, told", [
    ("a1111", "cuda", {"RNG": "NV"}), ("comfy", "torch-cpu", {"RNG": "CPU"}),
    ("a1111,ensd=31337,emphasis=no-norm,pad=yes,old-editing=yes", "cuda", {
        "RNG": "NV", "ENSD": "31337", "Emphasis": "No norm", "Pad conds": "True",
        "Use old prompt editing timelines": "True"})])
def test_a_picture_in_a_dialect_is_that_of_the_pipeline(draw, model, compat, rng, told):
    from refsd.cli.sampler_names import of_model

    assert draw("--compat", compat)[0] == 0
    settings, recipe, pixels = read("x.png")
    assert sorted(recipe["compat"].split(",")) == sorted(compat.split(",")) and recipe["rng"] == rng
    assert told.items() <= settings.items()
    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.scheduler, pipe.dialect = of_model("euler_a", pipe.scheduler.config), compat
    wanted = pipe(PROMPT, num_inference_steps=3, guidance_scale=7.0, generator=5).images[0]
    assert (pixels == np.asarray(wanted)).all()
    assert main(["repro", "x.png", "-m", model, "-q"]) == 0


def test_the_noise_may_be_another(draw):
    assert draw("--compat", "a1111", "--rng", "torch-cpu")[0] == 0
    assert read("x.png")[1]["rng"] == "torch-cpu"


def test_what_is_taken_literally_names_the_dialect_that_reads_it(draw):
    code, err = draw()
    assert code == 0 and "it weighs nothing; --compat a1111 reads it" in err
    assert "literally" not in draw("--compat", "a1111")[1]


def test_another_name_is_refused_before_a_model_is_read(draw):
    code, err = draw("--compat", "a111", "-m", "nowhere")
    assert code == 2 and "did you mean a1111" in err and err.count("\n") == 1


def test_a_line_of_a_file_may_name_a_dialect(model, tmp_path, capfd):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "compat": "a1111"}\n{"prompt": "a"}\n')
    (tmp_path / "out").mkdir()
    assert main(["--prompts", str(tmp_path / "p.jsonl"), "-m", model, "--steps", "1", "-o",
                 str(tmp_path / "out"), "-q"]) == 0
    paths = [json.loads(line)["path"] for line in capfd.readouterr().out.splitlines()]
    assert [read(path)[1]["compat"] for path in paths] == ["a1111", "diffusers"]


def test_the_recipe_of_an_old_picture_is_diffusers(draw):
    draw()
    recipe = read("x.png")[1]
    del recipe["compat"]
    assert parse_recipe(json.dumps(recipe), "x").compat == "diffusers"
    with pytest.raises(UsageError, match="compat"):
        parse_recipe(json.dumps(recipe | {"compat": "a1111,ensd=-1"}), "x")
    assert isinstance(parse_recipe(json.dumps(recipe | {"compat": "comfy"}), "x"), Recipe)
