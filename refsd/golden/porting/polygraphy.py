"""A pack as Polygraphy's JSON: inputs.json for --load-inputs, outputs.json for --load-outputs.

Truth for the form: polygraphy/json/serde.py and comparator/struct.py of Polygraphy 0.53.
"""

import base64
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from refsd.atomic import empty_folder, write_file
from refsd.errors import UsageError
from refsd.golden.comparing.layouts import layout as known_layout
from refsd.golden.comparing.layouts import to_layout
from refsd.golden.comparing.name_map import NameMap
from refsd.golden.comparing.parts import parse
from refsd.golden.packs.pack import Pack
from refsd.golden.porting.export import chosen

INPUTS, OUTPUTS, RUNNER = "inputs.json", "outputs.json", "refsd"
CLASS = "polygraphy_class"
LAZY = f'{{"values": %s, "{CLASS}": "LazyArray"}}'
# A RunResults of one runner: around its iterations, and around each one's arrays.
RESULTS = f'{{"lst": [[{json.dumps(RUNNER)}, [\n', f']]], "{CLASS}": "RunResults"}}\n'
ITERATION = '{"outputs": {\n', (f'\n}}, "runtime": null, "runner_name": {json.dumps(RUNNER)}, '
                                f'"{CLASS}": "IterationResult"}}')
FEEDS, FEED = ("[", "]\n"), ("{\n", "\n}")
Arrays = Iterable[tuple[str, np.ndarray]]


def export_polygraphy(pack: Pack, folder: str | Path, *, layout: str = "NCHW",
                      only: Iterable[str] = (),
                      name_map: dict[str, Any] | str | Path | None = None) -> list[str]:
    """Write what no op made as inputs, what ops made as outputs of a runner "refsd", one iteration.

    Gives the pack's names of what is written; a file that would have no array is left out. name_map
    is that of comparing: the names in the files are the port's. One array is in memory at a time.
    Raises UsageError for two tensors of one name, and for one that is a part of the port's.
    """
    known_layout(layout)
    names = _named(chosen(pack.entries, only), NameMap.of(name_map))
    inputs = {name: mine for name, mine in names.items() if pack.entries[name].op is None}
    outputs = {name: mine for name, mine in names.items() if name not in inputs}
    folder = empty_folder(folder)
    for part, write in ((inputs, write_inputs), (outputs, write_outputs)):
        if part:
            write(folder, [((mine, to_layout(pack.read(name), layout.upper()))
                            for name, mine in part.items())])
    return list(names)


def write_inputs(folder: Path, iterations: Iterable[Arrays]) -> None:
    """inputs.json: the arrays of each iteration, as --save-inputs writes them."""
    write_file(folder / INPUTS, _file(FEEDS, FEED, "%s", iterations))


def write_outputs(folder: Path, iterations: Iterable[Arrays]) -> None:
    """outputs.json: the same of a RunResults."""
    write_file(folder / OUTPUTS, _file(RESULTS, ITERATION, LAZY, iterations))


def _named(golden: Iterable[str], name_map: NameMap) -> dict[str, str]:
    """The name in the files of each golden one."""
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in golden:
        mine = next(name_map.names(name), (name,))
        if len(mine) > 1 or parse(mine[0])[1]:
            raise UsageError(f"name map: {name!r} is made of parts of tensors, {', '.join(mine)}, "
                             "which is for comparing; leave it out with --only")
        names[name] = mine[0]
        other = taken.setdefault(mine[0], name)
        if other != name:
            raise UsageError(f"{other!r} and {name!r} would both be called {mine[0]!r}; give one "
                             "of them with --only, or mend the name map")
    return names


def _file(whole: tuple[str, str], one: tuple[str, str], form: str,
          iterations: Iterable[Arrays]) -> Iterator[bytes]:
    """A line an array: NAME: what stands for it, in `form`."""
    yield whole[0].encode()
    for i, arrays in enumerate(iterations):
        yield (",\n" * bool(i) + one[0]).encode()
        for k, (name, array) in enumerate(arrays):
            line = f"{json.dumps(name)}: {form % _encoded(array)}"
            yield (",\n" * bool(k) + line).encode()
        yield one[1].encode()
    yield whole[1].encode()


def _encoded(array: np.ndarray) -> str:
    """The array as Polygraphy's encoder writes one."""
    data = io.BytesIO()
    np.lib.format.write_array(data, array, allow_pickle=False)
    text = base64.b64encode(data.getbuffer()).decode("ascii")
    return f'{{"array": "{text}", "{CLASS}": "ndarray"}}'
