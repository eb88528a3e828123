"""Pictures with a tiny autoencoder against diffusers, by the criterion of test_pipelines.py."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from test_models import randomised
from test_pipelines import PROMPT, SD1, SIZE, folder, same_picture  # noqa: F401  a fixture

import refsd
from refsd import schedulers


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(3)
    model = randomised(AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4))
    with torch.no_grad():  # so that its pictures are not all grey
        for parameter in model.parameters():
            parameter *= 1.5
    path = tmp_path_factory.mktemp("taesd") / "tiny"
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_pictures(folder, tiny, backend):  # noqa: F811
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, vae=AutoencoderTiny.from_pretrained(tiny))
    theirs.set_progress_bar_config(disable=True)
    ours = refsd.StableDiffusionPipeline.from_pretrained(folder, vae=tiny, backend=backend)
    for pipe, package in ((theirs, diffusers), (ours, schedulers)):
        pipe.scheduler = package.DDIMScheduler(**SD1, clip_sample=False)
    same_picture(theirs, ours, prompt=[PROMPT, "a bowl of soup"], num_inference_steps=3)


def test_pictures_from_a_picture(folder, tiny):  # noqa: F811
    """The latents of a picture draw no noise, also where each picture has a generator."""
    theirs = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(
        folder, vae=AutoencoderTiny.from_pretrained(tiny))
    theirs.set_progress_bar_config(disable=True)
    ours = refsd.StableDiffusionImg2ImgPipeline.from_pretrained(folder, vae=tiny, backend="numpy")
    for pipe, package in ((theirs, diffusers), (ours, schedulers)):
        pipe.scheduler = package.DDIMScheduler(**SD1, clip_sample=False)
    image = np.random.default_rng(5).random((1, SIZE, SIZE, 3), "float32")
    for seeds in (7, [1, 2]):
        same_picture_of(theirs, ours, seeds, image)


def same_picture_of(theirs, ours, seeds, image):
    def without_size(pipe):
        return lambda *, height, width, **options: pipe(**options)

    prompt = [PROMPT, "soup"] if isinstance(seeds, list) else PROMPT
    same_picture(without_size(theirs), without_size(ours), seeds=seeds, prompt=prompt, image=image,
                 strength=0.7, num_inference_steps=4)
