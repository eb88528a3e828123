"""What refsd means to reach, and by how much each goal is met or missed: computed from results."""

from typing import NamedTuple

from benchmarks import figures

LARGE = 5e9  # FLOPs of a large linear layer: the feed-forward layers of a UNet step
WIDE = 64 * 64  # pixels of the results of wide convolutions, tokens of long attention


class Goal(NamedTuple):
    """A figure that shall be at most (or at least) a limit."""

    what: str
    limit: float
    at_most: bool
    unit: str
    measure: object

    def found(self, results):
        """The figure, and what it is of; None where it was not measured."""
        return self.measure(results)

    def met(self, value):
        return value <= self.limit if self.at_most else value >= self.limit


def _row(results, section, name):
    return results["sections"].get(section, {}).get("rows", {}).get(name)


def _part(section, peer):
    """Our time of a whole part in units of a peer's."""

    def measure(results):
        row = _row(results, section, section)
        value = row and figures.ratio(row, peer)
        return None if value is None else (value, "")

    return measure


def _half(section, other):
    """Our time of a part in bfloat16, in units of our own float32's or of a peer's."""

    def measure(results):
        row = _row(results, "half", section)
        found = row and figures.half(row)
        return (found[other], "") if found and found[other] else None

    return measure


def _worst(of_interest, value):
    """The smallest value among the ops of interest, and its name."""

    def measure(results):
        rows = results["sections"].get("ops", {}).get("rows", {})
        found = [(value(row, results), name) for name, row in rows.items() if of_interest(row)]
        found = [pair for pair in found if pair[0] is not None]
        return min(found, default=None)

    return measure


def _seconds(name):
    def measure(results):
        row = _row(results, "start", name)
        return (figures.ours(row).median, "") if row else None

    return measure


def _memory(side):
    def measure(results):
        row = _row(results, "memory", side)
        if row is None:
            return None
        other = f"{row['prepared'] / 1e9:.2f} GB of it other forms of the weights"
        return row["bytes"] / 1e9, other

    return measure


def _large_linear(row):
    return row["op"] == "linear" and row["flops"] >= LARGE


def _wide_conv(row):
    return figures.kind(row) == "conv 3x3" and row["output"][2] * row["output"][3] >= WIDE


def _long_attention(row):
    q, k = row["inputs"].get("q"), row["inputs"].get("k")
    return row["op"] == "attention" and q[1] == k[1] and q[1] >= WIDE


def _times_pytorch(row, results):
    value = figures.ratio(row, "PyTorch")
    return None if value is None else 1 / value


GOALS = (
    Goal("UNet step, time in units of PyTorch's", 0.60, True, "", _part("unet", "PyTorch")),
    Goal("UNet step, time in units of OpenVINO's", 0.72, True, "", _part("unet", "OpenVINO")),
    Goal("VAE decode, time in units of PyTorch's", 0.33, True, "", _part("decode", "PyTorch")),
    Goal("VAE decode, time in units of OpenVINO's", 0.50, True, "", _part("decode", "OpenVINO")),
    Goal("CLIP, time in units of PyTorch's", 1.0, True, "", _part("clip", "PyTorch")),
    Goal("UNet step in bfloat16, time in units of float32's", 1 / 1.5, True, "",
         _half("unet", "float32")),
    Goal("UNet step in bfloat16, time in units of PyTorch's", 0.60, True, "",
         _half("unet", "PyTorch")),
    Goal("large linear layers, share of the FMA peak, the lowest", 0.80, False, "",
         _worst(_large_linear, figures.share)),
    Goal("3x3 convolutions from 64x64 up, times PyTorch's speed, the lowest", 2.0, False, "",
         _worst(_wide_conv, _times_pytorch)),
    Goal("self-attention of 4096 tokens, times PyTorch's speed, the lowest", 1.7, False, "",
         _worst(_long_attention, _times_pytorch)),
    Goal("peak memory of a picture by Stable Diffusion 1.5", 6.0, True, " GB", _memory("refsd")),
    Goal("the same in bfloat16", 3.2, True, " GB", _memory("refsd-bfloat16")),
    Goal("the same with int8 weights", 2.4, True, " GB", _memory("refsd-int8")),
    Goal("first picture of the bundled model, no kernel compiled before", 60, True, " s",
         _seconds("cold")),
    Goal("`python -m refsd PROMPT` to PNG, 20 steps", 4.0, True, " s", _seconds("warm")),
    Goal("imports of that", 1.0, True, " s", _seconds("imports")),
)


def verdicts(results):
    """A line for each goal: (what, goal, found, verdict)."""
    lines = []
    for goal in GOALS:
        wanted = f"{'at most' if goal.at_most else 'at least'} {goal.limit:g}{goal.unit}"
        found = goal.found(results)
        if found is None:
            lines.append((goal.what, wanted, "not measured", "open"))
            continue
        value, note = found
        off = value / goal.limit - 1
        verdict = "met" if goal.met(value) else "missed"
        shown = f"{value:.2f}{goal.unit}" + (f" ({note})" if note else "")
        lines.append((goal.what, wanted, shown, f"{verdict}, {abs(off):.0%} "
                      f"{'below' if off < 0 else 'above'} the limit"))
    return lines
