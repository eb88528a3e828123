"""--hires-scale: the second pass on the command line, in the recipe and in A1111's words."""

import json

import numpy as np
import pytest
from PIL import Image

from refsd.__main__ import main
from refsd.cli import hires
from refsd.cli.infotext import parse_infotext
from refsd.cli.recipe import parse_recipe
from refsd.errors import UsageError
from refsd.pipelines.hires import StableDiffusionHiresPipeline
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.pipelines.upscale import UPSCALERS
from refsd.random import TorchGenerator
from refsd.random.variation import varied_noise


@pytest.fixture
def draw(model, tmp_path, monkeypatch, capfd):
    """Draw in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        code = main(["a red cat", "-m", model, "--steps", "2", "-s", "5", *args])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def test_it_is_the_second_pass_of_the_python_api(draw, model):
    code, out, err = draw("--hires-scale", "1.5", "--hires-steps", "3", "--hires-denoising", "0.4",
                          "-o", "x.png", "-n", "cat", "--preview", "1")
    assert code == 0 and "steps 0." in err and "(5 x " in err
    pipe = StableDiffusionPipeline.from_pretrained(model)
    options = {"negative_prompt": "cat", "guidance_scale": 7.0, "generator": 5}
    small = pipe("a red cat", num_inference_steps=2, output_type="latent", **options).images
    wanted = StableDiffusionHiresPipeline.from_pipe(pipe)(
        "a red cat", small, 48, 48, 0.4, "latent", 3, **options).images[0]
    with Image.open("x.png") as image:
        assert (np.asarray(image) == np.asarray(wanted)).all() and image.size == (48, 48)
        said = parse_infotext(image.text["parameters"]).settings
        recipe = json.loads(image.text["refsd"])
    assert [said[name] for name in ("Size", "Denoising strength", "Hires upscale", "Hires steps",
                                    "Hires upscaler")] == ["32x32", "0.4", "1.5", "3", "Latent"]
    assert recipe["hires"] == {"scale": 1.5, "steps": 3, "denoising": 0.4, "upscaler": "latent",
                               "width": 48, "height": 48}
    assert main(["repro", "x.png", "-m", model, "-q"]) == 0


def test_a_variation_is_one_at_both_sizes(draw, model):
    how = ["--subseed", "3", "--subseed-strength", "0.5", "--sampler", "euler_a"]
    assert draw(*how, "--hires-scale", "2", "--hires-upscaler", "lanczos", "--json", "-o",
                "x.png")[0] == 0
    from refsd.cli.sampler_names import of_model

    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.scheduler = of_model("euler_a", pipe.scheduler.config)
    noises = []
    for side in (4, 8):
        generator = TorchGenerator(5)
        noise = varied_noise((1, 4, side, side), generator, variation_seed=3, strength=0.5)
        noises.append((noise, generator))
    small = pipe("a red cat", num_inference_steps=2, guidance_scale=7.0, latents=noises[0][0],
                 generator=noises[0][1], output_type="latent").images
    wanted = StableDiffusionHiresPipeline.from_pipe(pipe)(
        "a red cat", small, 64, 64, 0.7, "lanczos", 2, guidance_scale=7.0, noise=noises[1][0],
        generator=noises[1][1]).images[0]
    assert (np.asarray(Image.open("x.png")) == np.asarray(wanted)).all()


def test_a_file_of_prompts_and_json_say_the_last_size(draw, tmp_path, model, capfd):
    (tmp_path / "p.txt").write_text("a cat\n")
    for drawn in (True, False):
        assert main(["--prompts", "p.txt", "-m", model, "--steps", "1", "-q", "--hires-scale",
                     "1.3"]) == 0
        said = json.loads(capfd.readouterr().out)
        assert (said["width"], said["height"], said["drawn"]) == (40, 40, drawn)


def test_the_names_are_those_of_the_pipeline():
    assert hires.NAMES == UPSCALERS


@pytest.mark.parametrize("args, words", [
    (["--hires-steps", "3"], ["--hires-steps is for a second pass", "--hires-scale"]),
    (["--hires-upscaler", "lanczos"], ["--hires-upscaler is for"]),
    (["--hires-denoising", "0.5"], ["--hires-denoising is for"]),
    (["--hires-scale", "0.5"], ["--hires-scale is 0.5", "1 to 8"]),
    (["--hires-scale", "2", "--hires-denoising", "0"], ["--hires-denoising is 0"]),
    (["--hires-scale", "2", "--hires-denoising", "nan"], ["--hires-denoising is nan"]),
    (["--hires-scale", "2", "--hires-steps", "0"], ["--hires-steps is 0"]),
    (["--hires-scale", "2", "--hires-upscaler", "latnt"], ["did you mean latent?"]),
    (["--hires-scale", "8", "-W", "1024"], ["a side that is 8192", "4096"]),
    (["--hires-scale", "2", "--hires-steps", "900"], ["num_inference_steps is 1285"]),
    (["--hires-scale", "2", "--save-state", "x.safetensors", "--save-state-at", "1"],
     ["--save-state is for a picture of one pass"]),
    (["--hires-scale", "2", "-i", "x.png"], ["text alone"]),
])
def test_what_is_refused(draw, args, words):
    Image.new("RGB", (32, 32)).save("x.png")
    code, _, err = draw(*args)
    assert code == 2 and all(word in err for word in words), err


@pytest.mark.parametrize("change", [[], {"scale": 2}, {"denoising": 0}, {"upscaler": "magic"},
                                    {"width": 5000}])
def test_a_forged_recipe_is_refused(draw, change):
    draw("--hires-scale", "2", "-o", "x.png")
    recipe = json.loads(Image.open("x.png").text["refsd"])
    whole = recipe["hires"] | change if isinstance(change, dict) and change != {"scale": 2} \
        else change
    with pytest.raises(UsageError, match="hires is .*expected an object of scale"):
        parse_recipe(json.dumps(recipe | {"hires": whole}), "x")
