"""`refsd golden bisect`: the first op of a port that is wrong on its own inputs."""

import argparse

from refsd.cli.arguments import Parser
from refsd.cli.golden_judging import add_options, has_page, report_files, said

ABOUT = """\
Name the first op of a port whose error is its own.

    refsd golden bisect PACK MINE --format bf16
    refsd golden bisect PACK MINE --format bf16 --format 'denoise/*=fp32'
    refsd golden bisect PACK MINE --only 'unet/000/*'  a port of the UNet alone
    refsd golden bisect PACK MINE --given 'denoise/*/concat'  it was fed those
    refsd golden bisect PACK MINE --report diff.html   and .json, .md, .xml (JUnit)

Every op is computed again on the inputs that MINE has for it. What its result
differs by from that is the op's own error; the rest it was handed by earlier
ones. The exit code is 0 when every op is within its tolerance, 1 when one is
not. docs/golden-bisect.md says how ops and regions are told."""


def parser() -> Parser:
    """The options of golden bisect."""
    found = Parser("refsd golden bisect PACK MINE [options]", ABOUT)
    add = found.add_argument
    add("pack", metavar="PACK", help="a golden pack: folder, .zip or .tar.zst")
    add("candidate", metavar="MINE", help="what the port wrote: a folder, .npz or .safetensors")
    add_options(add)
    add("--first", action="store_true", help="stop at the first that is wrong")
    add("--all", action="store_true", help="show every tensor, not only those that are wrong")
    return found.answering()


def run(options: argparse.Namespace) -> int:
    """Bisect, write the reports, and say it; 0 when all can be read and is explained."""
    from refsd.golden.comparing.bisect import bisect
    from refsd.golden.comparing.bisect_report import Answer, as_json, sheet, text, with_maps
    from refsd.golden.comparing.candidate import Candidate
    from refsd.golden.comparing.limits import Accepted
    from refsd.golden.comparing.verdicts import AtLeast
    from refsd.golden.packs.pack import Pack

    files = report_files(options)
    accepted = None if options.accept_tolerance is None else Accepted(*options.accept_tolerance)
    opened = Candidate.open(options.candidate, name_map=options.map, dtype=options.dtype,
                            layout=options.layout)
    with Pack.open(options.pack) as pack, opened as candidate:
        found = bisect(pack, candidate, format=options.format, only=options.only,
                       given=options.given, accepted=accepted, model=options.model,
                       first_only=options.first)
        answer = Answer.of(found, pack, candidate, AtLeast(*options.at_least))
        if has_page(files):
            answer = with_maps(answer, pack, candidate)
    return said(options, files, sheet(answer), as_json(answer),
                text(answer, everything=options.all))
