"""docs/features.md: every row says how to ask for a feature, and names a test that is there."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "features.md"
HEAD = ["feature", "diffusers", "A1111", "ComfyUI", "sd.cpp", "refsd: how to ask for it", "test"]
LINES = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|\n"))]
         for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
ROWS = [row for row in LINES if row != HEAD and not set("".join(row)) <= set("-")]


def test_there_are_features():
    assert len(ROWS) > 30 and len({row[0] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_is_proven(row):
    assert len(row) == len(HEAD) and all(row)
    assert set(row[1:5]) <= {"yes", "no", "part", "ext"}
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row[6])
    assert named and re.sub(r"`[^`]*`|[,; ]", "", row[6]) == ""
    for file, name in named:
        assert re.search(rf"(?m)^def {name}\(", (TESTS / file).read_text(encoding="utf-8")), name
