"""python -m benchmarks.gpu prepare | run: docs/cuda-gpu.md says how."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu import carried
from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.session import LIMIT, Session


def parser():
    found = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    commands = found.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="compile all kernels and fetch wheels into a "
                                                  "folder for a machine that has neither")
    prepare.add_argument("folder", type=Path)
    prepare.add_argument("--capabilities", type=int, nargs="+", default=[80, 90], metavar="N",
                         help="80 for 8.0; 9.0 includes 9.0a (80 90)")
    prepare.add_argument("--python", default="3.12", help="of that machine (3.12)")
    run = commands.add_parser("run", help="test and measure on this machine's GPU")
    run.add_argument("--carried", type=Path, metavar="FOLDER", help="what prepare has made")
    run.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION",
                     help=f"some of: {', '.join(SECTIONS)}")
    run.add_argument("--tests", action="store_true", help="only what says right or wrong")
    run.add_argument("--out", type=Path, help="results file (benchmarks/results/gpu/DEVICE.json)")
    run.add_argument("--limit", type=float, default=LIMIT, help=f"seconds of all ({LIMIT:g})")
    run.add_argument("--rehearse", action="store_true",
                     help="go through all of it on Python in lockstep, at small sizes")
    return found


def main(arguments=None):
    """The exit code: 1 where something is red or was stopped."""
    asked = parser().parse_args(arguments)
    if asked.command == "prepare":
        return carried.prepare(asked.folder, asked.capabilities, asked.python)
    if asked.rehearse and not asked.out:
        parser().error("--rehearse wants --out: it is no result")
    names = asked.only or [name for name, section in SECTIONS.items()
                           if section.test or not asked.tests]
    with tempfile.TemporaryDirectory(prefix="refsd-gpu-") as folder:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(
            filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
        if asked.rehearse:
            environment |= {"REFSD_CUDA": "lockstep"}
        if asked.carried:
            environment |= carried.unpack(asked.carried, Path(folder), environment)
        session = Session(asked.out, asked.rehearse, limit=asked.limit)
        session.run(names, environment)
    print(f"results: {session.written}")
    return int(any("stopped" in section or any("red" in row for row in section["rows"].values())
                   for section in session.data["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
