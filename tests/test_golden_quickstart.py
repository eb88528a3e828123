"""docs/golden-quickstart.md: its files are written, its commands run, and answer as it says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from porter.dumping import UNET
from test_golden_readers import COMPILER

import refsd
from refsd.__main__ import main

ROOT = Path(refsd.__file__).parents[1]
PAGE = (ROOT / "docs/golden-quickstart.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"(?ms)^```console\n(.*?)^```", PAGE)
STEPS = [step for block in COMMANDS for step in re.split(r"(?m)^\$ ", block)[1:]]


def test_the_page_is_true(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("port.py").write_text(re.search(r"(?ms)^```python\n(.*?)^```", PAGE)[1])
    Path("map.json").write_text(re.search(r"(?ms)^```json\n(.*?)^```", PAGE)[1])
    for folder in "examples", "golden":  # the commands from refsd's folder
        Path(folder).symlink_to(ROOT / folder)
    assert len(STEPS) == 19
    for step in STEPS:
        if ("norms" in step or step[:3] == "cc ") and COMPILER is None:
            continue
        line, _, wanted = step.partition("\n")
        code, out = _run(shlex.split(line), capsys)
        bad = "is the first" in wanted
        assert code == bad, line
        if wanted.strip():
            pattern = ".*".join(map(re.escape, wanted.strip().split("...")))
            assert re.match(pattern, out, re.DOTALL), f"{line}\n{out}"
    assert "<h1>Golden bisection</h1>" in Path("wrong.html").read_text()


def test_the_larger_map_is_that_of_a_port():
    pairs = json.loads(re.findall(r"(?ms)^```json\n(.*?)^```", PAGE)[1])
    assert len(pairs) > 25 and pairs.items() <= UNET.items()


def _run(words, capsys):
    """Exit code and standard output of a line of the page."""
    if words[0] == "refsd":
        return main(words[1:]), capsys.readouterr().out
    if words[0] == "mkdir":
        return os.mkdir(words[1]) or 0, ""
    if words[0] == "cp":
        return shutil.copytree(*words[2:]) and 0, ""
    words[0] = {"python": sys.executable, "cc": COMPILER}.get(words[0], words[0])
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(done.stderr)
    return 0, done.stdout
