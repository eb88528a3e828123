"""What is proven of a port so far, from its folder's results, and what comes next."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from refsd.errors import ModelError, ResourceError, UsageError, damaged
from refsd.golden.porting.port import SCHEMA, kind_of
from refsd.golden.recording.names import is_alone
from refsd.rules import anything, check, check_schema, each, integer, number, optional, record, text
from refsd.weights.files import read_bytes, read_json, read_object

LIMIT = 256 << 20  # bytes of a result; a comparison of 10,000 tensors takes about 10 MB
TEST = re.compile(r"test_(result|refuses)\[(\w+)-(\d+)\]")
GOOD = ("equal", "explained")
ABSENT = ("missing", "given")
OPS = "ops"  # the stage of the pack of ops
KINDS = ("contract", "ops_pack", "in_network")  # of checks of an op; blocks and stages: the last
WRONG = {
    "contract": "Repair the adapter or the kernel, and run the contract tests again",
    "ops_pack": "refsd golden compare says what the mistake looks like",
    "in_network": "refsd golden bisect tells whether it is its own error or an inherited one",
}
OPEN = {
    "contract": "fill in contracts/adapters.py and run the contract tests",
    "ops_pack": "run it on the inputs of a pack of ops, and compare",
    "in_network": "dump it from the whole network, and compare or bisect with a pack",
}
TEXT = text(1000)
COST_RULES = {"name": TEXT, "calls": integer(0, 1 << 62), "flops": integer(0, 1 << 62),
              "share": number(0, 1), "first": optional(TEXT)}
PLAN_RULES = {"schema": anything, "name": TEXT, "model": TEXT, "flops": COST_RULES["flops"],
              "ops": each(record(COST_RULES)), "blocks": each(record(COST_RULES)),
              "stages": each(TEXT)}
# What is read of a row of a comparison or a bisection, which has more.
VERDICT = {"name": TEXT, "status": TEXT, "op": optional(TEXT), "computed": optional(each(TEXT))}


def status(folder: str | Path) -> dict[str, Any]:
    """Read a port's folder. A result that cannot be read is told beside those that can.

    "ops", "blocks" and "stages" are rows in the order of bringing up: name, share of the work,
    whether the model needs it, and by kind of check its state, how many passed, which failed, and
    how many are left. State: "ok", "wrong", "part" (some are left) or "open" (none was run).
    """
    folder = Path(folder)
    if not (folder / "status.json").is_file():
        raise UsageError(f"{folder}: no port's folder: there is no status.json. Make one with "
                         "refsd port new NAME -o FOLDER")
    plan, where = read_object(folder / "status.json"), f"{folder / 'status.json'}: the plan"
    check_schema(plan.get("schema"), SCHEMA, where, "the folder")
    check(plan, PLAN_RULES, where)
    tests, verdicts, read, unread = _results(folder / "results")

    ops = {entry["name"]: _row(entry["name"], entry["share"], KINDS, bool(entry["calls"]))
           for entry in plan["ops"]}
    blocks = {entry["name"]: _row(entry["name"], entry["share"]) for entry in plan["blocks"]}
    stages = {name: _row(name) for name in plan["stages"]}
    for name, outcome in tests.items():
        what, op, _ = TEST.fullmatch(name).groups()
        # a port without checks of its own (REFUSES = False) has nothing left to prove by them
        if op in ops and (what, outcome) != ("refuses", "left"):
            _count(ops[op]["contract"], name, outcome)
    for name, (op, outcome) in verdicts.items():
        stage, block = name.partition("/")[0], kind_of(name)
        if op in ops:
            _count(ops[op]["ops_pack" if stage == OPS else "in_network"], name, outcome)
        alone = op == "block" or is_alone(name.rpartition("/")[2])
        if block is not None and alone and stage != OPS:
            _count(blocks.setdefault(block, _row(block))["in_network"], name, outcome)
        elif op not in ops and stage in stages:
            _count(stages[stage]["in_network"], name, outcome)
    rows = {"ops": [*ops.values()], "blocks": [*blocks.values()], "stages": [*stages.values()]}
    return {"name": plan["name"], **rows, "read": read, "next": _next(**rows), "unreadable": unread}


def _row(name: str, share: float = 0.0, kinds: Iterable[str] = KINDS[-1:],
         needed: bool = True) -> dict[str, Any]:
    return {"name": name, "share": share, "needed": needed,
            **{kind: {"state": "open", "passed": 0, "failed": [], "left": 0} for kind in kinds}}


def _count(tally: dict[str, Any], name: str, outcome: str) -> None:
    """Add a check: "passed", "left" or "failed"."""
    if outcome == "failed":
        tally["failed"].append(name)
    else:
        tally[outcome] += 1
    tally["state"] = ("wrong" if tally["failed"] else "open" if not tally["passed"] else
                      "part" if tally["left"] else "ok")


def _next(ops: list, blocks: list, stages: list) -> str:
    """One sentence: the first thing that is wrong, else the first that is not proven."""
    order = [(row, kind) for kind in KINDS for row in ops if row["needed"]]
    order += [(row, "in_network") for row in blocks + stages]
    for row, kind in order:
        if row[kind]["state"] == "wrong":
            return f"{row['name']} is wrong: {row[kind]['failed'][0]}. {WRONG[kind]}"
    for row, kind in order:
        if row[kind]["state"] != "ok":
            return f"{row['name']}: {OPEN[kind]}"
    return "Everything that is in the packs is proven. Make a suite of whole pictures"


def _results(folder: Path) -> tuple[dict[str, str], dict[str, tuple[Any, str]], list[str],
                                    list[str]]:
    """Tests by name, verdicts by tensor, the files read, and why others cannot be.

    Later files overrule earlier ones.
    """
    tests: dict[str, str] = {}
    verdicts: dict[str, tuple[Any, str]] = {}
    read, unread = [], []
    paths = [path for path in folder.glob("*")
             if path.suffix in (".xml", ".json") and not path.name.startswith(".")]
    for path in sorted(paths, key=lambda p: (p.lstat().st_mtime_ns, p.name)):
        reader, known = (_junit, tests) if path.suffix == ".xml" else (_compared, verdicts)
        try:
            outcomes = dict(reader(path))
        except (ModelError, ResourceError) as error:
            unread.append(str(error))
            continue
        known |= outcomes
        read += [path.name] if outcomes else []
    return tests, verdicts, read, unread


def _junit(path: Path) -> Iterable[tuple[str, str]]:
    """The contract tests of a JUnit file with their outcomes; other tests are not ours."""
    data = read_bytes(path, limit=LIMIT)
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # entities can blow a small file up
        raise ModelError(f"{path}: JUnit files have no DOCTYPE, and one with it is not read. "
                         "Remove it")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise damaged(f"{path}: not readable XML: {error}") from None
    for case in root.iter("testcase"):
        name = case.get("name", "")
        if TEST.fullmatch(name):
            kinds = {child.tag for child in case}
            yield name, "left" if "skipped" in kinds else (
                "failed" if kinds & {"failure", "error"} else "passed")


def _compared(path: Path) -> Iterable[tuple[str, tuple[Any, str]]]:
    """The verdicts of a comparison or a bisection: name -> (op, outcome).

    An op whose result was not dumped is proven with the op after it, if bisect found that right and
    computed this one on the way: fused ops have no results of their own.
    """
    report = read_json(path, limit=LIMIT)
    known = isinstance(report, dict) and report.get("kind") != "golden-same"  # runs may be alike
    rows = report.get("tensors", report.get("rows", [])) if known else []  # and both be wrong
    rows = rows if isinstance(rows, list) else []
    for row in rows:
        if not isinstance(row, dict) or any(rule(row.get(key)) for key, rule in VERDICT.items()):
            raise damaged(f"{path}: not what refsd golden compare --report or bisect --json "
                          f"writes: {json.dumps(row)[:80]}")
    fused = {name for row in rows if row["status"] in GOOD for name in row.get("computed") or ()}
    for row in rows:
        outcome = "passed" if row["status"] in GOOD else (
            "failed" if row["status"] not in ABSENT else
            "passed" if row["name"] in fused else "left")
        yield row["name"], (row.get("op"), outcome)
