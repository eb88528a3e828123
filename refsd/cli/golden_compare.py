"""`refsd golden compare PACK CANDIDATE`: what differs, how far, and what the mistake looks like."""

import argparse

from refsd.cli import farming, golden_compare_suite
from refsd.cli.arguments import Parser, fraction
from refsd.cli.golden_judging import add_options, has_page, report_files, said
from refsd.cli.progress import Progress
from refsd.cli.report import Warnings
from refsd.errors import UsageError

ABOUT = """\
Compare what a port wrote with a golden pack, tensor by tensor in the order of
execution. Exit code 0 when all is within its tolerance, 1 when not.

    refsd golden compare PACK MINE                     a folder, or one file
    refsd golden compare PACK MINE --format bf16       a port that computes in bf16
    refsd golden compare PACK MINE --map names.json    {"unet/000/conv_in": "my_name"}
    refsd golden compare PACK MINE --report diff.html  and .json, .md, .xml (JUnit)
    refsd golden compare PACKS MINE                    of a suite: MINE/NAME each

MINE holds .npy, .npz, .safetensors or raw files (with an index.json beside them,
or named by type: .f32, .f16, .bf16), under the names of the pack."""


def parser() -> Parser:
    """The options of golden compare."""
    parser = Parser("refsd golden compare PACK CANDIDATE [options]", ABOUT)
    add = parser.add_argument
    add("pack", metavar="PACK", help="a golden pack: a folder, a .zip or a .tar.zst; or a suite's "
        "folder of packs")
    add("candidate", metavar="CANDIDATE", help="what the port wrote: a folder or a file; of a "
        "suite a folder, with one of these under each pack's name")
    add_options(add)
    add("--all", action="store_true", help="a tensor that is missing is a mismatch too")
    add("--every", action="store_true", help="show every tensor, not only the failing ones")
    add("--shard", metavar="I/N", type=fraction,
        help="the I-th of N parts of a suite's packs, which take about the same time")
    farming.add_option(add, "comparisons of a suite")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """Compare, write the reports, say what was found. 0: all read and explained, 1: not."""
    if golden_compare_suite.is_suite(options.pack):
        return golden_compare_suite.run(options)
    for name in ("dask", "shard"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name} is for the packs of a suite: give the folder with its "
                             "suite.json, or leave it out")
    from refsd.cli.units_comparisons import compared
    from refsd.golden.comparing.report import as_json, sheet, text
    from refsd.golden.packs.pack import Pack

    files = report_files(options)
    with (Warnings(show=not options.json), Pack.open(options.pack) as pack,
          Progress(len(pack.entries), "comparing", show=not options.json) as progress):
        comparison = compared(pack, options.candidate, options, maps=has_page(files),
                              on_tensor=progress.step)
    return said(options, files, sheet(comparison), as_json(comparison),
                text(comparison, everything=options.every))
