"""Every notebook's source runs, and its executed copy is of that source and fit to be read."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
MOST_CELLS = 25
MOST_BYTES = 1_100_000
# An absolute path, of any system, and the name of this machine, which may have executed them.
PLACES = re.compile(r"(?<![\w.])/(home|root|tmp|work|usr|Users|opt|var)/|[A-Z]:\\\\|"
                    rf"\b{re.escape(platform.node() or chr(0))}\b")


def test_all_eight_are_there():
    assert [path.name[:2] for path in SOURCES] == [f"{number:02}" for number in range(1, 9)]


@pytest.fixture(params=SOURCES, ids=lambda path: path.stem)
def source(request):
    return request.param


def test_it_runs(source):
    """As a plain script, in a process of its own, where the notebook runs: in its folder.

    On one thread: beside other tests, two would mostly wait for each other.
    """
    environment = os.environ | {"REFSD_NOTEBOOKS": "fast", "MPLBACKEND": "Agg",
                                "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", source.name], cwd=FOLDER,
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_executed_copy_is_of_this_source(source):
    """The same cells in the same order; `make notebooks` makes it so."""
    wanted = [(cell.cell_type, cell.source) for cell in jupytext.read(source).cells]
    got = [(cell.cell_type, cell.source) for cell in executed(source).cells]
    assert got == wanted, f"{source.name} has changed: python notebooks/run.py {source.name[:2]}"


def test_the_executed_copy_is_fit_to_be_read(source):
    copy = executed(source)
    code = [cell for cell in copy.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert len(copy.cells) <= MOST_CELLS
    assert source.with_suffix(".ipynb").stat().st_size <= MOST_BYTES
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output.output_type != "error" and output.get("name") != "stderr", output
        written = output.get("text", "") + str({kind: value for kind, value in
                                                output.get("data", {}).items()
                                                if not kind.startswith("image/")})
        assert not PLACES.search(written), written


def test_it_ends_with_what_to_read_next(source):
    last = jupytext.read(source).cells[-1]
    assert last.cell_type == "markdown" and "read next" in last.source.lower()


def test_it_keeps_to_the_fields_terms(source):
    assert not re.search(r"foret[eo]ll?", source.read_text(), re.IGNORECASE)


def executed(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)
