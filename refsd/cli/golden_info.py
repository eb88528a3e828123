"""`refsd golden info PACK`: what a golden pack holds, on one screen; --verify reads every byte."""

import argparse
import math
import re
import statistics
import textwrap
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
HASH = re.compile(r"[0-9a-f]{64}")


def parser() -> Parser:
    """The options of golden info."""
    parser = Parser("refsd golden info PACK [--verify] [--json]", ABOUT)
    parser.add_argument("pack", metavar="PACK", help="a folder, a .zip or a .tar.zst")
    parser.add_argument("--verify", action="store_true", help="read every byte, compare every hash")
    return parser.answering("the answer (and any error) as JSON")


def run(options: argparse.Namespace) -> int:
    """Show it; ModelError (exit code 3) when --verify finds something altered or missing."""
    from refsd.golden.packs.pack import Pack

    with Warnings(show=not options.json) as warnings, Pack.open(options.pack) as pack:
        about = summary(pack.manifest)
        faults = pack.verify() if options.verify else []
        for fault in faults:
            if fault.kind == "extra":
                warnings.say(f"{options.pack}: {fault.sentence}")
    bad = [fault for fault in faults if fault.kind != "extra"]
    if not bad:
        _show(options, about, warnings.said)
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
    """By format: how many tensors have an op's bound, and a spread, and how wide they mostly are.

    bounds, spreads: counts; likely, spread: the medians in units of the tensor's own rms.
    """
    widths: dict[str, tuple[list[float], list[float]]] = {}
    for entry in entries:
        rms = (entry.stats["l2"] or 0) / math.sqrt(max(1, math.prod(entry.shape)))
        for name, figures in entry.tolerance.items():
            bounds, spreads = widths.setdefault(name, ([], []))
            figures = figures if isinstance(figures, dict) else {}
            for kept, value in ((bounds, figures.get("likely")),
                                (spreads, (figures.get("spread") or {}).get("rms"))):
                if isinstance(value, (int, float)):
                    kept.append(value / rms if rms else 0.0)
    return {name: {"bounds": len(bounds), "likely": statistics.median(bounds) if bounds else None,
                   "spreads": len(spreads),
                   "spread": statistics.median(spreads) if spreads else None}
            for name, (bounds, spreads) in widths.items()}


def _show(options: argparse.Namespace, about: dict[str, Any], warnings: list[str]) -> None:
    if options.json:
        result_json({"path": options.pack, "verified": options.verify, **about,
                     "warnings": warnings})
        return
    title = f": {about['title']}" if about["title"] else ""
    result(one_line(f"{options.pack}: golden pack of kind {about['kind']}{title}", 200))
    for name in ("recipe", "model", "versions", "machine"):
        if about[name]:
            _lines(name, _in_words(about[name]))
    _lines("files", f"{about['files']:,}, {about['bytes'] / 1e6:,.2f} MB of tensors and index")
    _lines("tensors", f"{about['tensors']:,}: {_counts(about['dtypes'])}")
    _lines("stages", _counts(about["stages"]))
    _lines("ops", _counts(about["ops"]))
    for name, figures in about["tolerances"].items():
        words = [f"{figures[count]:,} {count}" + (
            "" if figures[median] is None else f" (mostly {figures[median]:.1e} x rms)")
            for count, median in (("bounds", "likely"), ("spreads", "spread"))]
        _lines("tolerance", f"{name}: {', '.join(words)}")
    _lines("nan or inf", ", ".join(about["nonfinite"][:4]) or "in no tensor")
    _lines("checkpoints", ", ".join(f"{mark['percent']} % {mark['tensor']}"
                                    for mark in about["checkpoints"]) or "none")
    _lines("checks", f"{about['invariants'] - len(about['broken']):,} of {about['invariants']:,} "
           "invariants hold" + "".join(f"; {mark['name']} {mark['value']:g} > {mark['limit']:g}"
                                       for mark in about["broken"][:3]))
    _lines("verified", "every file and tensor is as it was made" if options.verify else
           "sizes and the manifest; --verify compares every hash")


def _lines(name: str, text: str) -> None:
    """A field for reading, on as many lines as it takes."""
    for line in textwrap.wrap(one_line(text, 600), 80) or [""]:
        result(f"  {name:<12} {line}")
        name = ""


def _in_words(table: dict[str, Any]) -> str:
    """What a table says in single values; of the tables in it, which they are."""
    words, inside = [], []
    for key, value in table.items():
        if isinstance(value, dict) and "_class_name" in value:
            words.append(f"{key} {value['_class_name']}")
        elif isinstance(value, (dict, list)):
            inside.append(key)
        elif value not in (None, ""):
            whole = HASH.fullmatch(str(value)) is None
            words.append(f"{key} {value}" if whole else f"{key} {value[:12]}")
    return ", ".join(words + ([f"and {', '.join(inside)} (--json)"] if inside else []))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"
