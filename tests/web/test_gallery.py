"""The gallery: refsd's pictures newest first, and no other file of any folder."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from refsd.__main__ import main
from refsd.cli.png import encode_png, read_png
from refsd.serve import gallery
from refsd.serve.gallery import Entry, Gallery
from refsd.serve.refusals import Refused

PIXELS = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, model):
    """The file of one picture."""
    folder = tmp_path_factory.mktemp("drawn")
    assert main(["a red sphere", "-m", model, "-W", "32", "-H", "32", "--steps", "1", "-s",
                 str(2**64 - 1), "-q", "--backend", "numpy", "-o", f"{folder}/one.png"]) == 0
    return (folder / "one.png").read_bytes()


@pytest.fixture
def folder(tmp_path, drawn):
    """Five pictures, the last one the newest."""
    for number in range(5):
        add(tmp_path, f"{number}.png", drawn, number)
    return tmp_path


def add(folder, name, data, second):
    (folder / name).write_bytes(data)
    os.utime(folder / name, (second, second))


def names(page):
    return [entry.name for entry in page[0]]


def test_pictures_are_listed_newest_first(folder):
    shelf = Gallery(folder)
    found, more = shelf.page(2)
    assert [entry.name for entry in found] == ["4.png", "3.png"] and more
    assert found[0][:5] == ("4.png", 2**64 - 1, "a red sphere", 32, 32)
    assert len(found[0].pixels) == 64
    assert names(shelf.page(2, "3.png")) == ["2.png", "1.png"]
    assert shelf.page(5)[1] is False and shelf.page(4)[1] is True
    assert shelf.page(9, "0.png") == ([], False)


def test_the_place_of_a_picture_that_is_gone_is_known(folder):
    shelf = Gallery(folder)
    shelf.page(3)
    (folder / "2.png").unlink()
    assert names(shelf.page(9, "2.png")) == ["1.png", "0.png"]
    with pytest.raises(Refused, match="no picture 'x.png'") as caught:
        shelf.page(9, "x.png")
    assert caught.value.status == 404
    assert names(Gallery(folder).page(9)) == ["4.png", "3.png", "1.png", "0.png"]


def test_pictures_of_one_second_are_each_listed_once(folder):
    for file in folder.iterdir():
        os.utime(file, (7, 7))
    shelf, found = Gallery(folder), [None]
    while page := names(shelf.page(2, found[-1])):
        found += page
    assert sorted(found[1:]) == [f"{number}.png" for number in range(5)]


def test_a_picture_that_changed_is_read_again(folder, drawn):
    shelf = Gallery(folder)
    assert shelf.page(1)[0][0].seed == 2**64 - 1
    texts = read_png(str(folder / "4.png")).texts
    changed = texts["refsd"].replace(f'"seed": {2**64 - 1}', '"seed": 5')
    add(folder, "4.png", encode_png(PIXELS, {**texts, "refsd": changed}), 9)
    assert shelf.page(1)[0][0].seed == 5


def test_a_file_is_read_once(folder, monkeypatch):
    shelf = Gallery(folder)
    first = shelf.page(5)
    monkeypatch.setattr(gallery, "_described", lambda *said: 1 / 0)
    assert shelf.page(5) == first


def test_what_is_remembered_is_bounded(folder, monkeypatch):
    shelf = Gallery(folder)
    shelf.page(5)
    monkeypatch.setattr(gallery, "KNOWN", 4)
    shelf.page(1)
    assert len(shelf._known) == 2


def test_a_damaged_recipe_hides_no_picture(folder):
    texts = {"refsd": "{}", "parameters": "a fox\nSteps: 1, Seed: 2, Size: 8x8"}
    add(folder, "5.png", encode_png(PIXELS, texts), 5)
    shelf = Gallery(folder)
    assert shelf.page(1)[0] == [Entry("5.png", None, "a fox", 8, 8, "")]
    assert shelf.read("5.png")[0].seed is None


def test_a_file_comes_as_it_is(folder, drawn):
    entry, data = Gallery(folder).read("2.png")
    assert data == drawn and entry.name == "2.png" and entry.seed == 2**64 - 1


def foreign(folder, drawn):
    """Files that are no pictures of refsd, by their names."""
    outside = folder.parent / f"{folder.name}.png"
    outside.write_bytes(drawn)
    (folder / "link.png").symlink_to(outside)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "plain.png").write_bytes(encode_png(PIXELS, {}))
    (folder / "a1111.png").write_bytes(encode_png(PIXELS, {"parameters": "a\nSteps: 1"}))
    (folder / "text.png").write_text("refsd")
    (folder / "short.png").write_bytes(drawn[:20])
    (folder / "empty.png").touch()
    (folder / ".draft.png").write_bytes(drawn)
    (folder / "picture.jpg").write_bytes(drawn)
    (folder / "new\nline.png").write_bytes(drawn)
    (folder / os.fsdecode(b"\xff.png")).write_bytes(drawn)
    return [path.name for path in folder.iterdir() if not path.name[0].isdigit()]


def test_nothing_else_is_listed_or_read(folder, drawn, monkeypatch):
    shelf, opened, system = Gallery(folder), [], os.open
    for name in foreign(folder, drawn):
        with pytest.raises(Refused) as caught:
            shelf.read(name)
        assert caught.value.status == 404, name
    monkeypatch.setattr(os, "open", lambda path, *said: (opened.append(Path(path).name),
                                                         system(path, *said))[1])
    assert len(shelf.page(99)[0]) == 5
    assert not {"link.png", "folder.png", "pipe.png"} & set(opened)  # a pipe may have a writer


@pytest.mark.parametrize("name", ["", ".", "..", "../{name}.png", "/etc/passwd", "{folder}/0.png",
                                  "./0.png", "0.png/", "0.png\0", "x/../0.png", "..\\{name}.png",
                                  "0.PNG", "file:///0.png", "%2e%2e/0.png"])
def test_no_name_is_a_path(folder, drawn, name):
    foreign(folder, drawn)
    with pytest.raises(Refused, match="there is no picture"):
        Gallery(folder).read(name.format(name=folder.name, folder=folder))


def test_what_takes_a_files_place_is_not_followed(folder, drawn, monkeypatch):
    """Between the listing and the reading."""
    foreign(folder, drawn)
    shelf = Gallery(folder)
    monkeypatch.setattr(shelf, "_files", lambda: iter([(9, "link.png", 1), (9, "pipe.png", 1),
                                                       (9, "gone.png", 1), (1, "1.png", 1)]))
    assert names(shelf.page(9)) == ["1.png"]
    monkeypatch.setattr(os, "listdir", lambda folder: ["gone.png"])
    with pytest.raises(Refused):
        shelf.read("gone.png")


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("added, read", [
    (chunk(b"IDAT", bytes(5 << 20)), 0), (chunk(b"tEXt", bytes(gallery.MAX_HEAD + 1)), 0),
    (chunk(b"tEXt", bytes(3 << 20)) * 3, 2 * len(chunk(b"tEXt", bytes(3 << 20)))),
    (bytes(7), 0), (b"\0\0\0\1tEXt", 8),
])
def test_of_a_file_only_its_texts_are_read(tmp_path, drawn, added, read):
    """And no text that is longer than any of refsd's."""
    at = drawn.index(b"IDAT") - 4
    (tmp_path / "0.png").write_bytes(drawn[:at] + added)
    with open(tmp_path / "0.png", "rb") as file:
        assert gallery._head(file) == drawn[:at] + added[:read]


def test_no_file_is_larger_than_what_refsd_reads(folder, monkeypatch, drawn):
    monkeypatch.setattr(gallery, "MAX_FILE", len(drawn) - 1)
    assert Gallery(folder).page(5) == ([], False)
    with pytest.raises(Refused):
        Gallery(folder).read("0.png")


def test_a_folder_that_is_gone_has_no_pictures(tmp_path):
    shelf = Gallery(tmp_path / "gone")
    assert shelf.page(5) == ([], False)
    with pytest.raises(Refused):
        shelf.read("0.png")
