"""The two texts in a PNG, written and read; and PNG files that nobody should trust."""

import json
import os
import struct
import time
import zlib
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from refsd.cli.infotext import escape, format_infotext, parse_infotext, unescape
from refsd.cli.png import encode_png, read_png
from refsd.cli.recipe import Recipe, parse_recipe
from refsd.errors import ResourceError, UsageError

SETTINGS = {"Steps": 20, "Sampler": "Euler a", "CFG scale": 7, "Version": "refsd 0.1.0"}
TEXTS = st.one_of(
    st.text(st.sampled_from("\\\\nru0a1 :N\n\r\u2028\x00\x85\u00e9\"\u3000"), max_size=12),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(["Negative prompt: x", "a\nNegative prompt: b\nSteps: 1, Seed: 2, Size: 8x8",
                     "Steps: 1, Seed: 2, Size: 8x8, Version: refsd 0.1.0", "(a:1.2) \\(b\\)"]),
)


@given(TEXTS, TEXTS)
def test_infotext_gives_back_what_went_in(prompt, negative):
    text = format_infotext(prompt, negative, SETTINGS)
    assert len(text.splitlines()) == len(text.split("\n")) == (3 if negative else 2)
    found = parse_infotext(text)
    assert (found.prompt, found.negative_prompt) == (prompt, negative)
    assert found.settings == {name: str(value) for name, value in SETTINGS.items()}


@pytest.mark.parametrize("text", ["a red fox", "(a:1.2), [b|c], \\(d\\) <lora:x:1>", "naïve 🙂",
                                  "C:\\temp", "a, b: c"])
def test_ordinary_prompts_stay_as_they_are(text):
    assert escape(text) == text == unescape(text)


def test_the_escapes_are_the_documented_ones():
    assert escape("a\nb\rc\u2028d\te\\nf\\(g ") == r"a\nb\rc\u2028d\u0009e\\nf\(g" + r"\u0020"


@given(st.dictionaries(st.from_regex(r"[A-Z][a-z]{1,8}( [a-z]{1,5})?", fullmatch=True),
                       st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=3))
def test_settings_are_quoted_where_it_is_needed(settings):
    assert parse_infotext(format_infotext("a", "", settings)).settings == settings


# As AUTOMATIC1111, Forge and stable-diffusion.cpp write it, with invented content.
OTHERS = [
    ("a cat\non a mat\nNegative prompt: dog,\nbird\nSteps: 28, Sampler: DPM++ 2M, Schedule type: "
     'Karras, CFG scale: 6.5, Seed: 12, Size: 512x768, Model hash: 0123456789, Model: "x, y: z", '
     "Version: v1.10.1",
     ("a cat\non a mat", "dog,\nbird"),
     {"Steps": "28", "Schedule type": "Karras", "Model": "x, y: z", "Version": "v1.10.1"}),
    ("a \\n b\nSteps: 20, CFG scale: 7.000000, Seed: 42, Size: 512x512, Sampler: euler_a, "
     "RNG: cuda, Version: stable-diffusion.cpp",
     ("a \\n b", ""), {"Steps": "20", "RNG": "cuda"}),
    ("Steps: 20, Seed: 1, Size: 8x8", ("", ""), {"Steps": "20"}),
    ("only words, and: a colon", ("only words, and: a colon", ""), {}),
    ("", ("", ""), {}),
]


@pytest.mark.parametrize("text, prompts, settings", OTHERS)
def test_infotexts_of_other_programs(text, prompts, settings):
    found = parse_infotext(text)
    assert (found.prompt, found.negative_prompt) == prompts
    assert settings.items() <= found.settings.items()
    assert bool(settings) == bool(found.settings)


@pytest.mark.parametrize("text", ["\\" * 10**6, "a" * 10**6, "Negative prompt:" * 60_000,
                                  'a: "' + "\\" * 10**5, " " * 10**6, "a\n" * 300_000, ":" * 10**6,
                                  "a " * 9_000, "\"" * 19_000])
def test_long_texts_cost_linear_time(text):
    begun = time.process_time()
    for whole in (text, text + "\nSteps: 1, A: 2, Version: refsd 1"):
        parse_infotext(whole)
    parse_infotext(format_infotext(text, text, {"A": text}))
    # About 1 s for the slowest; quadratic time would be hours.
    assert time.process_time() - begun < 20


RECIPE = Recipe(
    prompt="a\nSteps: 1", negative_prompt="é\u2028🙂", width=8, height=16, steps=3, cfg_scale=7,
    guidance_rescale=0.0, eta=0.5, clip_skip=None, seed=2**64 - 1, rng="cuda",
    scheduler={"_class_name": "DDIMScheduler", "beta_end": 0.012}, backend="numpy",
    dtype="float32", threads=2, allow_nonfinite=False,
    model={"name": "m, n: o", "hash": "ab" * 32, "files": {"x": "ab" * 32}},
    versions={"refsd": "0.1.0"}, pixels="cd" * 32)


def test_both_texts_survive_the_png(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    (tmp_path / "x.png").write_bytes(encode_png(pixels, RECIPE.texts()))
    found = read_png(str(tmp_path / "x.png"))
    assert (found.width, found.height) == (8, 16)
    assert (found.pixels == pixels).all()
    assert parse_recipe(found.texts["refsd"], "x") == RECIPE
    infotext = parse_infotext(found.texts["parameters"])
    assert (infotext.prompt, infotext.negative_prompt) == (RECIPE.prompt, RECIPE.negative_prompt)
    assert infotext.settings == {
        "Steps": "3", "Sampler": "DDIM", "CFG scale": "7", "Seed": str(2**64 - 1), "Size": "8x16",
        "Model hash": "ababababab", "Model": "m, n: o", "Eta DDIM": "0.5", "RNG": "NV",
        "Version": infotext.settings["Version"]}


def test_clip_skip_is_told_as_a1111_counts():
    """diffusers' clip_skip=1 leaves one layer out; A1111 calls that Clip skip 2."""
    assert Recipe(**{**asdict(RECIPE), "clip_skip": 1}).settings()["Clip skip"] == 2
    assert "Clip skip" not in RECIPE.settings()


def changed(**values):
    return json.dumps({**asdict(RECIPE), **values})


def without(key):
    return json.dumps({k: v for k, v in asdict(RECIPE).items() if k != key})


@pytest.mark.parametrize("text, words", [
    ("", ["not valid JSON"]), ("[]", ["JSON list"]), ("{}", ["schema is None"]),
    ("{" * 100_000, ["JSON"]), ("[" * 100_000, ["nested too deeply"]), ("\0", ["not valid JSON"]),
    (changed(schema=2), ["schema is 2", "newer refsd"]), (changed(schema="1"), ["schema is '1'"]),
    (changed(schema=1e400), ["Infinity"]), (changed(more=1), ["unknown key 'more'"]),
    (without("seed"), ["missing key 'seed'"]), (changed(prompt=1), ["prompt is 1"]),
    (changed(width="8"), ["width is '8'"]), (changed(width=True), ["width is True"]),
    (changed(width=10**9), ["width is 1000000000"]), (changed(height=0), ["height is 0"]),
    (changed(steps=1001), ["steps is 1001"]), (changed(seed=-1), ["seed is -1"]),
    (changed(seed=2**64), ["seed is"]), (changed(eta=2), ["eta is 2"]),
    (changed(cfg_scale="x" * 10**5), ["cfg_scale is"]), (changed(rng="mt"), ["rng is 'mt'"]),
    (changed(dtype="f16"), ["dtype is 'f16'"]), (changed(scheduler=[]), ["scheduler is []"]),
    (changed(model="x"), ["model is 'x'"]), (changed(allow_nonfinite=1), ["allow_nonfinite is 1"]),
    (changed(threads=0), ["threads is 0"]), (changed(clip_skip=-1), ["clip_skip is -1"]),
    (changed(seed=1).replace('"seed": 1', '"seed": 1' + "0" * 5000), ["not valid JSON"]),
    (changed().replace('"eta"', '"eta": 1, "eta"'), ["'eta' appears twice"]),
    (changed(eta=0.5).replace('"eta": 0.5', '"eta": NaN'), ["NaN"]),
    (changed(**{"\x1b[31m": 1}), ["\\x1b"]),
], ids=lambda value: str(value)[:40] if isinstance(value, list) else "")
def test_recipes_that_nobody_wrote_here(text, words):
    with pytest.raises(UsageError) as caught:
        parse_recipe(text, "x.png")
    message = str(caught.value)
    assert message.startswith("x.png: the recipe") and len(message) < 500
    assert all(word in message for word in words), message


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, data=None):
    """A grey PNG with this size in its header and these chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * (width + 1) * height) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")])


def test_the_smallest_and_the_largest_picture(tmp_path):
    for size in ((1, 1), (4096, 2)):
        (tmp_path / "x.png").write_bytes(png(*size))
        assert read_png(str(tmp_path / "x.png")).pixels.shape == (size[1], size[0], 3)


BOMB = zlib.compress(b"a" * (80 << 20), 9)
REFUSED = {
    "30000 x 30000": (png(30_000, 30_000, data=b""), "30000 x 30000; at most 4096"),
    "12000 x 12000": (png(12_000, 12_000, data=b""), "12000 x 12000; at most 4096"),
    "4097 x 1": (png(4097, 1), "4097 x 1"),
    "0 x 8": (png(0, 8, data=b""), "0 x 8"),
    "2^32 - 1": (png(2**32 - 1, 1, data=b""), "4294967295 x 1"),
    "zTXt bomb": (png(8, 8, chunk(b"zTXt", b"parameters\0\0" + BOMB)), "damaged PNG"),
    "iTXt bomb": (png(8, 8, chunk(b"iTXt", b"parameters\0\1\0\0\0" + BOMB)), "damaged PNG"),
    "pixel bomb": (png(8, 8, data=BOMB[:1000]), "damaged PNG"),
    "no pixels": (png(8, 8, data=b""), "damaged PNG"),
    "nothing": (b"", "not a PNG"),
    "text": (b"a red cat", "not a PNG"),
    "signature alone": (b"\x89PNG\r\n\x1a\n", "not a PNG"),
    "GIF": (b"GIF89a\1\0\1\0\0\0\0;", "not a PNG"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(50), "not a PNG"),
    "wrong checksum": (png(8, 8)[:-20] + b"\0" * 4 + png(8, 8)[-16:], "damaged PNG"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_no_small_png(tmp_path, name):
    data, words = REFUSED[name]
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(UsageError) as caught:
        read_png(str(tmp_path / "x.png"))
    assert str(caught.value).startswith(f"{tmp_path / 'x.png'}: ") and words in str(caught.value)


def test_every_truncation_and_many_bit_flips(tmp_path):
    """Refused in our words or read; nothing else may come out of Pillow's parser."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    whole = encode_png(pixels, RECIPE.texts())
    random = np.random.default_rng(1)
    damaged = [whole[:n] for n in range(0, len(whole), 7)]
    for place in random.integers(0, len(whole), 300):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << random.integers(8)
        damaged.append(bytes(flipped))
    path, refused = str(tmp_path / "x.png"), 0
    for data in damaged:
        with open(path, "wb") as file:
            file.write(data)
        try:
            read_png(path)
        except UsageError as error:
            refused += 1
            assert str(error).startswith(path)
    assert refused > len(damaged) / 2


def test_files_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(65 << 20)
    for name, words in {"none.png": "no such file", ".": "a folder", "pipe": "not an ordinary file",
                        "large.png": "at most 67,108,864", "x\0": "not a file name"}.items():
        with pytest.raises(UsageError, match=words):
            read_png(os.path.join(tmp_path, name))
    with pytest.raises(ResourceError, match="File name too long"):
        read_png(str(tmp_path / ("x" * 300)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_other_kinds_of_png_are_read_as_rgb(tmp_path, mode):
    Image.new(mode, (5, 4)).save(tmp_path / "x.png")
    assert read_png(str(tmp_path / "x.png")).pixels.shape == (4, 5, 3)
