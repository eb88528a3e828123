"""Execute the notebooks: each .py here into the .ipynb beside it, with its outputs.

    python notebooks/run.py              all of them
    python notebooks/run.py 01 05        those whose names begin so

`make notebooks` does the first from an empty cache of kernels. What changes from run to run
without meaning anything (ids, times, versions, live widgets) is left out, so that diffs are small.
"""

import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"  # means nothing without the kernel that made it


def execute(source: Path) -> None:
    """Run one notebook; raises nbclient's CellExecutionError where a cell fails."""
    notebook = jupytext.read(source)
    client = NotebookClient(notebook, kernel_name="python3", timeout=600, record_timing=False,
                            store_widget_state=False, coalesce_streams=True,
                            resources={"metadata": {"path": str(FOLDER)}})
    client.execute()
    clean(notebook)
    nbformat.write(notebook, source.with_suffix(".ipynb"))


def clean(notebook) -> None:
    """Leave out what differs between two runs of the same cells."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if WIDGET not in out.get("data", {})]


def main(prefixes: list[str]) -> None:
    for source in sorted(FOLDER.glob("[0-9][0-9]_*.py")):
        if not prefixes or source.name.startswith(tuple(prefixes)):
            begun = time.perf_counter()
            execute(source)
            size = source.with_suffix(".ipynb").stat().st_size
            print(f"{source.stem:30} {time.perf_counter() - begun:5.1f} s {size / 1e3:6.0f} kB",
                  flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
