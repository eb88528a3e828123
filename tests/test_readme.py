"""README.md and CONTRIBUTING.md: their links, their pictures, and the lines of Python."""

import re
from pathlib import Path

import pytest
from PIL import Image

from refsd.cli.sampler_names import SAMPLERS
from refsd.schedulers import SCHEDULERS

ROOT = Path(__file__).parents[1]
LINK = re.compile(r'\]\(([^)#]+)[^)]*\)|(?:src|href)="([^"#]+)"')


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_no_link_is_dead(page):
    path = ROOT / page
    found = {a or b for a, b in LINK.findall(path.read_text("utf-8"))}
    there = {name for name in found if not name.startswith(("http:", "https:"))}
    assert there
    missing = sorted(name for name in there if not (path.parent / name).exists())
    assert missing == []


def test_the_strip_is_an_animation_of_less_than_600_kb():
    path = ROOT / "docs" / "pictures" / "strip.webp"
    assert path.stat().st_size < 600_000
    with Image.open(path) as image:
        assert image.n_frames > 20 and image.size == (536, 128)


def test_its_commands_are_those_of_the_makefile():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / "README.md").read_text("utf-8")
    named = re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)
    assert {"image", "test"} <= set(named) <= targets


def test_every_notebook_is_linked_with_a_picture():
    """python docs/pictures/thumbnails.py makes both."""
    text = (ROOT / "README.md").read_text("utf-8")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f'href="notebooks/{path.name}"><img src="docs/pictures/{path.stem}.png"' in text


def test_it_counts_the_samplers_that_there_are():
    text = (ROOT / "README.md").read_text("utf-8")
    assert re.findall(r"(\d+) samplers \(`refsd samplers`\)", text) == [str(len(SAMPLERS))]
    assert re.findall(r"all (\d+) classes of samplers", text) == [str(len(SCHEDULERS))]


def test_its_lines_of_python_draw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [lines] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) == 5
    exec(compile(lines, "README.md", "exec"), {})
    with Image.open("out.png") as image:
        assert image.size == (128, 128)
