"""python -m benchmarks.gpu_model: what a step of Stable Diffusion should take on a GPU. A model.

Nothing here was measured. Each launch (benchmarks/gpu_launches.py) takes the longest of: its bytes
by what memory gives, its FLOPs by what the multiprocessors give that its blocks fill, and the least
that any kernel takes; then a gap. ASSUMPTIONS has every number that is not a count or a data sheet.
"""

import argparse
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from benchmarks import ROOT
from benchmarks.gpu_launches import PRODUCTS, Launch, launches, totals
from benchmarks.gpu_occupancy import assembled, resident
from benchmarks.tables import seconds, table

STEPS = 50
PAGE = ROOT / "docs" / "cuda-speed.md"
BEGIN, END = "<!-- model:begin -->", "<!-- model:end -->"


class Card(NamedTuple):
    """A GPU as its data sheet has it: dense rates in FLOP/s, halves with float32 sums, bytes/s."""

    name: str
    capability: int
    multiprocessors: int
    half: float
    float32: float
    bandwidth: float


CARDS = (
    Card("A100 80 GB SXM", 80, 108, 312e12, 19.5e12, 2.039e12),
    Card("H100 80 GB SXM", 90, 132, 989e12, 66.9e12, 3.35e12),
    Card("RTX 3060", 86, 28, 25.5e12, 12.7e12, 0.36e12),
    Card("RTX 4090", 89, 128, 165.2e12, 82.6e12, 1.008e12),
)

ASSUMPTIONS = {
    "memory": (0.90, "of the data sheet's bandwidth is had; every array of a launch is read or "
                     "written once, and nothing stays in the L2 cache from launch to launch"),
    "mma": (0.75, "of the tensor cores' rate in a product by mma.sync with enough blocks"),
    "mma on 9.0": (0.47, "the same on an H100, where mma.sync reaches 0.63 of wgmma's rate"),
    "wgmma": (0.65, "of the tensor cores' rate in a product by wgmma"),
    "mma, attention": (0.50, "of the tensor cores' rate in flash attention: exponentials between "
                             "products, heads padded to 48"),
    "mma on 9.0, attention": (0.30, "the same on an H100; FlashAttention-2 is published at 0.35"),
    "tiles": (0.75, "of float32's rate in a product in registers"),
    "plain": (0.06, "of float32's rate in a kernel of one result a thread, where it multiplies"),
    "elements": (0.30, "of float32's rate in ops that multiply nothing: norms, activations"),
    "threads": (256, "threads on a multiprocessor hide its latencies; fewer are slower in "
                     "proportion"),
    "least": (2.0e-6, "seconds that any kernel takes, from its first to its last block"),
    "gap": (0.8e-6, "seconds between two kernels of a replayed graph"),
    "host": (8e-6, "seconds of Python a launch where there is no graph: then a step takes at "
                   "least this times its launches"),
}


def efficiency(launch: Launch, card: Card) -> float:
    """The share of the card's rate that a launch's way of multiplying can have."""
    name = launch.way if launch.op in PRODUCTS else "elements"
    if name == "mma":
        name += " on 9.0" * (card.capability == 90) + ", attention" * (launch.op == "attention")
    return ASSUMPTIONS[name][0]


def filled(launch: Launch, card: Card) -> float:
    """The share of all multiprocessors' time that blocks fill: whole rounds, and enough threads."""
    rounds = math.ceil(launch.blocks / card.multiprocessors)
    share = launch.blocks / (rounds * card.multiprocessors)
    held = resident(launch.kernel, launch.threads, card.capability)
    at_once = rounds if held is None else min(rounds, held[0])
    return share * min(1, at_once * launch.threads / ASSUMPTIONS["threads"][0])


def time_of(launch: Launch, card: Card) -> tuple[float, str]:
    """Seconds, the gap included, and what they go to: arithmetic, memory, or the launch itself."""
    rate = card.float32 if launch.way in ("plain", "tiles") else card.half
    work = launch.flops / (rate * efficiency(launch, card) * filled(launch, card))
    memory = launch.bytes / (card.bandwidth * ASSUMPTIONS["memory"][0])
    least = ASSUMPTIONS["least"][0]
    longest, why = max((work, "arithmetic"), (memory, "memory"), (least, "launch"))
    return longest + ASSUMPTIONS["gap"][0], why


def floor(found: Iterable[Launch], card: Card, dtype: str) -> tuple[float, float]:
    """Seconds below which no kernel of any kind gets: all FLOPs at the data sheet's rate, and all
    bytes at its bandwidth."""
    _, flops, moved = totals(list(found))
    return flops / (card.float32 if dtype == "float32" else card.half), moved / card.bandwidth


def by_op(found: list[Launch], card: Card) -> list[dict[str, Any]]:
    """A row an op, the longest first."""
    rows: dict[str, dict[str, Any]] = {}
    for launch in found:
        row = rows.setdefault(launch.op, {"op": launch.op, "launches": 0, "flops": 0, "bytes": 0,
                                          "seconds": 0.0, "filled": 0.0, "rule": 0,
                                          "to": dict.fromkeys(("arithmetic", "memory", "launch"),
                                                              0.0)})
        time, why = time_of(launch, card)
        row["launches"] += 1
        row["rule"] += launch.rule
        row["flops"] += launch.flops
        row["bytes"] += launch.bytes
        row["seconds"] += time
        row["filled"] += launch.flops * filled(launch, card)
        row["to"][why] += time
    return sorted(rows.values(), key=lambda row: -row["seconds"])


def page(cards: Iterable[Card] = CARDS) -> str:
    """All of it in Markdown."""
    lines = ["Assumed, by experience and by what others have published:", "",
             *(f"* {name}: {value:g} {text}" for name, (value, text) in ASSUMPTIONS.items()), ""]
    summary, details = [], []
    for card in cards:
        for dtype in ("float16", "float32"):
            parts = {part: launches(part, dtype, card.capability)
                     for part in ("clip", "unet", "decode")}
            times = {part: sum(time_of(launch, card)[0] for launch in found)
                     for part, found in parts.items()}
            work, memory = floor(parts["unet"], card, dtype)
            asked = len(parts["unet"]) * ASSUMPTIONS["host"][0]
            ruled = sum(time_of(launch, card)[0]
                        for launch in launches("unet", dtype, card.capability, rule=True))
            picture = times["clip"] + STEPS * times["unet"] + times["decode"]
            summary.append((card.name, dtype, seconds(times["unet"]),
                            seconds(ruled), seconds(max(times["unet"], asked)), seconds(work),
                            seconds(memory), seconds(times["clip"]), seconds(times["decode"]),
                            seconds(picture)))
            details += [f"### {card.name}, {dtype}: a UNet step", "",
                        *_details(parts["unet"], card), "",
                        *_kernels(parts["unet"], card), ""]
    head = ("card", "dtype", "UNet step from a graph", "the same by rule",
            "launched from Python",
            "floor: arithmetic", "floor: bytes", "CLIP", "decode", f"picture of {STEPS} steps")
    return "\n".join([*lines, *table(head, summary), "", *details]).rstrip()


def _details(found, card):
    rows = by_op(found, card)
    total = sum(row["seconds"] for row in rows)
    return table(("op", "launches", "GFLOP", "GB", "time", "share", "multiprocessors filled",
                  "time goes to", "kernel"),
                 [(row["op"], row["launches"], f"{row['flops'] / 1e9:.3g}",
                   f"{row['bytes'] / 1e9:.2g}", seconds(row["seconds"]),
                   f"{row['seconds'] / total:.0%}",
                   f"{row['filled'] / row['flops']:.0%}" if row["flops"] else "",
                   ", ".join(f"{why} {time / row['seconds']:.0%}"
                             for why, time in row["to"].items() if time),
                   "by rule" if row["rule"] == row["launches"] else "ours") for row in rows])


def _kernels(found, card):
    """Registers, shared memory and blocks of each kernel of ours."""
    rows: dict[str, list[Launch]] = {}
    for launch in found:
        rows.setdefault(launch.kernel, []).append(launch)
    lines = []
    for name, group in sorted(rows.items()):
        about = assembled(name, card.capability)
        if about is None:
            continue
        blocks, limit = resident(name, group[0].threads, card.capability)
        counts = sorted(launch.blocks for launch in group)
        lines.append((f"`{name}`", len(group), seconds(sum(time_of(x, card)[0] for x in group)),
                      f"{counts[0]} to {counts[-1]}", group[0].threads, about["registers"],
                      about["shared"], f"{blocks}, by {limit}"))
    return table(("kernel", "launches", "time", "blocks", "threads", "registers", "shared memory",
                  "blocks on a multiprocessor"), lines) if lines else []


def main(arguments: list[str] | None = None) -> None:
    """Print the page, or that of some cards."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_model", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", choices=[card.name for card in CARDS], help="one of them")
    parser.add_argument("--write", action="store_true", help="into docs/cuda-speed.md instead")
    asked = parser.parse_args(arguments)
    made = page([card for card in CARDS if asked.card in (None, card.name)])
    if not asked.write:
        print(made)
        return
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
