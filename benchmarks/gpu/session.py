"""All sections in turn, each in a process of its own; the results file is whole at any time.

This process needs Python alone: whatever is wrong with an installation is a section's row.
"""

import json
import os
import re
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.gpu.sections import SECTIONS
from benchmarks.results_file import SCHEMA, now

FOLDER = ROOT / "benchmarks" / "results" / "gpu"
ENDING = 20  # seconds that a process may take to go, its rows written
LIMIT = 465.0  # seconds of all sections together


class Session:
    """Results that grow. path: of the file, or None for one that has the device's name."""

    def __init__(self, path: Path | None, rehearse: bool, say: Any = print, limit: float = LIMIT):
        self.path, self.rehearse, self.say = path, rehearse, say
        self.until = time.monotonic() + limit
        self.data: dict[str, Any] = {
            "schema": SCHEMA, "kind": "gpu", "rehearsal": rehearse, "date": now(), "sections": {}}

    def run(self, names: list[str], environment: dict[str, str]) -> None:
        """Every section, while there is time."""
        for name in names:
            found = self.data["sections"][name] = {"finished": False, "rows": {}}
            seconds = min(SECTIONS[name].seconds * (4 if self.rehearse else 1),
                          self.until - time.monotonic())
            if seconds < 5:
                found["stopped"] = "no time was left"
            else:
                self.say(f"{name}: {SECTIONS[name].what} ...")
                self._section(name, found, seconds, environment)
            self.save()

    def _section(self, name, found, seconds, environment):
        begun = time.monotonic()
        mode = "rehearse" if self.rehearse else "measure"
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.child", SECTIONS[name].function, mode,
             str(seconds - 3)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, start_new_session=True)
        try:
            for line in lines_until(process.stdout, begun + seconds):
                row, content = json.loads(line)
                found["rows"][row or name] = content
                self.save()
            found["finished"] = process.wait(timeout=ENDING) == 0
            if not found["finished"]:
                found["stopped"] = f"exit code {process.returncode}"
        except TimeoutError:
            found["stopped"] = f"after {seconds:.0f} s"
        except subprocess.TimeoutExpired:
            found["stopped"] = f"its rows are whole, but it did not end for {ENDING} s"
        finally:
            stop(process)
        found["seconds"] = round(time.monotonic() - begun, 1)
        red = sum("red" in row for row in found["rows"].values())
        self.say(f"{name}: {len(found['rows'])} rows, {red} red, {found['seconds']} s"
                 + (f", stopped {found['stopped']}" if "stopped" in found else ""))

    def save(self) -> None:
        """Write all that is known."""
        path = self.path or FOLDER / f"{file_name(self.data)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(draft, path)
        self.written = path


def lines_until(stream: Any, until: float) -> Any:
    """Lines of a pipe as they come; TimeoutError when the time is over."""
    left = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0, until - time.monotonic())):
                raise TimeoutError
            piece = os.read(stream.fileno(), 1 << 16)
            if not piece:
                return
            *whole, left = (left + piece).split(b"\n")
            yield from whole


def stop(process: subprocess.Popen) -> None:
    """End a section and all that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.wait()
    process.stdout.close()


def file_name(data: dict[str, Any]) -> str:
    """The device's name, as the other results files have the processor's."""
    rows = data["sections"].get("versions", {}).get("rows", {})
    name = rows.get("device", {}).get("name", "unknown device")
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
