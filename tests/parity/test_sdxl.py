"""Stable Diffusion XL's pipelines against diffusers: the same folder, seed and options.

Every grey level (of 3 a pixel) within one of diffusers', 99.9 % of them identical; latents, which
no grey level rounds, within 1e-3 of their spread of about 1.
"""

import copy
import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import SDXLCFGCutoffCallback
from PIL import Image
from tiny_diffusers import PROMPT, SIZE, same_picture
from tiny_sdxl import write_model

import refsd
from refsd import schedulers
from refsd.arguments import as_array
from refsd.half import to_float32
from refsd.pipelines import from_diffusers, starts
from refsd.random import TorchGenerator

RANDOM = np.random.default_rng(0)
PICTURE = Image.fromarray(RANDOM.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8))
MASK = Image.fromarray((255 * (RANDOM.random((SIZE, SIZE)) > 0.5)).astype(np.uint8))
CLASSES = {"text": "StableDiffusionXLPipeline", "image": "StableDiffusionXLImg2ImgPipeline",
           "mask": "StableDiffusionXLInpaintPipeline"}
TWO = [PROMPT, "a cat"]
SIZES = {"original_size": (300, 200), "crops_coords_top_left": (10, 20), "target_size": (70, 80)}
AWAY = {"negative_original_size": (100, 50), "negative_crops_coords_top_left": (5, 6),
        "negative_target_size": (30, 40)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Theirs and, on NumPy, ours of each kind of model and each task, loaded once."""
    loaded = {}

    def model(kind, task="text"):
        if kind not in loaded:
            made = {"kind": "base", "in_channels": 9} if kind == "for inpainting" else {
                "kind": kind}
            folder = write_model(tmp_path_factory.mktemp("x"), **made)
            first = "mask" if kind == "for inpainting" else "image" if kind == "refiner" else "text"
            theirs = getattr(diffusers, CLASSES[first]).from_pretrained(folder)
            ours = getattr(refsd, CLASSES[first]).from_pretrained(folder, backend="numpy")
            loaded[kind] = theirs, ours, folder
        theirs, ours, folder = loaded[kind]
        keys = inspect.signature(getattr(diffusers, CLASSES[task]).__init__).parameters
        config = {key: value for key, value in theirs.config.items()
                  if key in keys and key in ("force_zeros_for_empty_prompt",
                                             "requires_aesthetics_score")}
        theirs = getattr(diffusers, CLASSES[task])(
            **{key: value for key, value in theirs.components.items() if key in keys}, **config,
            add_watermarker=False)
        theirs.scheduler = type(theirs.scheduler).from_config(theirs.scheduler.config)
        theirs.set_progress_bar_config(disable=True)
        ours = getattr(refsd, CLASSES[task]).from_pipe(ours)
        ours.scheduler = type(ours.scheduler).from_config(ours.scheduler.config)
        return theirs, ours, folder

    return model


def test_arguments_are_diffusers():
    for name in CLASSES.values():
        theirs = inspect.signature(getattr(diffusers, name).__call__).parameters
        mine = inspect.signature(getattr(refsd, name).__call__).parameters
        for key, parameter in theirs.items():
            if key in ("self", "kwargs") or key in from_diffusers.CALLING:
                continue
            assert key in mine, f"{name}: {key}"
            default = mine[key].default
            assert (list(default) if key == "callback_on_step_end_tensor_inputs" else default) == (
                parameter.default), f"{name}: {key}"
        order = [key for key in theirs if key in mine]
        assert [key for key in mine if key in order and mine[key].kind.name[0] == "P"] == (
            order[:sum(mine[key].kind.name[0] == "P" for key in order)])


@pytest.mark.parametrize("options", [
    {},
    {"negative_prompt": ""},
    {"negative_prompt": "rain", "prompt_2": "a cat", "negative_prompt_2": "blue"},
    {"prompt_2": "", "negative_prompt": "rain", "negative_prompt_2": ""},
    {"prompt": TWO, "negative_prompt": ["rain", "snow"], "num_images_per_prompt": 2,
     "seeds": [1, 2, 3, 4]},
    {"guidance_scale": 1.0},
    {"guidance_scale": 1.0, "prompt": TWO, **SIZES, **AWAY},
    {"guidance_rescale": 0.7},
    {"clip_skip": 1, "negative_prompt": "rain"},
    {"height": 48, "width": 80, **SIZES},
    {**SIZES, **AWAY},
    {"prompt": TWO, **SIZES, **AWAY},
    {"negative_original_size": (100, 50)},
    {"denoising_end": 0.6, "num_inference_steps": 5},
    {"timesteps": [900, 500, 100]},
    {"sigmas": [14.0, 5.0, 1.0]},
], ids=lambda options: "+".join(options) or "plain")  # fmt: skip
def test_text_to_image(models, options):
    theirs, ours, _ = models("base")
    same_picture(theirs, ours, **{"prompt": PROMPT, "num_inference_steps": 2, **options})


@pytest.mark.parametrize("kind, options", [
    ("turbo", {"guidance_scale": 0.0, "num_inference_steps": 1}),
    ("turbo", {"guidance_scale": 0.0, "num_inference_steps": 4}),
    ("base", {"negative_prompt": "rain"}),
])
def test_text_to_image_on_numba(models, kind, options):
    theirs, _, folder = models(kind)
    ours = refsd.AutoPipelineForText2Image.from_pretrained(folder, backend="numba")
    same_picture(theirs, ours, **{"prompt": PROMPT, "num_inference_steps": 2, **options})


@pytest.mark.parametrize("name, options", [
    ("DDIMScheduler", {"eta": 0.5}), ("HeunDiscreteScheduler", {}), ("UniPCMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {}), ("LCMScheduler", {}),
])
def test_samplers(models, name, options):
    """Of the model's own options: no clip_sample or steps_offset is replaced for this family."""
    theirs, ours, _ = models("base")
    theirs.scheduler = getattr(diffusers, name).from_config(theirs.scheduler.config)
    ours.scheduler = getattr(schedulers, name).from_config(ours.scheduler.config)
    same_picture(theirs, ours, prompt=PROMPT, num_inference_steps=4, denoising_end=0.7, **options)


def test_vectors_of_texts(models):
    theirs, ours, _ = models("base")
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds",
             "negative_pooled_prompt_embeds")
    with torch.no_grad():
        found = dict(zip(names, theirs.encode_prompt(TWO, negative_prompt=["rain", "snow"])))
    same_picture(theirs, ours, num_inference_steps=2, **found)
    del found["negative_prompt_embeds"], found["negative_pooled_prompt_embeds"]
    same_picture(theirs, ours, num_inference_steps=2, **found)
    same_picture(theirs, ours, prompt=TWO, num_inference_steps=2,
                 pooled_prompt_embeds=found["pooled_prompt_embeds"].flip(0))


def test_a_model_of_the_texts_own_and_not_of_zeros(models):
    theirs, ours, _ = models("base")
    theirs.register_to_config(force_zeros_for_empty_prompt=False)
    ours.force_zeros_for_empty_prompt = False
    same_picture(theirs, ours, prompt=PROMPT, num_inference_steps=2)


@pytest.mark.parametrize("kind", ["base", "refiner"])
@pytest.mark.parametrize("options", [
    {},
    {"prompt": TWO, "negative_prompt": ["rain", ""], "image": [PICTURE, PICTURE.rotate(90)],
     "num_images_per_prompt": 2, "seeds": [1, 2, 3, 4]},
    {"prompt": TWO, **SIZES, **AWAY, "aesthetic_score": 7.5, "negative_aesthetic_score": 1.0},
    {"denoising_start": 0.5, "num_inference_steps": 5},
    {"denoising_start": 0.3, "denoising_end": 0.7, "num_inference_steps": 8},
    {"strength": 1.0, "denoising_end": 0.5, "guidance_rescale": 0.5, "clip_skip": 1},
], ids=lambda options: "+".join(options) or "plain")  # fmt: skip
def test_from_a_picture(models, kind, options):
    theirs, ours, _ = models(kind, "image")
    same_picture(theirs, ours, **{"prompt": PROMPT, "image": PICTURE, "strength": 0.6,
                                  "num_inference_steps": 4, **options})


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
@pytest.mark.parametrize("start", [0.35, 0.5, 0.9999])
def test_from_within_a_step_of_two_predictions(models, name, start):
    theirs, ours, _ = models("base", "image")
    theirs.scheduler = getattr(diffusers, name).from_config(theirs.scheduler.config)
    ours.scheduler = getattr(schedulers, name).from_config(ours.scheduler.config)
    same_picture(theirs, ours, prompt=PROMPT, image=PICTURE, num_inference_steps=4,
                 denoising_start=start)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_base_and_then_the_refiner(models, backend):
    theirs, _, base = models("base")
    their_refiner, _, refiner = models("refiner", "image")
    ours = refsd.StableDiffusionXLPipeline.from_pretrained(base, backend=backend)
    own = refsd.StableDiffusionXLImg2ImgPipeline.from_pretrained(
        refiner, backend=backend, vae=ours.vae)
    common = {"prompt": PROMPT, "num_inference_steps": 4}
    left = theirs(generator=torch.Generator().manual_seed(7), denoising_end=0.8,
                  output_type="latent", **common).images
    mine = ours(generator=7, denoising_end=0.8, output_type="latent", **common).images
    assert np.abs(mine - left.numpy()).max() < 1e-3
    their_refiner.vae = theirs.vae
    expected = their_refiner(image=left, denoising_start=0.8,
                             generator=torch.Generator().manual_seed(7), **common).images[0]
    found = own(image=mine, denoising_start=0.8, generator=7, **common).images[0]
    apart = np.abs(np.asarray(expected).astype(int) - np.asarray(found))
    assert apart.max() <= 1 and (apart == 0).mean() >= 0.999


def test_latents_with_noise_in_the_place_of_a_picture(models):
    theirs, ours, _ = models("base", "image")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"prompt": PROMPT, "num_inference_steps": 3, "strength": 0.7, "latents": latents}
    expected = theirs(image=PICTURE, generator=torch.Generator().manual_seed(7), **options)
    found = ours(generator=7, **options)
    apart = np.abs(np.asarray(expected.images[0]).astype(int) - np.asarray(found.images[0]))
    assert apart.max() <= 1 and (apart == 0).mean() >= 0.999


@pytest.mark.parametrize("kind, options", [
    ("base", {}), ("base", {"strength": 1.0}), ("base", {"denoising_start": 0.5}),
    ("base", {"prompt": TWO, "seeds": [1, 2], **SIZES, **AWAY}), ("refiner", {}),
    ("base", {"padding_mask_crop": 4}),
    ("for inpainting", {}), ("for inpainting", {"strength": 0.5, "num_images_per_prompt": 2}),
    ("for inpainting", {"denoising_start": 0.5, "denoising_end": 0.8}),
])
def test_inpainting(models, kind, options):
    theirs, ours, _ = models(kind, "mask")
    same_picture(theirs, ours, **{"prompt": PROMPT, "image": PICTURE, "mask_image": MASK,
                                  "num_inference_steps": 4, **options})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_vae_of_halves_computes_in_float32(models, dtype):
    """Encoding in both, decoding in float16: what is rounded is the latents, once and once more.

    Two roundings of the half are at most 2 units of its last place; the pictures are float32's.
    """
    theirs, _, folder = models("base", "image")
    ours = refsd.StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, backend="numpy",
                                                                  dtype=dtype)
    half = getattr(torch, dtype)
    theirs.vae = copy.deepcopy(theirs.vae).to(half)
    image = torch.from_numpy(np.asarray(PICTURE, "f4").transpose(2, 0, 1)[None] / 127.5 - 1)
    with torch.no_grad():
        expected = theirs.prepare_latents(image.to(half), None, 1, 1, half, "cpu",
                                          torch.Generator().manual_seed(7), add_noise=False)
    image = as_array("image", image.to(half), dtype)
    found = to_float32(starts.encode_image(ours, image, TorchGenerator(7)))
    apart = np.abs(found - expected.float().numpy())
    unit = float(torch.finfo(half).eps)
    assert (apart <= 2 * unit * np.abs(found) + 1e-6).all() and np.abs(found).max() > 0.01
    if dtype == "float16":
        with torch.no_grad():
            image = theirs.vae.float().decode(expected.float() / 0.13025)[0]
        wanted = (image / 2 + 0.5).clamp(0, 1).numpy().transpose(0, 2, 3, 1)
        drawn = ours.to_output(as_array("latents", expected, dtype), "np")
        assert np.abs(drawn - wanted).max() < 1e-4 and wanted.std() > 0.01


def test_callbacks(models):
    """A cutoff of diffusers' own, and tensors that it hands out, which change what follows."""
    theirs, ours, _ = models("base")
    options = {"prompt": PROMPT, "negative_prompt": "rain", "num_inference_steps": 4}
    cutoff = SDXLCFGCutoffCallback(cutoff_step_ratio=0.5)
    same_picture(theirs, ours, callback_on_step_end=cutoff, **options)
    names = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]

    def change(pipe, index, timestep, tensors):
        assert list(tensors) == names
        if index != 1:
            return {}
        # diffusers hands out those of the negative texts before the others
        return {name: tensors[name] * (1.5 if name == "latents" else 0.5) for name in names}

    expected = theirs(generator=torch.Generator().manual_seed(7), callback_on_step_end=change,
                      callback_on_step_end_tensor_inputs=names, **options).images[0]
    every = [*names, "negative_prompt_embeds", "negative_pooled_prompt_embeds",
             "negative_add_time_ids"]

    def change_all(pipe, index, timestep, tensors):
        if index == 1:
            return {name: tensors[name] * (1.5 if name == "latents" else 0.5) for name in every}

    found = ours(generator=7, callback_on_step_end=change_all,
                 callback_on_step_end_tensor_inputs=every, **options).images[0]
    apart = np.abs(np.asarray(expected).astype(int) - np.asarray(found))
    assert apart.max() <= 1 and (apart == 0).mean() >= 0.999
