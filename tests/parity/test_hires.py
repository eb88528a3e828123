"""The hires. fix against torch's interpolate and diffusers' image to image from latents."""

import diffusers
import numpy as np
import pytest
import torch
from test_combinations import SAMPLERS
from tiny_diffusers import PROMPT, SD1, write_model

import refsd
from refsd import schedulers
from refsd.pipelines.hires import StableDiffusionHiresPipeline
from refsd.pipelines.upscale import LATENT, upscaled_latents

MODES = {"latent": ("bilinear", False), "latent-antialiased": ("bilinear", True),
         "latent-bicubic": ("bicubic", False), "latent-bicubic-antialiased": ("bicubic", True),
         "latent-nearest": ("nearest", False), "latent-nearest-exact": ("nearest-exact", False)}


@pytest.mark.parametrize("size", [(16, 16), (15, 12), (8, 24), (13, 9), (7, 5)], ids=str)
@pytest.mark.parametrize("mode", LATENT)
def test_latents_are_made_larger_as_torch_makes_them(mode, size):
    """Nearest ones are the same numbers; of the others the weights and two sums of up to 4 products
    round (antialiased and smaller: up to 8), and the cubic's weights add up to 1.7 in magnitude.
    """
    x = np.random.default_rng(0).standard_normal((2, 4, 8, 10)).astype("f4")
    kind, antialias = MODES[mode]
    expected = torch.nn.functional.interpolate(torch.from_numpy(x), size=size, mode=kind,
                                               antialias=antialias).numpy()
    found = upscaled_latents(x, *size, mode)
    if "nearest" in mode:
        np.testing.assert_array_equal(found, expected)
    bound = 2 * 1.7**2 * np.abs(x).max() * (2 * 8 + 8) * 2.0**-24
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("hires"))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    image = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(theirs)
    image.set_progress_bar_config(disable=True)
    ours = refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numpy")
    return theirs, image, ours


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "heun"])
def test_the_second_pass_is_image_to_image_along_a_longer_schedule(pipes, sampler):
    """Half of 8 steps: int(4 / 0.5) of A1111's and int(8 x 0.5) of diffusers' agree."""
    kind, options = SAMPLERS[sampler]
    theirs, image, ours = pipes
    for pipe in theirs, image:
        pipe.scheduler = getattr(diffusers, kind)(**SD1, **options)
    ours.scheduler = getattr(schedulers, kind)(**SD1, **options)
    shared = {"num_inference_steps": 3, "height": 40, "width": 48, "output_type": "latent"}
    small = theirs(PROMPT, generator=torch.Generator().manual_seed(7), **shared).images
    large = torch.nn.functional.interpolate(small, size=(10, 9), mode="bilinear")
    expected = image(PROMPT, image=large, strength=0.5, num_inference_steps=8,
                     generator=torch.Generator().manual_seed(7), output_type="np").images
    first = ours(PROMPT, generator=7, **shared).images
    found = StableDiffusionHiresPipeline.from_pipe(ours)(
        PROMPT, first, 80, 72, 0.5, num_inference_steps=4, generator=7, output_type="np").images
    levels = [(255 * images).round() for images in (expected, found)]
    assert levels[0].std() > 1
    assert np.abs(np.subtract(*levels)).max() <= 1 and np.mean(levels[0] == levels[1]) >= 0.999
