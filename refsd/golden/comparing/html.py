"""A comparison or a bisection as one HTML page: overview, reasons, maps of errors, table."""

import base64
import math
from collections.abc import Iterable

import numpy as np

from refsd.golden.comparing.causes import Cause, causes
from refsd.golden.comparing.error_maps import (
    DARK,
    DECADES,
    LIGHT,
    MIDDLE,
    NOT_FINITE,
    ErrorMap,
    colours,
    png,
)
from refsd.golden.comparing.sheet import Sheet, share
from refsd.golden.comparing.strip import MEANINGS, strip
from refsd.golden.comparing.strip import escaped as _e
from refsd.golden.comparing.verdicts import Status, Verdict

SHOWN = 3  # causes at first sight
MAPS = 200  # causes that are drawn; a page of more is of no use
# Nothing is loaded from anywhere, and no script runs, whatever a name in a pack holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """\
:root { color-scheme: light dark; --bad: #b3261e; --good: #1b7f3b; --open: #8a5a00; --none: #8888 }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem;
  overflow-wrap: anywhere }
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere }
.lead { font-size: 1.15rem; border-left: .3rem solid var(--good); padding: .3rem 1rem;
  overflow-wrap: anywhere }
.lead.bad { border-color: var(--bad) }
table { border-collapse: separate; border-spacing: 0; font: 13px ui-monospace, monospace }
.wide { overflow-x: auto }
th, td { text-align: left; padding: .15rem .6rem; white-space: nowrap;
  border-bottom: 1px solid #8884 }
.name { position: sticky; left: 0; background: Canvas; min-width: min(20rem, 45vw);
  overflow-wrap: anywhere; white-space: normal; border-right: 1px solid #8884 }
.equal, .explained { --verdict: var(--good) } .open, .given { --verdict: var(--open) }
.missing { --verdict: var(--none) }
.wrong, .suspect, .shape, .dtype, .unreadable { --verdict: var(--bad) }
.verdict { color: var(--verdict) } .missing .verdict { color: inherit }
.strip { display: flex; flex-wrap: wrap; gap: .6rem 1rem; font: 11px ui-monospace, monospace }
.strip p { margin: 0; max-width: 100% }
.strip .of { display: block; overflow-wrap: anywhere; opacity: .85 }
.strip .bars { display: flex; flex-wrap: wrap; row-gap: 3px }
.bar { width: 7px; height: 2.4rem; border-right: 1px solid Canvas; box-sizing: border-box;
  background: linear-gradient(to top, transparent 49%, #888 49% 51%, transparent 51%),
  linear-gradient(to top, var(--verdict) var(--h), #8883 var(--h)) }
.missing.bar { width: 3px }
.key { display: inline-block; vertical-align: middle; height: 1.2rem; margin-right: .3rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; max-width: 60rem }
dt { font-weight: 600 } dd { margin: 0 }
summary { cursor: pointer } details > code { display: block }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --good: #7bd88f; --open: #ffc857 } }
section { margin: 2rem 0 } code { overflow-wrap: anywhere }
.maps { display: flex; flex-wrap: wrap; gap: 1rem 2rem }
figure { margin: 0; width: min(20rem, 100%) }
img { image-rendering: pixelated; width: 100%; min-height: 1rem; max-height: 20rem }
figcaption { font-size: .9rem }
.scale { display: flex; justify-content: space-between; font: 12px ui-monospace, monospace }
.shades { height: .8rem; background: SHADES }
.lost { display: inline-block; width: .8rem; height: .8rem; background: LOST }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr } dd { margin-bottom: .4rem } }
""".replace("SHADES", "linear-gradient(to right, {}, {}, {})".format(
    *(f"rgb{shade}" for shade in (DARK, MIDDLE, LIGHT)))).replace("LOST", f"rgb{NOT_FINITE}")


def page(sheet: Sheet) -> str:
    """The page. Every text from a pack or a candidate is escaped."""
    counts = ", ".join(f"{count:,} {status}" for status, count in sheet.counts.items())
    found = causes(sheet.verdicts, [v for v in sheet.failing if v.status != Status.MISSING],
                   own=sheet.own)
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{sheet.title}</title>", f"<style>\n{STYLE}</style>", "</head>", "<body>",
        f"<h1>{sheet.title}</h1>",
        f'<p class="lead{"" if sheet.ok else " bad"}">{_e(sheet.sentence)}</p>',
        f"<p>Pack <code>{_e(sheet.pack)}</code>, candidate <code>{_e(sheet.candidate)}</code>, "
        f"format {_e(sheet.format)}: {_e(counts)}.</p>",
        "<h2>Overview</h2>", *strip(sheet.verdicts, {cause.verdict.name for cause in found[:MAPS]}),
        *_legend(sheet), *_list("What the port was given", sheet.given), *_sections(found, sheet),
        "<h2>All tensors in the order of execution</h2>",
        *_table(sheet),
        *_list("Cannot be read", sheet.unread), *_list("Without effect", sheet.remarks),
        *([f"<h2>Not in the pack</h2><p>{', '.join(f'<code>{_e(n)}</code>' for n in sheet.extra)}"
           "</p>"] if sheet.extra else []),
        "</body>", "</html>",
    ]
    return "\n".join(parts) + "\n"


def _sections(found: list[Cause], sheet: Sheet) -> list[str]:
    """One a cause; three are open."""
    if not found:
        return []
    head = "What is wrong" if len(found) == 1 else f"What is wrong: {len(found):,} causes"
    return [f"<h2>{head}</h2>",
            *[line for cause in found[:SHOWN] for line in _cause(cause, sheet)],
            *_folded(f"{len(found) - SHOWN:,} more",
                     [line for cause in found[SHOWN:MAPS] for line in _cause(cause, sheet)]),
            *([f"<p>{len(found) - MAPS:,} more are in the table only.</p>"]
              if len(found) > MAPS else [])]


def _legend(sheet: Sheet) -> list[str]:
    """The words of the page: the verdicts that occur, with their colours, and the columns."""
    verdicts = [f'<dt><span class="bar key {status}" style="--h: 100%"></span>{status}</dt>'
                f"<dd>{MEANINGS[Status(status)]}</dd>" for status in sheet.counts]
    words = [f"<dt>{_e(word)}</dt><dd>{_e(text)}</dd>" for word, text in sheet.legend.items()]
    return _folded("What the words mean", ["<dl>", *verdicts, *words, "</dl>"])


def _folded(head: str, lines: list[str]) -> list[str]:
    """What a reader opens if it is wanted; nothing where there is nothing."""
    return ["<details>", f"<summary>{head}</summary>", *lines, "</details>"] if lines else []


def _list(head: str, texts: Iterable[str]) -> list[str]:
    items = "".join(f"<li>{_e(text)}</li>" for text in texts)
    return [f"<h2>{head}</h2><ul>{items}</ul>"] if items else []


def _cause(cause: Cause, sheet: Sheet) -> list[str]:
    """The section of one mistake: the first tensor it shows in, and what fails because of it."""
    verdict, followers = cause
    more = [f"<li><code>{_e(v.name)}</code> {v.status}{_times(v)}</li>" for v in followers]
    verb = "fails" if len(more) == 1 else "fail"
    return [f'<section id="t{verdict.entry.index}">',
            f"<h3><code>{_e(verdict.name)}</code></h3>", *_about(verdict, sheet),
            *_folded(f"{len(more):,} more {verb} after it, and may only have inherited it",
                     ["<ul>", *more, "</ul>"] if more else []), "</section>"]


def _times(verdict: Verdict) -> str:
    return f", {verdict.times:.3g} times" if math.isfinite(verdict.times) and verdict.times else ""


def _about(verdict: Verdict, sheet: Sheet) -> list[str]:
    why = sheet.why(verdict)
    lines = [f"<p>{_e(why)}</p>"]
    if verdict.where and verdict.where not in why:
        lines.append(f"<p>Too far off: {_e(verdict.where)}.</p>")
    if verdict.findings:
        lines.append("<ol>" + "".join(f"<li><b>{_e(f.reason)}</b>: {_e(f.sentence)} "
                                      f"({_e(share(f))})</li>" for f in verdict.findings)
                     + "</ol>")
    lines += [f"<p>{_e(note)}</p>" for note in verdict.notes]
    if verdict.maps:
        lines += ['<div class="maps">', *map(_figure, verdict.maps), "</div>"]
    return lines


def _figure(map: ErrorMap) -> str:
    first, second = map.axes
    axes = f"axis {first} ({map.shape[first]}) runs down, axis {second} ({map.shape[second]}) " \
           "across" if first >= 0 else f"axis {second} ({map.shape[second]}) runs across"
    source = base64.b64encode(png(colours(map.values))).decode("ascii")
    lost = "" if np.isfinite(map.values).all() else (
        ' <span class="lost"></span> is NaN or infinite.')
    scale = "" if math.isnan(map.largest) else (
        f'<div class="shades"></div><div class="scale"><span>{map.largest / 10**DECADES:.2g} or '
        f"less</span><span>{map.largest / 10**(DECADES // 2):.2g}</span>"
        f"<span>{map.largest:.3g}</span></div>")
    return (f'<figure><img alt="map of the error" src="data:image/png;base64,{source}">{scale}'
            f"<figcaption>|error|, the largest in each box: {axes}.{lost}</figcaption></figure>")


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
