"""`refsd PROMPT` with a tiny random model: what is drawn, where it goes, and what is said."""

import io
import json
import re

import numpy as np
import pytest
import tiny
from PIL import Image

from refsd.__main__ import main
from refsd.cli import drawing, progress, sampler_names, threads
from refsd.cli.recipe import parse_recipe
from refsd.errors import UsageError
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.random.by_name import NumPyGenerator
from refsd.weights import read_safetensors


@pytest.fixture
def draw(model, tmp_path, monkeypatch, capfd):
    """Run the command in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*args, prompt="a red cat"):
        code = main([prompt, "-m", model, "--steps", "2", *map(str, args)])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def pixels(path):
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def recipe(path):
    with Image.open(path) as image:
        return json.loads(image.text["refsd"])


def test_it_is_the_picture_of_the_python_api(draw, model):
    code, out, err = draw("-s", 3, "-o", "x.png")
    assert (code, out) == (0, "x.png (seed 3)\n")
    pipe = StableDiffusionPipeline.from_pretrained(model)
    wanted = pipe("a red cat", num_inference_steps=2, guidance_scale=7.0, generator=3).images[0]
    assert wanted.size == (32, 32)
    assert (pixels("x.png") == np.asarray(wanted)).all()
    assert pixels("x.png").std() > 5, "a grey picture would make every comparison here pass"


def test_the_bundled_model_has_a_guidance_of_its_own(draw, tmp_path):
    draw("-o", "other.png")
    assert recipe("other.png")["cfg_scale"] == 7.0
    assert main(["a red cube", "--steps", "1", "-q", "-o", str(tmp_path / "ours.png")]) == 0
    assert recipe(tmp_path / "ours.png")["cfg_scale"] == 3.0


def test_each_picture_of_a_batch_can_be_drawn_alone(draw):
    draw("-s", 3, "-b", 3, "-o", "all-{seed}.png")
    for seed in (3, 4, 5):
        draw("-s", seed, "-o", "alone.png")
        assert (pixels("alone.png") == pixels(f"all-{seed}.png")).all()
        assert recipe(f"all-{seed}.png") == recipe("alone.png")
        assert recipe("alone.png")["seed"] == seed
    assert (pixels("all-3.png") != pixels("all-4.png")).any()


def test_the_default_name_never_replaces_a_file(draw, tmp_path):
    names = [draw("-s", 7, "-q", "--cfg-scale", scale)[1] for scale in (1, 5, 9)]
    assert names == [f"{name}.png (seed 7)\n" for name in ("refsd-7", "refsd-7-2", "refsd-7-3")]
    scales = [recipe(tmp_path / f"{name}.png")["cfg_scale"]
              for name in ("refsd-7", "refsd-7-2", "refsd-7-3")]
    assert scales == [1, 5, 9]
    assert {path.name for path in tmp_path.iterdir()} == {
        "refsd-7.png", "refsd-7-2.png", "refsd-7-3.png"}


def test_a_named_file_is_replaced_and_a_link_followed(draw, tmp_path):
    (tmp_path / "real.png").write_text("old")
    (tmp_path / "link.png").symlink_to("real.png")
    assert draw("-o", "link.png")[0] == 0
    assert (tmp_path / "link.png").is_symlink()
    assert pixels("real.png").shape == (32, 32, 3)


@pytest.mark.parametrize("output, names", [
    ("new", {"new/refsd-1.png", "new/refsd-2.png"}),
    ("new/", {"new/refsd-1.png", "new/refsd-2.png"}),
    ("new/x.png", {"new/x.png", "new/x-2.png"}),
    ("new/{index}.png", {"new/0.png", "new/1.png"}),
    ("new/{seed}-{index}.PNG", {"new/1-0.PNG", "new/2-1.PNG"}),
    ("new/%d{x}.png", {"new/%d{x}.png", "new/%d{x}-2.png"}),
])
def test_where_pictures_go(draw, tmp_path, output, names):
    (tmp_path / "new").mkdir()
    assert draw("-s", 1, "-b", 2, "-o", output)[0] == 0
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == names


def test_a_picture_on_stdout_and_nothing_else(model, capfdbinary):
    assert main(["a red cat", "-m", model, "--steps", "1", "-s", "5", "-q", "-o", "-"]) == 0
    said = capfdbinary.readouterr()
    assert pixels(io.BytesIO(said.out)).shape == (32, 32, 3)
    assert b"seed 5" in said.err, "the seed is always printed"


def test_the_seed_that_was_chosen_draws_it_again(draw):
    first, second = draw("-o", "a.png", "-q")[1], draw("-o", "b.png", "-s", "-5", "-q")[1]
    seeds = [re.fullmatch(r".\.png \(seed (\d+)\)\n", out)[1] for out in (first, second)]
    assert seeds[0] != seeds[1]
    draw("-s", seeds[0], "-o", "c.png")
    assert (pixels("a.png") == pixels("c.png")).all()


@pytest.mark.parametrize("options", [
    ["--sampler", "euler_a"], ["--steps", "3"], ["--cfg-scale", "2"], ["-n", "red"], ["-s", "4"],
    ["--guidance-rescale", "1"], ["--eta", "1"], ["--clip-skip", "1"], ["--rng", "cuda"],
    ["--rng", "numpy"], ["--rng", "cuda", "-s", "4"],
], ids=" ".join)
def test_every_option_changes_the_picture(draw, options):
    draw("-s", 3, "-o", "plain.png")
    assert draw("-s", 3, "-o", "other.png", *options)[0] == 0
    assert (pixels("plain.png") != pixels("other.png")).any()


def test_size_and_dtype(draw):
    draw("-s", 3, "-o", "a.png", "-W", 64, "-H", 40)
    draw("-s", 3, "-o", "b.png", "-W", 64, "-H", 40, "--dtype", "float64", "-t", 1)
    assert pixels("a.png").shape == pixels("b.png").shape == (40, 64, 3)
    assert recipe("b.png")["dtype"] == "float64"
    draw("-s", 3, "-o", "c.png", "--dtype", "bfloat16", "--backend", "numpy")
    assert recipe("c.png")["dtype"] == "bfloat16"
    assert recipe("b.png")["threads"] == 1


def test_threads_are_limited_while_drawing_and_not_after(draw, monkeypatch):
    seen = []
    monkeypatch.setattr(progress.Progress, "step", lambda *_: seen.append(threads.in_use()))
    before = threads.in_use()
    draw("-t", 1)
    assert seen == [1, 1]
    assert threads.in_use() == before


@pytest.mark.parametrize("name, schedule", [
    *((name, "") for name in sampler_names.SAMPLERS), ("dpm++2m", "karras"), ("lms", "exponential"),
    ("dpm++2m_sde", "beta"),
])
def test_every_sampler(draw, name, schedule):
    assert draw("--sampler", f"{name}_{schedule}".rstrip("_"), "-o", "x.png")[0] == 0
    sampler = sampler_names.SAMPLERS[name]
    found = recipe("x.png")["scheduler"]
    assert found["_class_name"] == sampler.scheduler
    assert found["beta_end"] == 0.012, "the model's own options are kept"
    with Image.open("x.png") as image:
        line = image.text["parameters"].splitlines()[-1]
    assert f"Sampler: {sampler.label}, " in line
    told = schedule or ("uniform" if name in sampler_names.AUTOMATIC else "")
    assert line.partition("Schedule type: ")[2].partition(",")[0] == told.capitalize()
    # with no word of it A1111 takes its own for the sampler, which is then this one
    assert told or sampler_names.automatic(name) == name


def test_the_schedule_is_an_option_of_its_own(draw):
    assert draw("--sampler", "heun", "--schedule", "karras", "-o", "x.png")[0] == 0
    assert recipe("x.png")["scheduler"]["use_karras_sigmas"] is True
    for name, wanted in ((None, "give --sampler with it"), ("ddim", "ddim has no use_beta_sigmas"),
                         ("euler_karras", "says euler_karras already; give one")):
        with pytest.raises(UsageError, match=wanted):
            sampler_names.chosen(name, "beta")


@pytest.mark.parametrize("name, wanted", [
    ("Euler a", "euler_a"), ("DPM++ 2M Karras", "dpm++2m_karras"), ("DPM++ 2M", "dpm++2m"),
    ("k_dpmpp_2m", "dpm++2m"), ("euler_ancestral", "euler_a"), ("PLMS", "pndm"), ("LCM", "lcm"),
    ("dpmpp-2m-karras", "dpm++2m_karras"), ("k_euler", "euler"), ("DDIM", "ddim"),
    ("EulerDiscreteScheduler", "euler"), ("DPMSolverMultistepScheduler", "dpm++2m"),
    ("EulerAncestralDiscrete", "euler_a"), ("LCMScheduler", "lcm"),
    ("DPM++ 2M SDE", "dpm++2m_sde"), ("DPM++ 2M SDE Karras", "dpm++2m_sde_karras"),
    ("DPM++ 2M SDE Exponential", "dpm++2m_sde_exponential"), ("k_dpmpp_2m_sde_ka",
                                                              "dpm++2m_sde_karras"),
    ("DPM++ 2M SDE Heun", "dpm++2m_sde_heun"), ("dpmpp_2m_sde_gpu", "dpm++2m_sde"),
    ("Euler Karras", "euler_karras"), ("euler_beta", "euler_beta"), ("DEIS", "deis"),
    ("UniPC", "unipc"), ("uni_pc", "unipc"), ("uni_pc_bh2", "unipc_bh2"), ("dpmpp_2s", "dpm++2s"),
    ("DPMSolverSinglestepScheduler", "dpm++2s"), ("UniPCMultistepScheduler", "unipc"),
    ("DEISMultistep", "deis"), ("k_dpm_2", "dpm2"), ("k_heun", "heun"),
    ("DPM2 a Karras", "dpm2_a_karras"), ("k_dpm_2_a_ka", "dpm2_a_karras"), ("dpm_2", "dpm2"),
    ("DPM++ 2M SDE Heun Exponential", "dpm++2m_sde_heun_exponential"), ("k_lms", "lms"),
    ("DPM++ SDE Karras", "dpm++sde_karras"),
    ("dpm_solver_singlestep", "dpm++2s"), ("TCD", "tcd"),
])
def test_sampler_names_of_other_tools(name, wanted):
    assert sampler_names.find_sampler(name) == wanted


@pytest.mark.parametrize("name, message", [
    ("DPM++ 2S a", "'DPM[+][+] 2S a' adds noise in two calls of the model"),
    ("DPM++ 2S a Karras", "adds noise"), ("k_dpmpp_2s_a", "adds noise"),
    ("dpmpp_2s_ancestral", "adds noise"),
    ("DPM++ 3M SDE Exponential", "has another sign in one term"),
    ("ddim_trailing", "is ddim with timestep_spacing trailing"),
    ("DDIM Karras", "ddim has no use_karras_sigmas; leave karras out"),
    ("dpm++2m karas", r"did you mean dpm\+\+2m_karras\? Give one of ddim"),
])
def test_samplers_that_are_not_what_they_are_taken_for(name, message):
    with pytest.raises(UsageError, match=message):
        sampler_names.find_sampler(name)


@pytest.mark.parametrize("name", ["dpm++2m_sde_exponential", "unipc_beta", "euler_karras"])
def test_a_schedule_behind_a_name_takes_the_place_of_the_models(name):
    model = {"use_karras_sigmas": True, "algorithm_type": "dpmsolver++", "beta_end": 0.012}
    model["_class_name"] = "DPMSolverMultistepScheduler"
    config = sampler_names.of_model(name, model).config
    chosen = [option for option in sampler_names.SCHEDULES.values() if config.get(option)]
    assert chosen == [sampler_names.SCHEDULES[name.rpartition("_")[2]]] and config.beta_end == 0.012
    sampler = sampler_names.SAMPLERS[name]
    assert sampler_names.label(config) == (sampler.label, sampler.schedule)


def test_a_config_that_no_name_says_is_labelled_by_its_class():
    config = {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}
    assert sampler_names.label(config) == ("DPMSolverMultistepScheduler", "")


def test_numpy_noise_is_numpys():
    wanted = np.random.Generator(np.random.Philox(9)).standard_normal((2, 3), dtype="f4")
    assert (NumPyGenerator(9).randn((2, 3), "float32") == wanted).all()


@pytest.mark.parametrize("name", ["latents.npy", "latents.safetensors"])
def test_latents_decode_to_the_picture(draw, model, name):
    assert draw("-s", 3, "-b", 2, "-o", "{seed}.png", "--output-latents", name)[0] == 0
    found = np.load(name) if name.endswith("npy") else read_safetensors(name)["latents"]
    assert (found.shape, found.dtype) == ((2, 4, 4, 4), np.float32)
    pipe = StableDiffusionPipeline.from_pretrained(model)
    second = pipe.to_output(found[1:], "pil")[0]
    assert (np.asarray(second) == pixels("4.png")).all()


def test_json_says_it_all(draw):
    code, out, err = draw("-s", 3, "-b", 2, "-o", "x.png", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert [image["path"] for image in found["images"]] == ["x.png", "x-2.png"]
    assert [image["seed"] for image in found["images"]] == [3, 4]
    assert found["images"][0]["pixels"] == recipe("x.png")["pixels"]
    assert set(found["seconds"]) == {"model", "kernels", "text", "steps", "decode", "write"}
    assert len(found["step_seconds"]) == 4
    assert found["warnings"] == []


def test_what_is_said(draw):
    _, _, normal = draw("-s", 3, "-o", "x.png")
    assert normal.startswith("refsd: seed 3\n")
    assert re.search(r"model .* s, text .* s, steps .* s \(2 x .* s\), decode .*; .* s in all\n$",
                     normal)
    _, _, verbose = draw("-s", 3, "-o", "x.png", "-v")
    assert re.search(r"seconds of each step: [\d.]+, [\d.]+\n", verbose)
    _, out, quiet = draw("-s", 3, "-o", "x.png", "-q")
    assert (out, quiet) == ("x.png (seed 3)\n", "")


def test_lines_where_there_is_no_terminal(draw, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0)
    assert "refsd: seed 3: step 1 of 2, " in draw("-s", 3)[2]
    assert "step 1 of 2" not in draw("-s", 3, "-q")[2] + draw("-s", 3, "--json")[2]


def test_a_bar_on_a_terminal(draw, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    _, _, err = draw("-s", 3)
    assert "seed 3:" in err and "0/2" in err and "step/s" in err
    assert draw("-s", 3, "-q")[2] == ""


@pytest.mark.parametrize("options, key, nothing", [
    (["--eta", "0.5", "--sampler", "euler_a"], "eta", 0.0),
    (["--guidance-rescale", "0.5", "--cfg-scale", "1"], "guidance_rescale", 0.0),
    (["-n", "blue", "--cfg-scale", "1"], "negative_prompt", ""),
])
def test_an_option_without_effect_is_said_and_not_recorded(draw, options, key, nothing):
    code, _, err = draw("-s", 1, "-o", "x.png", *options)
    assert code == 0 and err.count("changes nothing") == 1
    assert f"warning: --{key.replace('_', '-')} changes nothing: " in err
    assert recipe("x.png")[key] == nothing
    with Image.open("x.png") as image:
        assert "Eta" not in image.text["parameters"] and "blue" not in image.text["parameters"]


def test_eta_and_the_noise_are_told_in_a1111s_words(draw):
    for options, words in ((["--eta", "0.5"], "Eta DDIM: 0.5, RNG: CPU"),
                           (["--rng", "cuda"], "RNG: NV"), (["--rng", "numpy"], "Noise: NumPy")):
        assert draw("-o", "x.png", "--sampler", "ddim", *options)[0] == 0
        with Image.open("x.png") as image:
            assert f", {words}, Version: " in image.text["parameters"]


def test_drawing_leaves_the_pipeline_as_it_was(draw, model):
    draw("-o", "x.png", "--allow-nonfinite")
    pipe = StableDiffusionPipeline.from_pretrained(model)
    found = parse_recipe(json.dumps(recipe("x.png")), "x")
    drawing.draw(pipe, found, lambda *_: None)
    assert found.allow_nonfinite and pipe.check_finite


def test_no_metadata(draw):
    draw("-o", "x.png", "--disable-image-metadata")
    with Image.open("x.png") as image:
        assert image.text == {}


def test_what_does_not_fit_is_named(draw):
    long = "red " * 14 + "and this is lost"
    code, _, err = draw("-q", prompt=long)
    assert code == 0
    assert err.count("warning") == 1
    assert "longer than 14 tokens; dropped: 'and this is lost'" in err
    found = json.loads(draw("--json", "-b", 2, prompt=long)[1])
    assert ["and this is lost" in warning for warning in found["warnings"]] == [True]
    assert draw("-q", prompt="red " * 14)[2] == ""


@pytest.mark.parametrize("prompt", ["", "   ", "\0", "🙂" * 90, "x" * 100_000, "<|endoftext|>",
                                    "e\u0301", "a\nNegative prompt: b\nSteps: 1, Seed: 2, x: 3"])
def test_any_text_is_a_prompt(draw, prompt):
    assert draw("-o", "x.png", prompt=prompt)[0] == 0
    assert recipe("x.png")["prompt"] == prompt


def test_nan_weights_stop_with_the_stage(tmp_path, capfd):
    weights = tiny.tensors("vae")
    weights["decoder.conv_in.bias"][:] = np.nan
    broken = str(tiny.write_model(tmp_path / "broken", vae=weights))
    args = ["a red cat", "-m", broken, "--steps", "1", "-o", str(tmp_path / "x.png")]
    assert main(args) == 3
    said = capfd.readouterr().err
    assert "refsd: error: decode: 3072 of 3072 numbers are NaN or infinite" in said
    assert "warning" in said and "decoder.conv_in.bias" in said
    assert not (tmp_path / "x.png").exists()
    assert main([*args, "--allow-nonfinite"]) == 0
    assert (pixels(tmp_path / "x.png") == 0).all()
