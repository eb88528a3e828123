"""python -m tests.porter: the trial of bisect and compare on somebody else's port.

    python -m tests.porter FOLDER                     every mistake in nine settings, one pack
    python -m tests.porter FOLDER --seeds 20          the right port in nine settings, 20 packs
    python -m tests.porter FOLDER --seeds 20 --packs 1    the same, 20 ports on one pack
    python -m tests.porter FOLDER --table             what is there, as tables

Packs and results lie in FOLDER; what is there is not done again, so that a trial may be interrupted
(--minutes 3 does it by itself). A whole one takes about an hour on one core.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

KINDS = ("full", "blocks", "unet")


def main():
    """The trial, resumed."""
    parser = argparse.ArgumentParser(prog="python -m tests.porter", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=0,
                        help="runs of the right port, by flash attention and by eager")
    parser.add_argument("--packs", type=int, help="on so many packs (default: one a seed)")
    parser.add_argument("--minutes", type=float, default=1e9, help="then stop, to be resumed")
    parser.add_argument("--mistakes", nargs="*", help="only these")
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--formats", nargs="*", default=("float32", "bfloat16", "float16"))
    parser.add_argument("--again", action="store_true", help="do what is there again")
    parser.add_argument("--table", action="store_true", help="only show what is there")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.until = time.monotonic() + 60 * options.minutes
    results = Results(options.folder / ("seeds.jsonl" if options.seeds else "mistakes.jsonl"))
    if not options.table:
        (of_seeds if options.seeds else of_mistakes)(options, results)
    from .tables import show

    show(options.folder)


class Results:
    """Lines of JSON, the last of a key counts."""

    def __init__(self, path):
        self.path, self.found = path, {}
        for line in path.read_text().splitlines() if path.exists() else ():
            row = json.loads(line)
            self.found[self.key(row)] = row

    @staticmethod
    def key(row):
        return (row.get("mistake"), row["kind"], row["format"], row["seed"], row.get("pack", 0),
                row.get("eager", False))

    def add(self, row):
        self.found[self.key(row)] = row
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")


def pack_of(folder, seed):
    from . import trial

    place = folder / f"pack{seed}"
    return trial.Pack.open(place) if place.exists() else trial.make_pack(place, seed)


def of_mistakes(options, results):
    from . import trial

    model = trial.open_model()
    with pack_of(options.folder, 0) as pack:
        for key, mistake in trial.MISTAKES.items():
            if options.mistakes and key not in options.mistakes:
                continue
            for kind in options.kinds:
                for format in options.formats:
                    done = (key, kind, format, 0, 0, False) in results.found
                    if done and not options.again or kind == "unet" and not mistake.in_unet:
                        continue
                    if time.monotonic() > options.until:
                        return
                    row = trial.judge(pack, model, key, kind, format, options.folder / "dump")
                    results.add(row)
                    print(key, kind, format, row["right"], row["times"], row["reason"], flush=True)


def of_seeds(options, results):
    from . import trial

    model, packs = trial.open_model(), options.packs or options.seeds
    for seed in sorted(range(options.seeds), key=lambda seed: seed % packs):
        number = seed % packs
        cells = [(eager, kind, format) for eager in (False, True) for format in options.formats
                 for kind in options.kinds if options.again
                 or (None, kind, format, seed, number, eager) not in results.found]
        if not cells or time.monotonic() > options.until:
            continue
        with pack_of(options.folder, number) as pack:
            for eager, kind, format in cells:
                row = trial.alarm(pack, model, kind, format, options.folder / "dump_seeds",
                                  seed=seed, eager=eager)
                results.add({"pack": number, **row})
                print(number, seed, "eager" if eager else "flash", kind, format, row["counts"],
                      row["bisect"], row["compare"], flush=True)


if __name__ == "__main__":
    main()
