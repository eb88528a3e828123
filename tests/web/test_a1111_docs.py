"""docs/server-a1111.md: its example runs as it stands, and its tables have every field."""

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from web_samples import serving

from refsd.cli import draw
from refsd.serve import a1111, a1111_settings
from refsd.serve.a1111_fields import FIELDS
from refsd.serve.app import make_app
from refsd.serve.models import find_models
from refsd.serve.studio import Studio

PAGE = (Path(__file__).parents[2] / "docs" / "server-a1111.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
HOME = "port=7860"
BASE = draw.parser().parse_args(["--backend", "numpy"])


def test_the_example_runs(tmp_path, tiny_model):
    made = Studio(find_models([str(tiny_model)]), tmp_path / "pictures", base=BASE)
    (code,) = BLOCK.findall(PAGE)
    assert HOME in code
    with serving(make_app(a1111.routes(made))) as url:
        port = url.rpartition(":")[2]
        done = subprocess.run([sys.executable, "-c", code.replace(HOME, f"port={port}")],
                              cwd=tmp_path, text=True, capture_output=True, timeout=60)
    made.close()
    assert (done.returncode, done.stdout) == (0, "[5] []\n"), done.stderr
    with Image.open(tmp_path / "sphere.png") as image:
        assert image.size == (128, 128)


def fields(title):
    part = re.split(r"(?m)^## ", PAGE.partition(f"## {title}\n")[2])[0]
    rows = re.findall(r"(?m)^\| (`[^|]*) \|", part)
    return {name for row in rows for name in re.findall("`([^`]+)`", row)}


def test_the_tables_have_every_field():
    both = fields("Both kinds of requests")
    assert both | fields("txt2img") == set(FIELDS["txt2img"])
    assert both | fields("img2img") == set(FIELDS["img2img"])
    assert fields("Settings") == set(a1111_settings.NAMES)
