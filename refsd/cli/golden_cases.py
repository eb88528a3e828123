"""`refsd golden make --ops --cases FILE`: a pack of the calls of a port's own graph."""

import argparse
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from refsd.cli.plan import size
from refsd.cli.report import note, one_line
from refsd.errors import UsageError

MEMORY = "4GiB"
SHOWN = 12  # reasons


def add_options(group: Any) -> None:
    """What --cases needs."""
    add = group.add_argument
    add("--cases", metavar="FILE", help="with --ops: the calls of a port's graph, an ONNX model "
        "(pip install refsd[onnx]), or JSON of refsd graph --json or of calls")
    add("--dim", metavar="NAME=N", action="append", default=[],
        help="with an ONNX model: a size that its inputs leave open; may be repeated")
    add("--memory", metavar="SIZE", help="with --cases: leave out what takes more to be made "
        f"({MEMORY})")


def check(options: argparse.Namespace) -> None:
    """Everything that can be refused before the file is read."""
    for name in ("dim", "memory"):
        if getattr(options, name) and options.cases is None:
            raise UsageError(f"--{name} is for --cases: give both, or leave it out")
    if options.cases is not None and not options.ops:
        raise UsageError("--cases is for --ops: give both, or leave it out")


def run(options: argparse.Namespace, tolerance: Any) -> tuple[Any, list[Any]]:
    """Record the cases; gives the manifest, and what is left out."""
    from refsd.golden.recording.graph_cases import Left, different, make_graph_cases
    from refsd.registry import ops

    calls, left = _calls(options)
    cases, refused = different(calls)
    left, chosen = [*left, *refused], []
    limit = size(options.memory or MEMORY, "--memory")
    for case in cases:
        op = ops()[case.call.op]
        if options.op not in (None, op.name) or options.family not in (None, op.family):
            continue
        if (wanted := case.memory(tolerance is not None)) > limit:
            left += (Left(node, op.name, f"it takes up to {wanted / 2**30:.1f} GiB to be made, "
                          f"more than --memory {options.memory or MEMORY}")
                     for node in case.nodes)
        else:
            chosen.append(case)
    if not chosen:
        raise UsageError(f"{options.cases}: none of its {len(calls) + len(left)} nodes is an op's "
                         f"call that can be made{_first(left)}. Give another graph")
    if not (options.quiet or options.json):
        _say(chosen, left, tolerance is not None)
    data = Path(options.cases).read_bytes()
    source = {"file": Path(options.cases).name, "sha256": hashlib.sha256(data).hexdigest()}
    manifest = make_graph_cases(options.output, chosen, left, source=source, seed=options.seed,
                                resume=options.resume, tolerance=tolerance)
    return manifest, left


def _calls(options):
    from refsd.golden.recording.graph_cases_json import calls_in_json
    from refsd.golden.recording.graph_cases_onnx import calls_in_onnx

    if Path(options.cases).suffix.lower() == ".onnx":
        return calls_in_onnx(options.cases, dict(map(_dim, options.dim)))
    if options.dim:
        raise UsageError("--dim is for an ONNX model; leave it out")
    return calls_in_json(options.cases), []


def _dim(text):
    name, _, count = text.rpartition("=")
    if not name or not count.isdecimal() or not 0 < int(count) < 1 << 40:
        raise UsageError(f"--dim is {text[:40]!r}; give NAME=N, such as batch=2")
    return name, int(count)


def _first(left):
    return f"; the first, {left[0].node}: {left[0].why}" if left else ""


def _count(number, what):
    return f"{number} {what}{'s' * (number != 1)}"


def _say(cases, left, bounds):
    """How many cases of how many nodes, what they take, and what is left out."""
    nodes = sum(len(case.nodes) for case in cases)
    numbers = sum(sum(case.sizes()) for case in cases)
    most = max(cases, key=lambda case: case.memory(bounds))
    note(one_line(f"refsd: {_count(len(cases), 'case')} of {_count(nodes, 'node')}, "
                  f"{4 * numbers / 1e6:,.1f} MB; the largest, {most.name}, takes up to "
                  f"{most.memory(bounds) / 2**30:.1f} GiB"))
    reasons: dict[str, list[Any]] = {}
    for one in left:
        reasons.setdefault(one.why, []).append(one)
    most_first = sorted(reasons.items(), key=lambda reason: -len(reason[1]))
    for why, nodes in most_first[:SHOWN]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in
                          Counter(one.kind for one in nodes).most_common(6))
        note(one_line(f"refsd: left out {kinds}, such as {nodes[0].node}: {why}"))
    if len(reasons) > SHOWN:
        note(f"refsd: {len(reasons) - SHOWN} more reasons: the manifest's recipe has them all")
