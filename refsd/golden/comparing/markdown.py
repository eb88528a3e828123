"""A comparison or a bisection as a page of Markdown: the table, and the failing tensors."""

from refsd.golden.comparing.sheet import Sheet, share
from refsd.golden.comparing.verdicts import Status


def markdown(sheet: Sheet) -> str:
    """The whole of it as a page of Markdown."""
    failing = {id(verdict) for verdict in sheet.failing}
    lines = [f"# {sheet.title}", "", _cell(sheet.sentence), "",
             f"* pack: `{_code(sheet.pack)}`", f"* candidate: `{_code(sheet.candidate)}`",
             f"* format: {sheet.format}",
             f"* tensors: {', '.join(f'{n:,} {status}' for status, n in sheet.counts.items())}",
             "", "| " + " | ".join(sheet.columns) + " |", "|" + "---|" * len(sheet.columns)]
    for verdict in sheet.verdicts:
        if verdict.status == Status.EXTERNAL:
            continue
        *cells, name = sheet.row(verdict)
        lines.append("| " + " | ".join([*map(_cell, cells), f"`{_code(name)}`"]) + " |")
    for verdict in sheet.verdicts:
        bad = id(verdict) in failing
        if bad or verdict.notes and verdict.status != Status.EXTERNAL:
            lines += ["", f"## `{_code(verdict.name)}`", ""]
            if bad:
                lines += [_cell(sheet.why(verdict)), ""]
            lines += [f"* {_cell(f'{f.reason}: {f.sentence} ({share(f)})')}"
                      for f in verdict.findings]
            lines += [f"* {_cell(note)}" for note in verdict.notes]
    for head, texts in (("Given", sheet.given), ("Cannot be read", sheet.unread),
                        ("Without effect", sheet.remarks)):
        if texts:
            lines += ["", f"## {head}", "", *(f"* {_cell(text)}" for text in texts)]
    if sheet.extra:
        lines += ["", "## Not in the pack", "", *(f"* `{_code(name)}`" for name in sheet.extra)]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """Text of any origin within a code span of one line."""
    return ascii(text)[1:-1].replace("`", "'").replace("|", "\\|")


def _cell(text: str) -> str:
    shown = ascii(text)[1:-1]
    for mark in "\\`*_<>|[]":
        shown = shown.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;",
                                                                         ">": "&gt;"}[mark])
    return shown
