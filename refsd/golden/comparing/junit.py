"""A comparison as JUnit XML: one test a tensor, as build servers show it."""

import math
import re
from xml.etree import ElementTree

from refsd.golden.comparing.compare import MISSING, Comparison, Verdict
from refsd.golden.comparing.report import COLUMNS, row, what_is_wrong

# XML 1.0 has no way to write these.
UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(found: Comparison) -> str:
    """The XML: a failing verdict is a failure, a missing tensor is skipped (or fails: `whole`)."""
    skipped = 0 if found.whole else sum(v.status == MISSING for v in found.verdicts)
    suite = ElementTree.Element(
        "testsuite", name=_text(f"refsd golden compare {found.format}"),
        tests=str(len(found.verdicts)), failures=str(found.failing), errors="0",
        skipped=str(skipped))
    properties = ElementTree.SubElement(suite, "properties")
    for name in ("pack", "candidate", "format"):
        ElementTree.SubElement(properties, "property", name=name, value=_text(getattr(found, name)))
    for verdict in found.verdicts:
        _case(suite, verdict, found)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, verdict: Verdict, found: Comparison) -> None:
    entry = verdict.entry
    case = ElementTree.SubElement(suite, "testcase", classname=_text(entry.op or entry.stage),
                                  name=_text(entry.name))
    if verdict.bad or found.whole and verdict.status == MISSING:
        why = _text(what_is_wrong(verdict, found.format))
        failure = ElementTree.SubElement(case, "failure", type=verdict.status, message=why)
        failure.text = "\n".join(_text(f"{f.reason} ({f.confidence:.4f}): {f.sentence}")
                                 for f in verdict.findings) or why
    elif verdict.status == MISSING:
        ElementTree.SubElement(case, "skipped", message="missing from the candidate")
        return
    output = ElementTree.SubElement(case, "system-out")
    lines = [f"{name}: {value}" for name, value in zip(COLUMNS[:-1], row(verdict)) if value]
    if not math.isfinite(verdict.times):
        lines.append("beyond any tolerance")
    output.text = _text("\n".join([*lines, *verdict.notes]))


def _text(text: str) -> str:
    return UNWRITABLE.sub("?", text)
