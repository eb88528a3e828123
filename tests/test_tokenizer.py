"""The CLIP tokenizer against a thirty line byte pair encoder, its files, and bad input."""

import gzip
import hashlib
import json
import re
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refsd.errors import ModelError, UsageError
from refsd.text import CLIPTokenizer
from refsd.text.vocabulary import BOS, EOS, byte_alphabet, clip_vocabulary

MERGES = files("refsd") / "data" / "clip_bpe_merges.txt.gz"


@pytest.fixture(scope="module")
def clip():
    return CLIPTokenizer.clip()


# The truth: byte pair encoding of ASCII text, as Sennrich et al. (2016) describe it and OpenAI
# uses it for CLIP, written without the tokenizers library and straight from the merges file.


def read_merges():
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()[1:]
    return {tuple(line.split()): rank for rank, line in enumerate(lines)}


def bpe(word, ranks):
    """Merge the adjacent pair of the lowest rank, everywhere, until no pair has a rank."""
    parts = [*word[:-1], word[-1] + "</w>"]
    while len(parts) > 1:
        pair = min(zip(parts, parts[1:]), key=lambda p: ranks.get(p, len(ranks)))
        if pair not in ranks:
            break
        merged, i = [], 0
        while i < len(parts):
            found = tuple(parts[i : i + 2]) == pair
            merged.append("".join(pair) if found else parts[i])
            i += 2 if found else 1
        parts = merged
    return parts


def encode_ascii(text, ranks, ids):
    """Lower-case words, digits one by one, punctuation runs; control characters are punctuation."""
    words = re.findall(
        r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^a-z0-9 \t\n\v\f\r]+", text.lower()
    )
    shown = {b: c for b, c in zip([*range(33, 127), *range(161, 173), *range(174, 256)], ids)}
    hidden = (c for c in list(ids)[188:256])
    shown |= {b: next(hidden) for b in range(256) if b not in shown}
    return [ids[p] for w in words for p in bpe("".join(shown[ord(c)] for c in w), ranks)]


@pytest.fixture(scope="module")
def truth():
    ranks = read_merges()
    first = [chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    first += [chr(256 + i) for i in range(68)]
    tokens = first + [c + "</w>" for c in first] + ["".join(pair) for pair in ranks]
    ids = {token: i for i, token in enumerate(tokens)}
    return lambda text: encode_ascii(text, ranks, ids)


PLAIN = [
    "a photo of an astronaut riding a horse on mars",
    "A Glossy RED sphere, left of a small blue cube.",
    "don't we'll I've they're she'd I'm it's",
    "3.14159 and 1000000 in 2026",
    "tabs\tand\nnewlines \r\n  and   runs",
    "!!!???...---+++===(((masterpiece:1.3)))",
    "\x00\x01\x1b\x7f control \x1c\x1f characters",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "''s '' 's 'S",
]


@pytest.mark.parametrize("text", PLAIN)
def test_ids_are_those_of_plain_byte_pair_encoding(clip, truth, text):
    assert [p.id for p in clip.pieces(text)] == truth(text)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(max_codepoint=127), max_size=60))
def test_any_ascii_text_agrees_with_plain_byte_pair_encoding(clip, truth, text):
    assume(BOS not in text.lower() and EOS not in text.lower())
    assert [p.id for p in clip.pieces(text)] == truth(text)


def test_known_ids(clip):
    """bos, five words that CLIP has as whole tokens, eos, and eos as padding."""
    assert clip("a photo of an astronaut").tolist() == [
        [49406, 320, 1125, 539, 550, 18376, *[49407] * 71]
    ]
    assert (clip.bos_token_id, clip.eos_token_id, clip.pad_token_id) == (49406, 49407, 49407)


# The vocabulary that ships.


def test_vendored_merges_are_the_published_ones():
    packed = MERGES.read_bytes()
    text = gzip.decompress(packed)
    # first 48,895 lines of bpe_simple_vocab_16e6.txt, which is part of open_clip_torch 3.3.0
    assert hashlib.sha256(text).hexdigest() == (
        "685491abbdad36159d094ecdc23bebc0dd53f8d1df35c4d74ef6036db2ba7572"
    )
    assert text.count(b"\n") == 48_895
    assert packed[3] == 0 and packed[4:8] == bytes(4)  # gzip: no file name, no time stamp
    assert "Copyright (c) 2021 OpenAI" in (files("refsd") / "data" / "LICENSE-CLIP").read_text()


def test_vocabulary_has_clips_size_and_order():
    tokens = clip_vocabulary().tokens
    assert len(tokens) == 49_408 and list(tokens.values()) == list(range(49_408))
    assert [tokens[t] for t in ("!", "~", "¡", "Ā", "!</w>", BOS, EOS)] == [
        0, 93, 94, 188, 256, 49406, 49407,
    ]  # fmt: skip
    assert len(set(byte_alphabet())) == 256


# Framing, cutting, padding.


def test_shape_dtype_and_frame(clip):
    ids = clip(["", "a cat", "cat " * 200])
    assert ids.shape == (3, 77) and ids.dtype == np.int64
    assert (ids[:, 0] == 49406).all() and (ids[:, -1] == 49407).all()
    assert ids[0].tolist() == [49406] + [49407] * 76
    assert (ids[2, 1:76] == 2368).all()


@pytest.mark.parametrize("count", [73, 74, 75, 76, 77])
def test_cut_keeps_75_tokens_and_reports_the_rest(clip, count):
    text = " ".join(["Cat"] * count)
    assert (clip(text) == 2368).sum() == min(count, 75)
    assert clip.truncated(text) == " ".join(["Cat"] * max(count - 75, 0))


def test_the_dropped_text_keeps_its_spelling(clip):
    assert clip.truncated("x " * 75 + "Ünï  CODE 😀") == "Ünï  CODE 😀"


def test_pieces_name_the_text_they_stand_for(clip):
    pieces = clip.pieces("An  ASTRONAUT's 7")
    assert [p.text for p in pieces] == ["An", "ASTRONAUT", "'s", "7"]
    assert [p.token for p in pieces] == ["an</w>", "astronaut</w>", "'s</w>", "7</w>"]


@pytest.mark.parametrize(
    "one, other",
    [
        ("cafe\u0301 n\u0303", "café ñ"),  # composed first: NFC
        ("ΟΔΟΣ ÉÜ", "οδοσ éü"),  # lower case letter by letter: no final sigma
        ("a\u3000\u00a0 b\t\r\nc", "a b c"),
        ("  a  ", "a"),
    ],
)
def test_texts_that_mean_the_same_have_the_same_ids(clip, one, other):
    assert clip(one).tolist() == clip(other).tolist()


def test_special_literals_become_special_ids(clip):
    assert [p.id for p in clip.pieces("a <|endoftext|> <|StartOfText|>")] == [320, 49407, 49406]


def test_sd2_pads_with_exclamation_mark():
    tok = CLIPTokenizer.clip(pad="!")
    assert tok("cat").tolist() == [[49406, 2368, 49407, *[0] * 74]]


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=400))
def test_any_text_gives_a_full_row_of_valid_ids(clip, text):
    row = clip(text)[0]
    assert row.shape == (77,) and row[0] == 49406 and row[-1] == 49407
    assert ((row >= 0) & (row < 49408)).all()
    assert text.endswith(clip.truncated(text))


# Bad prompts.


@pytest.mark.parametrize("text", ["\ud83d", "a cat \udc00", "\udcff" * 3])
def test_lone_surrogates_are_refused(clip, text):
    with pytest.raises(UsageError, match=r"prompt: character \d+ is the lone surrogate U\+D") as e:
        clip(text)
    assert e.value.exit_code == 2


@pytest.mark.parametrize("prompt", [None, 7, b"bytes", [], [None], ["a", 3], np.zeros(3)])
def test_other_types_are_refused(clip, prompt):
    with pytest.raises(UsageError, match="prompt: got"):
        clip(prompt)


def test_very_long_text_is_cut_like_any_other(clip):
    text = "a red fox and " * 7_500  # 105 kB
    assert clip(text).shape == (1, 77)
    assert len(clip.truncated(text)) > 100_000


# Folders.


def small_folder(path, *, config=None, special=None, tokens=(), merges=("a b", "ab c</w>")):
    """A vocabulary of the 256 bytes, two merges, and the frame."""
    alphabet = byte_alphabet()
    names = [*alphabet, *(c + "</w>" for c in alphabet), "ab", "abc</w>", BOS, EOS, *tokens]
    (path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(names)}))
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    if special is not None:
        (path / "special_tokens_map.json").write_text(json.dumps(special))
    return path


def test_small_vocabulary_folder(tmp_path):
    tok = CLIPTokenizer.from_folder(small_folder(tmp_path, config={"model_max_length": 16}))
    assert tok("ABC ab").tolist() == [[514, 513, 64, 65 + 256, *[515] * 12]]
    tok.require_rows(516, 16)
    with pytest.raises(ModelError, match=r"ids go up to 515.*515 embeddings"):
        tok.require_rows(515, 16)
    with pytest.raises(ModelError, match=r"model_max_length is 16.*8 positions"):
        tok.require_rows(516, 8)


@pytest.mark.parametrize("file, content", {
    "tokenizer_config.json": '{"model_max_length": 8.0, "pad_token": null, "bos_token": "x", '
                             '"bos_token": null, "init_kwargs": {"a": NaN}, "model_max_length": 8}',
    "special_tokens_map.json": '{"pad_token": null, "additional_special_tokens": []}',
    "added_tokens.json": "{}",
}.items())
def test_odd_and_harmless_files_change_nothing(tmp_path, file, content):
    config = {"model_max_length": 8}
    folder = small_folder(tmp_path, config=config)
    plain = CLIPTokenizer.from_folder(folder)
    (folder / file).write_text("\ufeff" + content, encoding="utf-8")
    assert (CLIPTokenizer.from_folder(folder)("ab abc") == plain("ab abc")).all()


@pytest.mark.parametrize("length", [None, 1e30, 10**30])
def test_a_length_that_is_not_said_is_clips(tmp_path, length):
    folder = small_folder(tmp_path, config={"model_max_length": length})
    assert CLIPTokenizer.from_folder(folder).model_max_length == 77


def test_special_tokens_map_overrules_the_config(tmp_path):
    config = {"pad_token": EOS, "model_max_length": 8}
    folder = small_folder(tmp_path, config=config, special={"pad_token": "!"})
    assert CLIPTokenizer.from_folder(folder)("a").tolist() == [[514, 320, 515, *[0] * 5]]


def test_tokenizer_json_gives_the_same_ids(tmp_path):
    plain = CLIPTokenizer.from_folder(small_folder(tmp_path))
    (tmp_path / "tokenizer.json").write_text(plain._tokenizer.to_str())
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    again = CLIPTokenizer.from_folder(tmp_path)
    for text in ("abc ABC", "<|endoftext|> déjà", "a" * 100):
        assert (again(text) == plain(text)).all()


def test_added_tokens_continue_the_vocabulary(tmp_path):
    added = {"516": {"content": "<my-cat>", "normalized": False, "special": False}}
    folder = small_folder(tmp_path, config={"added_tokens_decoder": added})
    assert [p.id for p in CLIPTokenizer.from_folder(folder).pieces("ab<my-cat>")][-1] == 516
    added = {"900": {"content": "<my-cat>"}}
    with pytest.raises(ModelError, match="'<my-cat>' claims id 900, its place is 516"):
        CLIPTokenizer.from_folder(small_folder(tmp_path, config={"added_tokens_decoder": added}))


def test_a_byte_missing_from_the_vocabulary_becomes_the_unknown_token(tmp_path):
    small_folder(tmp_path)
    tokens = json.loads((tmp_path / "vocab.json").read_text())
    tokens = {t: i for i, t in enumerate(t for t in tokens if t not in ("z", "z</w>"))}
    (tmp_path / "vocab.json").write_text(json.dumps(tokens))
    tok = CLIPTokenizer.from_folder(tmp_path)
    assert [p.id for p in tok.pieces("z")] == [tok.eos_token_id]


BROKEN = {
    "no vocab.json": ("vocab.json", None, "no such file"),
    "not JSON": ("vocab.json", "{", "not valid JSON"),
    "a list": ("vocab.json", "[1]", "not a JSON object"),
    "empty": ("vocab.json", "{}", "not a JSON object"),
    "negative id": ("vocab.json", '{"a": -1}', "'a' has id -1"),
    "huge id": ("vocab.json", '{"a": 99999999999999999999}', "has id 99999"),
    "text id": ("vocab.json", '{"a": "0"}', "has id 0, expected an integer"),
    "shared id": ("vocab.json", '{"a": 0, "b": 0}', "share one id"),
    "no frame": ("vocab.json", '{"a": 0, "b": 1, "ab": 2}', "is not in it"),
    "not UTF-8": ("vocab.json", b"\xff\xfe", "not UTF-8"),
    "deep": ("vocab.json", "[" * 100_000, "nested too deeply"),
    "no merges": ("merges.txt", None, "no such file"),
    "three parts": ("merges.txt", "#version: 0.2\na b c\n", "merge 2"),
    "one part": ("merges.txt", "ab\n", "merge 1"),
    "unknown token": ("merges.txt", "a \N{SNOWMAN}\n", "out of vocabulary"),
    "length 0": ("tokenizer_config.json", '{"model_max_length": 0}', "model_max_length is 0"),
    "length text": ("tokenizer_config.json", '{"model_max_length": "77"}', "model_max_length"),
    "length nan": ("tokenizer_config.json", '{"model_max_length": NaN}', "length is nan"),
    "length half": ("tokenizer_config.json", '{"model_max_length": 7.5}', "length is 7.5"),
    "config list": ("tokenizer_config.json", "[]", "expected a JSON object"),
    "pad number": ("tokenizer_config.json", '{"pad_token": 7}', "a special token is '7'"),
    "pad unknown": ("tokenizer_config.json", '{"pad_token": "<pad>"}', "'<pad>'"),
    "flag": (
        "tokenizer_config.json",
        '{"pad_token": {"content": "!", "normalized": 1}}',
        "normalized is not true or false",
    ),
    "added id": (
        "tokenizer_config.json",
        '{"added_tokens_decoder": {"x": {"content": "y"}}}',
        "an added token has id 'x'",
    ),
    "T5": ("tokenizer.json", '{"model": {"type": "Unigram"}}', "a Unigram model"),
    "GPT-2": ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}}}', "word ending None"),
}


@pytest.mark.parametrize("name, content, message", BROKEN.values(), ids=BROKEN)
def test_broken_folders_are_refused_in_one_line(tmp_path, name, content, message):
    small_folder(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError) as caught:
        CLIPTokenizer.from_folder(tmp_path)
    text = str(caught.value)
    assert message in text and str(tmp_path) in text
    assert caught.value.exit_code == 3
    assert "\n" not in text and not re.search(r"0x[0-9a-f]{6}", text)
