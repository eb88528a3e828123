"""The trial's results as tables of Markdown."""

import json

from .mistakes import HALVES, MISTAKES

FORMATS, KINDS = ("float32", *HALVES), ("full", "blocks", "unet")
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def read(path):
    """The last row of each key."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        found[row.get("mistake"), row["kind"], row["format"], row["seed"], row.get("pack", 0),
              row.get("eager", False)] = row
    return list(found.values())


def summary(rows):
    """Counts by setting: right names, hidden ones, right reasons of those that are asked."""
    lines = ["| dump | format | right | hidden | wrong | reasons | compare |",
             "|---|---|---|---|---|---|---|"]
    for kind in KINDS:
        for format in FORMATS:
            here = [row for row in rows if (row["kind"], row["format"]) == (kind, format)]
            asked = [row for row in here if MISTAKES[row["mistake"]].asked]
            right = sum(row["right"] for row in here)
            hidden = sum(row["hidden"] for row in here if not row["right"])
            reasons = sum(row["reason_right"] for row in asked)
            lines.append(f"| {kind} | {SHORT[format]} | {right} of {len(here)} | {hidden} | "
                         f"{len(here) - right - hidden} | {reasons} of {len(asked)} | "
                         f"{sum(row['compare_right'] for row in here)} |")
    return lines


def details(rows):
    """A line a mistake: what became of it in each setting."""
    cells = {(row["mistake"], row["kind"], row["format"]): row for row in rows}
    lines = ["| mistake | " + " | ".join(f"{kind} {SHORT[format]}" for kind in KINDS
                                         for format in FORMATS) + " |", "|---" * 10 + "|"]
    for key in MISTAKES:
        found = [cells.get((key, kind, format)) for kind in KINDS for format in FORMATS]
        lines.append(f"| {key} | " + " | ".join(map(_cell, found)) + " |")
    return lines


def _cell(row):
    if row is None:
        return ""
    mistake = MISTAKES[row["mistake"]]
    if row["hidden"]:
        return "hidden"
    place = "ok" if row["right"] else "NONE" if row["first"] is None else "NO"
    if not mistake.reasons or row["first"] is None:
        return place
    return f"{place} {'+' if row['reason_right'] else row['reason'] or '-'}"


def failures(rows):
    """What is wrong, one line each."""
    for row in rows:
        if not row["right"] and not row["hidden"]:
            yield (f"- {row['mistake']}, {row['kind']} {SHORT[row['format']]}: wanted "
                   f"{row['wanted']}, first {row['first']} ({row['status']} {row['times']}); "
                   f"compare {row['compare']}")


def reasons_missed(rows):
    for row in rows:
        if row["right"] and row["first"] and MISTAKES[row["mistake"]].asked and (
                not row["reason_right"]):
            yield (f"- {row['mistake']}, {row['kind']} {SHORT[row['format']]}: "
                   f"{row['reason']} ({row['why']})")


def alarms(rows):
    """The right port: by setting how much was judged, and what of it was called wrong or open."""
    lines = ["| dump | format | packs | runs | tensors judged | largest error / bound "
             "| alarms of bisect | of compare | open |", "|---" * 9 + "|"]
    for kind in KINDS:
        for format in FORMATS:
            here = [row for row in rows if (row["kind"], row["format"]) == (kind, format)]
            judged = sum(row["counts"].get("explained", 0) + len(row["bisect"]) for row in here)
            lines.append(f"| {kind} | {SHORT[format]} | {len({row['pack'] for row in here})} "
                         f"| {len(here)} | {judged:,} "
                         f"| {max((row['largest'] for row in here), default=0):.2f} | "
                         f"{sum(len(row['bisect']) for row in here)} | "
                         f"{sum(len(row['compare']) for row in here)} | "
                         f"{sum(len(row['open']) for row in here)} |")
    return lines


def show(folder):
    """Everything that the folder has."""
    rows, seeds = read(folder / "mistakes.jsonl"), read(folder / "seeds.jsonl")
    if rows:
        print("\n".join(["## Mistakes", "", *summary(rows), "", *details(rows), "",
                         "### Places", "", *failures(rows), "", "### Reasons", "",
                         *reasons_missed(rows)]))
    if seeds:
        print("\n".join(["", "## The right port", "", *alarms(seeds), ""]))
        for row in seeds:
            if row["bisect"] or row["compare"]:
                how = "eager" if row["eager"] else "flash"
                print(f"- pack {row['pack']} seed {row['seed']} {how} {row['kind']} "
                      f"{row['format']}: bisect "
                      f"{row['bisect'][:3]}, compare {row['compare'][:3]}")
