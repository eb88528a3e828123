"""`refsd golden same RUN RUN`: whether two runs of a port gave the same bits, and where not."""

import argparse

from refsd.cli.arguments import Parser, choice
from refsd.cli.golden_judging import FORMATS, add_reports, has_page, report_files, said

ABOUT = """\
Compare two or more dumps of a port with each other, bit by bit: is it
deterministic, and where not; what did an optimisation change.

    refsd golden same run1 run2 run3            folders, or files
    refsd golden same run1 run2 --pack PACK --map names.json
    refsd golden same before after --format bf16   differences within its rounding

A pack gives the network's order, so that the first that differs is where it
arose, and the spread to compare with. The exit code is 0 when all bits are the
same (with --format: within its rounding), 1 when not."""


def parser() -> Parser:
    """The options of golden same."""
    found = Parser("refsd golden same RUN RUN [RUN ...] [options]", ABOUT)
    add = found.add_argument
    add("runs", metavar="RUN", nargs="+",
        help="what the port wrote: a folder, .npz or .safetensors")
    add("--pack", metavar="PACK", help="a golden pack of that run: order, names, spread")
    add("--map", metavar="FILE", help="JSON of golden name: your name, as for golden compare")
    add("--format", type=choice(*FORMATS), metavar="NAME",
        help="differences within the rounding of this format are no failure: bf16, fp16, fp32")
    add("--dtype", metavar="NAME", help="of raw files that do not say it (float32)")
    add("--all", action="store_true", help="show every tensor, not only those that differ")
    add_reports(add)
    return found.answering()


def run(options: argparse.Namespace) -> int:
    """Compare, write the reports, and say it; 0 when nothing differs that may not."""
    from contextlib import ExitStack

    from refsd.golden.comparing.runs import same
    from refsd.golden.comparing.runs_report import as_json, sheet, text
    from refsd.golden.packs.pack import Pack

    files = report_files(options)
    with ExitStack() as stack:
        pack = options.pack and stack.enter_context(Pack.open(options.pack))
        found = same(options.runs, pack=pack, name_map=options.map, dtype=options.dtype,
                     format=options.format, maps=has_page(files))
    return said(options, files, sheet(found), as_json(found), text(found, everything=options.all))
