"""`refsd export contracts`: what every op and stage takes, gives and refuses, as files."""

import argparse
from pathlib import Path

from refsd.cli.arguments import Parser
from refsd.cli.report import answer

ABOUT = """\
Write the contracts of all ops and stages, and the tables of a model's weights:

    contracts.json       everything, for programs
    refsd.h              the same for C: structs, enums, prototypes, tables
    test_contracts.py    tests for pytest that need NumPy alone, with cases.npz
    adapters.py          to be filled in: one function an op of your own"""


def parser() -> Parser:
    """The options of export contracts."""
    parser = Parser("refsd export contracts -o FOLDER [options]", ABOUT)
    add = parser.add_argument
    add("-o", "--output", metavar="FOLDER", required=True, help="a new or an empty folder")
    add("-m", "--model", metavar="MODEL", help="path, hub id or short name (see refsd plan) of the "
        "model whose tables are written, or bundled for the one in refsd; without it Stable "
        "Diffusion 1.5, for which no file is needed")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """Write them."""
    from refsd.golden.porting.contracts_header import header
    from refsd.golden.porting.contracts_pytest import contract_tests
    from refsd.golden.porting.contracts_stages import describe_all
    from refsd.golden.porting.export import write_folder

    contracts = describe_all(options.model)
    files = {"refsd.h": header(contracts).encode("utf-8"), **contract_tests(contracts)}
    write_folder(options.output, files)
    sizes = {name: len(data) for name, data in files.items()}
    return answer(
        options.json, {"folder": options.output, "ops": len(contracts["ops"]), "files": sizes},
        *(f"{size:>10,} bytes  {Path(options.output) / name}" for name, size in sizes.items()))
