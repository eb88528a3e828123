"""`refsd golden compare PACK CANDIDATE`: what differs, how far, and what the mistake looks like."""

import argparse

from refsd.cli.arguments import Parser
from refsd.cli.golden_judging import add_options, has_page, report_files, said
from refsd.cli.progress import Progress
from refsd.cli.report import Warnings

ABOUT = """\
Compare what a port wrote with a golden pack, tensor by tensor in the order of
execution. Exit code 0 when all is within its tolerance, 1 when not.

    refsd golden compare PACK MINE                     a folder, or one file
    refsd golden compare PACK MINE --format bf16       a port that computes in bf16
    refsd golden compare PACK MINE --map names.json    {"unet/000/conv_in": "my_name"}
    refsd golden compare PACK MINE --report diff.html  and .json, .md, .xml (JUnit)

MINE holds .npy, .npz, .safetensors or raw files (with an index.json beside them,
or named by type: .f32, .f16, .bf16), under the names of the pack."""


def parser() -> Parser:
    """The options of golden compare."""
    parser = Parser("refsd golden compare PACK CANDIDATE [options]", ABOUT)
    add = parser.add_argument
    add("pack", metavar="PACK", help="a golden pack: a folder, a .zip or a .tar.zst")
    add("candidate", metavar="CANDIDATE", help="what the port wrote: a folder or a file")
    add_options(add)
    add("--all", action="store_true", help="a tensor that is missing is a mismatch too")
    add("--every", action="store_true", help="show every tensor, not only the failing ones")
    return parser.answering()


def run(options: argparse.Namespace) -> int:
    """Compare, write the reports, say what was found. 0: all read and explained, 1: not."""
    from refsd.golden.comparing.candidate import Candidate
    from refsd.golden.comparing.compare import compare
    from refsd.golden.comparing.limits import Accepted
    from refsd.golden.comparing.report import as_json, sheet, text
    from refsd.golden.comparing.verdicts import AtLeast
    from refsd.golden.packs.pack import Pack

    files = report_files(options)
    accepted = None if options.accept_tolerance is None else Accepted(*options.accept_tolerance)
    with (Warnings(show=not options.json), Pack.open(options.pack) as pack,
          Candidate.open(options.candidate, name_map=options.map, dtype=options.dtype,
                         layout=options.layout) as candidate,
          Progress(len(pack.entries), "comparing", show=not options.json) as progress):
        comparison = compare(pack, candidate, format=options.format, only=options.only,
                             given=options.given, accepted=accepted, model=options.model,
                             whole=options.all, at_least=AtLeast(*options.at_least),
                             maps=has_page(files), on_tensor=progress.step)
    return said(options, files, sheet(comparison), as_json(comparison),
                text(comparison, everything=options.every))
