"""docs/server-openai.md: its examples run as they stand, and its tables have every field."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from web_samples import serving

from refsd.cli import draw
from refsd.serve import openai as served
from refsd.serve import openai_images, openai_texts
from refsd.serve.app import make_app
from refsd.serve.models import find_all
from refsd.serve.studio import Studio

PAGE = (Path(__file__).parents[2] / "docs" / "server-openai.md").read_text(encoding="utf-8")
HOME = "http://127.0.0.1:7860"
BLOCK = re.compile(r"```(sh|python)\n(.*?)```", re.DOTALL)
BASE = draw.parser().parse_args(["--backend", "numpy", "--steps", "4"])  # where none are said


@pytest.fixture(scope="module")
def url(tmp_path_factory, tiny_model):
    """A server whose first model is quick."""
    models, writers = find_all([str(tiny_model)])
    made = Studio(models, tmp_path_factory.mktemp("pictures"), base=BASE, writers=writers)
    with serving(make_app(served.routes(made))) as found:
        yield found
    made.close()


def test_the_examples_run(url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind, code in BLOCK.findall(PAGE):
        assert HOME in code
        code = code.replace(HOME, url)
        if kind == "sh":
            subprocess.run(["bash", "-ec", code], check=True, timeout=60)
        else:
            exec(compile(code, "server-openai.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert json.loads((tmp_path / "answer.json").read_text())["data"][0]["seed"] == 5
    for seed in (5, 6):
        with Image.open(tmp_path / f"{seed}.png") as image:
            assert image.size == (128, 128)
    assert re.fullmatch(r"image_generation\.completed \d+", said[-2])
    assert said[-1].startswith(" ") and len(said[-1].split()) > 1


def fields(part):
    rows = re.findall(r"(?m)^\| (`[^|]*) \|", part)
    return {name for row in rows for name in re.findall("`([^`]+)`", row)}


def test_the_tables_have_every_field():
    pictures, texts = PAGE.split("## Texts")
    translated = {"prompt", "model", "n", "size", "response_format", "stream", "partial_images",
                  "image", "mask"}
    assert fields(pictures) == translated | {*openai_images.UNUSED, *openai_images.REFUSED}
    assert fields(texts) == set(openai_texts.FIELDS)
