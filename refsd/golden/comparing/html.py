"""A comparison or a bisection as one HTML page: table, reasons, maps of the errors."""

import base64
import html
import io
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from refsd.golden.comparing.sheet import Sheet
from refsd.golden.comparing.verdicts import Status, Verdict

SIDE = 64  # pixels of a map of errors a side, at most
SHOWN = 3  # failing tensors at first sight: what fails after them mostly follows from them
MAPS = 200  # failing tensors that are drawn; a page of more is of no use
# Nothing is loaded from anywhere, and no script runs, whatever a name in a pack holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """\
:root { color-scheme: light dark; --bad: #b3261e; --good: #1b7f3b; --open: #9a6700 }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem }
.lead { font-size: 1.15rem; border-left: .3rem solid var(--good); padding: .3rem 1rem }
.lead.bad { border-color: var(--bad) }
table { border-collapse: separate; border-spacing: 0; font: 13px ui-monospace, monospace }
.wide { overflow-x: auto }
th, td { text-align: left; padding: .15rem .6rem; white-space: nowrap;
  border-bottom: 1px solid #8884 }
.name { position: sticky; left: 0; background: Canvas; min-width: min(20rem, 45vw);
  overflow-wrap: anywhere; white-space: normal; border-right: 1px solid #8884 }
.wrong .verdict, .shape .verdict, .dtype .verdict, .unreadable .verdict { color: var(--bad) }
.equal .verdict, .explained .verdict { color: var(--good) }
.open .verdict, .missing .verdict { color: var(--open) }
summary { cursor: pointer } details > code { display: block }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --good: #7bd88f; --open: #ffc857 } }
section { margin: 2rem 0 } figure { margin: 1rem 0 } code { overflow-wrap: anywhere }
img { image-rendering: pixelated; width: min(24rem, 100%); min-height: 1rem; max-height: 24rem }
figcaption { font-size: .85rem; opacity: .8 }
"""


class ErrorMap(NamedTuple):
    """The largest |error| in each of at most 64 x 64 boxes; NaN where something is not finite.

    axes: the tensor's axes that run down and across; the others were looked through.
    """

    values: np.ndarray
    axes: tuple[int, int]


def page(sheet: Sheet) -> str:
    """The page. Every text from a pack or a candidate is escaped."""
    bad = [v for v in sheet.failing if v.status != Status.MISSING]
    counts = ", ".join(f"{count:,} {status}" for status, count in sheet.counts.items())
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{sheet.title}</title>", f"<style>\n{STYLE}</style>", "</head>", "<body>",
        f"<h1>{sheet.title}</h1>",
        f'<p class="lead{"" if sheet.ok else " bad"}">{_e(sheet.sentence)}</p>',
        f"<p>Pack <code>{_e(sheet.pack)}</code>, candidate <code>{_e(sheet.candidate)}</code>, "
        f"format {_e(sheet.format)}: {_e(counts)}.</p>",
        *[line for verdict in bad[:SHOWN] for line in _section(verdict, sheet)],
        *_folded(f"{len(bad) - SHOWN:,} more that fail", [
            line for verdict in bad[SHOWN:MAPS] for line in _section(verdict, sheet)]),
        *([f"<p>{len(bad) - MAPS:,} more failing tensors are in the table only.</p>"]
          if len(bad) > MAPS else []),
        "<h2>All tensors in the order of execution</h2>", f"<p>{_e(sheet.legend)}</p>",
        *_table(sheet),
        *_list("Cannot be read", sheet.unread), *_list("Without effect", sheet.remarks),
        *([f"<h2>Not in the pack</h2><p>{', '.join(f'<code>{_e(n)}</code>' for n in sheet.extra)}"
           "</p>"] if sheet.extra else []),
        "</body>", "</html>",
    ]
    return "\n".join(parts) + "\n"


def _folded(head: str, lines: list[str]) -> list[str]:
    """What a reader opens if it is wanted; nothing where there is nothing."""
    return ["<details>", f"<summary>{head}</summary>", *lines, "</details>"] if lines else []


def _list(head: str, texts: Iterable[str]) -> list[str]:
    items = "".join(f"<li>{_e(text)}</li>" for text in texts)
    return [f"<h2>{head}</h2><ul>{items}</ul>"] if items else []


def _section(verdict: Verdict, sheet: Sheet) -> list[str]:
    lines = ["<section>", f"<h2><code>{_e(verdict.name)}</code></h2>",
             f"<p>{_e(sheet.why(verdict))}</p>"]
    if verdict.findings:
        lines.append("<ol>" + "".join(f"<li><b>{_e(f.reason)}</b>: {_e(f.sentence)} "
                                      f"({f.confidence:.4f})</li>" for f in verdict.findings)
                     + "</ol>")
    lines += [f"<p>{_e(note)}</p>" for note in verdict.notes]
    if verdict.map is not None:
        lines.append(_figure(verdict.map))
    return [*lines, "</section>"]


def _figure(map: ErrorMap) -> str:
    largest = np.nanmax(map.values) if np.isfinite(map.values).any() else math.nan
    first, second = map.axes
    axes = f"axis {first} runs down, axis {second} across" if first >= 0 else (
        f"axis {second} runs across")
    source = base64.b64encode(png(colours(map.values))).decode("ascii")
    return (f'<figure><img alt="map of the error" src="data:image/png;base64,{source}">'
            f"<figcaption>|error|: {axes}; yellow is {largest:.3g}, each shade darker less by a "
            "power of ten, down to a millionth; cyan is not finite</figcaption></figure>")


def error_map(golden: np.ndarray, got: np.ndarray) -> ErrorMap | None:
    """The error map of two tensors of one shape; None for those of fewer than two numbers."""
    if golden.size < 2:
        return None
    shape = (1,) * (2 - golden.ndim) + golden.shape
    first, second = sorted(np.argsort(shape, kind="stable")[-2:].tolist())
    with np.errstate(all="ignore"):
        error = np.abs(got.astype("float64") - golden.astype("float64")).reshape(shape)
        error[(got == golden).reshape(shape)] = 0  # infinities that agree
    others = tuple(axis for axis in range(len(shape)) if axis not in (first, second))
    flat = error.max(axis=others)
    for axis in (0, 1):
        n = flat.shape[axis]
        starts = np.unique(np.arange(min(n, SIDE)) * n // min(n, SIDE))
        flat = np.maximum.reduceat(flat, starts, axis=axis)
    flat[np.isinf(flat)] = np.nan
    offset = len(shape) - golden.ndim
    return ErrorMap(flat, (first - offset, second - offset))


def colours(values: np.ndarray) -> np.ndarray:
    """Errors as colours, dark for six powers of ten below the largest.   (H, W) -> (H, W, 3)"""
    finite = np.isfinite(values)
    largest = values[finite].max(initial=0)
    share = np.zeros(values.shape)
    inside = finite & (values > 0)
    if largest > 0:
        share[inside] = np.clip(1 + np.log10(values[inside] / largest) / 6, 0.02, 1)
    dark, middle, light = (np.array(c) for c in ((13, 8, 60), (190, 55, 110), (252, 255, 164)))
    low, high = np.clip(2 * share, 0, 1)[..., None], np.clip(2 * share - 1, 0, 1)[..., None]
    pixels = dark + low * (middle - dark) + high * (light - middle)
    return np.where(finite[..., None], pixels, (0, 255, 255)).astype("uint8")


def png(pixels: np.ndarray) -> bytes:
    """The bytes of a PNG.   (H, W, 3) uint8"""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _table(sheet: Sheet) -> list[str]:
    """The tensors that are there, the name first and always in sight; then those that are not."""
    *columns, name = sheet.columns
    lines = ['<div class="wide"><table>', "<thead><tr>" + _cells("th", name, columns) + "</tr>",
             "</thead>", "<tbody>"]
    absent: dict[str, list[str]] = {Status.MISSING: [], Status.EXTERNAL: []}
    for verdict in sheet.verdicts:
        *cells, name = sheet.row(verdict)
        if verdict.status in absent and not (sheet.whole and verdict.status == Status.MISSING):
            absent[verdict.status].append(f"<code>{_e(name)}</code>")
        else:
            lines.append(f'<tr class="{verdict.status}">{_cells("td", name, cells)}</tr>')
    return [*lines, "</tbody></table></div>", *(line for status, names in absent.items() for line in
            _folded(f"{len(names):,} {status}", names))]


def _cells(tag: str, name: str, cells: list[str]) -> str:
    first, *rest = cells
    return (f'<{tag} class="name">{_e(name)}</{tag}><{tag} class="verdict">{_e(first)}</{tag}>'
            + "".join(f"<{tag}>{_e(cell)}</{tag}>" for cell in rest))


def _e(text: str) -> str:
    """Escaped; control characters and halves of surrogates, which no page may hold, shown."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return html.escape(plain)
