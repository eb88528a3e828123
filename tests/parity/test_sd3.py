"""Stable Diffusion 3 and 3.5 against diffusers' own pipelines: pictures, prompts, refusals.

The criterion is that of test_pipelines.py: every grey level within one, 99.9 % identical.
"""

import inspect

import diffusers
import numpy as np
import pytest
import tiny_diffusers
import tiny_sd3
import torch
from PIL import Image
from tiny_sd3 import KINDS, SIZE

import refsd
import refsd.schedulers
from refsd.errors import UsageError
from refsd.pipelines import stable_diffusion_3 as sd3
from refsd.random import TorchGenerator

PROMPT = "a photograph of an astronaut riding a red horse"
STEPS = {"num_inference_steps": 4, "height": SIZE, "width": SIZE, "max_sequence_length": 20}
TEXTS = {"prompt": ["a red cat", "red"], "prompt_2": ["cat", "a photograph"],
         "prompt_3": ["riding", "an astronaut"], "negative_prompt": ["red", "blurry"],
         "negative_prompt_2": ["low quality", ""], "negative_prompt_3": ["a horse", "t"]}
SKIP = {"skip_guidance_layers": [1, 2], "skip_layer_guidance_start": 0.1,
        "skip_layer_guidance_stop": 0.8}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return {kind: tiny_sd3.write_model(tmp_path_factory.mktemp("sd3"), kind) for kind in KINDS}


@pytest.fixture(scope="session")
def pairs(folders):
    """Both pipelines of each kind; of ours a backend's are made when they are asked for."""
    made = {}

    def pair(kind, backend="numpy", task=""):
        name = f"StableDiffusion3{task}Pipeline"
        if kind not in made:
            lacking = {} if (folders[kind] / "text_encoder_3").is_dir() else dict.fromkeys(
                ["text_encoder_3", "tokenizer_3"])
            found = diffusers.StableDiffusion3Pipeline.from_pretrained(folders[kind], **lacking)
            found.set_progress_bar_config(disable=True)
            made[kind] = found
        if (kind, backend) not in made:
            made[kind, backend] = refsd.StableDiffusion3Pipeline.from_pretrained(
                folders[kind], backend=backend)
        theirs, ours = made[kind], made[kind, backend]
        if task:
            parts = {part: getattr(theirs, part) for part in ours.parts}
            theirs = getattr(diffusers, name)(**parts)
            theirs.set_progress_bar_config(disable=True)
            ours = getattr(refsd, name).from_pipe(ours)
        return theirs, ours

    return pair


def same_picture(pair, **options):
    tiny_diffusers.same_picture(*pair, **{**STEPS, "prompt": PROMPT, **options})


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("kind, options", [
    ("3", {"negative_prompt": "blurry, low quality"}), ("3 without T5", {}),
    ("3.5 medium", SKIP), ("3.5 large", {"guidance_scale": 0.0}),
], ids=list(KINDS))
def test_every_kind(pairs, backend, kind, options):
    same_picture(pairs(kind, backend), **options)


@pytest.mark.parametrize("options", [
    TEXTS, {**TEXTS, "num_images_per_prompt": 2, "num_inference_steps": 2},
    {"prompt": ["a red cat", "red"], "prompt_3": "", "negative_prompt": "red"},
    {"clip_skip": 1, "negative_prompt": "red"}, {"max_sequence_length": 300},
    {"guidance_scale": 1.0}, {"height": 48, "width": 80}, {"num_inference_steps": 1},
    {"sigmas": [1.0, 0.6, 0.2], "num_inference_steps": 28}, {**SKIP, "guidance_scale": 1.0},
    {**SKIP, "sigmas": [1.0, 0.8, 0.6, 0.4, 0.2], "num_inference_steps": 28},
], ids=str)
def test_every_option(pairs, options):
    same_picture(pairs("3"), **options)


def test_by_default_the_picture_is_the_models_size_in_28_steps(pairs):
    """And guided by 7, of T5's 256 tokens."""
    tiny_diffusers.same_picture(*pairs("3 without T5"), prompt=PROMPT)


def test_a_generator_for_each_picture(pairs):
    tiny_diffusers.same_picture(*pairs("3"), seeds=[5, 6], **{**STEPS, "prompt": [PROMPT, "red"]})


DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.4, "max_shift": 1.3,
           "base_image_seq_len": 8, "max_image_seq_len": 64}


@pytest.mark.parametrize("config, options", [
    (DYNAMIC, {}), (DYNAMIC, {"height": 48, "width": 80}), (DYNAMIC, {"mu": 0.7}),
    ({**DYNAMIC, "time_shift_type": "linear"}, {"mu": 2.5}), ({"shift": 3.0}, {"mu": 0.7}),
    ({"shift": 1.0, "use_karras_sigmas": True}, {}),
], ids=str)
def test_schedules_that_a_picture_shifts(pairs, config, options):
    theirs, ours = pairs("3 without T5")
    before = theirs.scheduler, ours.scheduler
    name = "FlowMatchEulerDiscreteScheduler"
    theirs.scheduler = getattr(diffusers, name)(**config)
    ours.scheduler = getattr(refsd.schedulers, name)(**config)
    try:
        same_picture((theirs, ours), **options)
        if not options:
            same_picture(pairs("3 without T5", task="Img2Img"), image=picture())
    finally:
        theirs.scheduler, ours.scheduler = before


def test_given_vectors(pairs):
    theirs, ours = pairs("3")
    with torch.no_grad():
        states, away, pooled, away_pooled = theirs.encode_prompt(
            PROMPT, None, None, negative_prompt="red", max_sequence_length=20)
    found = ours.embed(PROMPT, "red", None, None, copies=1, clip_skip=None, guided=True,
                       size=(SIZE, SIZE), max_sequence_length=20)
    for ours_is, theirs_is in ((found.positive, states), (found.negative, away),
                               (found.added["pooled_projections"],
                                torch.cat([away_pooled, pooled]))):
        difference = np.abs(np.asarray(ours_is) - theirs_is.numpy())
        assert difference.max() < 1e-4 * theirs_is.abs().max()  # some hundred roundings in a row
    given = {"prompt_embeds": states, "negative_prompt_embeds": away,
             "pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": away_pooled}
    same_picture((theirs, ours), prompt=None, **given)


def picture(width=SIZE, height=SIZE):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([3 * x, 255 - 3 * y, 2 * (x + y)], 2).clip(0, 255).astype("u1"))


@pytest.mark.parametrize("options", [
    {}, {"strength": 0.3, "num_inference_steps": 5}, {"strength": 1.0},
    {"image": picture(50, 40)}, {"height": 48, "width": 80},
    {"prompt": ["a red cat", "red"], "num_images_per_prompt": 2, "num_inference_steps": 3},
    {"sigmas": [1.0, 0.6, 0.2], "num_inference_steps": 28}, {"guidance_scale": 1.0},
], ids=lambda options: " ".join(options))
def test_from_a_picture(pairs, options):
    same_picture(pairs("3.5 large", task="Img2Img"), **{"image": picture(), **options})


def test_from_a_picture_with_a_generator_each(pairs):
    pair = pairs("3.5 large", task="Img2Img")
    tiny_diffusers.same_picture(*pair, seeds=[5, 6], image=[picture(), picture()],
                                **{**STEPS, "prompt": [PROMPT, "red"]})


@pytest.mark.parametrize("options", [
    {}, {"strength": 1.0}, {"strength": 0.45, "prompt": ["a red cat", "red"]},
    {"height": 48, "width": 80}, {"guidance_scale": 0.0},
], ids=str)
def test_inpainting(pairs, options):
    """Latents, and the picture of theirs; for diffusers forgets the VAE's shift when it decodes."""
    theirs, ours = pairs("3.5 medium", task="Inpaint")
    mask = Image.fromarray(np.uint8(255 * (np.mgrid[:SIZE, :SIZE].sum(0) > SIZE)))
    asked = {**STEPS, "prompt": PROMPT, "image": picture(), "mask_image": mask, **options}
    latents = theirs(**asked, generator=torch.Generator().manual_seed(7), output_type="latent")
    with torch.no_grad():
        expected = theirs.vae.decode(latents.images / 1.5305 + 0.0609).sample
    expected = theirs.image_processor.postprocess(expected, output_type="pil")
    found = ours(**asked, generator=TorchGenerator(7)).images
    for a, b in zip(expected, found, strict=True):
        difference = np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int))
        assert np.asarray(a).std() > 1
        assert difference.max() <= 1 and (difference == 0).mean() >= 0.999


def test_a_callback_replaces_latents_and_texts(pairs):
    theirs, ours = pairs("3")

    def change(pipe, step, timestep, tensors):
        if step == 1:
            return {"latents": tensors["latents"] * 0.5}
        return {}

    same_picture((theirs, ours), callback_on_step_end=change)

    def other_texts(pipe, step, timestep, tensors):
        """Theirs holds the negative texts in front of the others."""
        both = pipe is theirs
        return {name: tensors[name] * 0.9 if both else tensors[name] * np.float32(0.9)
                for name in tensors} if step == 0 else {}

    own = ["prompt_embeds", "pooled_prompt_embeds"]
    torch_generator, asked = torch.Generator().manual_seed(7), {**STEPS, "prompt": PROMPT}
    expected = theirs(generator=torch_generator, **asked, callback_on_step_end=other_texts,
                      callback_on_step_end_tensor_inputs=own).images[0]
    found = ours(generator=TorchGenerator(7), **asked, callback_on_step_end=other_texts,
                 callback_on_step_end_tensor_inputs=[
                     *own, *(f"negative_{name}" for name in own)]).images[0]
    difference = np.abs(np.asarray(expected).astype(int) - np.asarray(found).astype(int))
    assert difference.max() <= 1 and (difference == 0).mean() >= 0.999


@pytest.mark.parametrize("task", ["", "Img2Img", "Inpaint"])
def test_every_argument_of_diffusers_is_known(task):
    """In the same order as far as positions reach; those that refsd has not are answered."""
    name = f"StableDiffusion3{task}Pipeline"
    theirs = list(inspect.signature(getattr(diffusers, name).__call__).parameters)[1:]
    ours = inspect.signature(getattr(refsd, name).__call__).parameters
    positional = [key for key, one in ours.items() if one.kind is one.POSITIONAL_OR_KEYWORD][1:]
    assert theirs[:len(positional)] == positional
    assert set(theirs) <= {*ours, *sd3.COMMON, *sd3.CALLING}
    defaults = {**{key: one.default for key, one in ours.items()}, **sd3.COMMON}
    for key, one in inspect.signature(getattr(diffusers, name).__call__).parameters.items():
        if key in defaults and key != "self" and not isinstance(one.default, list):
            assert defaults[key] == one.default or key == "num_images_per_prompt", key


@pytest.mark.parametrize("changed, match", [
    ({"height": 56}, "divisible by 16"), ({"max_sequence_length": 513}, "512"),
    ({"prompt_embeds": torch.zeros(1, 97, 96)}, "both"),
], ids=str)
def test_what_diffusers_refuses_is_refused(pairs, changed, match):
    theirs, ours = pairs("3")
    with pytest.raises(ValueError):
        theirs(**{**STEPS, "prompt": PROMPT, **changed})
    with pytest.raises(UsageError):
        ours(**{**STEPS, "prompt": PROMPT, **changed})
