"""The overview on a page: a network as a strip of bars, one a tensor, in the order of execution."""

import html
import itertools
import math
from collections.abc import Collection, Iterator, Sequence

from refsd.golden.comparing.verdicts import Status, Verdict

DECADES = 3  # powers of ten of `times` from the middle of a bar, which is 1, to either end
MEANINGS = {
    Status.EQUAL: "the same bits", Status.WITHIN: "off by no more than rounding may do",
    Status.WRONG: "off by more than rounding may do, or not finite",
    Status.SUSPECT: "further off than the spread, by its own error or by one it inherited",
    Status.OPEN: "it differs, and nothing tells whether it may",
    Status.SHAPE: "of another shape", Status.DTYPE: "integers for floats, or the reverse",
    Status.UNREADABLE: "there, and not to be read", Status.MISSING: "not in the port's dump",
    Status.EXTERNAL: "the port was given it: declared so, or an input of an op that is not dumped",
}


def strip(verdicts: Sequence[Verdict], linked: Collection[str]) -> Iterator[str]:
    """Bars in groups of a block each; `linked` have a section on the page.

    A bar is as high as its error is of what is allowed, by powers of ten: 1 is the middle.
    """
    shown = [verdict for verdict in verdicts if verdict.status != Status.EXTERNAL]
    yield ("<p>Each bar is a tensor, from first to last. Its height is the error over what is "
           f"allowed: 1 is the line in the middle, {10**DECADES:,} the top.</p>")
    yield '<div class="strip">'
    before = ""
    for (stage, block), group in itertools.groupby(shown, _place):
        label = block if block and stage == before else f"{stage}/{block}".strip("/")
        before = stage
        bars = "".join(_bar(verdict, verdict.name in linked) for verdict in group)
        yield f'<p><span class="of">{escaped(label)}</span><span class="bars">{bars}</span></p>'
    yield "</div>"


def _place(verdict: Verdict) -> tuple[str, str]:
    """The stage with its step, and the block, of a tensor: ("unet/000", "down_blocks.0")."""
    *stage, path = verdict.name.split("/")
    parts = path.split(".")
    block = parts[:-1] if len(parts) > 1 else parts if path.endswith("_block") else []
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "/".join(stage), ".".join(parts[:number + 1] if number is not None else block[:1])


def _bar(verdict: Verdict, has_section: bool) -> str:
    times = f", {verdict.times:.3g} times" if verdict.times else ""
    what = escaped(f"{verdict.name}: {verdict.status}{times}")
    tag, link = ("a", f' href="#t{verdict.entry.index}"') if has_section else ("i", "")
    return (f'<{tag} class="bar {verdict.status}" style="--h: {_height(verdict):.0f}%" '
            f'title="{what}"{link}></{tag}>')


def _height(verdict: Verdict) -> float:
    """Percent: half for 1, with a power of ten for a sixth of the bar."""
    if verdict.status in (Status.SHAPE, Status.DTYPE, Status.UNREADABLE):
        return 100
    if verdict.status == Status.MISSING or not verdict.times:
        return 5
    decades = math.log10(verdict.times) if math.isfinite(verdict.times) else DECADES
    return min(max(50 * (1 + decades / DECADES), 5), 100)


def escaped(text: str) -> str:
    """For HTML; control characters and halves of surrogates, which no page may hold, are shown."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return html.escape(plain)
