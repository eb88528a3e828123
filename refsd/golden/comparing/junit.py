"""A comparison or a bisection as JUnit XML: one test a tensor, as build servers show it."""

import math
import re
from xml.etree import ElementTree

from refsd.golden.comparing.sheet import Sheet
from refsd.golden.comparing.verdicts import Status, Verdict

# XML 1.0 has no way to write these.
UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(sheet: Sheet) -> str:
    """The XML: a failing verdict is a failure, a missing tensor is skipped (or fails: `whole`).

    What makes the comparison fail and is no tensor has a case of its own.
    """
    bad = {id(verdict) for verdict in sheet.failing}
    verdicts = [verdict for verdict in sheet.verdicts if verdict.status != Status.EXTERNAL]
    skipped = sum(v.status == Status.MISSING and id(v) not in bad for v in verdicts)
    whole = [("every file can be read", why) for why in sheet.unread]
    whole += [("enough is compared", sheet.sentence)] if sheet.too_few else []
    suite = ElementTree.Element(
        "testsuite", name=_text(f"refsd {sheet.kind} {sheet.format}"),
        tests=str(len(verdicts) + len(whole)), failures=str(len(bad) + len(whole)), errors="0",
        skipped=str(skipped))
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (*((name, getattr(sheet, name)) for name in ("pack", "candidate", "format")),
                        *(("given", line) for line in sheet.given)):
        ElementTree.SubElement(properties, "property", name=name, value=_text(value))
    for verdict in verdicts:
        _case(suite, verdict, sheet, id(verdict) in bad)
    for name, why in whole:
        case = ElementTree.SubElement(suite, "testcase", classname="comparison", name=name)
        ElementTree.SubElement(case, "failure", type="comparison", message=_text(why))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, verdict: Verdict, sheet: Sheet, bad: bool) -> None:
    entry = verdict.entry
    case = ElementTree.SubElement(suite, "testcase", classname=_text(entry.op or entry.stage),
                                  name=_text(entry.name))
    if bad:
        why = _text(sheet.why(verdict))
        failure = ElementTree.SubElement(case, "failure", type=verdict.status, message=why)
        failure.text = "\n".join(_text(f"{f.reason} ({f.confidence:.4f}): {f.sentence}")
                                 for f in verdict.findings) or why
    elif verdict.status == Status.MISSING:
        ElementTree.SubElement(case, "skipped", message="missing from the candidate")
        return
    if verdict.status in (Status.MISSING, Status.UNREADABLE):
        return
    output = ElementTree.SubElement(case, "system-out")
    cells = zip(sheet.columns[:-1], sheet.row(verdict))
    lines = [f"{name}: {value}" for name, value in cells if value]
    if not math.isfinite(verdict.times):
        lines.append("beyond any tolerance")
    output.text = _text("\n".join([*lines, *verdict.notes]))


def _text(text: str) -> str:
    return UNWRITABLE.sub("?", text)
