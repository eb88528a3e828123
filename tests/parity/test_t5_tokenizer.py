"""Token ids equal to transformers' T5Tokenizer built from the same files, on hard strings.

The pieces are trained here, with a table of characters that has some of NFKC's forms; what
SentencePiece's own file says is compared in tests/test_t5_tokenizer.py (transformers reads it with
libraries that are not installed).
"""

import json

import numpy as np
import pytest
import t5_samples as samples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import HARD
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import T5TokenizerFast

from refsd.text.t5 import T5Tokenizer

TEXT = ["a glossy red sphere left of a small blue cube", "an oil painting of the old sea, 1889",
        "don't we'll I've they're", "a photo of an astronaut riding a horse on Mars",
        "photograph, 3.14 and 1000000; (masterpiece) [x|y]", "café Amélie ñ Straße ﬁne"] * 5
FORMS = samples.FORMS | {"ﬂ": "fl", "　": " ", "１": "1", "！": "!", "½": "1⁄2", "e\u0301": "é",
                         "\u00a0": " ", "\n": " ", "\r": " ", "\u00ad": "", "…": "..."}


def trained():
    """Pieces with scores, the special ones first."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.train_from_iterator(TEXT, trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"))
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["vocab"]]


@pytest.fixture(scope="module", params=["plain", "published", "saved", "fast", "few"])
def pair(request, tmp_path_factory):
    """Our tokenizer and theirs from one folder, written the ways such folders are found."""
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    pieces = trained()
    vocabulary = pieces if kind == "few" else samples.with_sentinels(pieces)
    ids = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    found = samples.tokenizer_json(vocabulary, samples.charsmap(FORMS))
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512}
    if kind in ("published", "fast"):
        flags = {"lstrip": True, "rstrip": True} if kind == "published" else {}
        tokens = [samples.added(token, ids[token]) for token in ("<pad>", "</s>", "<unk>")]
        tokens += [samples.added(token, ids[token], **flags)
                   for token in reversed(samples.SENTINELS)]
        found["added_tokens"] = tokens
        named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
                 "additional_special_tokens": samples.SENTINELS}
        config |= {"extra_ids": 100, "legacy": True} | named
        (folder / "special_tokens_map.json").write_text(json.dumps(named))
        if kind == "published":
            config["added_tokens_decoder"] = {
                str(token["id"]): {k: v for k, v in token.items() if k != "id"}
                for token in tokens}
    if kind == "few":  # their ids follow those of the pieces
        config |= {"extra_ids": 7}
    (folder / "tokenizer.json").write_text(json.dumps(found))
    if kind != "plain":
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = T5TokenizerFast.from_pretrained(folder)
    if kind == "saved":
        folder = tmp_path_factory.mktemp("again")
        theirs.save_pretrained(folder)
        theirs = T5TokenizerFast.from_pretrained(folder)
    return T5Tokenizer.from_folder(folder), theirs


def ids_of(theirs, text, length):
    found = theirs(text, padding="max_length", max_length=length, truncation=True)
    return np.array(found.input_ids)


T5_HARD = {"sentinels": "a <extra_id_0> b<extra_id_99>c <extra_id_5><extra_id_100>",
           "special": "a </s> b<pad><unk> </S>", "forms": "ﬁne ﬂow ① ½ e\u0301 １！ a\u00adb …",
           "markers": "▁ a▁b ▁▁", "capitals": "A Glossy RED sphere"}


@pytest.mark.parametrize("name", HARD | T5_HARD)
@pytest.mark.parametrize("length", [77, 256])
def test_hard_strings(pair, name, length):
    ours, theirs = pair
    text = (HARD | T5_HARD)[name]
    assert np.array_equal(ours(text, length)[0], ids_of(theirs, text, length))


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=80))
def test_any_text(pair, text):
    ours, theirs = pair
    text = text.encode("utf-8", "ignore").decode()
    assert np.array_equal(ours(text, 77)[0], ids_of(theirs, text, 77))


def test_lengths_and_special_ids(pair):
    ours, theirs = pair
    assert (ours.pad_token_id, ours.eos_token_id, ours.unk_token_id) == (
        theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2)
    assert theirs.model_max_length in (ours.model_max_length, int(1e30))
    batch = ["a red cube", "", "sphere " * 300]
    assert np.array_equal(ours(batch, 77), ids_of(theirs, batch, 77))
