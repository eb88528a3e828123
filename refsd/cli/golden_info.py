"""`refsd golden info PACK`: what a golden pack holds, on one screen; --verify reads every byte."""

import argparse
import json
import math
import statistics
from collections import Counter
from typing import Any

from refsd.cli.arguments import Parser
from refsd.cli.report import Warnings, one_line, result, result_json
from refsd.errors import ModelError

ABOUT = """\
Show what a golden pack holds: how it was made, its tensors by stage and op, the
formats that it has tolerances for, and its own checks.

    refsd golden info PACK            a folder, a .zip or a .tar.zst
    refsd golden info PACK --verify   compare every hash; exit code 3 when altered"""


def parser() -> Parser:
    """The options of golden info."""
    found = Parser(prog="refsd golden info", description=ABOUT,
                   usage="refsd golden info PACK [--verify] [--json]")
    found.add_argument("pack", metavar="PACK", help="a folder, a .zip or a .tar.zst")
    found.add_argument("--verify", action="store_true", help="read every byte, compare every hash")
    found.add_argument("--json", action="store_true", help="the answer (and any error) as JSON")
    found.add_argument("-v", "--verbose", action="store_true", help="tracebacks of errors")
    return found


def run(options: argparse.Namespace) -> int:
    """Show it; ModelError (exit code 3) when --verify finds something altered or missing."""
    from refsd.golden.pack import Pack

    with Warnings(show=not options.json) as warnings, Pack.open(options.pack) as pack:
        found = summary(pack.manifest)
        faults = pack.verify() if options.verify else []
        for fault in faults:
            if fault.kind == "extra":
                warnings.say(f"{options.pack}: {fault.sentence}")
    bad = [fault for fault in faults if fault.kind != "extra"]
    if not bad:
        _show(options, found, warnings.said)
        return 0
    more = f" ({len(bad) - 1:,} more: {', '.join(f.name for f in bad[1:6])})" if bad[1:] else ""
    raise ModelError(bad[0].sentence + more)


def summary(manifest: Any) -> dict[str, Any]:
    """What a manifest says, with its table of tensors counted."""
    entries = manifest.tensors
    return {
        "kind": manifest.kind, "title": manifest.title, "schema": manifest.schema,
        "recipe": manifest.recipe, "model": manifest.model, "versions": manifest.versions,
        "machine": manifest.machine,
        "files": len(manifest.files) + 2,  # the manifest and the list of hashes
        "bytes": sum(file["bytes"] for file in manifest.files.values()),
        "tensors": len(entries),
        "stages": dict(Counter(entry.stage for entry in entries)),
        "ops": dict(Counter(entry.op or "none" for entry in entries).most_common()),
        "dtypes": dict(Counter(entry.dtype for entry in entries).most_common()),
        "nonfinite": [e.name for e in entries if e.stats["nan"] or e.stats["inf"]],
        "tolerances": tolerances(entries),
        "checkpoints": manifest.checkpoints,
        "invariants": len(manifest.invariants),
        "broken": [mark for mark in manifest.invariants if not mark["value"] <= mark["limit"]],
    }


def tolerances(entries: list[Any]) -> dict[str, dict[str, Any]]:
    """By format: how many tensors have one, and the likely error in units of the tensor's rms."""
    found: dict[str, list[float]] = {}
    for entry in entries:
        rms = (entry.stats["l2"] or 0) / math.sqrt(max(1, math.prod(entry.shape)))
        for name, figures in entry.tolerance.items():
            if isinstance(figures, dict):
                ratios = found.setdefault(name, [])
                if isinstance(figures.get("likely"), (int, float)) and rms:
                    ratios.append(figures["likely"] / rms)
    held = Counter(name for entry in entries for name in entry.tolerance)
    return {name: {"tensors": held[name],
                   "median": statistics.median(ratios) if ratios else None,
                   "largest": max(ratios, default=None)} for name, ratios in found.items()}


def _show(options: argparse.Namespace, found: dict[str, Any], warnings: list[str]) -> None:
    if options.json:
        result_json({"path": options.pack, "verified": options.verify, **found,
                     "warnings": warnings})
        return
    title = f": {found['title']}" if found["title"] else ""
    result(one_line(f"{options.pack}: golden pack of kind {found['kind']}{title}", 200))
    for name in ("recipe", "model"):
        for key, value in found[name].items():
            _line(name, f"{key} {value if isinstance(value, str) else json.dumps(value)}", 90)
            name = ""
    for name in ("versions", "machine"):
        _line(name, ", ".join(f"{key} {value}" for key, value in found[name].items()))
    _line("files", f"{found['files']:,}, {found['bytes'] / 1e6:,.2f} MB of tensors and index")
    _line("tensors", f"{found['tensors']:,}: {_counts(found['dtypes'])}")
    _line("stages", _counts(found["stages"]))
    _line("ops", _counts(found["ops"]))
    for name, figures in found["tolerances"].items():
        range_ = "" if figures["median"] is None else (
            f", likely error {figures['median']:.1e} of the tensor's rms, at most "
            f"{figures['largest']:.1e}")
        _line("tolerances", f"{name}: {figures['tensors']:,} tensors{range_}")
    _line("nan or inf", ", ".join(found["nonfinite"][:4]) or "in no tensor")
    marks = ", ".join(f"{mark['percent']} % {mark['tensor']}" for mark in found["checkpoints"])
    _line("checkpoints", marks or "none")
    _line("checks", f"{found['invariants'] - len(found['broken']):,} of {found['invariants']:,} "
          "invariants hold" + "".join(f"; {mark['name']} {mark['value']:g} > {mark['limit']:g}"
                                      for mark in found["broken"][:3]))
    _line("verified", "every file and tensor is as it was made" if options.verify else
          "sizes and the manifest; --verify compares every hash")


def _line(name: str, text: str, limit: int = 300) -> None:
    result(f"  {name:<12} {one_line(text, limit)}")


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in found.items()) or "none"
