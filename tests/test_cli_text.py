"""`refsd text`: the text and nothing else on stdout, as it comes; refusals; the bundled model."""

import io
import json
import os
import pty
import subprocess
import sys

import pytest
import tiny_gpt2

import refsd
from refsd.__main__ import BROKEN_PIPE, main
from refsd.cli import text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_gpt2.write(tmp_path_factory.mktemp("gpt2") / "model"))


@pytest.fixture
def run(folder, capfd, tmp_path, monkeypatch):
    """(exit code, stdout, stderr) of refsd text with the tiny model, in an empty folder"""
    monkeypatch.chdir(tmp_path)

    def go(*args):
        capfd.readouterr()
        code = main(["text", *args, "-m", folder, "--backend", "numpy"])
        said = capfd.readouterr()
        assert not [*tmp_path.iterdir()]
        return code, said.out, said.err

    return go


@pytest.fixture(scope="module")
def model(folder):
    return refsd.GPT2.from_pretrained(folder, backend="numpy")


def test_it_is_what_python_generates(run, model):
    code, out, err = run("red cat", "-n", "9")
    assert (code, out) == (0, model.generate("red cat", max_new_tokens=9).text + "\n")
    assert err.count("\n") == 1 and err.startswith("refsd: 9 tokens in ") and "seed" not in err
    drawn = ("--temperature", "1.5", "--top-k", "50", "--top-p", "0.9", "--repetition-penalty",
             "1.2", "-s", "7", "-n", "9")
    found = model.generate("red", temperature=1.5, top_k=50, top_p=0.9, repetition_penalty=1.2,
                           generator=7, max_new_tokens=9)
    code, out, err = run("red", *drawn)
    assert (code, out) == (0, found.text + "\n") and err.endswith("ended by length (seed 7)\n")
    assert run("red", *drawn, "-q") == (0, out, "")


def test_a_new_seed_is_said_and_gives_the_same_again(run):
    _, out, err = run("a", "--temperature", "2", "-n", "12")
    seed = err.rpartition("seed ")[2].rstrip(")\n")
    assert run("a", "--temperature", "2", "-n", "12", "-s", seed)[1] == out
    assert run("a", "--temperature", "2", "-n", "12")[1] != out


def test_stop_texts(run, model):
    whole = model.generate("a", max_new_tokens=12).continuation
    at = whole[5:7]
    code, out, err = run("a", "-n", "12", "--stop", "never there", "--stop", at)
    assert (code, out) == (0, "a" + whole[:whole.index(at)] + "\n") and "ended by stop" in err


def test_json_has_all_of_it(run, model):
    found = model.generate("a", temperature=1.0, generator=3, max_new_tokens=6)
    code, out, err = run("a", "--temperature", "1", "-s", "3", "-n", "6", "--json")
    said = json.loads(out)
    assert (code, err) == (0, "") and said.pop("seconds") > 0
    assert said == {"prompt": "a", "continuation": found.continuation, "ids": found.ids,
                    "stopped": found.stopped, "seed": 3, "backend": "numpy", "dtype": "float32",
                    "warnings": []}
    assert json.loads(run("a", "-n", "1", "--json")[1])["seed"] is None


def test_the_prompt_may_come_through_a_pipe(run, monkeypatch):
    def stdin(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    stdin("red \u00e9\n".encode())
    assert run("-", "-n", "3", "-q")[1] == run("red \u00e9", "-n", "3", "-q")[1]
    stdin(b"\xff")
    assert run("-")[0] == 2
    monkeypatch.setattr(text, "MAX_STDIN", 8)
    stdin(b"123456789")
    code, _, err = run("-")
    assert code == 2 and "more than 8 bytes" in err
    assert run("", "-n", "2", "-q")[0] == 0


@pytest.mark.parametrize("args, code, words", [
    ((), 2, "there is no prompt. Give one"),
    (("a", "-s", "3"), 2, "--temperature 0 draws nothing"),
    (("a", "--top-k", "3"), 2, "top_k is given, and temperature is 0"),
    (("a", "--temperature", "-1"), 2, "temperature is -1"),
    (("a", "--temperature", "1", "-s", str(2**64)), 2, "give an int from"),
    (("a", "-n", "0"), 2, "max_new_tokens is 0"), (("a", "-n", "x"), 2, "give an integer"),
    (("a", "--stop", ""), 2, "stop has ''"), (("a", "--dtype", "float8"), 2, "float8"),
    (("a", "-t", "0"), 2, "threads"), (("a", "--guidance"), 2, "no such option"),
    (("a", "--variant", "fp16"), 3, "variant"), (("x" * 40,), 2, "prompt has 40 tokens"),
])
def test_refusals_are_one_line_and_no_text(run, args, code, words):
    found, out, err = run(*args)
    assert (found, out) == (code, "") and words in err and err.count("\n") == 1, err
    found, out, err = run(*args, "--json")
    assert found == code and err == "" and json.loads(out)["error"]["exit_code"] == code


def started(folder, *args, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "refsd", "text", "a", "-m", folder, "--backend", "numpy", *args],
        env={**os.environ, "PYTHONIOENCODING": "utf-8"}, **options)


def test_a_reader_that_leaves_ends_it(folder):
    with started(folder, "-q", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait() == BROKEN_PIPE and process.stderr.read() == b""


def test_text_comes_piece_by_piece(folder, monkeypatch):
    """Each piece is written, and flushed, before the next token is asked for."""
    class Stream(io.StringIO):
        encoding = "ascii"

        def flush(self):
            seen.append(self.getvalue())

    seen, stream = [], Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["text", "a\u00e9", "-m", folder, "--backend", "numpy", "-n", "8", "-q"]) == 0
    assert seen[0] == "a\\xe9" and len({*seen}) > 4  # what the stream cannot hold is escaped
    assert all(later.startswith(earlier) for earlier, later in zip(seen, seen[1:]))


def test_a_terminal_is_spared_control_characters(folder):
    """Of a tiny model nearly every text has some; a pipe gets them as they are."""
    drawn = ("--temperature", "3", "-s", "1", "-q")
    with started(folder, *drawn, stdout=subprocess.PIPE) as process:
        piped = process.stdout.read().decode()
    control, terminal = pty.openpty()
    with started(folder, *drawn, stdout=terminal) as process:
        process.wait()
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(control, 4096)
        except OSError:
            break
        if shown.endswith(b"\r\n"):
            break
    os.close(control)
    expected = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in piped)
    assert expected != piped and shown.decode().replace("\r\n", "\n") == expected


def test_no_stdout_at_all(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["text", "a", "-m", folder, "--backend", "numpy", "-n", "2", "-q"]) == 0


def test_the_tokens_of_a_text(folder, capfd):
    assert main(["tokenize", "red cat\u00e9", "-m", folder]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "5 tokens" and [line.split()[0] for line in lines[:3]] == ["257", "259",
                                                                                   "83"]
    assert "' ca'" in lines[1] and lines[2].endswith("'t'")
    assert main(["tokenize", "red cat\u00e9", "-m", folder, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["ids"] == refsd.GPT2.from_pretrained(folder, backend="numpy").tokenizer(
        "red cat\u00e9") and found["truncated"] == "" and "tokenizer.json" in found["source"]


def test_what_frames_a_text_stands_for_nothing(tmp_path):
    files = {"tokenizer_config.json": {"add_bos_token": True}}
    place = tiny_gpt2.write(tmp_path, files=files)
    tokens = json.loads((place / "tokenizer.json").read_text())["model"]
    (place / "tokenizer.json").unlink()
    (place / "vocab.json").write_text(json.dumps(tokens["vocab"]))
    merges = ["#version: 0.2", *map(" ".join, tokens["merges"])]
    (place / "merges.txt").write_text("\n".join(merges) + "\n")
    tokenizer = refsd.GPT2.from_pretrained(place, backend="numpy").tokenizer
    assert tokenizer("a")[0] == tiny_gpt2.END and len(tokenizer("a")) == 2
    assert [piece.text for piece in tokenizer.pieces("a")] == ["", "a"]
    assert tokenizer.pieces("a")[0].token == "<|endoftext|>"
