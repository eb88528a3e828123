"""What golden compare, bisect and same have in common: options, and reports as files."""

import argparse
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from refsd.cli.arguments import choice
from refsd.cli.output import Target, save, try_out
from refsd.cli.report import answer, note

FORMATS = ("float32", "fp32", "float16", "fp16", "bfloat16", "bf16", "int8", "tf32", "float64")
REPORTS = (".json", ".md", ".xml", ".html")


def add_options(add: Callable[..., Any]) -> None:
    """How a port's tensors are named, kept and judged, and which files say what was found."""
    add("--format", type=_format, metavar="NAME", action="append", default=[],
        help="what the port computes in: float32, fp16, bf16, int8 (weights); again as "
             "PATTERN=NAME for some names or ops: 'denoise/*=fp32'")
    add("--map", metavar="FILE", help="JSON of golden name: your name; * stands for any text")
    add("--layout", metavar="NAME", help="of every tensor: NHWC, NC4HW4, TILE32, ROWS ...")
    add("--dtype", metavar="NAME", help="of raw files that do not say it (float32)")
    add("--only", metavar="PATTERN", action="append", default=[],
        help="names to judge, such as 'unet/000/*'; may be given again")
    add("--given", metavar="PATTERN", action="append", default=[],
        help="names of tensors that the port was fed, such as 'denoise/*/concat': never wrong")
    add("--at-least", type=_at_least, metavar="N|P%", default=(),
        help="fail if fewer tensors, or a smaller share of those wanted, could be judged")
    add("--accept-tolerance", type=_tolerance, metavar="ABS[,REL]",
        help="|error| <= ABS + REL |right number| in place of the derived one")
    add("-m", "--model", metavar="MODEL", help="where the pack's model is, if not where it says")
    add_reports(add)


def add_reports(add: Callable[..., Any]) -> None:
    """Which files say what was found."""
    add("--report", metavar="FILE", action="append", default=[],
        help="write .json, .md, .xml or .html; may be given again")


def report_files(options: argparse.Namespace) -> list[Path]:
    """The files that are wanted, tried out before any work is done."""
    for name in options.report:
        try_out(name, REPORTS)
    return [Path(name) for name in options.report]


def has_page(files: list[Path]) -> bool:
    """Whether one of them is a page, which has maps."""
    return any(path.suffix.lower() == ".html" for path in files)


def said(options: argparse.Namespace, files: list[Path], sheet: Any, plain: Any,
         lines: Iterable[str]) -> int:
    """Write the reports, and the answer as JSON or lines; the exit code: 0 for a sheet that is ok.
    """
    _write_reports(files, sheet, plain, quiet=options.json)
    answer(options.json, plain, *(() if options.json else lines))
    return 0 if sheet.ok else 1


def _write_reports(files: list[Path], sheet: Any, plain: Any, *, quiet: bool) -> None:
    """Write a sheet as each file's kind; `plain` is what goes into JSON."""
    for path in files:
        save(rendered(path.suffix.lower(), sheet, plain), Target(str(path)), "The report")
        if not quiet:
            note(f"refsd: wrote {path}")


def rendered(end: str, sheet: Any, plain: Any) -> bytes:
    """A sheet as a report whose file ends so."""
    from refsd.golden.comparing.html import page
    from refsd.golden.comparing.junit import junit
    from refsd.golden.comparing.markdown import markdown

    renderers = {".md": markdown, ".xml": junit, ".html": page}
    text = renderers[end](sheet) if end in renderers else (
        json.dumps(plain, indent=1, allow_nan=False) + "\n")
    return text.encode("utf-8", "backslashreplace")


def _format(text: str) -> str:
    """NAME, or PATTERN=NAME, of a format that is known."""
    choice(*FORMATS)(text.rpartition("=")[2])
    return text


def _tolerance(text: str) -> tuple[float, ...]:
    """ABS or ABS,REL: finite numbers that are not negative."""
    try:
        limits = tuple(float(part) for part in text.split(","))
    except ValueError:
        limits = ()
    if not 1 <= len(limits) <= 2 or not all(math.isfinite(n) and n >= 0 for n in limits):
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}; give ABS or ABS,REL such as "
                                         "1e-4,1e-3")
    return limits


def _at_least(text: str) -> tuple[int, float]:
    """N tensors, or P% of them: (N, 0.0) or (0, P / 100)."""
    share = text.removesuffix("%")
    if text.isascii() and text.isdigit():
        return int(text), 0.0
    if share != text and re.fullmatch(r"\d+(\.\d+)?", share, re.ASCII) and float(share) <= 100:
        return 0, float(share) / 100
    raise argparse.ArgumentTypeError(f"got {text[:40]!r}; give a number such as 500, or a share "
                                     "such as 90%")
