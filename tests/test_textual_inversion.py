"""Textual inversion: the files it comes in, what prompts become, and that nothing else changes."""

import numpy as np
import pytest
import tiny

import refsd
from refsd.errors import ModelError, UsageError
from refsd.weights import write_safetensors


def vectors(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def pipe(folder):
    return refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numpy")


def table(pipe):
    return pipe.text_encoder.tree["embeddings"]["token_embedding"]["weight"]


FILES = {
    "A1111's, named after the file": ({"emb_params": vectors(1, 2, 16)}, "Mine", 2),
    "with what training left": ({"emb_params": vectors(1, 2, 16), "step": np.zeros(1, "i8")},
                                "Mine", 2),
    "diffusers', by the word": ({"<toy>": vectors(1, 16)}, "<toy>", 1),
    "halves": ({"<toy>": vectors(1, 1, 16).astype("f2")}, "<toy>", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files(pipe, tmp_path, name):
    found, word, count = FILES[name]
    write_safetensors(tmp_path / "Mine.safetensors", found)
    rows = len(table(pipe))
    pipe.load_textual_inversion(tmp_path / "Mine.safetensors")
    names = [word, *(f"{word}_{i}" for i in range(1, count))]
    assert pipe.tokenizer.embedding(word.upper()) == " ".join(names)
    ids = pipe.tokenizer(f"red {word} cat")[0].tolist()
    assert ids[2:2 + count] == list(range(rows, rows + count)), "after the tokens of its own"
    assert np.array_equal(table(pipe)[rows:], next(iter(found.values())).reshape(-1, 16))


def test_a_folder_of_diffusers_and_arrays(pipe, tmp_path):
    write_safetensors(tmp_path / "learned_embeds.safetensors", {"<a>": vectors(1, 16)})
    pipe.load_textual_inversion(tmp_path)
    pipe.load_textual_inversion({"<b>": vectors(2, 16)})
    pipe.load_textual_inversion([vectors(3, 2, 16), vectors(4, 16)], token=["<c>", "<d>"])
    assert pipe.tokenizer("<a><d>")[0, 1:3].tolist() == [518, 522]


def test_everything_else_keeps_its_bits_and_unloading_gives_all_back(folder, pipe):
    before, ids = table(pipe), pipe.tokenizer("a red cat")
    image = pipe("a red cat", num_inference_steps=1, generator=1, output_type="np").images
    pipe.load_textual_inversion(vectors(1, 3, 16), token="<new>")
    assert np.array_equal(table(pipe)[:len(before)], before)
    assert np.array_equal(pipe.tokenizer("a red cat"), ids)
    again = pipe("a red cat", num_inference_steps=1, generator=1, output_type="np").images
    assert np.array_equal(again, image)
    other = pipe("a <new> cat", num_inference_steps=1, generator=1, output_type="np").images
    assert not np.array_equal(other, image)
    pipe.unload_textual_inversion()
    assert table(pipe) is before, "the very leaf: what was prepared of it is still good"
    assert len(pipe.tokenizer.pieces("<new>")) > 1 and pipe.tokenizer.embedding("<new>") == ""


def test_what_does_not_fit_is_told_of_the_text_with_all_vectors(pipe):
    pipe.load_textual_inversion(vectors(1, 8, 16), token="<new>")
    assert len(pipe.tokenizer.pieces("<new> <new>")) == 16
    assert pipe.tokenizer.truncated("<new> <new>") == "<new>_6 <new>_7"


def test_pipelines_that_share_their_parts_share_the_words(pipe):
    other = refsd.StableDiffusionPipeline.from_pipe(pipe)
    pipe.load_textual_inversion(vectors(1, 16), token="<new>")
    assert other.tokenizer("<new>")[0, 1] == 518
    other.unload_textual_inversion("<new>")
    assert pipe.tokenizer.embedding("<new>") == ""


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": "float64"},
                                     {"weights": "int8"}, {"dtype": "int8"}], ids=str)
def test_dtypes_and_forms(folder, options):
    pipe = refsd.StableDiffusionPipeline.from_pretrained(folder, backend="numpy", **options)
    before = np.asarray(table(pipe))
    pipe.load_textual_inversion(vectors(1, 2, 16), token="<new>")
    after = table(pipe)
    assert after.dtype == before.dtype and np.array_equal(np.asarray(after)[:len(before)], before)
    pipe("<new>", num_inference_steps=1)


REFUSED = {
    "SDXL's": ({"clip_g": vectors(1, 2, 20), "clip_l": vectors(1, 2, 16)}, "several text encoders"),
    "another width": ({"emb_params": vectors(1, 2, 1024)}, "width 1024 .*has 16"),
    "two words": ({"<a>": vectors(1, 16), "<b>": vectors(2, 16)}, "2 tensors, expected one"),
    "none": ({}, "0 tensors"),
    "integers": ({"emb_params": np.zeros((1, 16), "i4")}, "is I32"),
    "no vectors": ({"emb_params": np.zeros((0, 16), "f4")}, "shape \\(0, 16\\)"),
    "an image": ({"emb_params": np.zeros((1, 2, 16), "f4")}, "expected \\(vectors, width\\)"),
    "NaN": ({"emb_params": np.full((1, 16), np.nan, "f4")}, "NaN"),
    "too many": ({"emb_params": np.zeros((1025, 16), "f4")}, "expected 1 to 1024"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(pipe, tmp_path, name):
    found, message = REFUSED[name]
    write_safetensors(tmp_path / "x.safetensors", found)
    before = table(pipe)
    with pytest.raises(ModelError, match=message) as refused:
        pipe.load_textual_inversion([vectors(1, 16), tmp_path / "x.safetensors"], ["<a>", "<b>"])
    assert "\n" not in str(refused.value) and table(pipe) is before


def test_pickles_are_not_opened(pipe, tmp_path):
    for name in ("style.pt", "learned_embeds.bin"):
        with pytest.raises(ModelError, match="pickle.*docs/checkpoints.md"):
            pipe.load_textual_inversion(tmp_path / name)


@pytest.mark.parametrize("source, options, message", [
    (vectors(1, 16), {}, "token="), (vectors(1, 16), {"token": "red</w>"}, "a token 'red</w>'"),
    (vectors(1, 16), {"token": " "}, "token is"), ("nowhere/x.safetensors", {}, "no such file"),
    ([vectors(1, 16)] * 2, {"token": "<a>"}, "one each"),
    ([vectors(1, 16)] * 2, {"token": ["<a>", "<a>"]}, "already"),
    (vectors(1, 16), {"token": "<a>", "weight_name": "x.bin"}, "weight_name"),
    (vectors(1, 16), {"token": "<a>", "file": 1}, "file")], ids=str)  # fmt: skip
def test_arguments_that_are_refused(pipe, source, options, message):
    before = table(pipe)
    with pytest.raises(UsageError, match=message):
        pipe.load_textual_inversion(source, **options)
    assert table(pipe) is before


def test_a_word_of_one_loaded_before_is_refused(pipe):
    pipe.load_textual_inversion(vectors(1, 2, 16), token="<a>")
    for word in ("<a>", "<a>_1"):
        with pytest.raises(UsageError, match="already"):
            pipe.load_textual_inversion(vectors(1, 16), token=word)
    with pytest.raises(UsageError, match="no embedding of the word '<b>'.*<a>"):
        pipe.unload_textual_inversion("<b>")
    tokenizer, pipe.tokenizer = pipe.tokenizer, tiny_tokenizer(pipe)
    with pytest.raises(UsageError, match="was replaced"):
        pipe.unload_textual_inversion()
    pipe.tokenizer = tokenizer
    pipe.unload_textual_inversion()


def tiny_tokenizer(pipe):
    from refsd.text import CLIPTokenizer

    return CLIPTokenizer(pipe.tokenizer._own)
