"""The T5 tokenizer against a search through all splits, its files, and bad input."""

import json
import math

import numpy as np
import pytest
import t5_samples as samples
from hypothesis import given, settings
from hypothesis import strategies as st

from refsd.errors import ModelError, UsageError
from refsd.text.t5 import T5Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return T5Tokenizer.from_folder(samples.write(tmp_path_factory.mktemp("t5")))


SCORES = dict(samples.PIECES)
UNKNOWN = min(SCORES.values()) - 10  # what tokenizers gives a character without a piece


def best_split(word):
    """The pieces of the largest sum of scores; neighbours without a piece are one <unk>."""
    best = [(0.0, [])] + [(-math.inf, [])] * len(word)
    for end in range(1, len(word) + 1):
        for start in range(end):
            piece = word[start:end]
            if piece in SCORES and piece not in ("<pad>", "</s>", "<unk>"):
                score = SCORES[piece]
            elif end - start == 1:
                score, piece = UNKNOWN, None
            else:
                continue
            total = best[start][0] + score
            if total > best[end][0]:
                best[end] = total, best[start][1] + [piece]
    ids = [2 if piece is None else list(SCORES).index(piece) for piece in best[-1][1]]
    return [i for n, i in enumerate(ids) if i != 2 or n == 0 or ids[n - 1] != 2]


@settings(deadline=None, max_examples=200)
@given(words=st.lists(st.text("abcdefghirstuRZ0,.!%&", min_size=1, max_size=12), max_size=6))
def test_words_are_split_into_the_most_probable_pieces(tokenizer, words):
    found = [piece.id for piece in tokenizer.pieces("  ".join(words))]
    assert found == [i for word in words for i in best_split("▁" + word)]


def test_ids_are_cut_and_padded(tokenizer):
    ids = tokenizer(["a red cube", "", "a " * 40], max_length=6)
    a, red, cube = (tokenizer.find(f"▁{word}") for word in ("a", "red", "cube"))
    assert ids.tolist() == [[a, red, cube, 1, 0, 0], [1, 0, 0, 0, 0, 0], [a] * 5 + [1]]
    assert ids.dtype == np.int64 and tokenizer("a").shape == (1, 512)
    assert tokenizer("a", max_length=1).tolist() == [[1]]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)


def test_characters_have_other_forms_and_capitals_count(tokenizer):
    assert (tokenizer("ﬁne\té①\u200bs") == tokenizer("fine e1 s")).all()
    assert (tokenizer("Red") != tokenizer("red")).any()
    pieces = tokenizer.pieces("a ﬁ")
    assert [piece.text for piece in pieces][0] == "a" and pieces[0].token == "▁a"


def test_what_does_not_fit_is_said(tokenizer):
    assert tokenizer.truncated("a red cube", max_length=3) == "cube"
    assert tokenizer.truncated("a red cube", max_length=4) == ""


def test_special_tokens_in_a_text(tokenizer):
    last = len(samples.PIECES) + 99  # of a table whose sentinels count down
    assert [piece.id for piece in tokenizer.pieces("a <extra_id_0> a</s>")][1:] == [
        last, tokenizer.find("▁a"), 1]


def test_spiece_model_says_the_same(tokenizer, tmp_path):
    """With the sentinels that SentencePiece's file does not have."""
    other = T5Tokenizer.from_folder(samples.write(tmp_path, spiece=True))
    for text in ("a red sphere, left of ﬁ①", "<extra_id_7> x%%y", "Ａ 0 1"):
        assert (other(text) == tokenizer(text)).all()
    few = samples.write(tmp_path / "few", spiece=True, config={"extra_ids": 3})
    assert T5Tokenizer.from_folder(few).find("<extra_id_2>") == len(samples.PIECES)
    assert T5Tokenizer.from_folder(few).find("<extra_id_3>") is None


def test_a_config_names_tokens_and_length(tmp_path):
    size = len(samples.PIECES)
    config = {"model_max_length": 77, "extra_ids": 0, "eos_token": ".", "added_tokens_decoder": {
        str(size + 100): samples.added("<mark>", 0, special=False) | {"normalized": True}}}
    del config["added_tokens_decoder"][str(size + 100)]["id"]
    found = T5Tokenizer.from_folder(samples.write(tmp_path, config=config))
    assert found.model_max_length == 77 and found.eos_token_id == found.find(".")
    assert found.pieces("a <mark>")[1].id == size + 100
    config = {"extra_special_tokens": ["<one>", samples.added("<two>", 0)]}
    found = T5Tokenizer.from_folder(samples.write(tmp_path, config=config))
    assert (found.find("<one>"), found.find("<two>")) == (size + 100, size + 101)


def test_a_token_keeps_the_flags_of_its_first_mention(tmp_path):
    size = len(samples.PIECES)
    token = samples.added(samples.SENTINELS[0], 0, rstrip=True)
    del token["id"]
    config = {"added_tokens_decoder": {str(size + 99): token}}
    found = T5Tokenizer.from_folder(samples.write(tmp_path, config=config))
    assert found.pieces("a <extra_id_0>  a")[1].text == "<extra_id_0>  "


def test_the_table_may_stand_among_other_normalizers(tmp_path):
    table = samples.tokenizer_json([], samples.charsmap(samples.FORMS))["normalizer"]
    change(tmp_path, normalizer={"type": "Sequence", "normalizers": [{"type": "Strip"}, table]})
    found = T5Tokenizer.from_folder(tmp_path)
    assert (found("ﬁ") == found("fi")).all()


def test_rows_of_the_text_encoder(tokenizer):
    size = len(samples.PIECES) + 100
    tokenizer.require_rows(size)
    with pytest.raises(ModelError, match=f"up to {size - 1}, the text encoder has {size - 1} emb"):
        tokenizer.require_rows(size - 1)


@pytest.mark.parametrize("prompt", [None, 3, b"a", [], [None], "a\ud800"])
def test_other_types_are_refused(tokenizer, prompt):
    with pytest.raises(UsageError, match="prompt: "):
        tokenizer(prompt)


@pytest.mark.parametrize("length", [0, -1, 1.5, "77", 5000])
def test_bad_lengths(tokenizer, length):
    with pytest.raises(UsageError, match="max_length is .*give an integer from 1 to 4096"):
        tokenizer("a", max_length=length)


def change(path, **changes):
    found = samples.tokenizer_json(samples.with_sentinels(samples.PIECES))
    found["model"] |= {k: v for k, v in changes.items() if k in ("vocab", "type")}
    found |= {k: v for k, v in changes.items() if k not in ("vocab", "type")}
    (path / "tokenizer.json").write_text(json.dumps(found))


@pytest.mark.parametrize("changes, message", [
    ({"type": "BPE"}, "a BPE model, expected T5's Unigram"),
    ({"model": None}, "a None model"),
    ({"vocab": {}}, "vocab is no list of pairs"),
    ({"vocab": [["a"]]}, "vocab is no list of pairs"),
    ({"vocab": [["a", 0.0]] * 2}, "2 pieces, expected 3 to"),
    ({"vocab": []}, "0 pieces"),
    ({"vocab": [["a", 0.0], ["b", None], ["c", 0.0]]}, "piece 1 is 'b' with score None"),
    ({"vocab": [["a", 0.0], ["b", 0.0], ["c", math.nan]]}, "piece 2 is 'c' with score nan"),
    ({"vocab": [["a", 0.0], [7, 0.0], ["c", 0.0]]}, "piece 1 is '7'"),
    ({"vocab": [["a", 0.0], ["b", True], ["c", 0.0]]}, "piece 1 is 'b'"),
    ({"added_tokens": 3}, "added_tokens is no list"),
    ({"added_tokens": [samples.added("<mark>", 5)]}, "'<mark>' claims id 5, its place is "),
    ({"added_tokens": [{"id": 5}]}, "a special token is"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "%"}}, "is no base64"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "not a usable voc"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_"
                     "charsmap": 3}]}}, "is no base64"),
])
def test_damaged_files(tmp_path, changes, message):
    change(tmp_path, **changes)
    with pytest.raises(ModelError, match=message) as problem:
        T5Tokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize("config, message", [
    ({"extra_ids": -1}, "extra_ids is -1"), ({"extra_ids": "3"}, "extra_ids is 3"),
    ({"extra_special_tokens": {"a": "b"}}, "extra_special_tokens is no list"),
    ({"eos_token": "<nothing>", "extra_ids": 0, "model_max_length": 1}, "model_max_length is 1"),
    ({"pad_token": 3}, "a special token is '3'"),
])
def test_damaged_configs(tmp_path, config, message):
    with pytest.raises(ModelError, match=message):
        T5Tokenizer.from_folder(samples.write(tmp_path, config=config))


def test_a_table_that_points_outside_is_said(tmp_path, capfd):
    found = T5Tokenizer.from_folder(samples.write(tmp_path, table=bytes([0, 0, 0, 0])))
    with pytest.raises(ModelError, match="precompiled_charsmap is no table of characters"):
        found("a red cube")
    capfd.readouterr()  # the library tells its own story


def test_no_files(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer.json and no spiece.model; put there"):
        T5Tokenizer.from_folder(tmp_path)


def test_a_damaged_spiece_model_is_refused_or_read(tmp_path):
    """Cut anywhere, or with bytes changed: never anything but a tokenizer or a ModelError."""
    whole = samples.spiece_model(samples.PIECES)
    path, random = tmp_path / "spiece.model", np.random.default_rng(0)
    refused = 0
    for i in range(300):
        data = bytearray(whole if i % 2 else whole[:int(random.integers(len(whole)))])
        for _ in range(3 * (i % 2)):
            data[int(random.integers(len(data)))] = int(random.integers(256))
        path.write_bytes(data)
        try:
            T5Tokenizer.from_folder(tmp_path).pieces("a red cube")
        except ModelError as problem:
            assert str(tmp_path) in str(problem)
            refused += 1
    assert refused > 20
    for data in (whole + b"\x80" * 10 + bytes(2), b"\xff" * 20, b"\x0a\x7f", b"\x0b\x01",
                 b"\x0a\x02\x0d\x00", b""):
        path.write_bytes(data)
        with pytest.raises(ModelError, match="not a model of SentencePiece|0 pieces"):
            T5Tokenizer.from_folder(tmp_path)
