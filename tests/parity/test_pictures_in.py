"""Pictures as inputs against diffusers: the same bits prepared, the same picture drawn."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from tiny_diffusers import PROMPT, SD1, same_picture, write_model

import refsd
from refsd import schedulers
from refsd.pipelines import from_diffusers, images
from refsd.random import TorchGenerator

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (75, 98, 3)).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
SMALL = PICTURE.resize((53, 43))  # drawn as 48 x 40
FLOATS = PIXELS.astype("f4") / 255
MASK = np.zeros((75, 98), "f4")
MASK[20:41, 33:70] = RANDOM.random((21, 37))
FIRST = torch.from_numpy(FLOATS).permute(2, 0, 1)


@pytest.mark.parametrize("image", [
    PICTURE, [PICTURE, PICTURE.crop((5, 5, 60, 40))], FLOATS, FLOATS[None], [FLOATS, FLOATS / 2],
    FIRST, FIRST[None], [FIRST, FIRST / 2], FIRST.double(), FIRST.half(), 2 * FIRST - 1,
    torch.from_numpy(RANDOM.standard_normal((2, 4, 5, 7))).float(),
], ids=range(12))  # fmt: skip
@pytest.mark.parametrize("size", [(None, None), (64, 40), (152, 128)], ids=str)
def test_preparing_a_picture(image, size):
    height, width = size
    expected = VaeImageProcessor().preprocess(image, height=height, width=width)
    found = images.as_image("image", image, 8, latent_channels=4, height=height, width=width)
    assert found.dtype == expected.numpy().dtype and np.array_equal(found, expected.numpy())


@pytest.mark.parametrize("image", [PICTURE, PICTURE.convert("L"), FLOATS, FIRST[None]],
                         ids=range(4))
def test_preparing_a_picture_for_control(image):
    processor = VaeImageProcessor(do_convert_rgb=True, do_normalize=False)
    expected = processor.preprocess(image, height=64, width=40).numpy()
    assert np.array_equal(images.as_pixels("image", image, 8, height=64, width=40), expected)


MASKS = {
    "L": Image.fromarray((255 * MASK).astype(np.uint8)),
    "1": Image.fromarray(MASK > 0.3),
    "RGB": Image.fromarray((255 * MASK).astype(np.uint8)).convert("RGB"),
    "RGBA": Image.fromarray((255 * MASK).astype(np.uint8)).convert("RGBA"),
    "P": Image.fromarray((255 * MASK).astype(np.uint8)).convert("P"),
    "(H, W)": MASK, "(1, H, W)": MASK[None], "(H, W, 1)": MASK[..., None],
    "torch (H, W)": torch.from_numpy(MASK), "torch (1, H, W)": torch.from_numpy(MASK[None]),
    "torch (B, 1, H, W)": torch.from_numpy(np.stack([MASK, 1 - MASK]))[:, None],
}  # fmt: skip


@pytest.mark.parametrize("form", MASKS)
@pytest.mark.parametrize("size", [(72, 96), (64, 40)], ids=str)
def test_preparing_a_mask(form, size):
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    mask = MASKS[form].clone() if isinstance(MASKS[form], torch.Tensor) else MASKS[form]
    expected = processor.preprocess(mask, height=size[0], width=size[1]).numpy()
    found = images.as_mask("mask_image", MASKS[form], 8, height=size[0], width=size[1])
    assert np.array_equal(found, expected) and 0 < found.mean() < 1


@pytest.mark.parametrize("width, height", [(64, 64), (128, 64), (64, 160)])
@pytest.mark.parametrize("padding", [0, 7, 200])
def test_the_part_around_a_mask_and_putting_it_back(width, height, padding):
    theirs = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    grey = MASKS["L"].point(lambda x: x or 1)
    for box in [(33, 20, 70, 41), (0, 0, 5, 30), (80, 60, 98, 75), (2, 3, 96, 74), (50, 0, 51, 75)]:
        mask = Image.new("L", PICTURE.size)
        mask.paste(grey.resize((box[2] - box[0], box[3] - box[1])), box)
        crop = theirs.get_crop_region(mask, width, height, pad=padding)
        assert images.crop_region(mask, width=width, height=height, padding=padding) == crop
        size = {"height": height, "width": width}
        expected = VaeImageProcessor().preprocess(PICTURE, **size, resize_mode="fill",
                                                  crops_coords=crop).numpy()
        found = images.as_image("image", PICTURE, 8, latent_channels=4, **size, crop=crop)
        assert np.array_equal(found, expected)
        expected = theirs.preprocess(mask, **size, resize_mode="fill", crops_coords=crop).numpy()
        assert np.array_equal(images.as_mask("mask", mask, 8, **size, crop=crop), expected)
        painted = PICTURE.rotate(180).resize((width, height))
        expected = VaeImageProcessor().apply_overlay(mask, PICTURE, painted, crop)
        found = images.overlay(mask, PICTURE, painted, crop)
        assert np.array_equal(np.asarray(found), np.asarray(expected))


SAMPLERS = {
    "ddim": ("DDIMScheduler", {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {"steps_offset": 1}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "lcm": ("LCMScheduler", {}),
    "dpm2-ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Pairs of pipelines, theirs and ours, by class and number of the UNet's channels."""
    folders, pairs = {}, {}

    def pair(name, channels=4, backend="numba"):
        if channels not in folders:
            root = tmp_path_factory.mktemp(f"tiny{channels}")
            folders[channels] = write_model(root, in_channels=channels)
        if (name, channels, backend) not in pairs:
            theirs = getattr(diffusers, name).from_pretrained(folders[channels])
            theirs.set_progress_bar_config(disable=True)
            ours = getattr(refsd, name).from_pretrained(folders[channels], backend=backend)
            pairs[name, channels, backend] = theirs, ours
        return pairs[name, channels, backend]

    return pair


def sampling(pair, name):
    """The pair with a sampler."""
    (kind, options), (theirs, ours) = SAMPLERS[name], pair
    theirs.scheduler = getattr(diffusers, kind)(**SD1, **options)
    ours.scheduler = getattr(schedulers, kind)(**SD1, **options)
    return theirs, ours


IMG2IMG = "StableDiffusionImg2ImgPipeline"


@pytest.mark.parametrize("strength", [0.45, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_to_image(models, sampler, strength):
    same_picture(*sampling(models(IMG2IMG), sampler), prompt=PROMPT, image=SMALL,
                 strength=strength, num_inference_steps=5, negative_prompt="blurry")


@pytest.mark.parametrize("options", [
    {"prompt": [PROMPT, "soup"], "image": SMALL}, {"prompt": PROMPT, "num_images_per_prompt": 2},
    {"prompt": [PROMPT, "soup"], "image": [SMALL, SMALL.rotate(180)], "seeds": [1, 2]},
    {"prompt": [PROMPT, "soup"], "image": SMALL, "seeds": [3, 4]},
    {"prompt": PROMPT, "guidance_scale": 1.0, "eta": 0.5}, {"prompt": PROMPT, "strength": 0.29},
    {"prompt": PROMPT, "image": np.asarray(SMALL)[None] / 255},
    {"prompt": PROMPT, "image": FIRST[:, :45, :41]},
    {"prompt": PROMPT, "image": torch.from_numpy(RANDOM.standard_normal((1, 4, 5, 6))).float()},
], ids=range(9))
def test_image_to_image_of_several_pictures(models, options):
    for sampler in ("ddim", "euler-ancestral"):
        same_picture(*sampling(models(IMG2IMG), sampler), **{
            "image": SMALL, "strength": 0.6, "num_inference_steps": 5, **options})


@pytest.mark.parametrize("sampler, own", [
    ("euler", {"sigmas": [14.0, 5.0, 1.0, 0.0]}), ("dpm++2m", {"timesteps": [999, 700, 400, 100]}),
    ("lcm", {"timesteps": [999, 759, 499, 259]})], ids=str)  # fmt: skip
def test_image_to_image_along_a_schedule_of_ones_own(models, sampler, own):
    theirs, ours = sampling(models(IMG2IMG), sampler)
    if sampler == "dpm++2m":
        theirs.scheduler = diffusers.DPMSolverMultistepScheduler(**SD1)
        ours.scheduler = schedulers.DPMSolverMultistepScheduler(**SD1)
    same_picture(theirs, ours, prompt=PROMPT, image=SMALL, strength=0.5, **own)


INPAINT = "StableDiffusionInpaintPipeline"
WHITE = Image.new("L", SMALL.size)
WHITE.paste(255, (9, 12, 37, 31))


@pytest.mark.parametrize("channels, strength", [(4, 0.7), (9, 1.0)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpainting(models, sampler, strength, channels):
    same_picture(*sampling(models(INPAINT, channels), sampler), prompt=PROMPT, image=SMALL,
                 mask_image=WHITE, strength=strength, num_inference_steps=4, height=40, width=48)


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("options", [
    {"prompt": [PROMPT, "soup"]}, {"prompt": [PROMPT, "soup"], "seeds": [1, 2]},
    {"prompt": [PROMPT, "soup"], "image": [SMALL, SMALL.rotate(180)], "seeds": [1, 2],
     "mask_image": [WHITE, WHITE.rotate(180)]},
    {"num_images_per_prompt": 2, "guidance_scale": 1.0},
    {}, {"padding_mask_crop": 3}, {"padding_mask_crop": 40, "strength": 0.5},
    {"image": FLOATS[None], "mask_image": MASK[None, ..., None], "strength": 0.5},
    {"image": FIRST[None], "mask_image": torch.from_numpy(MASK)[None, None]},
    {"latents": torch.from_numpy(RANDOM.standard_normal((1, 4, 5, 6))).float(), "strength": 0.5},
    {"masked_image_latents": torch.from_numpy(RANDOM.standard_normal((1, 4, 5, 6))).float()},
], ids=range(11))  # fmt: skip
def test_inpainting_of_several_pictures(models, options, channels):
    same_picture(*sampling(models(INPAINT, channels), "euler-ancestral"), **{
        "prompt": PROMPT, "image": SMALL, "mask_image": WHITE, "num_inference_steps": 4,
        "height": 40, "width": 48, **options})


PIX2PIX = "StableDiffusionInstructPix2PixPipeline"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_editing(models, sampler):
    same_picture(*sampling(models(PIX2PIX, 8), sampler), prompt=PROMPT, image=SMALL,
                 num_inference_steps=4, image_guidance_scale=1.8, negative_prompt="blurry")


@pytest.mark.parametrize("options", [
    {"prompt": [PROMPT, "soup"]}, {"prompt": [PROMPT, "soup"], "seeds": [1, 2]},
    {"guidance_scale": 1.0}, {"image_guidance_scale": 0.9}, {"image_guidance_scale": 1.0},
    {"image": FLOATS[None, :45, :41], "num_images_per_prompt": 2},
    {"image": torch.from_numpy(RANDOM.standard_normal((1, 4, 5, 6))).float()},
], ids=range(7))  # fmt: skip
def test_editing_of_several_pictures(models, options):
    same_picture(*sampling(models(PIX2PIX, 8), "euler-ancestral"), **{
        "prompt": PROMPT, "image": SMALL, "num_inference_steps": 3, **options})


@pytest.mark.parametrize("name, channels", [(IMG2IMG, 4), (INPAINT, 4), (INPAINT, 9), (PIX2PIX, 8)])
def test_the_reference_draws_them_too(models, name, channels):
    mask = {"mask_image": WHITE, "height": 40, "width": 48} if name == INPAINT else {}
    same_picture(*sampling(models(name, channels, "numpy"), "ddim"), prompt=PROMPT, image=SMALL,
                 num_inference_steps=3, **mask)


@pytest.mark.parametrize("name", [IMG2IMG, INPAINT, PIX2PIX])
def test_every_argument_of_diffusers_is_known(name):
    """By its name, in its place, with its default; what refsd has not is answered by name."""
    theirs = inspect.signature(getattr(diffusers, name).__call__).parameters
    ours = inspect.signature(getattr(refsd, name).__call__).parameters
    elsewhere = [n for n in theirs if n not in ours and n != "kwargs"]
    assert not [n for n in elsewhere if n not in from_diffusers.CALLING]
    shared = [n for n in theirs if n in ours]
    assert shared == [n for n in ours if n in theirs]
    for argument in shared:
        a, b = theirs[argument].default, ours[argument].default
        assert a == b or (a, b) == (["latents"], ("latents",)), argument


def test_parts_are_shared_by_the_pipelines_of_a_model(models):
    text = refsd.StableDiffusionPipeline.from_pretrained(models(IMG2IMG)[1].name, backend="numpy")
    image = refsd.StableDiffusionImg2ImgPipeline.from_pipe(text)
    mask = refsd.StableDiffusionInpaintPipeline.from_pipe(image)
    assert mask.unet is image.unet is text.unet and mask.vae is text.vae


class InSingle:
    """Noise of float32, in whatever dtype it is drawn."""

    def __init__(self, seed):
        self.own = TorchGenerator(seed)

    def randn(self, shape, dtype):
        return self.own.randn(shape, "float32").astype(dtype)


@pytest.mark.parametrize("name, channels", [(IMG2IMG, 4), (INPAINT, 4), (INPAINT, 9), (PIX2PIX, 8)])
def test_latents_are_as_exact_as_torchs(models, name, channels):
    """Against the same in float64: sums of products to 1.5 of torch's error, with Winograd 4.2.

    As tests/parity/test_full_size.py has it of the networks by themselves.
    """
    theirs, ours = sampling(models(name, channels, "numpy"), "euler")
    folder, kind = ours.name, type(ours)
    options = {"prompt": PROMPT, "image": SMALL, "num_inference_steps": 4, "output_type": "latent",
               **({"mask_image": WHITE, "height": 40, "width": 48} if name == INPAINT else {})}
    pipes = {key: kind.from_pretrained(folder, **made) for key, made in {
        "truth": {"backend": "numpy", "dtype": "float64"}, "numba": {"backend": "numba"},
        "exact": {"backend": "numba", "exact": True}}.items()}
    found = {"numpy": ours, **pipes}
    for key, pipe in found.items():
        pipe.scheduler = ours.scheduler
        found[key] = pipe(generator=InSingle(3), **options).images
    truth = found.pop("truth")
    torchs = theirs(generator=torch.Generator().manual_seed(3), **options).images.numpy()
    errors = {key: np.sqrt(np.mean((x - truth) ** 2)) for key, x in found.items()}
    bar = np.sqrt(np.mean((torchs - truth) ** 2))
    assert 0 < bar < 1e-4
    assert errors["numpy"] <= 1.5 * bar and errors["exact"] <= 1.5 * bar
    assert errors["numba"] <= 4.2 * bar
