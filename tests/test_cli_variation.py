"""--variation-seed and --seed-resize-from: the picture, its recipe and A1111's words for it."""

import json

import numpy as np
import pytest
from PIL import Image

from refsd.__main__ import main
from refsd.cli import variation
from refsd.cli.infotext import parse_infotext
from refsd.cli.recipe import parse_recipe
from refsd.errors import UsageError
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.random.by_name import GENERATORS
from refsd.random.variation import varied_noise


@pytest.fixture
def draw(model, tmp_path, monkeypatch, capfd):
    """Draw in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        code = main(["a red cat", "-m", model, "--steps", "2", "-s", "5", "--sampler", "euler_a",
                     *args])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def settings(path):
    with Image.open(path) as image:
        return parse_infotext(image.text["parameters"]).settings


@pytest.mark.parametrize("rng", ["torch-cpu", "cuda", "numpy"])
def test_it_is_the_picture_of_the_varied_noise(draw, model, rng):
    assert draw("--variation-seed", "9", "--variation-strength", "0.25", "--seed-resize-from",
                "16x24", "--rng", rng, "-o", "x.png")[0] == 0
    pipe = StableDiffusionPipeline.from_pretrained(model)
    from refsd.cli.sampler_names import of_model

    pipe.scheduler = of_model("euler_a", pipe.scheduler.config)
    generator = GENERATORS[rng](5)
    latents = varied_noise((1, 4, 4, 4), generator, variation_seed=9, strength=0.25,
                           resize_from=(3, 2))
    wanted = pipe("a red cat", num_inference_steps=2, guidance_scale=7.0, generator=generator,
                  latents=latents).images[0]
    assert (np.asarray(Image.open("x.png")) == np.asarray(wanted)).all()
    found = settings("x.png")
    assert found["Variation seed"] == "9" and found["Variation seed strength"] == "0.25"
    assert found["Seed resize from"] == "16x24"
    assert main(["repro", "x.png", "-m", model, "-q"]) == 0


def test_a_batch_counts_the_variation_seed_up(draw):
    code, out, err = draw("--variation-seed", "9", "--variation-strength", "0.5", "-b", "2")
    assert code == 0 and "refsd: seed 5\n" in err
    assert out == "refsd-5.png (seed 5)\nrefsd-5-2.png (seed 5)\n"
    assert [settings(name)["Variation seed"] for name in ("refsd-5.png", "refsd-5-2.png")] == [
        "9", "10"]
    draw("--variation-seed", "10", "--variation-strength", "0.5", "-o", "alone.png")
    assert (np.asarray(Image.open("alone.png")) == np.asarray(Image.open("refsd-5-2.png"))).all()


def test_a_new_variation_is_drawn_and_recorded(draw):
    draw("--subseed-strength", "0.5", "-o", "x.png")
    draw("-o", "plain.png")
    kept = json.loads(Image.open("x.png").text["refsd"])["variation"]
    assert 0 <= kept["seed"] < 2**32 and kept["strength"] == 0.5 and kept["resize_from"] is None
    draw("--variation-seed", str(kept["seed"]), "--variation-strength", "0.5", "-o", "y.png")
    pictures = [np.asarray(Image.open(name)) for name in ("x.png", "y.png", "plain.png")]
    assert (pictures[0] == pictures[1]).all() and (pictures[0] != pictures[2]).any()
    assert "Variation seed" not in settings("plain.png")


def test_a_line_of_a_file_may_have_one(draw, tmp_path, model, capfd):
    lines = [{"prompt": "a cat", "subseed": 3, "subseed_strength": 0.5},
             {"prompt": "a cat", "variation_strength": 0.5}, {"prompt": "a cat"},
             {"prompt": "a cat", "variation_seed": 2**64 - 1, "variation_strength": 0.5},
             {"prompt": "a cat", "variation_strength": 1.5}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines[:3])))
    assert main(["--prompts", "x.jsonl", "-m", model, "--steps", "1", "-q", "-b", "2"]) == 0
    paths = [json.loads(line)["path"] for line in capfd.readouterr().out.splitlines()]
    seeds = [settings(path).get("Variation seed", settings(path)["Seed"]) for path in paths]
    assert seeds == ["3", "4", "0", "1", "0", "1"]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines[3:])))
    assert main(["--prompts", "x.jsonl", "-m", model, "--steps", "1", "-q", "-b", "2"]) == 2
    assert "line 2: variation_strength is 1.5" in capfd.readouterr().err
    (tmp_path / "x.jsonl").write_text(json.dumps(lines[3]))
    assert main(["--prompts", "x.jsonl", "-m", model, "--steps", "1", "-q", "-b", "2"]) == 2
    assert "line 1: --variation-seed is 18446744073709551615" in capfd.readouterr().err


@pytest.mark.parametrize("args, words", [
    (["--variation-seed", "1"], ["--variation-seed", "--variation-strength"]),
    (["--variation-strength", "1.1"], ["--variation-strength is 1.1", "0 to 1"]),
    (["--variation-strength", "nan"], ["--variation-strength is nan"]),
    (["--variation-strength", "0.1", "--variation-seed", str(2**64)], ["--variation-seed is"]),
    (["--seed-resize-from", "512"], ["--seed-resize-from is '512'", "512x512"]),
    (["--seed-resize-from", "0x512"], ["--seed-resize-from is '0x512'"]),
    (["--seed-resize-from", "5000x512"], ["up to 4096"]),
    (["--seed-resize-from", "4x512"], ["resize_from", "1 or more"]),
])
def test_bad_variations_are_refused(draw, args, words):
    code, _, err = draw(*args)
    assert code == 2 and all(word in err for word in words), err


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"seed": 1, "strength": 2, "resize_from": None}, [],
    {"seed": -1, "strength": 0.5, "resize_from": None},
    {"seed": 1, "strength": 0.5, "resize_from": [1]},
    {"seed": 1, "strength": 0.5, "resize_from": None, "more": 1}])
def test_a_recipe_with_a_bad_variation_is_refused(draw, change):
    draw("-o", "x.png")
    recipe = json.loads(Image.open("x.png").text["refsd"]) | {"variation": change}
    with pytest.raises(UsageError, match="variation is .*expected an object of seed"):
        parse_recipe(json.dumps(recipe), "x")


def test_pictures_drawn_before_there_was_a_choice_are_read(draw):
    draw("-o", "x.png")
    recipe = json.loads(Image.open("x.png").text["refsd"])
    del recipe["variation"]
    assert parse_recipe(json.dumps(recipe), "x").variation == {}
    assert variation.settings({}) == {}
