"""`refsd port status FOLDER`: what is proven of a port, and what comes next."""

import argparse
from typing import Any

from refsd.cli.arguments import Parser
from refsd.cli.report import one_line, result, result_json

ABOUT = """\
Show what is proven of a port, from what lies in FOLDER/results: JUnit files of
the contract tests, and the JSON of refsd golden compare and bisect. Exit code 1
when something is wrong or cannot be read, 0 when nothing is, proven or not."""
PARTS = {"ops": "op", "blocks": "block", "stages": "stage"}
HEADS = {"contract": "contract", "ops_pack": "ops pack", "in_network": "in network"}


def parser() -> Parser:
    """The options of port status."""
    parser = Parser("refsd port status FOLDER [options]", ABOUT)
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="what refsd port new made")
    add("--all", action="store_true", help="also ops that the model does not need, and blocks and "
        "stages of which nothing is known")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """Show it. 1: something is wrong."""
    from refsd.golden.porting.port_status import status

    report = status(options.folder)
    wrong = bool(report["unreadable"]) or any(
        row[kind]["failed"] for part in PARTS for row in report[part] for kind in HEADS
        if kind in row)
    if options.json:
        result_json(report)
        return int(wrong)
    read = report["read"]
    result(one_line(f"{report['name']}: {len(read)} result{'' if len(read) == 1 else 's'} read"
                    + (f" ({', '.join(read)})" if read else "")))
    for why in report["unreadable"]:
        result(one_line(f"unreadable: {why}"))
    for part, title in PARTS.items():
        _table(title, [row for row in report[part] if options.all or (
            row["needed"] if part == "ops" else row["in_network"]["state"] != "open")])
    result("\nnext: " + one_line(report["next"]))
    return int(wrong)


def _table(title: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    kinds = [kind for kind in HEADS if kind in rows[0]]
    lines = [(title, "share", *(HEADS[kind] for kind in kinds))]
    lines += [(row["name"], f"{row['share']:.1%}" if row["share"] else "",
               *(_cell(row[kind]) for kind in kinds)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    result("")
    for line in lines:
        result(one_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()))


def _cell(tally: dict[str, Any]) -> str:
    failed, left, passed = len(tally["failed"]), tally["left"], tally["passed"]
    if failed:
        return f"WRONG {failed} of {failed + left + passed}"
    if not passed:
        return f"0 of {left}" if left else "-"
    return f"{passed} of {passed + left}" if left else f"ok {passed}"
