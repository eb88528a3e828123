"""The table of docs/memory.md: what benchmarks.bounded has measured, cell by cell."""

from statistics import median

from benchmarks.bounded import CELLS, SIDES

NAMES = {"sd1": "Stable Diffusion 1.5", "sdxl": "Stable Diffusion XL"}
HEAD = ("options", "peak, GB", "`refsd plan`", "measured / planned", "goal", "a step",
        "in units of the same in memory", "of the unrestricted run", "load, text, decode")


def page(all_results):
    """The section between the markers."""
    blocks = []
    for results in all_results:
        rows = {name: row for name, row in results["sections"]["cells"]["rows"].items()
                if name in CELLS and row.get("runs")}
        for model in SIDES:
            names = [name for name in CELLS if name in rows and CELLS[name].model == model]
            if names:
                blocks += [about(model, results, [rows[name] for name in names]), "",
                           *_table(rows, names, model), ""]
    return "\n".join(blocks).rstrip()


def about(model, results, rows):
    """A sentence before a table."""
    side, rounds = SIDES[model], min(len(row["runs"]) for row in rows)
    busy = "" if all(row["quiet"] for row in rows) else (
        " The machine was not quiet: times are to be taken again on one that is.")
    return (f"{NAMES[model]}, random float16 weights of its size, {side} x {side}, numba, "
            f"{results['machine']['cpu']}, {results['threads']} threads, "
            f"{rounds} round{'s' * (rounds > 1)} of all rows in turns.{busy}")


def _table(rows, names, model):
    first = next(name for name in CELLS if CELLS[name].model == model)
    lines = [_line(rows, name, first) for name in names]
    return ["| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *lines)]


def _line(rows, name, first):
    cell, row = CELLS[name], rows[name]
    peak, planned = max(run["bytes"] for run in row["runs"]), row["estimated"]
    options = [f'{key}="{value}"' for key, value in cell.options.items()]
    options += [f'vae.tiling="{cell.tiling}"'] if cell.tiling != "auto" else []
    words = ", ".join(f"`{option}`" for option in options) or "float32, all in memory"
    goal = "" if cell.budget is None else (
        f"under {cell.budget / 1e9:g}: " + ("yes" if peak < cell.budget else "no"))
    if cell.whole in rows and pictures(row) != pictures(rows[cell.whole]):
        return [f"{words}: another picture than in memory", *[""] * (len(HEAD) - 1)]
    around = median(run["load"] + run["seconds"]["encode"] + run["seconds"]["decode"]
                    for run in row["runs"])
    return [words, f"{peak / 1e9:.2f}", "" if planned is None else f"{planned / 1e9:.2f}",
            "" if planned is None else f"{peak / planned:.2f}", goal,
            f"{median(map(step, row['runs'])):.2f} s", _ratio(row, rows.get(cell.whole)),
            "" if name == first else _ratio(row, rows.get(first)), f"{around:.1f} s"]


def pictures(row):
    """The hashes of what was drawn."""
    return {run["picture"] for run in row["runs"]}


def step(run):
    """Seconds of a step, without the first."""
    return median(run["step_seconds"][1:])


def _ratio(row, other):
    """Of the steps of two cells, round by round."""
    if other is None:
        return ""
    return f"{median(step(a) / step(b) for a, b in zip(row['runs'], other['runs'])):.2f}"
