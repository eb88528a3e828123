"""Token ids equal to transformers' CLIPTokenizer built from the same files, on hard strings."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer as Theirs

from refsd.text import CLIPTokenizer
from refsd.text.vocabulary import BOS, EOS, clip_vocabulary

FLAGS = {"lstrip": False, "rstrip": False, "single_word": False}
BOS_TOKEN = {"content": BOS, "normalized": True, **FLAGS}
EOS_TOKEN = {"content": EOS, "normalized": True, **FLAGS}
SD1 = {"bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN, "unk_token": EOS_TOKEN, "pad_token": EOS}

HARD = {
    "empty": "",
    "spaces": "     ",
    "tabs and newlines": "\t a\n\n  photo \r\n of\v a\fcat \t",
    "unicode spaces": "a\u00a0b\u2003c\u3000d\u200be\u2028f\u0085g\ufeffh",
    "long": "a glossy red sphere left of a small blue cube, " * 2_130,  # 100 kB
    "long word": "a" * 100_000,
    "special tokens": "a <|endoftext|> b<|startoftext|>c <|EndOfText|> <|endoftext|",
    "half a special token": "<|startoftext <|endoftext|>>",
    "emoji": "😀 a 🐈‍⬛ and 🏳️‍🌈 👩‍👩‍👧‍👦 👍🏽 🇩🇪 ©️",
    "ninety emoji": "🦊" * 90,
    "decomposed": "cafe\u0301 Amelie\u0301 n\u0303 A\u030a o\u0308\u0323",
    "lone accents": "\u0301\u0308 \u0301a",
    "composed": "café Amélie ñ Å ộ",
    "CJK": "红色的球体在蓝色立方体的左边 日本語のテキスト 한국어 텍스트",
    "hangul jamo": "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "final sigma": "ΟΔΥΣΣΕΥΣ ΣΑΣ ς",
    "Turkish": "İSTANBUL ıi Iİ",
    "German": "STRASSE Straße ẞ",
    "ligatures": "ﬁne ﬂow ŉ ǆ",
    "Hebrew": "כדור אדום מבריק",
    "Arabic": "كرة حمراء ١٢٣ لامعة\u200f",
    "Devanagari": "लाल गोला १२३",
    "Thai": "ลูกบอลสีแดง",
    "full width": "ＡＢＣ　１２３！？",
    "numbers": "1234567890 3.14 1e10 ½ ² Ⅷ ⅷ ①",
    "contractions": "don't I'll we've you're he'd it's I'm 'S 'LL ’s n't ''s",
    "punctuation": "!!!??? ---+++ ((masterpiece:1.3)), [a|b], {c}; <lora:x:1> @#$%^&*~`",
    "controls": "a\x00b\x01c\x07\x1b[31m\x7f\x1c\x1d\x1e\x1f\x80\x9f",
    "html": "&amp; &lt;b&gt; &#39;x&#39;",
    "quotes": "“curly” ‘single’ … — – «guillemets»",
    "mojibake": "schÃ¶n â€œquoteâ€\x9d",
    "private and noncharacters": "\ue000 \U000f0000 \ufffe \uffff \U0010ffff \ufffd",
    "invisible": "a\u200cb\u200dc\u2060d\u00ade\u180ef",
    "mathematical": "𝔸𝕓𝒸 𝟘𝟙 ∀x∈ℝ",
    "underscore": "snake_case __init__ a_1",
    "seventy five": "cat " * 75,
    "seventy six": "cat " * 76,
}


@pytest.fixture(scope="module", params=["plain", "sd1", "sd2", "saved", "added"])
def pair(request, tmp_path_factory):
    return build(tmp_path_factory.mktemp(request.param), request.param)


def build(folder, kind):
    """Our tokenizer and theirs from one folder, written the ways such folders are found."""
    vocabulary = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary.tokens), encoding="utf-8")
    merges = ["#version: 0.2", *(" ".join(pair) for pair in vocabulary.merges), ""]
    (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer"}

    if kind != "plain":
        pad = {"sd2": "!"}.get(kind, EOS)
        typed = {k: {"__type": "AddedToken", **v} for k, v in SD1.items() if k != "pad_token"}
        config |= {"model_max_length": 77, "pad_token": EOS, **typed}
        (folder / "special_tokens_map.json").write_text(json.dumps({**SD1, "pad_token": pad}))
    if kind == "added":
        both = {"49406": BOS_TOKEN, "49407": {**EOS_TOKEN, "normalized": False}}
        more = {"49408": {"content": "<my cat>", "normalized": False, **FLAGS}}
        config |= {"added_tokens_decoder": {k: {**v, "special": True} for k, v in both.items()}}
        config["added_tokens_decoder"] |= {k: {**v, "special": False} for k, v in more.items()}
        config |= {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))

    theirs = Theirs.from_pretrained(folder)
    if kind == "saved":
        folder = folder / "again"
        theirs.save_pretrained(folder)
        assert (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").exists()
        theirs = Theirs.from_pretrained(folder)
    return CLIPTokenizer.from_folder(folder), theirs


def ids_of(theirs, prompts):
    framed = theirs(prompts, padding="max_length", max_length=77, truncation=True)
    return np.array(framed.input_ids)


@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
def test_ids_of_hard_strings(pair, text):
    ours, theirs = pair
    assert ours(text).tolist() == ids_of(theirs, [text]).tolist()
    untruncated = theirs(text, add_special_tokens=False).input_ids
    assert [p.id for p in ours.pieces(text)] == untruncated


def test_a_batch_is_the_rows_of_its_prompts(pair):
    ours, theirs = pair
    assert ours(list(HARD.values())).tolist() == ids_of(theirs, list(HARD.values())).tolist()


@settings(deadline=None, max_examples=300)
@given(text=st.text(max_size=200))
def test_ids_of_any_text(pair, text):
    ours, theirs = pair
    assert ours(text).tolist() == ids_of(theirs, [text]).tolist()


def test_ids_of_every_character(tmp_path):
    """All 1,112,064 Unicode scalar values, in a fixed random order, 64 to a string."""
    ours, theirs = build(tmp_path, "sd1")
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    random.Random(0).shuffle(points)
    texts = ["".join(map(chr, points[i : i + 64])) for i in range(0, len(points), 64)]
    expected = theirs(texts, add_special_tokens=False).input_ids
    for text, ids in zip(texts, expected):
        assert [p.id for p in ours.pieces(text)] == ids, ascii(text)


def test_bundled_vocabulary_is_that_of_stable_diffusion_1(tmp_path):
    """CLIPTokenizer.clip() equals transformers with SD 1.5's special tokens, folder or not."""
    _, theirs = build(tmp_path, "sd1")
    ours = CLIPTokenizer.clip()
    for text in HARD.values():
        assert ours(text).tolist() == ids_of(theirs, [text]).tolist(), ascii(text[:80])


def test_length_and_special_ids(pair):
    ours, theirs = pair
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.pad_token_id == theirs.pad_token_id
    assert ours.model_max_length == min(theirs.model_max_length, 77)
