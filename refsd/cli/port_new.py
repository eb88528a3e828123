"""`refsd port new NAME`: a folder with the order of work, contract tests, and packs to make."""

import argparse

from refsd.cli.arguments import Parser
from refsd.cli.report import answer

ABOUT = """\
Begin a port: a folder with README.md (in which order, with which packs),
contracts/ (tests that need NumPy alone, a C header) and results/."""


def parser() -> Parser:
    """The options of port new."""
    parser = Parser("refsd port new NAME [-o FOLDER] [options]", ABOUT)
    add = parser.add_argument
    add("name", metavar="NAME", help="what the port is called: 'my accelerator'")
    add("-o", "--output", metavar="FOLDER", help="a new or an empty folder (port-NAME here)")
    add("-m", "--model", metavar="MODEL", help="path, hub id or short name (see refsd plan) of the "
        "model to bring up, or bundled for the one in refsd; without it Stable Diffusion 1.5, for "
        "which no file is needed")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """Write it."""
    from refsd.golden.porting.port import new

    folder = options.output or f"port-{options.name.replace(' ', '-')}"
    path = new(options.name, folder, model=options.model)
    return answer(
        options.json, {"folder": str(path), "name": options.name},
        f"{path}: README.md says where to begin; refsd port status {path} what is proven")
