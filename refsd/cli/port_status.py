"""`refsd port status FOLDER`: what is proven of a port, and what comes next."""

import argparse
from collections.abc import Iterable
from typing import Any

from refsd.cli.arguments import Parser
from refsd.cli.report import one_line, result, result_json

ABOUT = """\
Show what is proven of a port, from what lies in FOLDER/results: JUnit files of
the contract tests, and the JSON of refsd golden compare and bisect. Exit code 1
when something is wrong or cannot be read, 0 when nothing is, proven or not."""
HEADS = {"contract": "contract", "ops_pack": "ops pack", "in_network": "in network"}


def parser() -> Parser:
    """The options of port status."""
    found = Parser("refsd port status FOLDER [options]", ABOUT)
    add = found.add_argument
    add("folder", metavar="FOLDER", help="what refsd port new made")
    add("--all", action="store_true", help="also ops that the model does not need, and blocks and "
        "stages of which nothing is known")
    return found.answering()


def run(options: argparse.Namespace) -> int:
    """Show it. 1: something is wrong."""
    from refsd.golden.porting.port_status import status

    found = status(options.folder)
    rows = [*found.ops, *found.blocks, *found.stages]
    wrong = bool(found.unread) or any(
        tally.failed for row in rows for tally in row.checks.values())
    if options.json:
        result_json(found.as_json())
        return int(wrong)
    result(one_line(f"{found.name}: {len(found.read)} results read"
                    + (f" ({', '.join(found.read)})" if found.read else "")))
    for why in found.unread:
        result(one_line(f"unreadable: {why}"))
    _table("op", [row for row in found.ops if row.needed or options.all], list(HEADS))
    for title, part in (("block", found.blocks), ("stage", found.stages)):
        _table(title, [row for row in part if options.all
                       or row.checks["in_network"].state != "open"], ["in_network"])
    result("\nnext: " + one_line(found.next))
    return int(wrong)


def _table(title: str, rows: Iterable[Any], kinds: list[str]) -> None:
    lines = [(row.name, f"{row.share:.1%}" if row.share else "",
              *(_cell(row.checks[kind]) for kind in kinds)) for row in rows]
    if not lines:
        return
    heads = (title, "share", *(HEADS[kind] for kind in kinds))
    widths = [max(map(len, column)) for column in zip(heads, *lines)]
    result("")
    for line in (heads, *lines):
        result(one_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()))


def _cell(tally: Any) -> str:
    if tally.state == "open":
        return f"0 of {tally.left}" if tally.left else "-"
    total = tally.passed + tally.left + len(tally.failed)
    if tally.failed:
        return f"WRONG {len(tally.failed)} of {total}"
    return f"ok {tally.passed}" if not tally.left else f"{tally.passed} of {total}"
