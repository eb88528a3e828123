"""Markdown tables from the results of GPUs, for docs/cuda-speed.md and to be shown."""

from typing import Any

from benchmarks.gpu.sections import SECTIONS

NONE = "No figure from a GPU exists yet."


def page(all_results: list[dict[str, Any]]) -> str:
    """What stands in docs/cuda-speed.md: every device."""
    return "\n\n".join(map(device, all_results)) or NONE


def device(results: dict[str, Any]) -> str:
    """One device: what is right, the step, the ops."""
    sections = results["sections"]
    found = sections.get("versions", {}).get("rows", {})
    about, packages = found.get("device", {}), found.get("packages", {})
    name, capability = about.get("name", "unknown device"), about.get("capability")
    known = [name, *([f"compute capability {capability / 10}"] if capability else []),
             *(f"{key} {packages[key]}" for key in ("torch", "triton", "cuda-core")
               if packages.get(key))]
    note = ["", "**A rehearsal in lockstep: no time here means anything.**"]
    return "\n".join([f"### {name}", "", f"{', '.join(known)}; {results['date'][:10]}.",
                      *(note if results["rehearsal"] else []), "", *checks(sections), "",
                      *step(sections), "", *ops(sections)]).rstrip()


def checks(sections: dict[str, Any]) -> list[str]:
    """Every section: how many rows, and what was red."""
    from benchmarks.tables import table

    lines = []
    for name, section in sections.items():
        rows = section["rows"]
        bad = [f"{row}: {said['red']}" for row, said in rows.items() if "red" in said]
        left_out = [said["skipped"] for said in rows.values() if "skipped" in said]
        verdict = f"{len(bad)} red" if bad else f"{len(rows) - len(left_out)} right"
        words = [*bad[:3], *([f"stopped {section['stopped']}"] if "stopped" in section else []),
                 *sorted(set(left_out))[:3]]
        lines.append((SECTIONS[name].what, len(rows), verdict, "; ".join(words)[:400]))
    return table(("what", "rows", "", "remarks"), lines)


def step(sections: dict[str, Any]) -> list[str]:
    """A step's times, and refsd's in units of the others'."""
    from benchmarks.tables import seconds, table

    rows = {name: row["seconds"] for part in ("step", "fifty")
            for name, row in sections.get(part, {}).get("rows", {}).items() if "seconds" in row}
    own = _middle(rows["refsd"]) if "refsd" in rows else None
    return table(("UNet step, batch 2, 64 x 64 latents, float16", "time", "refsd in units of it"), [
        (name, seconds(_middle(samples)),
         f"{own / _middle(samples):.2f}" if own and name.startswith("torch") else "")
        for name, samples in rows.items()]) if rows else []


def ops(sections: dict[str, Any]) -> list[str]:
    """The largest ops of a step."""
    from benchmarks.tables import seconds, table

    lines = []
    for name, row in sections.get("ops", {}).get("rows", {}).items():
        if "seconds" in row:
            own, theirs = (row["seconds"].get(who) for who in ("refsd", "torch"))
            time = _middle(own)
            lines.append((name, row["count"], seconds(time),
                          seconds(_middle(theirs)) if theirs else "",
                          f"{row['ratio']:.2f}" if "ratio" in row else "",
                          f"{row['flops'] / time / 1e12:.3g} TFLOP/s, "
                          f"{row['bytes'] / time / 1e12:.2g} TB/s"))
    return table(("op", "a step", "refsd", "torch", "ratio", "rate"), lines) if lines else []


def _middle(samples: list[float]) -> float:
    return sorted(samples)[len(samples) // 2]
