"""Markdown tables from the results files, and their places in README.md and docs/benchmarks.md.

Every figure there is made here; nobody types one.
"""

from benchmarks import ROOT, bounded_table, figures, targets
from benchmarks.agreement import UNIT
from benchmarks.gpu import tables as gpu
from benchmarks.results_file import FOLDER, load_all
from benchmarks.sections import HALVES, INT8, NUMPY, REFSD

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
PARTS = {
    "clip": "CLIP text encoder, 2 x 77 tokens",
    "unet": "UNet step, batch 2, 64 x 64 latents",
    "decode": "VAE decode, 512 x 512",
    "encode": "VAE encode, 512 x 512",
    "bundled": "whole picture, bundled model, 20 steps",
}
STARTS = {"cold": "command to PNG, bundled model, no kernel compiled before",
          "warm": "command to PNG, bundled model", "imports": "imports of that"}
FORMS = {"refsd": "float32", "refsd-bfloat16": "bfloat16",
         "refsd-int8": "int8 weights"}
OF = {"unet": "one UNet step", "decode": "one VAE decode"}


def readme(all_results):
    """The section of README.md: the whole parts, how near they are, and a process as a whole."""
    blocks = ["## How fast it is", "",
              "`make bench` measures refsd, PyTorch with diffusers, and OpenVINO in turns, in "
              "float32, and checks every", "result before it is timed. A ratio is refsd's time in "
              "units of the other's: below 1 is faster.", "[docs/benchmarks.md]"
              "(docs/benchmarks.md) says how it is done, and has the sums over kinds of ops, every "
              "op, and the spreads.", ""]
    for results in all_results:
        blocks += [machine(results), ""]
        for made in (parts, exactness, halves, processes):
            blocks += [*made(results), ""] if made(results) else []
    return "\n".join(blocks).rstrip()


def docs(all_results):
    """The section of docs/benchmarks.md: everything."""
    blocks = []
    for results in all_results:
        blocks += [f"## {results['machine']['cpu']}, {results['threads']} threads", "",
                   machine(results), "", "### Goals", "", *goals(results), "",
                   "### Whole parts", "", *parts(results, spreads=True), "",
                   *(["### In bfloat16", "", *halves(results), ""] if halves(results) else []),
                   "### Memory and start", "", *processes(results), "",
                   "### Sums over the ops", "", *kinds(results), "", "### Op by op", "",
                   *ops(results), ""]
    return "\n".join(blocks).rstrip()


def machine(results):
    """One sentence: where and with what this was measured."""
    of, versions, peak = results["machine"], results["versions"], figures.limits(results)
    caches = ", ".join(f"{name} {size}" for name, size in of["caches"].items())
    limits = (f" Measured peaks: {peak['fma'] / 1e9:.0f} GFLOP/s, {peak['copy'] / 1e9:.0f} GB/s."
              if {"fma", "copy"} <= set(peak) else "")
    dates = sorted(s["date"] for s in results["sections"].values())
    tools = ", ".join(f"{name} {versions[name]}" for name in ("torch", "diffusers", "openvino",
                                                              "numba") if versions[name])
    return (f"{of['cpu']}, {of['cores']} cores ({caches}), vectors of {of['simd_bytes'] * 8} bits, "
            f"{results['threads']} threads, {tools}; {dates[-1][:10] if dates else 'no date'}."
            + limits)


def goals(results):
    return table(("goal", "limit", "measured", ""), targets.verdicts(results))


def parts(results, spreads=False):
    """The whole networks and pictures."""
    lines = []
    for part, what in PARTS.items():
        row = results["sections"].get(part, {}).get("rows", {}).get(part)
        if row is None:
            continue
        own = [time(row, spreads), rates(row, results)] if spreads else [time(row, spreads)]
        lines.append((what, *own, *(theirs(row, name, spreads) for name in figures.PEERS),
                      *(ratio(row, name) for name in figures.PEERS), seconds(numpy(row))))
    own = ("refsd", "rate") if spreads else ("refsd",)
    return table(("work", *own, *figures.PEERS, *(f"ratio to {p}" for p in figures.PEERS),
                  "refsd on NumPy"), lines)


def halves(results):
    """The networks in bfloat16 and with int8 weights: times, ratios, errors in bfloat16's units."""
    lines = []
    for part, row in results["sections"].get("half", {}).get("rows", {}).items():
        found = figures.half(row)
        if found is None:
            continue
        errors = ", ".join(f"{name} {verdict['error'] / UNIT:.1f}"
                           for name, verdict in row["agreement"].items()
                           if name in (*HALVES, *INT8))
        lines.append((PARTS[part], seconds(found["refsd"].median),
                      *("" if found[name] is None else f"{found[name]:.2f}"
                        for name in ("float32", *figures.HALF_PEERS)),
                      *(_int8(row, name) for name in INT8), errors))
    return table(("work in bfloat16", "refsd", "ratio to its float32",
                  *(f"ratio to {p}" for p in figures.HALF_PEERS),
                  *(f"{name}, ratio to float32" for name in INT8), "error, units of 2^-9"),
                 lines) if lines else []


def exactness(results):
    """How far the results lie from PyTorch's, as they were before they were timed; and the ops."""
    lines = []
    for part, what in PARTS.items():
        row = results["sections"].get(part, {}).get("rows", {}).get(part, {})
        found = {name: verdict["error"] for name, verdict in row.get("agreement", {}).items()}
        if REFSD in found:
            lines.append((what, *(f"{found[name]:.1e}" if name in found else ""
                                  for name in (REFSD, "OpenVINO"))))
    rows = results["sections"].get("ops", {}).get("rows", {}).values()
    shares = [row["agreement"][REFSD]["share_of_bound"] for row in rows if figures.ours(row)]
    if shares:
        lines.append((f"the {len(shares)} ops, error in units of the derived bound, at most",
                      f"{max(shares):.2g}", ""))
    return table(("distance from PyTorch, of the result's size", "refsd", "OpenVINO"),
                 lines) if lines else []


def _int8(row, name):
    found = figures.int8(row, name)
    return "" if found is None else f"{seconds(found[0])}, {found[1]:.2f}"


def processes(results):
    """What a process takes as a whole: memory, and the time from the command to the picture."""
    sections = results["sections"]
    memory, start = (sections.get(name, {}).get("rows", {}) for name in ("memory", "start"))
    lines = []
    for side, form in FORMS.items():
        if side in memory:
            held = memory[side]["prepared"] / 1e9
            lines.append((f"peak memory, Stable Diffusion 1.5, {form}, 512 x 512",
                          f"{_gigabytes(memory, side)}, other forms of weights {held:.2f}",
                          _gigabytes(memory, "torch") if side == "refsd" else ""))
    for name, what in STARTS.items():
        if name in start:
            lines.append((what, _spread(figures.ours(start[name])), ""))
    return table(("process", "refsd", "PyTorch"), lines)


def _gigabytes(rows, side):
    return f"{rows[side]['bytes'] / 1e9:.2f} GB" if side in rows else "not measured"


def kinds(results):
    """How the ops of a step and of a decode add up, one after the other."""
    lines = []
    for part, name in OF.items():
        for what, total in figures.totals(results, part).items():
            row = {"op": "silu" if what in ("norms", "activations") else "conv2d",
                   "flops": total["flops"], "bytes": total["bytes"],
                   "seconds": {REFSD: [total["seconds"][REFSD]]}}
            lines.append((f"{name}: {what}", total["calls"],
                          *(seconds(value) for value in total["seconds"].values()),
                          *(f"{total['seconds'][REFSD] / total['seconds'][p]:.2f}"
                            for p in figures.PEERS), rates(row, results)))
    return table(("ops", "calls", "refsd", *figures.PEERS,
                  *(f"ratio to {p}" for p in figures.PEERS), "rate"), lines)


def ops(results):
    """Every distinct op, with the algorithm of convolutions and what the check has found."""
    lines = []
    for name, row in results["sections"].get("ops", {}).get("rows", {}).items():
        if not figures.ours(row):
            why = "; ".join(f"{who}: {text}" for who, text in row["not_timed"].items())
            lines.append((name, _count(row), f"not timed: {why}", *[""] * 6))
            continue
        checked = row["agreement"][REFSD]
        lines.append((name, _count(row), time(row, True), rates(row, results),
                      *(theirs(row, p, True) for p in figures.PEERS),
                      *(ratio(row, p) for p in figures.PEERS),
                      " ".join(filter(None, (checked["algorithm"],
                                             f"{checked['share_of_bound']:.2g}")))))
    return table(("op", "calls", "refsd", "rate", *figures.PEERS,
                  *(f"ratio to {p}" for p in figures.PEERS), "algorithm, share of error bound"),
                 lines)


def _count(row):
    return ", ".join(f"{part} {count}" for part, count in row["count"].items())


def time(row, spreads):
    own = figures.ours(row)
    if own is None:
        return "not timed: " + row["not_timed"].get(REFSD, "unknown")
    return _spread(own) if spreads else seconds(own.median)


def theirs(row, name, spreads):
    """A peer's time, with the name of its form where it is not the plain one."""
    found = figures.peer(row, name)
    if found is None:
        return "not timed"
    form = next(f for f in figures.PEERS[name]
                if row["seconds"].get(f) and figures.spread(row["seconds"][f]) == found)
    text = _spread(found) if spreads else seconds(found.median)
    return text if form == name or not spreads else f"{text}, {form.removeprefix(name).strip()}"


def numpy(row):
    samples = row["seconds"].get(NUMPY)
    return figures.spread(samples).median if samples else None


def ratio(row, name):
    found = figures.ratio(row, name)
    return "" if found is None else f"{found:.2f}"


def rates(row, results):
    """123 GFLOP/s, 45 %"""
    found, kind = figures.rate(row)
    if found is None:
        return ""
    share, unit = figures.share(row, results), {"flops": "GFLOP/s", "bytes": "GB/s"}[kind]
    return f"{found / 1e9:.3g} {unit}" + ("" if share is None else f", {share:.0%}")


def _spread(found):
    low, high = seconds(found.low), seconds(found.high)
    return f"{seconds(found.median)} [{low}, {high}]"


def seconds(value):
    """A time with three digits and a unit."""
    if value is None:
        return ""
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def table(head, lines):
    rows = [head, ["---"] * len(head), *lines]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]


PAGES = {"README.md": readme, "docs/benchmarks.md": docs, "docs/cuda-speed.md": gpu.page,
         "docs/memory.md": bounded_table.page}
OWN = {"docs/cuda-speed.md": "gpu", "docs/memory.md": "memory"}  # results in a folder below


def between(text, path):
    """The part of a page between its two markers, and what stands around it."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path}: wanted one line {BEGIN} and one {END}")
    before, rest = text.split(BEGIN)
    inside, after = rest.split(END)
    return before + BEGIN, inside, END + after


def rendered(page, all_results):
    """What shall stand between the markers of a page."""
    return "\n\n" + PAGES[page](all_results) + "\n\n"


def results_of(page, folder=FOLDER):
    """The results that a page is about."""
    return load_all(folder / OWN.get(page, ""))


def stale(folder=ROOT, results=FOLDER):
    """The pages whose tables are not those of the results files: {page: what it should hold}."""
    found = {}
    for page in PAGES:
        text = (folder / page).read_text()
        before, inside, after = between(text, page)
        made = rendered(page, results_of(page, results))
        if made != inside:
            found[page] = before + made + after
    return found


def write(folder=ROOT, results=FOLDER):
    """Make the tables of all pages anew. Returns the pages that changed."""
    changed = stale(folder, results)
    for page, text in changed.items():
        (folder / page).write_text(text)
    return list(changed)
