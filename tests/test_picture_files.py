"""Texts in PNG chunks, EXIF and comments, in every encoding that programs use; damaged files."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from refsd.__main__ import main
from refsd.cli.exif import decode_comment
from refsd.cli.infotext import parse_infotext
from refsd.cli.metadata import find_description, find_infotext
from refsd.cli.pictures import read_picture
from refsd.cli.png import encode_png, read_png
from refsd.errors import UsageError

WORDS = "ein Füchslein, 狐 🦊\nSteps: 20, Sampler: Euler a, Seed: 42, Size: 8x8"
LATIN = "ein Füchslein\nSteps: 20, Sampler: Euler a, Seed: 42, Size: 8x8"


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks, after=()):
    """A grey PNG of 8 x 8 with these chunks before its pixels, and some after them."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([
        chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(b"\0" * 72)), *after,
        chunk(b"IEND", b"")])


def itxt(text, packed=False, translated=b""):
    data = zlib.compress(text.encode()) if packed else text.encode()
    head = b"parameters\0" + bytes([packed, 0]) + b"de\0" + translated + b"\0"
    return chunk(b"iTXt", head + data)


@pytest.fixture
def texts(tmp_path):
    """The texts of a file with these bytes."""
    def read(data):
        (tmp_path / "x").write_bytes(data)
        return read_picture(str(tmp_path / "x")).texts

    return read


PARAMETERS = b"parameters\0"
CHUNKS = {
    "tEXt, UTF-8": (chunk(b"tEXt", PARAMETERS + WORDS.encode()), WORDS),
    "tEXt, Latin-1": (chunk(b"tEXt", PARAMETERS + LATIN.encode("latin-1")), LATIN),
    "tEXt, ASCII": (chunk(b"tEXt", PARAMETERS + b"a fox"), "a fox"),
    "tEXt, nothing": (chunk(b"tEXt", PARAMETERS), ""),
    "tEXt with a zero": (chunk(b"tEXt", PARAMETERS + b"a fox\0"), "a fox\0"),
    "zTXt, UTF-8": (chunk(b"zTXt", PARAMETERS + b"\0" + zlib.compress(WORDS.encode())), WORDS),
    "zTXt, Latin-1": (chunk(b"zTXt", PARAMETERS + b"\0" + zlib.compress(LATIN.encode("latin-1"))),
                      LATIN),
    "iTXt": (itxt(WORDS), WORDS),
    "iTXt, packed": (itxt(WORDS, packed=True), WORDS),
    "iTXt, translated": (itxt(WORDS, translated="Größen".encode()), WORDS),
    "iTXt that is Latin-1": (chunk(b"iTXt", PARAMETERS + b"\0\0\0\0" + LATIN.encode("latin-1")),
                             LATIN),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_of_a_png(texts, name):
    data, words = CHUNKS[name]
    assert texts(png(data)) == texts(png(after=[data])) == {"parameters": words}


def test_a_keyword_that_comes_again(texts):
    """The last one counts, as in Pillow; none is lost, and one said twice is said once."""
    first, second, same = (chunk(b"tEXt", PARAMETERS + text) for text in (b"a", b"b", b"a"))
    assert texts(png(first, itxt("b"))) == {"parameters": "b", "parameters (1)": "a"}
    assert texts(png(first, second, same)) == {"parameters": "a", "parameters (1)": "b"}
    assert texts(png(first, after=[same])) == {"parameters": "a"}


def test_our_own_texts_are_read_by_everybody(texts):
    """Where a text is not ASCII its encoding is declared: in Latin-1 this one would be UTF-8."""
    for text in ("Ã©", WORDS, LATIN, "a fox"):
        data = encode_png(np.zeros((8, 8, 3), np.uint8), {"parameters": text})
        assert texts(data) == Image.open(io.BytesIO(data)).text == {"parameters": text}


COMMENTS = {
    "UTF-16, larger first": (b"UNICODE\0" + WORDS.encode("utf-16-be"), WORDS),
    "UTF-16, smaller first": (b"UNICODE\0" + WORDS.encode("utf-16-le"), WORDS),
    "UTF-16 with a mark": (b"UNICODE\0" + WORDS.encode("utf-16"), WORDS),
    "UTF-16 of a lower-case name": (b"Unicode\0" + WORDS.encode("utf-16-be"), WORDS),
    "UTF-16 of other letters and one digit": (b"UNICODE\0" + "狐狸1".encode("utf-16-be"), "狐狸1"),
    "UTF-8 that says UNICODE": (b"UNICODE\0" + WORDS.encode(), WORDS),
    "ASCII": (b"ASCII\0\0\0a fox", "a fox"),
    "UTF-8 that says ASCII": (b"ASCII\0\0\0" + WORDS.encode(), WORDS),
    "JIS": (b"JIS\0\0\0\0\0" + "狐 fox".encode("iso2022_jp"), "狐 fox"),
    "Shift JIS that says JIS": (b"JIS\0\0\0\0\0" + "狐 fox".encode("shift_jis"), "狐 fox"),
    "undefined": (bytes(8) + WORDS.encode(), WORDS),
    "undefined UTF-16": (bytes(8) + LATIN.encode("utf-16-le"), LATIN),
    "UTF-8 alone": (WORDS.encode(), WORDS),
    "Latin-1 alone": (LATIN.encode("latin-1"), LATIN),
    "UTF-16 alone": (LATIN.encode("utf-16-be"), LATIN),
    "nothing": (b"", ""),
    "a name alone": (b"UNICODE\0", ""),
    "half a character": (b"UNICODE\0" + "狐1".encode("utf-16-be") + b"\0", "狐1�"),
}


@pytest.mark.parametrize("name", COMMENTS)
@pytest.mark.parametrize("little", [False, True])
def test_encodings_of_a_user_comment(name, little):
    value, words = COMMENTS[name]
    assert decode_comment(value, little) == words


def test_utf16_that_shows_no_order_has_that_of_the_file():
    for little, encoding in ((True, "utf-16-le"), (False, "utf-16-be")):
        assert decode_comment(b"UNICODE\0" + "狐狸".encode(encoding), little) == "狐狸"


def exif(order, comment=None, **ascii_tags):
    """An EXIF block in either byte order: strings under their tags, a UserComment."""
    def table(entries, at):
        body, extra = b"", b""
        at += 2 + 12 * len(entries) + 4
        for tag, kind, count, value in entries:
            if len(value) <= 4:
                value = value.ljust(4, b"\0")
            else:
                extra, value = extra + value, struct.pack(order + "I", at + len(extra))
            body += struct.pack(order + "HHI", tag, kind, count) + value
        return struct.pack(order + "H", len(entries)) + body + bytes(4) + extra

    names = {"ImageDescription": 0x010E, "Make": 0x010F, "Model": 0x0110, "Software": 0x0131}
    entries = [(names[name], 2, len(text) + 1, text.encode() + b"\0")
               for name, text in sorted(ascii_tags.items(), key=lambda item: names[item[0]])]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    if comment is None:
        return b"Exif\0\0" + head + table(entries, 8)
    inner = table([*entries, (0x8769, 4, 1, bytes(4))], 8)
    pointer = struct.pack(order + "I", 8 + len(inner))
    inner = table([*entries, (0x8769, 4, 1, pointer)], 8)
    return b"Exif\0\0" + head + inner + table([(0x9286, 7, len(comment), comment)], 8 + len(inner))


def saved(kind, **options):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format=kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le"])
def test_an_infotext_in_exif(texts, kind, order, encoding):
    """As A1111 writes into JPEG and WebP: the order of the text is not that of the file."""
    block = exif(order, comment=b"UNICODE\0" + WORDS.encode(encoding))
    found = texts(saved(kind, exif=block))
    assert found["UserComment"] == WORDS
    assert find_infotext(found) == parse_infotext(WORDS)


def test_exif_as_image_magick_and_others_put_it_into_a_png(texts):
    block = exif("<", comment=b"UNICODE\0" + WORDS.encode("utf-16-be"))
    profile = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    for key in (b"exif", b"APP1"):
        found = texts(png(chunk(b"zTXt", b"Raw profile type " + key + b"\0\0"
                                + zlib.compress(profile))))
        assert found["UserComment"] == WORDS
    assert texts(png(chunk(b"eXIf", block[6:])))["UserComment"] == WORDS
    assert set(texts(png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 3\nxyz\n")))) == {
        "Raw profile type exif"}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_comfyuis_graph_in_free_tags(texts, kind):
    graph = {"3": {"class_type": "KSampler", "inputs": {"positive": ["6", 0], "model": 1}},
             "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "狐"}}}
    block = exif(">", Make='workflow:{"nodes": []}', Model=f"prompt:{json.dumps(graph)}",
                 Software="x")
    found = texts(saved(kind, exif=block))
    assert json.loads(found["prompt"]) == graph and found["Software"] == "x"
    assert find_description(found).prompt == "狐"


def test_a_comment_of_a_jpeg(texts):
    assert find_infotext(texts(saved("JPEG", comment=WORDS.encode()))) == parse_infotext(WORDS)


def shown(capfd, path, *args):
    capfd.readouterr()
    code = main(["info", str(path), *args])
    said = capfd.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_info_of_a_jpeg_and_a_webp(tmp_path, capfd, kind):
    block = exif("<", comment=b"UNICODE\0" + f"{WORDS}\nextra".encode("utf-16-be"))
    (tmp_path / "x.png").write_bytes(saved(kind, exif=block))  # the name is wrong, as it often is
    code, out, err = shown(capfd, tmp_path / "x.png")
    assert (code, err) == (0, "")
    assert f"{kind}, 8 x 8 pixels" in out and "狐" in out and "Euler a" in out and "extra" in out
    found = json.loads(shown(capfd, tmp_path / "x.png", "--json")[1])
    assert found["format"] == kind and found["infotext"]["settings"]["Seed"] == "42"
    assert found["infotext"]["extras"] == "extra" and found["described"] is None


def test_info_names_the_program(tmp_path, capfd):
    comment = {"steps": 28, "uc": "bad"}
    (tmp_path / "x.png").write_bytes(png(
        chunk(b"tEXt", b"Description\0a fox"), chunk(b"tEXt", b"Software\0NovelAI"),
        chunk(b"tEXt", b"Comment\0" + json.dumps(comment).encode())))
    out = shown(capfd, tmp_path / "x.png")[1].splitlines()
    assert [line.split(None, 1) for line in out[1:3]] == [["written", "by:      NovelAI"],
                                                          ["prompt:", "a fox"]]


BOMB = zlib.compress(b"a" * (80 << 20), 9)
DAMAGED = {
    "cut within the pixels": (png(itxt(WORDS))[:-30], "it ends too early"),
    "cut after a text": (png(itxt(WORDS)).partition(b"IDAT")[0][:-4], "it ends too early"),
    "a wrong checksum": (png(itxt(WORDS))[:-1] + b"x", "a checksum is wrong"),
    "another text that is damaged": (png(itxt(WORDS), chunk(b"zTXt", b"x\0\0garbage")),
                                     "a text cannot be read"),
    "another text without a keyword": (png(chunk(b"tEXt", b"x"), itxt(WORDS)), "no keyword"),
    "another text that is a bomb": (png(itxt(WORDS), chunk(b"zTXt", b"x\0\0" + BOMB)),
                                    "larger than 8 MiB"),
    "EXIF that is damaged": (png(itxt(WORDS), chunk(b"eXIf", b"II*\0" + b"\xff" * 40)), ""),
    "no pixels": (png(itxt(WORDS)).partition(b"IDAT")[0][:-4] + chunk(b"IEND", b""), ""),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_a_damaged_png_still_says(tmp_path, capfd, name):
    """One piece that cannot be read, which nobody asked for, does not decide the whole."""
    data, words = DAMAGED[name]
    (tmp_path / "x.png").write_bytes(data)
    code, out, err = shown(capfd, tmp_path / "x.png")
    assert code == 0 and "Füchslein" in out
    assert all(line.startswith("refsd: warning: ") for line in err.splitlines())
    assert words in err


@pytest.mark.parametrize("data", [
    b"", b"GIF89a", b"\xff\xd8\xff\xe0" + bytes(50), b"RIFF\0\0\0\0WEBPVP8 ", b"\xff\xd8\xff",
    saved("JPEG")[:100], saved("WEBP")[:24], b"RIFF" + bytes(100),
], ids=range(8))
def test_no_pictures(tmp_path, data):
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(UsageError, match=r"x\.jpg: (a damaged|not a PNG, JPEG or WebP)") as caught:
        read_picture(str(tmp_path / "x.jpg"))
    assert "object at" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_flipped_bits_of_exif(tmp_path, kind):
    """Read, or refused in our words; nothing else may come out of Pillow's parser."""
    block = exif("<", comment=b"UNICODE\0" + LATIN.encode("utf-16-be"), Make="x" * 9)
    whole, random = saved(kind, exif=block), np.random.default_rng(0)
    begin, path = whole.index(b"II*\0"), tmp_path / "x"
    for place in begin + random.integers(0, len(block) - 6, 60):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << random.integers(8)
        path.write_bytes(flipped)
        try:
            picture = read_picture(str(path))
            find_infotext(picture.texts), find_description(picture.texts)
        except UsageError as error:
            assert str(error).startswith(str(path))


def test_large_pictures_are_described_and_not_decoded(tmp_path, capfd):
    """An enlarged picture says how it was made; only pixels are limited to 4096 x 4096."""
    data = png(itxt(WORDS))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 0, 0, 0, 0))
    (tmp_path / "x.png").write_bytes(data[:8] + header + data[33:])
    code, out, err = shown(capfd, tmp_path / "x.png")
    assert (code, err) == (0, "") and "12000 x 12000" in out and "Füchslein" in out
    with pytest.raises(UsageError, match="12000 x 12000; at most 4096"):
        read_png(str(tmp_path / "x.png"))
