"""`refsd golden compare PACK CANDIDATE`: what differs, how far, and what the mistake looks like."""

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

from refsd.cli.arguments import Parser, choice
from refsd.cli.output import Target, save, try_out
from refsd.cli.progress import Progress
from refsd.cli.report import Warnings, note, one_line, result, result_json

ABOUT = """\
Compare what a port wrote with a golden pack, tensor by tensor in the order of
execution. Exit code 0 when all is within its tolerance, 1 when not.

    refsd golden compare PACK MINE                     a folder, or one file
    refsd golden compare PACK MINE --format bf16       a port that computes in bf16
    refsd golden compare PACK MINE --map names.json    {"unet/000/conv_in": "my_name"}
    refsd golden compare PACK MINE --report diff.html  and .json, .md, .xml (JUnit)

MINE holds .npy, .npz, .safetensors or raw files (with an index.json beside them,
or named by type: .f32, .f16, .bf16), under the names of the pack."""
FORMATS = ("float32", "fp32", "float16", "fp16", "bfloat16", "bf16", "int8", "tf32", "float64")
REPORTS = (".json", ".md", ".xml", ".html")


def parser() -> Parser:
    """The options of golden compare."""
    parser = Parser("refsd golden compare PACK CANDIDATE [options]", ABOUT)
    add = parser.add_argument
    add("pack", metavar="PACK", help="a golden pack: a folder, a .zip or a .tar.zst")
    add("candidate", metavar="CANDIDATE", help="what the port wrote: a folder or a file")
    add("--format", type=_format, metavar="NAME", action="append", default=[],
        help="what the port computes in: float32, fp16, bf16, int8 (weights); again as "
             "PATTERN=NAME for some names or ops: 'denoise/*=fp32'")
    add("--map", metavar="FILE", help="JSON of golden name: your name; * stands for any text")
    add("--layout", metavar="NAME", help="of every tensor: NHWC, NC4HW4, TILE32, ROWS ...")
    add("--dtype", metavar="NAME", help="of raw files that do not say it (float32)")
    add("--only", metavar="PATTERN", action="append", default=[],
        help="names to compare, such as 'unet/000/*'; may be given again")
    add("--all", action="store_true", help="a tensor that is missing is a mismatch too")
    add("--at-least", type=_at_least, metavar="N|P%",
        help="fail if fewer tensors, or a smaller share of those wanted, could be compared")
    add("--accept-tolerance", type=_tolerance, metavar="ABS[,REL]",
        help="|error| <= ABS + REL |golden| in place of the derived one")
    add("-m", "--model", metavar="MODEL", help="where the pack's model is, to say why it is wrong")
    add("--report", metavar="FILE", action="append", default=[],
        help="write .json, .md, .xml or .html; may be given again")
    add("--every", action="store_true", help="show every tensor, not only the failing ones")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """Compare, write the reports, say what was found. 0: all read and explained, 1: not."""
    from refsd.golden.comparing.candidate import Candidate
    from refsd.golden.comparing.compare import compare
    from refsd.golden.comparing.limits import Accepted
    from refsd.golden.comparing.report import as_json, text
    from refsd.golden.comparing.verdicts import AtLeast
    from refsd.golden.packs.pack import Pack

    for name in options.report:
        try_out(name, REPORTS)  # before any work is done
    files = [Path(name) for name in options.report]
    accepted = None if options.accept_tolerance is None else Accepted(*options.accept_tolerance)
    with (Warnings(show=not options.json), Pack.open(options.pack) as pack,
          Candidate.open(options.candidate, name_map=options.map, dtype=options.dtype,
                         layout=options.layout) as candidate,
          Progress(len(pack.entries), "comparing", show=not options.json) as progress):
        comparison = compare(pack, candidate, format=options.format, only=options.only,
                             accepted=accepted, model=options.model, whole=options.all,
                             at_least=AtLeast(*options.at_least or ()),
                             maps=any(path.suffix.lower() == ".html" for path in files),
                             on_tensor=progress.step)
    for path in files:
        page = _rendered(comparison, path.suffix.lower()).encode("utf-8", "backslashreplace")
        save(page, Target(str(path)), "The report")
        if not options.json:
            note(f"refsd: wrote {path}")
    if options.json:
        result_json(as_json(comparison))
    else:
        for line in text(comparison, everything=options.every):
            result(one_line(line))
    return 0 if comparison.ok else 1


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


def _rendered(comparison: Any, end: str) -> str:
    """The comparison as a file of the kind."""
    from refsd.golden.comparing.html import page
    from refsd.golden.comparing.junit import junit
    from refsd.golden.comparing.report import as_json, markdown

    if end == ".json":
        return json.dumps(as_json(comparison), indent=1, allow_nan=False) + "\n"
    return {".md": markdown, ".xml": junit, ".html": page}[end](comparison)
