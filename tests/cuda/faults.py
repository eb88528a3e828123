"""Planted faults: a text of the package replaced, all that is made of it made anew, a check run.

A file tests/cuda/faults_NAME.py has a list FAULTS of them; test_faults.py finds it. A check is a
function that passes, and with the fault it must not: an assertion of the test's, or an error of
lockstep's. What it calls it takes from the registry (`agree` does), or from a module's attribute
when it runs (`tile.core`, not a `core` imported before): names that tests imported stay what they
were.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from refsd import registry
from refsd.numba_ops import cuda as package
from refsd.numba_ops.cuda import lockstep
from refsd.numba_ops.cuda.plan import FACTORIES

FOLDER = Path(package.__file__).parent
WITHOUT_COPIES = ("array", "device", "lockstep", "meaning", "guarded", "plan", "simulated")
ERRORS = (AssertionError, RuntimeError, IndexError, TypeError, ValueError, OverflowError)


class Fault(NamedTuple):
    """about: in a few words; file: of the package, without .py; `old` stands in it once."""

    about: str
    file: str
    old: str
    new: str
    check: Callable[[], object]


def seen(fault: Fault) -> str | None:
    """What the check says of the fault, warps running forwards or backwards; None: it passes."""
    with _planted(fault):
        return fails(fault.check, 1) or fails(fault.check, -1)


def fails(check: Callable[[], object], order: int) -> str | None:
    """What the check says, warps running in this order; None: it passes."""
    before, lockstep.order = lockstep.order, order
    try:
        check()
    except ERRORS as error:
        return f"{type(error).__name__}: {error}"
    finally:
        lockstep.order = before
    return None


@contextmanager
def _planted(fault: Fault) -> Iterator[None]:
    source = (FOLDER / f"{fault.file}.py").read_text()
    users = _users(fault.file)
    assert not {*users} & {*WITHOUT_COPIES}, f"what uses {fault.file} cannot be made anew in a run"
    assert source.count(fault.old) == 1, (
        f"{fault.file}.py has the text of {fault.about!r} {source.count(fault.old)} times")
    modules = {name: sys.modules[f"{package.__name__}.{name}"] for name in users}
    kept = {name: dict(vars(module)) for name, module in modules.items()}
    tables = [registry._kernels, FACTORIES]
    contents = [dict(table) for table in tables]
    try:
        for name, module in modules.items():
            text = (source.replace(fault.old, fault.new) if name == fault.file
                    else (FOLDER / f"{name}.py").read_text())
            exec(compile(text, module.__file__, "exec"), vars(module))
        yield
    finally:
        for module, names in zip(modules.values(), kept.values()):
            vars(module).clear()
            vars(module).update(names)
        for table, content in zip(tables, contents):
            table.clear()
            table.update(content)


def _users(file: str) -> list[str]:
    """The file and all that import from it, each before those that import from it."""
    imports = {path.stem: _imports(path.read_text()) for path in sorted(FOLDER.glob("*.py"))
               if f"{package.__name__}.{path.stem}" in sys.modules}
    reached = {file}
    while more := {name for name, of in imports.items() if of & reached} - reached:
        reached |= more
    ordered: list[str] = []
    while len(ordered) < len(reached):
        ordered += [name for name in sorted(reached) if name not in ordered
                    and not imports[name] & reached - set(ordered)]
    return ordered


def _imports(source: str) -> set[str]:
    found = set(re.findall(rf"^from {package.__name__}\.(\w+) import", source, re.M))
    for names in re.findall(rf"^from {package.__name__} import (.*)$", source, re.M):
        found |= set(re.findall(r"\w+", names.partition("#")[0]))
    return found
