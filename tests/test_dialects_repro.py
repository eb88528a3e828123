"""`refsd repro` of pictures that A1111, stable-diffusion.cpp and ComfyUI wrote."""

import json

import numpy as np
import pytest
from PIL import Image

from refsd.__main__ import main
from refsd.cli import foreign, png, sampler_names
from refsd.cli.pictures import read_picture
from refsd.errors import UsageError
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.schedulers import DDIMScheduler, EulerDiscreteScheduler

A1111 = """a (red:1.2) cat <lora:style:0.5>
Negative prompt: [dog]
Steps: 3, Sampler: {sampler}, {schedule}CFG scale: 7.5, Seed: 5, Size: 32x32, \
Model hash: 0123456789, Model: tiny, Clip skip: 2, {more}Version: v1.10.1"""
GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a (red:1.2) cat", "clip": ["8", 0]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog", "clip": ["8", 0]}},
    "4": {"class_type": "EmptyLatentImage",
          "inputs": {"width": 32, "height": 32, "batch_size": 1}},
    "5": {"class_type": "KSampler", "inputs": {
        "seed": 2**63 + 5, "steps": ["9", 0], "cfg": 7.5, "sampler_name": "ddim",
        "scheduler": "normal", "denoise": 1.0, "model": ["1", 0], "positive": ["2", 0],
        "negative": ["3", 0], "latent_image": ["4", 0]}},
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "x"}},
    "8": {"class_type": "CLIPSetLastLayer",
          "inputs": {"stop_at_clip_layer": -2, "clip": ["1", 1]}},
    "9": {"class_type": "PrimitiveInt", "inputs": {"value": 3}},
}


def a1111(old="", new="", *, sampler="DDIM", schedule="", more="RNG: CPU, "):
    text = A1111.format(sampler=sampler, schedule=schedule, more=more)
    return {"parameters": text.replace(old, new) if old else text}


def editor():
    """The same graph as the editor saves it."""
    links, nodes = [], []
    widgets = {"2": ["a (red:1.2) cat"], "3": ["dog"], "4": [32, 32, 1], "8": [-2],
               "1": ["tiny.safetensors"], "9": [3],
               "5": [2**63 + 5, "fixed", 20, 7.5, "ddim", "normal", 1.0]}
    for key, node in GRAPH.items():
        slots = []
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                links.append([len(links) + 1, int(value[0]), value[1], int(key), len(slots), "X"])
                slots.append({"name": name, "type": "X", "link": len(links)})
        kind = "PrimitiveNode" if key == "9" else node["class_type"]
        nodes.append({"id": int(key), "type": kind, "inputs": slots,
                      "widgets_values": widgets.get(key, [])})
    return {"nodes": nodes, "links": links}


@pytest.fixture
def write(tmp_path):
    """A PNG with these texts; gives its path."""
    def write(texts, pixels=None):
        pixels = np.zeros((32, 32, 3), "u1") if pixels is None else pixels
        path = tmp_path / "x.png"
        path.write_bytes(png.encode_png(pixels, texts))
        return str(path)
    return write


def read(path):
    return foreign.read(read_picture(path))


def drawn(model, **options):
    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.dialect = options.pop("dialect")
    pipe.make_generator = type(pipe.make_generator(1)) if "make" not in options else \
        options.pop("make")
    return np.asarray(pipe("a (red:1.2) cat ", height=32, width=32, num_inference_steps=3,
                           guidance_scale=7.5, clip_skip=1, **options).images[0])


def test_an_a1111_picture_is_drawn_again(write, model, capfd):
    wanted = drawn(model, dialect="a1111", negative_prompt="[dog]", generator=5)
    path = write(a1111(more=""), wanted)  # no RNG: that of a GPU
    assert main(["repro", path, "-m", model, "-q"]) == 0
    said = capfd.readouterr()
    assert "A1111, drawn with --compat a1111 --sampler ddim --rng cuda: identical" in said.out
    assert said.err.splitlines() == ["refsd: warning: drawn without what refsd does not have, or "
                                     "cannot know: lora 'style'"]
    assert main(["repro", write(a1111(), wanted), "-m", model, "-q", "--json"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert found["missing"] == ["lora 'style'"] and found["largest"] > 0


@pytest.mark.parametrize("texts", [{"prompt": json.dumps(GRAPH)},
                                   {"workflow": json.dumps(editor())}])
def test_a_comfyui_picture_is_drawn_again(write, model, texts, capfd, tmp_path):
    wanted = drawn(model, dialect="comfy", negative_prompt="dog", generator=2**63 + 5)
    new = str(tmp_path / "new.png")
    assert main(["repro", write(texts, wanted), "-m", model, "-q", "-o", new]) == 0
    out, err = capfd.readouterr()
    assert "ComfyUI, drawn with --compat comfy" in out
    assert err.count("warning") == ("prompt" in texts) and "PrimitiveInt" in err or not err
    with Image.open(new) as image:
        assert json.loads(image.text["refsd"])["compat"] == "comfy"


def test_the_samplers_sigmas_are_those_of_the_program(write, model):
    pipe = StableDiffusionPipeline.from_pretrained(model)
    found = read(write(a1111(sampler="Euler", schedule="Schedule type: Karras, ")))
    scheduler = found.scheduler(pipe.scheduler.config)
    assert found.sampler == "euler_karras" and isinstance(scheduler, EulerDiscreteScheduler)
    assert scheduler.config["timestep_spacing"] == "linspace"
    assert read(write(a1111(sampler="DPM++ 2M Karras"))).sampler == "dpm++2m_karras"
    ddim = read(write(a1111())).scheduler(pipe.scheduler.config)
    assert ddim.config["steps_offset"] == pipe.scheduler.config["steps_offset"]


@pytest.mark.parametrize("sampler, wanted", [
    ("DPM++ 2M", "dpm++2m_karras"), ("DPM++ SDE", "dpm++sde_karras"), ("DPM2", "dpm2_karras"),
    ("DPM2 a", "dpm2_a_karras"), ("DPM++ 2M SDE", "dpm++2m_sde_exponential"),
    ("DPM++ 2M SDE Heun", "dpm++2m_sde_heun_exponential"), ("Euler", "euler"), ("Heun", "heun"),
    ("LMS", "lms"), ("Euler a", "euler_a"), ("DDIM", "ddim"), ("DPM++ 2M Karras", "dpm++2m_karras"),
])
def test_automatic_is_the_samplers_own_schedule_in_a1111(write, sampler, wanted):
    automatic = read(write(a1111(sampler=sampler, schedule="Schedule type: Automatic, ")))
    assert (automatic.sampler, automatic.missing) == (wanted, [])
    uniform = read(write(a1111(sampler=sampler, schedule="Schedule type: Uniform, ")))
    before = read(write(a1111(sampler=sampler)))  # A1111 1.8 had the schedule in the name alone
    assert uniform.sampler == before.sampler == sampler_names.find_sampler(sampler)


def test_all_settings_have_an_effect_or_a_line(write):
    found = read(write(a1111(
        more="ENSD: 31337, Emphasis: No norm, Pad conds: True, Variation seed: 9, Variation seed "
             "strength: 0.5, Seed resize from: 64x48, Hires upscale: 2, Denoising strength: 0.4, "
             "RNG: TPU, ControlNet 0: \"Module: canny, Model: x\", Eta: 1.0, Foo: bar, ")))
    assert found.compat == "a1111,emphasis=no-norm,ensd=31337,pad=yes"
    assert found.variation == {"seed": 9, "strength": 0.5, "resize_from": [64, 48]}
    assert [line.split(" (")[0] for line in found.missing] == [
        "RNG 'TPU': drawn with the noise of a GPU", "Hires upscale",
        "the picture it began with", "ControlNet 0", "Foo"]
    unknown = read(write(a1111(sampler="Euler", schedule="Schedule type: Turbo, ")))
    assert unknown.sampler == "euler" and "the schedule 'Turbo' of Euler" in unknown.missing[0]


def test_stable_diffusion_cpp(write):
    found = read(write({"parameters": "a cat\nSteps: 20, CFG scale: 7.000000, Guidance: 3.500000, "
                        "Eta: 0.000000, Seed: 42, Size: 512x512, Model: x.safetensors, RNG: cuda, "
                        "Sampler: euler_a karras, Version: stable-diffusion.cpp"}))
    assert (found.program, found.rng, found.compat) == ("stable-diffusion.cpp", "cuda", "a1111")
    assert found.sampler == "euler_a" and len(found.missing) == 1  # Euler a has no such sigmas here


def changed(**inputs):
    graph = json.loads(json.dumps(GRAPH))
    graph["5"]["inputs"] |= inputs
    return {"prompt": json.dumps(graph)}


def test_what_a_graph_has_besides_is_said(write):
    graph = {**GRAPH, "10": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0]}},
             "11": {"class_type": "KSampler", "inputs": {}}}
    graph["5"] = {**GRAPH["5"], "inputs": {**GRAPH["5"]["inputs"], "denoise": 0.5,
                                           "model": ["10", 0]}}
    found = read(write({"prompt": json.dumps(graph)}))
    assert found.model == "tiny.safetensors" and found.missing == [
        "2 samplers: the first is drawn", "the node PrimitiveInt", "the node LoraLoader",
        "the latents that it began with, or left steps to: all steps are drawn from noise"]


@pytest.mark.parametrize("texts, told", [
    (a1111(sampler="Quantum"), "got 'Quantum'"), (a1111(sampler="DDIM CFG++"), "got 'DDIM CFG"),
    (a1111("Seed: 5", "Seed: 99999999999999999999"), "seed"),
    (a1111("32x32", "99999x32"), "width is 99999"),
    (a1111("Steps: 3", "Steps: 100000"), "steps is 100000"),
    (a1111("7.5", "x"), "CFG scale is 'x'"),
    (a1111(more="ENSD: -3, "), "ensd is '-3'"),
    (changed(steps=["5", 0]), "steps is 9"), (changed(seed="x"), "for seed"),
    (changed(latent_image=["6", 0], steps=3), "for width"), (changed(cfg=None), "for cfg"),
    (changed(steps=2**70), "steps is"), (changed(sampler_name="nope"), "got 'nope'"),
    ({"prompt": '{"1": {"class_type": "X", "inputs": {}}}'}, "it does not say how it was made"),
    ({}, "it does not say how it was made"), ({"prompt": "[" * 100_000}, "it does not say how"),
])
def test_what_cannot_be_drawn_is_refused_in_one_line(write, model, texts, told, capfd):
    assert main(["repro", write(texts), "-m", model, "-q"]) == 2
    err = capfd.readouterr().err
    assert told in err and err.count("\n") == 1 and "x.png" in err


def test_the_model_is_to_be_named(write, capfd):
    assert main(["repro", write(a1111())]) == 2
    assert "drawn by A1111 with the model 'tiny' 0123456789. Say with -m" in capfd.readouterr().err


def test_another_size_is_another_picture(write, model, capfd):
    path = write(a1111(), np.zeros((64, 64, 3), "u1"))
    assert main(["repro", path, "-m", model, "-q"]) == 1
    assert "the picture is 64 x 64 pixels, the new one 32 x 32" in capfd.readouterr().out


def test_cycles_in_a_graph_end(write):
    graph = json.loads(json.dumps(GRAPH))
    graph["2"]["inputs"]["text"] = ["2", 0]
    graph["9"]["inputs"]["value"] = ["9", 0]
    with pytest.raises(UsageError, match="for steps"):
        read(write({"prompt": json.dumps(graph)}))


def test_our_own_infotext_without_a_recipe_is_diffusers(write, model, tmp_path, capfd):
    path = tmp_path / "own.png"
    assert main(["a (red:1.2) cat", "-m", model, "--steps", "2", "-s", "5", "-o", str(path),
                 "-q"]) == 0
    with Image.open(path) as image:
        texts = {"parameters": image.text["parameters"]}
        again = write(texts, np.asarray(image))
    assert main(["repro", again, "-m", model, "-q"]) == 0
    assert "refsd, drawn with --compat diffusers" in capfd.readouterr().out


def test_another_models_hash_is_said(write, model, monkeypatch, capfd):
    """Of a single file, which is what A1111 hashes."""
    from refsd.pipelines import identity

    monkeypatch.setattr(identity, "of", lambda *_, **__: {
        "name": "x", "variant": None, "hash": "f" * 64, "files": {"x.safetensors": "f" * 64}})
    assert main(["repro", write(a1111()), "-m", model, "-q"]) == 1
    err = capfd.readouterr().err
    assert "the model's hash is ffffffffff, the picture's 0123456789: another model" in err


def test_a_vae_that_is_given_is_not_missing(write, model, capfd):
    path = write(a1111(more="VAE: other.safetensors, "))
    main(["repro", path, "-m", model, "-q"])
    assert "VAE: other.safetensors" in capfd.readouterr().err
    main(["repro", path, "-m", model, "-q", "--vae", f"{model}/vae"])
    assert "VAE: other.safetensors" not in capfd.readouterr().err


def test_muted_nodes_of_the_editor_did_not_run(write):
    graph = editor()
    graph["nodes"].append({"id": 20, "type": "LoraLoader", "mode": 4, "inputs": []})
    assert read(write({"workflow": json.dumps(graph)})).missing == []


def test_the_advanced_sampler_starts_and_ends_where_it_says(write):
    graph = json.loads(json.dumps(GRAPH))
    inputs = graph["5"]["inputs"]
    graph["5"] = {"class_type": "KSamplerAdvanced", "inputs": {
        **inputs, "noise_seed": 7, "add_noise": "enable", "start_at_step": 0, "end_at_step": 10000,
        "return_with_leftover_noise": "disable"}}
    del graph["5"]["inputs"]["seed"], graph["5"]["inputs"]["denoise"]
    found = read(write({"prompt": json.dumps(graph)}))
    assert found.values["seed"] == 7 and found.missing == ["the node PrimitiveInt"]
    for name in ("start_at_step", "end_at_step"):
        graph["5"]["inputs"] |= {"start_at_step": 0, "end_at_step": 10000, name: 2}
        assert "left steps to" in read(write({"prompt": json.dumps(graph)})).missing[1]
