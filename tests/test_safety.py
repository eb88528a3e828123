"""pipe.safety_checker: the caller's function, with the meaning that it has in diffusers."""

import numpy as np
import pytest

from refsd import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from refsd.errors import UsageError


@pytest.fixture
def pipe(model):
    return StableDiffusionPipeline.from_pretrained(model)


def draw(pipe, **options):
    return pipe(["a red cat", "a cat"], num_inference_steps=1, generator=3, **options)


def second(images):
    return [False, True]


@pytest.mark.parametrize("checker, factor", [
    (second, 1),
    (lambda images, clip_input: (images, second(images)), 1),
    (lambda images, **others: np.array(second(images)), 1),
    (lambda images: (0.5 * images, (False, True)), 0.5),
], ids=["a list", "as for diffusers", "an array", "other pictures"])
def test_a_flagged_picture_is_black(pipe, checker, factor):
    plain = draw(pipe, output_type="np")
    assert plain.nsfw_content_detected is None
    pipe.safety_checker = checker
    found = draw(pipe, output_type="np")
    assert found.nsfw_content_detected == [False, True]
    assert (found.images[0] == factor * plain.images[0]).all() and not found.images[1].any()
    images, flags = draw(pipe, return_dict=False)
    assert flags == [False, True] and not np.asarray(images[1]).any()
    assert (np.asarray(images[0]) == (found.images[0] * 255).round()).all()


def test_it_sees_pictures_and_not_latents(pipe):
    seen = []
    pipe.safety_checker = lambda images: seen.append(images.copy()) or images.fill(0) or second(0)
    images = draw(pipe, output_type="np").images
    assert seen[0].shape == (2, 32, 32, 3) and 0 <= seen[0].min() < seen[0].max() <= 1
    assert (images[0] == seen[0][0]).all()
    assert draw(pipe, output_type="latent").nsfw_content_detected is None and len(seen) == 1


def test_one_answer_is_for_all(pipe):
    pipe.safety_checker = lambda images, **others: (images, False)  # how many switch diffusers' off
    assert draw(pipe).nsfw_content_detected == [False, False]


@pytest.mark.parametrize("answer", [None, [True], "no", [0, 1], [None, None]])
def test_what_says_nothing_is_refused(pipe, answer):
    pipe.safety_checker = lambda images: answer
    with pytest.raises(UsageError, match="safety_checker gave .* for 2 pictures; return True or"):
        draw(pipe)


def test_other_pipelines_have_it_too(pipe):
    image = draw(pipe).images[0]
    pipe.safety_checker = lambda images: [True]
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    found = other("a cat", image, num_inference_steps=2, generator=1)
    assert found.nsfw_content_detected == [True] and not np.asarray(found.images[0]).any()
