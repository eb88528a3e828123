"""The readers beside the format page read what refsd wrote, knowing nothing of refsd."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_format_samples import tensors

from refsd.__main__ import main
from refsd.golden.packs.pack import Pack
from refsd.golden.packs.rules import DTYPES, ENTRY_RULES, MANIFEST_RULES

FOLDER = Path(__file__).parents[1] / "golden"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@pytest.fixture(scope="module")
def c_reader(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C compiler here")
    program = tmp_path_factory.mktemp("reader") / "read_pack"
    subprocess.run([COMPILER, "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1",
                    FOLDER / "readers" / "read_pack.c", "-o", program], check=True)
    return [str(program)]


@pytest.fixture(params=["c", "python"])
def reader(request):
    """The command of a reader; Python's cannot see refsd (-I: no current folder, no PYTHONPATH)."""
    if request.param == "c":
        return request.getfixturevalue("c_reader")
    return [sys.executable, "-I", str(FOLDER / "readers" / "read_pack.py")]


def ask(reader, *arguments):
    return subprocess.run([*reader, *map(str, arguments)], capture_output=True, timeout=60)


def test_a_reader_lists_and_reads_every_tensor(original, reader):
    lines = ask(reader, original).stdout.decode().splitlines()
    assert len(lines) == len(tensors())
    with Pack.open(original) as pack:
        for line, (name, entry) in zip(lines, pack.entries.items(), strict=True):
            sizes = "x".join(map(str, entry.shape)) or "-"
            assert line == f"{name} {entry.dtype} {sizes}"
            if "-I" in reader and entry.index % 4:  # its module reads them all, below
                continue
            done = ask(reader, original, name)
            assert done.returncode == 0 and done.stdout == pack.read(name).tobytes()


@pytest.mark.parametrize("name", ["bundled", "ops/conv", "ops/layout"])
def test_the_committed_packs_are_whole_and_the_c_reader_finds_its_way(c_reader, name):
    with Pack.open(FOLDER / name) as pack:
        assert pack.verify() == []
        assert len(ask(c_reader, FOLDER / name).stdout.splitlines()) == len(pack.entries)
        last = list(pack.entries)[-1]
        assert ask(c_reader, FOLDER / name, last).stdout == pack.read(last).tobytes()


def test_a_reader_refuses_what_is_not_all_there(sample, reader, tmp_path):
    shard = "tensors-00001.safetensors"
    with Pack.open(sample) as pack:
        name = max((n for n, e in pack.entries.items() if e.shard == shard and e.nbytes), key=len)
    (sample / shard).write_bytes((sample / shard).read_bytes()[:200])
    done = ask(reader, sample, name)
    assert done.returncode and not done.stdout and done.stderr
    assert ask(reader, tmp_path / "none").returncode
    done = ask(reader, sample, "unet/000/none")
    assert done.returncode and not done.stdout and b"unet/000/none: no such tensor" in done.stderr


def test_the_c_reader_stays_in_the_folder(sample, c_reader, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    for shard, start, count in (("../secret", 0, 6), ("secret", -1, 6), ("secret", 0, -6),
                                ("secret", 0, 1 << 62), ("secret", 1 << 62, 1 << 62)):
        line = f"a\tuint8\t6\t{shard}\t{start}\t{count}\t{'0' * 64}\n"
        (sample / "index.tsv").write_text(line)
        (sample / "secret").write_bytes(b"secret")
        done = ask(c_reader, sample, "a")
        assert done.returncode == 3 and not done.stdout, (shard, start, count)
    (sample / "index.tsv").write_text("a\tuint8\t6\n" + "x" * 100_000)
    assert ask(c_reader, sample, "a").returncode == 3


def test_the_python_reader_serves_as_a_module(original):
    space = {"__name__": "read_pack"}
    exec((FOLDER / "readers" / "read_pack.py").read_text(), space)
    with Pack.open(original) as pack:
        for row in space["tensors"](original):
            found, wanted = space["read"](original, row), pack.read(row["name"])
            assert found.dtype == wanted.dtype and np.array_equal(
                found, wanted, equal_nan=wanted.dtype.kind == "f")


def test_the_readers_are_short_and_need_no_refsd():
    code = (FOLDER / "readers" / "read_pack.py").read_text()
    assert "refsd" not in code and len(code.splitlines()) <= 60
    assert len((FOLDER / "readers" / "read_pack.c").read_text().splitlines()) <= 60


def test_the_page_names_every_key():
    page = (FOLDER / "README.md").read_text()
    rows = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (.*?) \|", page, re.MULTILINE))))
    assert set(MANIFEST_RULES) | set(ENTRY_RULES) <= rows
    for name, short in DTYPES.items():
        assert f"`{name}`" in page and f"`{short}`" in page


def test_info_shows_a_pack_and_verifies_it(original, tmp_path, capsys):
    assert main(["golden", "info", str(original), "--verify"]) == 0
    text = capsys.readouterr().out
    for words in ("golden pack of kind run: a sample", "prompt a glossy red sphere", "name tiny",
                  "10: float32 5", "unet 4", "conv2d 1", "float32: 1 bounds (mostly 2", "0 spreads",
                  "unet/001/odd", "50 % denoise/000/guided", "1 of 1 invariants hold",
                  "every file and tensor is as it was made"):
        assert words in text, words
    assert len(text.splitlines()) <= 24

    assert main(["golden", "info", str(original), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tensors"] == 10 and found["stages"]["unet"] == 4 and not found["verified"]
    assert found["tolerances"]["float16"]["bounds"] == 1 and found["nonfinite"] == ["unet/001/odd"]


def test_info_answers_for_a_pack_that_was_altered(sample, tmp_path, capsys):
    (sample / "notes.txt").write_text("mine")
    path = sample / "tensors-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main(["golden", "info", str(sample)]) == 0  # sizes are right
    said = capsys.readouterr()
    assert "--verify compares every hash" in said.out and "notes.txt" in said.err
    assert main(["golden", "info", str(sample), "--verify"]) == 3
    said = capsys.readouterr()
    assert "bundle altered: tensors-00000.safetensors" in said.err and not said.out
    assert main(["golden", "info", str(sample), "--verify", "--json"]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == 3 and "bundle altered" in error["message"]
    assert main(["golden", "info", str(tmp_path / "none")]) == 3
    assert "no such pack" in capsys.readouterr().err
