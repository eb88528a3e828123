"""The journal of a recording: one line for each shard that is on disk, so that it can go on."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refsd.atomic import write_file, writing
from refsd.errors import UsageError
from refsd.golden.packs.manifest import MAX_MANIFEST, Entry, as_dict, read_entry
from refsd.golden.packs.rules import ENTRY_RULES, FILE_RULES, MANIFEST_RULES
from refsd.golden.packs.shards import sha256_of_file
from refsd.rules import check, record
from refsd.weights.files import open_file, parse_json, read_bytes

JOURNAL = "unfinished.jsonl"
ROW_RULES = {"shard": ENTRY_RULES["shard"], "file": record(FILE_RULES),
             **{key: MANIFEST_RULES[key] for key in ("tensors", "checkpoints", "invariants")}}


@dataclass
class Shard:
    """A shard, its tensors, the marks that were set among them; `file` once it is on disk."""

    shard: str
    file: dict[str, Any] = field(default_factory=dict)
    tensors: list[Entry] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    invariants: list[dict[str, Any]] = field(default_factory=list)


def write(folder: Path, head: dict[str, Any], rows: list[Shard]) -> None:
    """Write a journal anew: what is recorded, and the shards that are there."""
    write_file(folder / JOURNAL, [_line(head), *map(_line_of, rows)])


def add(folder: Path, row: Shard) -> None:
    """Note a shard. A later line about the same shard stands for the earlier ones."""
    flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    with (writing(folder / JOURNAL),
          open(os.open(folder / JOURNAL, flags), "ab") as file):
        file.write(_line_of(row))


def _line_of(row: Shard) -> bytes:
    return _line({**vars(row), "tensors": [as_dict(entry) for entry in row.tensors]})


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False).encode("ascii") + b"\n"


def read(folder: Path, head: dict[str, Any]) -> list[Shard]:
    """The shards that are there, whole and unaltered, from the first on without a gap.

    Raises UsageError when the folder holds a recording of something else, ModelError for a journal
    that refsd did not write.
    """
    path = folder / JOURNAL
    # what follows the last line end was cut off
    lines = read_bytes(path, limit=4 * MAX_MANIFEST).split(b"\n")[:-1]
    values = [parse_json(line.decode("ascii", "replace"), path) for line in lines]
    if values and values[0] != json.loads(_line(head)):
        same = isinstance(values[0], dict) and set(values[0]) == set(head)
        wrong = next((key for key in head if values[0][key] != head[key]), "") if same else "schema"
        raise UsageError(f"{folder}: the recording there has another {wrong}. Give what it was "
                         "begun with, or another folder")
    rows: dict[str, Shard] = {}
    for number, line in enumerate(values[1:], 2):
        row = _row(line, f"{path}: line {number}")
        rows[row.shard] = row
    whole = []
    for row in rows.values():
        if not _unaltered(folder / row.shard, row.file):
            break
        whole.append(row)
    return whole


def _row(line: Any, where: str) -> Shard:
    check(line, ROW_RULES, where)
    return Shard(**{**line, "tensors": [read_entry(entry, where) for entry in line["tensors"]]})


def _unaltered(path: Path, file: dict[str, Any]) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file["bytes"]:
        return False
    with open_file(path) as opened:
        return sha256_of_file(opened) == file["sha256"]
