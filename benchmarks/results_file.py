"""The JSON file of one machine's results: written after every measurement, resumed from there.

    {"schema": 1, "name", "threads", "rounds", "machine", "versions", "source",
     "sections": {name: {"finished", "date", "rows": {row: {...}}}}}

A row holds what was run ("flops", "bytes", "count", ...), what agreement says ("agreement"), every
sample ("seconds": {runner: [...]}), and what was not timed and why ("not_timed").
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import ROOT

SCHEMA = 1
FOLDER = ROOT / "benchmarks" / "results"


class Results:
    """Results that are being measured; of the sections in `fresh` nothing is known."""

    def __init__(self, path, header, *, fresh=(), say=print):
        self.path = Path(path)
        self.data = header | {"sections": {}}
        old = load(self.path) if self.path.is_file() else None
        if old is not None:
            changed = [key for key in header if key != "rounds" and old.get(key) != header[key]]
            if changed:
                say(f"{self.path.name} is of another {', '.join(changed)}: all is measured anew")
            else:
                self.data["sections"] = {name: section for name, section in old["sections"].items()
                                         if name not in fresh}

    def finished(self, section):
        return self.data["sections"].get(section, {}).get("finished", False)

    def begin(self, section):
        """The rows of a section, those that an interrupted run has left included."""
        found = self.data["sections"].setdefault(section, {"rows": {}})
        found |= {"finished": False, "date": now()}
        return found["rows"]

    def finish(self, section):
        self.data["sections"][section]["finished"] = True
        self.save()

    def save(self):
        """Write all; the file is whole at any time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(draft, self.path)


def load(path):
    """The results of a file; ValueError for another schema."""
    data = json.loads(Path(path).read_text())
    if data.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {data.get('schema')!r}, this program knows {SCHEMA}")
    return data


def load_all(folder=FOLDER):
    """The results of all machines, by file name."""
    return [load(path) for path in sorted(Path(folder).glob("*.json"))]


def now():
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
