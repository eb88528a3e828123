"""python -m benchmarks run | table: measure, and make the pages' tables from what was measured."""

import argparse
import os
import re
import sys
import time
from pathlib import Path

from benchmarks import ROOT, machine, tables, targets
from benchmarks.results_file import FOLDER, SCHEMA, Results, load
from benchmarks.sections import SECTIONS, Run

ABOUT = """\
refsd, PyTorch and OpenVINO in turns on this machine, every result checked before
it is timed. docs/benchmarks.md says how, and how to read the tables."""


def parser():
    found = argparse.ArgumentParser(prog="python -m benchmarks", description=ABOUT)
    commands = found.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure; finished sections of the file are kept")
    run.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION",
                     help=f"some of: {', '.join(SECTIONS)}")
    run.add_argument("--rounds", type=int, default=5, help="alternating rounds (5)")
    run.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                     help="of every runner (all cores)")
    run.add_argument("--out", type=Path,
                     help="results file (benchmarks/results/CPU-TARGET-THREADS.json)")
    run.add_argument("--cache", type=Path, default=ROOT / ".bench",
                     help="folder for the random model, 9 GB (.bench)")
    run.add_argument("--fresh", action="store_true", help="measure finished sections again")
    run.add_argument("--trial", type=int, metavar="N", help="only the N smallest ops of each kind")
    show = commands.add_parser("table", help="make the tables of README.md and docs/benchmarks.md")
    show.add_argument("--show", type=Path, metavar="FILE", help="print those of a file instead")
    return found


def main(arguments=None):
    """Returns the exit code: 1 where something is red, has failed or is out of date."""
    asked = parser().parse_args(arguments)
    if asked.command == "table":
        if asked.show:
            found = load(asked.show)
            print((tables.gpu.page if found.get("kind") == "gpu" else tables.docs)([found]))
        else:
            print("changed:", ", ".join(tables.write()) or "nothing")
        return 0
    if asked.rounds < 1 or asked.threads < 1:
        parser().error("--rounds and --threads want 1 or more")
    return run(asked)


def run(asked):
    """Measure section by section; one that fails does not stop the others."""
    found = machine.fingerprint()
    begun = time.monotonic()

    def say(text):
        print(f"[{time.monotonic() - begun:6.1f} s] {text}", flush=True)

    of = found["machine"]
    name = re.sub("[^a-z0-9]+", "-", f"{of['cpu']} {of['target']} {asked.threads} threads".lower())
    header = {"schema": SCHEMA, "threads": asked.threads, "rounds": asked.rounds} | found
    sections = asked.only or SECTIONS
    results = Results(asked.out or FOLDER / f"{name.strip('-')}.json", header,
                      fresh=sections if asked.fresh else (), say=say)
    asked.cache.mkdir(parents=True, exist_ok=True)
    work = Run(results, asked.threads, asked.rounds, asked.cache.resolve(), say, asked.trial)
    failed = [section for section in sections if not measure(section, work)]
    say(f"results: {results.path}")
    return report(results.data, failed)


def measure(section, work):
    """Run a section unless it is done. Whether all of it is measured, and nothing red."""
    if work.results.finished(section):
        work.say(f"{section}: kept from {work.results.data['sections'][section]['date']}")
        return True
    work.say(f"{section} ...")
    try:
        SECTIONS[section](work)
    except Exception as problem:  # the other sections shall still be measured
        work.say(f"{section} FAILED: {type(problem).__name__}: {problem}")
        return False
    finally:
        work.results.save()
    whole = not red_rows(work.results.data, section) and not work.limit
    if whole:
        work.results.finish(section)
    return whole


def red_rows(results, section):
    """What was not timed, and why."""
    rows = results["sections"][section]["rows"]
    return [f"{name}: {who} not timed: {why}" for name, row in rows.items()
            for who, why in row.get("not_timed", {}).items()]


def report(results, failed):
    """Print all tables; the exit code."""
    print("\n" + tables.docs([results]) + "\n")
    red = [line for section in results["sections"] for line in red_rows(results, section)]
    for line in red:
        print(line)
    for section in failed:
        print(f"section {section} is not complete")
    for what, limit, measured, verdict in targets.verdicts(results):
        print(f"{verdict.split(',')[0].upper():7} {what}: {measured}, {limit} ({verdict})")
    return 1 if red or failed else 0


if __name__ == "__main__":
    sys.exit(main())
