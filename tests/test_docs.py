"""The pages that `make docs` is given, made without Sphinx, which checks every link in them."""

import re
import sys
from pathlib import Path

import pytest

import refsd
from refsd import registry
from refsd.kinds import Map
from refsd.options import Flag

ROOT = Path(refsd.__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import api_pages  # noqa: E402
import formulas  # noqa: E402
import markup  # noqa: E402
import op_pages  # noqa: E402
import pages  # noqa: E402
import sources  # noqa: E402

SECTIONS = ("Shapes", "Errors", "Definition and kernel", "Contract and cost", "Error bound",
            "Where it is used")
WRITTEN = sorted(path for pattern in pages.PAGES for path in ROOT.glob(pattern)
                 if path.suffix == ".md")


@pytest.fixture(scope="module")
def files():
    return pages.sources()


@pytest.mark.parametrize("op", registry.ops().values(), ids=registry.ops())
def test_every_op_has_a_page(op, files):
    page = files[f"ops/{op.name}.md"]
    headings = re.findall(r"(?m)^## (.*)$", page)
    assert [title for title in headings if title in SECTIONS] == list(SECTIONS)
    assert ("Options" in headings) == bool(op.contract.options)
    assert formulas.FORMULAS.get(op.name, "") in page and op_pages.formula(op) in page
    assert page.count(f"\ndef {op.name}(") >= 2  # the definition and a kernel at least
    for rule in op.contract.rules:
        assert f"`{rule}`" in page
    assert f"[`{op.name}`]({op.name}.md)" in files["ops/index.md"]
    assert f"[`{op.name}`](ops/{op.name}.md)" in files["index.md"]


def test_every_formula_is_of_an_op():
    assert formulas.FORMULAS.keys() <= registry.ops().keys()


def test_an_op_of_ones_own_has_a_page(own_ops):
    """No formula in TeX and no bound: it shows what its declaration says."""
    @registry.op("x (... K) -> (...)", flops="size * K", signed=Flag(), examples=[])
    def total(x, *, signed):
        """The sum of x, or of |x|.   (..., K) -> (...)"""
        return (x if signed else abs(x)).sum(axis=-1)

    page = op_pages.page(registry.ops()["total"])
    assert "| `signed` | required | True or False |" in page and "$$" not in page
    assert "## Error bound" not in page and "## Errors" not in page


def test_a_page_of_a_map_without_options(own_ops):
    @registry.op("x (...) -> (...)", Map(roundings=1, scale=1), flops="size")
    def twice(x):
        """2 x.   any shape -> the same"""
        return 2 * x

    page = op_pages.page(registry.ops()["twice"])
    assert "## Options" not in page and "Stable Diffusion 1.5 draws without it" in page


def test_a_definition_comes_with_what_it_needs_of_its_file():
    silu = sources.source_of(registry.ops()["silu"].definition)
    assert silu.file == "refsd/ops/activation.py" and silu.text.startswith("def silu(x):")
    assert "def _sigmoid(x):" in silu.text and "gelu" not in silu.text
    kernel = sources.source_of(registry.kernels("silu")["numba"])
    assert "def _silu(x):" in kernel.text and "def _quick_gelu" not in kernel.text
    conv = sources.source_of(registry.ops()["conv2d"].definition)
    assert conv.beyond == ("refsd/ops/conv_tiled.py",) and "# A sum's error" in conv.text


def test_the_models_are_searched_for_ops():
    """SiLU's places, and the table of activations in clip.py, which is in no function."""
    found = sources.uses()
    assert ("refsd/models/layers.py", "resnet") in {use[:2] for use in found["silu"]}
    assert ("refsd/models/clip.py", "") in {use[:2] for use in found["quick_gelu"]}
    assert found.keys() <= registry.ops().keys()


@pytest.mark.parametrize("page", WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_in_a_page_leads_to_a_file(page):
    text = page.read_text(encoding="utf-8")
    links = [link[2] for link in pages.LINK.finditer(text)]
    links += re.findall(r'(?:href|src)="([^"#]+)', text)
    for link in links:
        assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_stands_behind_a_door(files):
    listed = [name.rpartition("<")[2].rstrip(">") for door in pages.DOORS.values() for name in door]
    assert len(listed) == len(set(listed))
    written = {name.removesuffix(".md") for name in files if name.endswith(".md")
               and not name.startswith(("ops/", "api/"))}
    assert set(listed) == written - {"index"} | {"ops/index", "api/index"}


@pytest.mark.parametrize("link, shown", [
    ("[the format](../golden/README.md#tensors)", "[the format](../golden/README.md#tensors)"),
    ("[lead](https://example.org/x)", "[lead](https://example.org/x)"),
    ("[conv.py](../refsd/ops/conv.py)", "conv.py (`refsd/ops/conv.py`)"),
    ("[`refsd/ops/conv.py`](../refsd/ops/conv.py)", "`refsd/ops/conv.py`"),
    ("[the ops](../refsd/ops)", "the ops (`refsd/ops`)"),
    ("[gone](../refsd/gone.py)", "[gone](../refsd/gone.py)"),  # Sphinx says so
    ("[below](#ports)", "[below](#ports)"),
    ("[doors](index.md#port)", "[doors](../index.md#port)"),
    ('<a href="../notebooks/04.ipynb"><img src="a.png"></a>',
     '<a href="../notebooks/04.html"><img src="a.png"></a>'),
    ('<a href="cli.md#models">', '<a href="cli.html#models">'),
    ('<a href="https://example.org/x.md">', '<a href="https://example.org/x.md">'),
])
def test_links_to_sources_are_names(link, shown):
    assert pages.with_links(f"see {link}.", "docs/page.md") == f"see {shown}."


def test_pictures_that_html_names_are_copied(files):
    named = re.findall(r'src="([^"]+)"', (ROOT / "README.md").read_text(encoding="utf-8"))
    assert named and {f"{pages.EXTRA}/{name}" for name in named} <= files.keys()


def test_the_front_page_lies_one_folder_higher():
    text = pages.front_page("[a](cli.md) [b](../golden/README.md#x) [c](https://example.org)")
    assert text.startswith("[a](docs/cli.md) [b](golden/README.md#x) [c](https://example.org)")


@pytest.mark.parametrize("text, shown", [
    ("a_b * c[0] <d> `e_f` *g*", r"a\_b \* c\[0\] \<d\> `e_f` *g*"),
    ("x ** 2", r"x \*\* 2"),
])
def test_docstrings_are_no_markup(text, shown):
    assert markup.escaped(text) == shown


def test_examples_and_code_in_docstrings_are_blocks():
    text = "One.\n\n    a = 1\n\n    >>> 1 + 1\n    2\n\n* first\n* second"
    assert markup.from_docstring("Sum.\n\n" + text) == (
        "Sum.\n\nOne.\n\n```python\na = 1\n```\n\n```pycon\n>>> 1 + 1\n2\n```\n\n"
        "* first\n* second\n")


def test_the_folder_is_made_anew(tmp_path, monkeypatch):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"png")
    folder = tmp_path / "made"
    for files in {"old.md": "old"}, {"ops/new.md": "new", "picture.png": picture}:
        monkeypatch.setattr(pages, "sources", lambda files=files: files)
        pages.write(folder)
    made = {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*.*")}
    assert made == {"ops/new.md": b"new", "picture.png": b"png"}


def test_every_command_is_on_the_page_of_commands(files):
    """And none of them answers --help with an error."""
    page = files["commands.md"]
    headings = re.findall(r"(?m)^## (.*)\n\n```text\nusage: refsd", page)
    assert headings == [" ".join(words) for words in pages.names()]
    assert {"refsd", "refsd info", "refsd golden bisect"} <= set(headings)


def test_a_command_without_help_is_an_error(monkeypatch):
    monkeypatch.setattr(pages.command_line, "main", lambda argv: 2)
    with pytest.raises(SystemExit, match="refsd --help failed"):
        pages.commands()


def test_every_public_module_has_a_page(files):
    for module in api_pages.MODULES:
        page = files[f"api/{module}.md"]
        for name in api_pages.exported(module):
            assert f"\n## {markup.escaped(name)}\n" in page
    drawing = files["api/refsd.md"].partition("\n## StableDiffusionPipeline\n")[2]
    call = drawing.partition("\\_\\_call\\_\\_\n")[2]
    assert call.partition("```python\n")[2].startswith(
        "StableDiffusionPipeline.__call__(\n    prompt: str | list[str] | None = None,\n")
