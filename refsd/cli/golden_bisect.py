"""`refsd golden bisect`: the first op of a port that is wrong on its own inputs."""

import argparse
import math
from typing import Any

from refsd.cli.arguments import Parser
from refsd.cli.report import one_line, result, result_json

ABOUT = """\
Name the first op of a port whose error is its own.

    refsd golden bisect PACK MINE --format bf16
    refsd golden bisect PACK MINE --format bf16 --format 'denoise/*=fp32'
    refsd golden bisect PACK MINE --only 'unet/000/*'  a port of the UNet alone

Every op is computed again on the inputs that MINE has for it. What its result
differs by from that is the op's own error; the rest it was handed by earlier
ones. The exit code is 0 when every op is within its tolerance, 1 when one is
not. docs/golden-bisect.md says how ops and regions are told."""
SHOWN = 20


def parser() -> Parser:
    """The options of golden bisect."""
    found = Parser("refsd golden bisect PACK MINE [options]", ABOUT)
    add = found.add_argument
    add("pack", metavar="PACK", help="a golden pack: folder, .zip or .tar.zst")
    add("candidate", metavar="MINE", help="what the port wrote: a folder, .npz or .safetensors")
    add("--format", metavar="NAME", action="append", default=[],
        help="what the port computes in: float32, float16, bfloat16, int8 (float32); again as "
             "PATTERN=NAME for some names or ops: 'denoise/*=fp32'")
    add("--only", metavar="PATTERN", action="append", default=[],
        help="names to judge, such as 'unet/000/*'; may be given again")
    add("-m", "--model", metavar="PATH", help="where the model is, if not where the pack says")
    add("--map", metavar="FILE", help="JSON of golden names and the port's names for them")
    add("--layout", metavar="NAME", help="how the port keeps tensors: NHWC, NC4HW4, TILE32")
    add("--first", action="store_true", help="stop at the first that is wrong")
    add("--all", action="store_true", help="show every tensor, not only those that are wrong")
    return found.answering()


def run(options: argparse.Namespace) -> int:
    """Bisect, and say it; 0 when all can be read and is explained."""
    from refsd.golden.comparing.bisect import bisect
    from refsd.golden.comparing.candidate import Candidate
    from refsd.golden.packs.pack import Pack

    opened = Candidate.open(options.candidate, name_map=options.map, layout=options.layout)
    with Pack.open(options.pack) as pack, opened as candidate:
        found = bisect(pack, candidate, format=options.format, only=options.only,
                       model=options.model, first_only=options.first)
        unread = [trouble.why for trouble in candidate.troubles]
        remarks = candidate.remarks(pack.entries)
    if options.json:
        result_json({"sentence": found.sentence, "format": found.format,
                     "first": None if found.first is None else _plain(found.first),
                     "later": [row.name for row in found.later],
                     "rows": [_plain(row) for row in found.rows],
                     "unreadable": unread, "remarks": remarks})
    else:
        _show(found, options.all)
        for line in (*(f"unreadable: {why}" for why in unread), *remarks):
            result(one_line(line))
    return 0 if found.first is None and not unread else 1


def _plain(row: Any) -> dict[str, Any]:
    """A verdict as JSON; what has no number is null."""
    finding = row.finding and {"reason": row.finding.reason, "sentence": row.finding.sentence,
                               "confidence": row.finding.confidence}
    numbers = {name: getattr(row, name) for name in ("times", "local", "inherited")}
    return {"name": row.name, "op": row.entry.op, "index": row.entry.index, "status": row.status,
            "format": row.format,
            **{name: n if math.isfinite(n) else None for name, n in numbers.items()},
            "at": row.at, "borrowed": list(row.borrowed), "computed": list(row.computed),
            "finding": finding, "note": "; ".join(row.notes)}


def _show(found: Any, everything: bool) -> None:
    result(one_line(found.sentence))
    rows = found.rows if everything else found.bad
    if not rows:
        return
    result(f"\n{'':>6} {'status':<10}{'x bound':>10}{'local rms':>11}{'inherited':>11}  tensor")
    for row in rows if everything else rows[:SHOWN]:
        why = [] if row.finding is None else [row.finding.reason]
        why += row.notes
        why += [f"golden {', '.join(row.borrowed)} for its own"] if row.borrowed else []
        why += [f"with {', '.join(row.computed[:3])}" + (
            f" and {len(row.computed) - 3} more" if len(row.computed) > 3 else "") + " in it"] if (
            row.computed) else []
        result(f"{row.entry.index:>6} {row.status:<10}{row.times:>10.3g}{row.local:>11.2g}"
               f"{row.inherited:>11.2g}  " + one_line(f"{row.name} ({row.entry.op or 'no op'})"
                                                      + (f": {'; '.join(why)}" if why else "")))
    if len(rows) > SHOWN and not everything:
        result(f"and {len(rows) - SHOWN} more; --all shows every tensor, --json too")
