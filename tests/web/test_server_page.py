"""docs/server.md: its examples run as they stand, and it names all that the server answers."""

import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from served import PATIENCE, serving

from refsd.cli import draw
from refsd.serve import command, routes
from refsd.serve.app import App
from refsd.serve.asked import FIELDS, Limits
from refsd.serve.metrics import Metrics
from refsd.serve.models import find_all
from refsd.serve.settings import Settings
from refsd.serve.studio import Studio

TEXT = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"(?s)```sh\n(.*?)```", TEXT)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the examples say, one after the other, of the server of a line without options."""
    folder = tmp_path_factory.mktemp("shell")
    with serving("-o", folder / "pictures") as found:
        script = "\n".join(["set -e -o pipefail", *EXAMPLES]).replace(":7860", f":{found.port}")
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=folder,
                              timeout=PATIENCE)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr)
    return done.stdout, folder


def test_the_examples_run(said):
    out, folder = said
    assert len(EXAMPLES) == 4
    assert "/api/v1/pictures/refsd-7.png" in out and '"state":"done"' in out
    assert "event: step\n" in out and "event: picture\n" in out and "event: done\n" in out
    assert '"prompt":"a glossy red sphere"' in out and '"object":"text_completion"' in out
    for name in ("sphere.png", "a.png", "pictures/refsd-3.png"):
        with Image.open(folder / name) as image:
            assert image.size == (128, 128)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The paths of all routes."""
    found = []

    class Seen(App):
        def __init__(self, routes):
            found.extend(route.path for route in routes)
            super().__init__(routes)

    models, writers = find_all()
    studio = Studio(models, tmp_path_factory.mktemp("p"), writers=writers)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("refsd.serve.app.App", Seen)
        routes.application(studio, Metrics(), Settings())
    studio.close()
    return [path.replace("{id:path}", "ID").replace("{id}", "ID").replace("{name}", "NAME")
            for path in found]


def test_every_path_is_named(paths):
    assert len(paths) > 40 and not [path for path in paths if not re.search(
        rf"[ `]{re.escape(path)}[`?]", TEXT)]


def test_no_other_path_is_named(paths):
    named = set(re.findall(r"(?:GET|POST|DELETE) (/[\w/-]*)"
                           r"|`(/(?:sdapi|v1|api|internal)[\w/-]*)", TEXT))
    assert {one or other for one, other in named} - {"/v1", "/api/v1"} == {*paths}


def test_every_field_is_named():
    assert not [name for name in FIELDS if f"`{name}`" not in TEXT]


def test_every_option_is_named():
    drawing = {name for action in draw.parser()._actions for name in action.option_strings}
    for action in command.parser()._actions:
        name = next((one for one in action.option_strings if one.startswith("--")), None)
        assert name == "--help" or re.search(rf"`{name}`", TEXT) or (
            name in drawing and f"`{action.option_strings[0]}`" in TEXT), name


def test_limits_are_as_they_are_said():
    limits = Limits()
    for words in (f"{limits.batch} pictures", f"{limits.steps} steps", f"{limits.pixels:,} pixels",
                  f"{limits.least} to {limits.side} pixels", f"{limits.prompt:,} characters",
                  f"{limits.loras} LoRAs", f"{Settings().body >> 20} MiB",
                  f"{Settings().bodies >> 20} MiB"):
        assert words in TEXT, words
    assert limits.kept == 600 and "ten minutes" in TEXT
