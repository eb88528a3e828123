"""What is proven of a port so far, from its folder's results, and what comes next."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from refsd.errors import ModelError, ResourceError, UsageError
from refsd.golden.porting.port import SCHEMA, kind_of
from refsd.golden.recording.names import is_alone
from refsd.rules import (
    anything,
    check,
    check_schema,
    each,
    integer,
    number,
    optional,
    record,
    text,
)
from refsd.weights.files import read_bytes, read_json, read_object

LIMIT = 256 << 20  # bytes of a result; a comparison of 10,000 tensors takes about 10 MB
TEST = re.compile(r"test_(result|refuses)\[(\w+)-(\d+)\]")
GOOD = ("equal", "explained")
ABSENT = ("missing", "given")
OPS = "ops"  # the stage of the pack of ops
TEXT = text(1000)
COST_RULES = {"name": TEXT, "calls": integer(0, 1 << 62), "flops": integer(0, 1 << 62),
              "share": number(0, 1), "first": optional(TEXT)}
PLAN_RULES = {"schema": anything, "name": TEXT, "model": TEXT, "flops": COST_RULES["flops"],
              "ops": each(record(COST_RULES)), "blocks": each(record(COST_RULES)),
              "stages": each(TEXT)}


@dataclass
class Tally:
    """How many of the checks of one kind passed, and which did not; `left` were not run."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    left: int = 0

    @property
    def state(self) -> str:
        """"ok", "wrong", "part" (some are left) or "open" (none was run)."""
        if self.failed:
            return "wrong"
        if not self.passed:
            return "open"
        return "part" if self.left else "ok"

    def count(self, name: str, outcome: str) -> None:
        """Add a check: "passed", "left", anything else has failed."""
        if outcome == "passed":
            self.passed += 1
        elif outcome == "left":
            self.left += 1
        else:
            self.failed.append(name)

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {"state": self.state, "passed": self.passed, "failed": self.failed,
                "left": self.left}


@dataclass
class Row:
    """An op, a kind of block or a stage: what is known of it by kind of check."""

    name: str
    share: float
    checks: dict[str, Tally]
    needed: bool = True


@dataclass
class Status:
    """Rows in the order of bringing up, the results that were read, and what comes next."""

    name: str
    ops: list[Row]
    blocks: list[Row]
    stages: list[Row]
    read: list[str]
    next: str
    unread: list[str] = field(default_factory=list)  # why results cannot be read

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        rows = {part: [{"name": row.name, "share": row.share, "needed": row.needed,
                        **{kind: tally.as_json() for kind, tally in row.checks.items()}}
                       for row in getattr(self, part)] for part in ("ops", "blocks", "stages")}
        return {"name": self.name, **rows, "read": self.read, "next": self.next,
                "unreadable": self.unread}


def status(folder: str | Path) -> Status:
    """Read a port's folder. A result that cannot be read is told beside those that can."""
    folder = Path(folder)
    if not (folder / "status.json").is_file():
        raise UsageError(f"{folder}: no port's folder: there is no status.json. Make one with "
                         "refsd port new NAME -o FOLDER")
    known, where = read_object(folder / "status.json"), f"{folder / 'status.json'}: the plan"
    check_schema(known.get("schema"), SCHEMA, where, "the folder")
    check(known, PLAN_RULES, where)
    tests, verdicts, read, unread = _results(folder / "results")

    ops = {entry["name"]: Row(entry["name"], entry["share"], {
        "contract": Tally(), "ops_pack": Tally(), "in_network": Tally()}, bool(entry["calls"]))
        for entry in known["ops"]}
    blocks = {entry["name"]: Row(entry["name"], entry["share"], {"in_network": Tally()})
              for entry in known["blocks"]}
    stages = {name: Row(name, 0.0, {"in_network": Tally()}) for name in known["stages"]}
    for name, outcome in tests.items():
        what, op, _ = TEST.fullmatch(name).groups()
        # a port without checks of its own (REFUSES = False) has nothing left to prove by them
        if op in ops and (what, outcome) != ("refuses", "left"):
            ops[op].checks["contract"].count(name, outcome)
    for name, (op, outcome) in verdicts.items():
        stage, kind = name.partition("/")[0], kind_of(name)
        if op in ops:
            ops[op].checks["ops_pack" if stage == OPS else "in_network"].count(name, outcome)
        alone = op == "block" or is_alone(name.rpartition("/")[2])
        if kind is not None and alone and stage != OPS:
            row = blocks.setdefault(kind, Row(kind, 0.0, {"in_network": Tally()}))
            row.checks["in_network"].count(name, outcome)
        elif op not in ops and stage in stages:
            stages[stage].checks["in_network"].count(name, outcome)
    rows = [list(found.values()) for found in (ops, blocks, stages)]
    return Status(known["name"], *rows, read, _next(*rows), unread)


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
        kind, known = (_junit, tests) if path.suffix == ".xml" else (_compared, verdicts)
        try:
            found = dict(kind(path))
        except (ModelError, ResourceError) as error:
            unread.append(str(error))
            continue
        known |= found
        read += [path.name] if found else []
    return tests, verdicts, read, unread


def _junit(path: Path) -> Iterable[tuple[str, str]]:
    """The contract tests of a JUnit file with their outcomes; other tests are not ours."""
    data = read_bytes(path, limit=LIMIT)
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # entities can blow a small file up
        raise ModelError(f"{path}: JUnit files have no DOCTYPE. This one is not read")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ModelError(f"{path}: not readable XML: {error}") from None
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
    found = read_json(path, limit=LIMIT)
    rows = found.get("tensors", found.get("rows")) if isinstance(found, dict) else None
    rows = rows if isinstance(rows, list) else []
    fused = {name for row in rows if isinstance(row, dict) and row.get("status") in GOOD
             for name in _names(row.get("computed"))}
    for row in rows:
        if not (isinstance(row, dict) and all(isinstance(row.get(key), str)
                                              for key in ("name", "status"))):
            raise ModelError(f"{path}: not what refsd golden compare --report or bisect --json "
                             f"writes: {json.dumps(row)[:80]}")
        outcome = "passed" if row["status"] in GOOD else (
            "failed" if row["status"] not in ABSENT else
            "passed" if row["name"] in fused else "left")
        yield row["name"], (row.get("op"), outcome)


def _names(found: Any) -> list[str]:
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _next(ops: list[Row], blocks: list[Row], stages: list[Row]) -> str:
    """One sentence: the first thing that is wrong, else the first that is not proven."""
    order = [(row, kind) for kind in ("contract", "ops_pack", "in_network")
             for row in ops if row.needed]
    order += [(row, "in_network") for row in blocks + stages]
    for row, kind in order:
        tally = row.checks[kind]
        if tally.state == "wrong":
            return f"{row.name} is wrong: {tally.failed[0]}. {WRONG[kind]}"
    for row, kind in order:
        if row.checks[kind].state in ("open", "part"):
            return f"{row.name}: {OPEN[kind].format(name=row.name)}"
    return "Everything that is in the packs is proven. Make a suite of whole pictures"


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
