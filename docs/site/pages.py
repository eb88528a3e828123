"""Make build/docs-source, what Sphinx is given: `python docs/site/pages.py`.

The folder has the repository's layout, so that links between pages are the same in both. Pages are
copied; ops/, api/ and commands.md are made from the package, index.md from docs/index.md.
"""

import io
import posixpath
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import api_pages
import op_pages
from markup import block, code, escaped, from_docstring, table
from sources import ROOT

from refsd import __main__ as command_line
from refsd import functional
from refsd.cli.actions import FAMILIES
from refsd.registry import ops

# What is read as a page, and what pages show or link to.
PAGES = ("README.md", "docs/*.md", "notebooks/*.md", "notebooks/*.ipynb", "golden/*.md",
         "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
SHOWN = (".md", ".ipynb", ".png", ".webp", ".gif", ".svg")
EXTRA = "extra"  # a folder that is copied as it is, for what HTML in pages names
LINK = re.compile(r"(?<!!)\[([^\]\[]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
HREF = re.compile(r'(?<=href=")([^":#]+)\.(md|ipynb)(?=[#"])')
FAMILY_TITLES = {
    "linear": "Matrix products", "conv": "Convolution", "attention": "Attention",
    "norm": "Normalisations", "activation": "Non-linearities", "embedding": "Positions and tokens",
    "resize": "Resizing", "layout": "Moving data", "arithmetic": "Arithmetic",
    "fused": "Fused ops",
}
# The table of contents: which pages stand under which door.
DOORS = {
    "Draw": ("docs/cli", "commands", "docs/server", "docs/server-a1111", "docs/server-openai",
             "docs/farm", "docs/python", "docs/features", "docs/pictures-in", "docs/controlnet",
             "docs/adapters", "docs/text", "docs/weights", "docs/memory", "docs/cuda",
             "docs/profiling", "docs/benchmarks"),
    "Understand": ("notebooks/README", "ops/index", "docs/graph", "docs/noise", "docs/schedules",
                   "docs/tokenizer", "docs/dialects", "docs/checkpoints", "docs/kernels-conv",
                   "docs/cuda-speed", "docs/cuda-gpu", "docs/tolerances"),
    "Port": ("docs/golden-quickstart", "docs/porting", "docs/golden-make",
             "docs/golden-compare", "docs/golden-bisect", "docs/golden-trial", "golden/README"),
    "Work on it": ("The README <README>", "api/index", "CONTRIBUTING", "SECURITY", "CHANGELOG"),
}


def sources() -> dict[str, str | Path]:
    """Every file of the folder: its text, or the file that it is a copy of."""
    files: dict[str, str | Path] = {}
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files[name] = with_links(path.read_text(encoding="utf-8"), name)
    for path in ROOT.glob("docs/pictures/*"):
        name = path.relative_to(ROOT).as_posix()
        files |= {name: path, f"{EXTRA}/{name}": path} if name.endswith(SHOWN) else {}
    index = files.pop("docs/index.md")
    files["notebooks/README.md"] += toctree(
        path.stem for path in sorted(ROOT.glob("notebooks/*.ipynb")))
    files |= {"index.md": front_page(index), "commands.md": commands(), "ops/index.md": op_index()}
    files |= {f"ops/{op.name}.md": op_pages.page(op) for op in ops().values()}
    files |= {f"api/{name}.md": text for name, text in api_pages.pages().items()}
    return files


def with_links(text: str, page: str) -> str:
    """A page whose links lead to pages here; to other files there is nothing to open, but a name.

    docs/index.md is the front page. Links that are written in HTML nobody else makes lead to HTML.
    """
    here = posixpath.dirname(page)

    def shown(link):
        words, target = link[1], link[2]
        name = posixpath.normpath(posixpath.join(here, target))
        if name == "docs/index.md":
            return f"[{words}]({posixpath.relpath('index.md', here)}{link[3] or ''})"
        if "://" in target or target.startswith("mailto:") or target.endswith(SHOWN):
            return link[0]
        if not (ROOT / name).exists():
            return link[0]  # which fails the build
        return words if name in words else f"{words} ({code(name)})"

    return HREF.sub(r"\1.html", LINK.sub(shown, text))


def front_page(text: str) -> str:
    """docs/index.md one folder higher, with all ops and the table of contents."""

    def moved(link):
        if "://" in link[2]:
            return link[0]
        target = posixpath.normpath(posixpath.join("docs", link[2]))
        return f"[{link[1]}]({target}{link[3] or ''})"

    parts = [
        LINK.sub(moved, text),
        "## Every op\n", table(("", ""), [
            (f"[{title}](ops/index.md#{slug(title)})",
             " ".join(f"[`{op.name}`](ops/{op.name}.md)" for op in members))
            for title, members in families()]),
        "## Every command\n", " · ".join(
            f"[{code(name)}](commands.md#{slug(name)})" for name in map(" ".join, names())) + "\n",
        "## Every public module\n", " · ".join(
            f"[{code(module)}](api/{module}.md)" for module in api_pages.MODULES) + "\n"]
    return "\n".join(parts) + "".join(toctree(pages, door) for door, pages in DOORS.items())


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return heading.lower().replace(" ", "-")


def toctree(pages, caption: str = "") -> str:
    """A part of the table of contents; it is shown at the side only."""
    head = [":hidden:", *([f":caption: {caption}"] if caption else []), ""]
    return "\n```{toctree}\n" + "\n".join([*head, *pages]) + "\n```\n"


def families():
    """Title and ops of each family, in the order of refsd.functional."""
    by_title: dict[str, list] = {}
    for family, title in FAMILY_TITLES.items():
        by_title[title] = [op for op in ops().values() if op.family == family]
    for op in ops().values():  # of a family that has no title yet
        if op.family not in FAMILY_TITLES:
            by_title.setdefault(op.family.capitalize(), []).append(op)
    return by_title.items()


def op_index() -> str:
    """The ops by family, one line each."""
    parts = ["# Ops\n", f"The {len(ops())} ops that Stable Diffusion is made of here, "
             "`from refsd import F`. Each page has the formula, what a call may be and what it "
             "costs, the definition and the kernel side by side, and how far a result may lie from "
             "the exact one. `refsd ops show NAME` says it in a terminal.\n",
             from_docstring(functional.__doc__.partition("\n")[2])]
    for title, members in families():
        parts += [f"## {title}\n", table(("op", ""), [
            (f"[`{op.name}`]({op.name}.md)", code(op_pages.formula(op))) for op in members])]
    return "\n".join(parts) + toctree(op.name for _, members in families() for op in members)


def names() -> list[list[str]]:
    """The words of every command: refsd alone, refsd info, refsd golden, refsd golden make."""
    found = [["refsd"]]
    for name in command_line.COMMANDS:
        found += [["refsd", name], *(["refsd", name, action] for action in FAMILIES.get(name, ()))]
    return found


def commands() -> str:
    """Every command's --help."""
    parts = ["# Commands\n", "What `--help` says, command by command. "
             "[The command line](docs/cli.md) explains.\n"]
    for words in names():
        parts += [f"## {escaped(' '.join(words))}\n", block(_help(words), "text")]
    return "\n".join(parts)


def _help(words):
    said = io.StringIO()
    with redirect_stdout(said):
        if command_line.main([*words[1:], "--help"]):
            raise SystemExit(f"{' '.join(words)} --help failed")
    return said.getvalue()


def write(folder: Path) -> None:
    """Make the folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in sources().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode("utf-8") if isinstance(content, str) else content.read_bytes()
        path.write_bytes(data)


if __name__ == "__main__":
    write(ROOT / "build" / "docs-source")
