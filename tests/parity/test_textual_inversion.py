"""Textual inversion against diffusers: the same ids, the same vectors, the same pictures."""

import diffusers
import numpy as np
import pytest
from test_pipelines import PROMPT, SD1, folder, same_picture  # noqa: F401  a fixture

import refsd
from refsd import schedulers
from refsd.weights import write_safetensors


def vectors(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


@pytest.fixture(scope="module")
def pair(folder, tmp_path_factory):  # noqa: F811
    """Both pipelines with a word of diffusers', a single vector and three of A1111's."""
    root = tmp_path_factory.mktemp("embeddings")
    write_safetensors(root / "cat.safetensors", {"<Cat-toy>": vectors(1, 32)})
    write_safetensors(root / "style.safetensors", {"emb_params": vectors(2, 3, 32)})
    write_safetensors(root / "bad.safetensors", {"emb_params": vectors(3, 1, 32)})
    pipes = (diffusers.StableDiffusionPipeline.from_pretrained(folder),
             refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numpy"))
    for pipe, package in zip(pipes, (diffusers, schedulers)):
        pipe.scheduler = package.DDIMScheduler(**SD1, clip_sample=False)
        pipe.load_textual_inversion(str(root / "cat.safetensors"))
        pipe.load_textual_inversion([str(root / "style.safetensors"),
                                     str(root / "bad.safetensors")], token=["style-x", "bad-y"])
    pipes[0].set_progress_bar_config(disable=True)
    return pipes


# Of a word with capitals, or written with them, diffusers takes the first of several vectors alone.
TEXTS = ["a <cat-toy> on a table", "style-x, in the style-x of <Cat-toy>", "A style-x bowl, Bad-y",
         "style-x_1 alone", "style-x_2 in style-xylophone", "a bowl", "<CAT-TOY>" * 80,
         "style-x\nBAD-Y's " * 30]


def test_ids_are_those_of_diffusers(pair):
    theirs, ours = pair
    for text in TEXTS:
        expected = theirs.tokenizer(theirs.maybe_convert_prompt(text, theirs.tokenizer),
                                    padding="max_length", max_length=77, truncation=True).input_ids
        assert ours.tokenizer(text)[0].tolist() == expected, text


def test_the_table_is_that_of_diffusers(pair):
    theirs, ours = pair
    found = ours.text_encoder.tree["embeddings"]["token_embedding"]["weight"]
    expected = theirs.text_encoder.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(np.asarray(found), expected)


def test_pictures(pair):
    same_picture(*pair, prompt=TEXTS[1], negative_prompt="bad-y", num_inference_steps=3)


def test_taken_away_again(folder, pair):  # noqa: F811
    """Some, as diffusers renumbers the others; then all, and the picture is as without."""
    theirs, ours = pair
    for pipe in pair:
        pipe.unload_textual_inversion("<Cat-toy>")
    same_picture(*pair, prompt=TEXTS[1], negative_prompt="bad-y", num_inference_steps=3)
    ours.unload_textual_inversion()
    plain = refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numpy")
    plain.scheduler = ours.scheduler
    a, b = (pipe(PROMPT + " style-x", num_inference_steps=2, generator=1, output_type="np").images
            for pipe in (ours, plain))
    assert np.array_equal(a, b)
