"""Machine code of kernels, kept as plain bytes: with a full store a run imports no Numba.

A file of $REFSD_CACHE/cubins, a folder of this user alone, is one line of JSON and then the cubin.
Its name ends in a hash of the sources, constants and capability, and one of the compiler's
versions. Where no compiler is installed any version will do: so cubins can be carried to a machine.
A damaged file is compiled anew, with a warning.
"""

import hashlib
import json
import logging
import os
import re
import time
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from refsd.atomic import write_file
from refsd.errors import ModelError, ResourceError
from refsd.numba_ops.cuda import compiler
from refsd.numba_ops.cuda.compiler import Cubin
from refsd.numba_ops.cuda.plan import FACTORIES
from refsd.numba_ops.folders import locked, not_kept, own_folder
from refsd.rules import check, integer, matching, only, text, that

DAYS = 30  # a file that was not used for so long is removed
HERE = Path(__file__).parent
FRONT = ("front", "ptx", "plan", "compiler")  # what decides every kernel's code
RULES = {
    "schema": only(1), "entry": matching(re.compile(r"\w{1,4096}"), "a name"),
    "arguments": that(lambda v: type(v) is list and all(type(a) is str for a in v), "names"),
    "threads": integer(1, 1024), "shared": integer(0, 1 << 20), "static": integer(0, 1 << 20),
    "registers": integer(0, 255), "spills": integer(0, 1 << 20), "target": text(8),
    "compiler": that(lambda v: type(v) is dict, "versions"),
    "sha256": matching(re.compile("[0-9a-f]{64}"), "a hash"),
}
logger = logging.getLogger("refsd.compiling")
compiled = 0  # kernels that this process has compiled


def cubin(factory: Any, constants: tuple, capability: int) -> Cubin:
    """A variant for a GPU of this capability: from the store, or compiled and kept."""
    target = compiler.target_of(factory, capability)
    folder = _folder(os.environ.get("REFSD_CACHE"))
    name = file_name(factory, constants, target)
    found = _find(folder, name)
    if found is not None:
        return found
    with locked(folder, f"compiling-{hashlib.sha256(name.encode()).digest()[0] % 64}"):
        found = _find(folder, name)  # another process may have made it meanwhile
        return _made(factory, constants, capability, folder, name) if found is None else found


def kept(factory: Any, constants: tuple, capability: int) -> bool:
    """Whether a variant is in the store; what is there is not read."""
    folder = _folder(os.environ.get("REFSD_CACHE"))
    name = file_name(factory, constants, compiler.target_of(factory, capability))
    return folder is not None and bool(_candidates(folder, name))


def variants(capability: int) -> list[tuple[Any, tuple]]:
    """(factory, constants) of all that ops may launch on a GPU of this capability."""
    return [(factory, constants) for factory in FACTORIES.values() for constants in factory.each
            if factory.serves(capability)]


def file_name(factory: Any, constants: tuple, target: str) -> str:
    """For people what it is, then what decides it, then by what it was compiled."""
    words = "_".join([factory.name, *map(str, constants)])
    decides = f"{sources(factory.make.__module__)} {factory.name} {constants!r} {target}"
    parts = (re.sub(r"[^\w.-]", "", words)[:100], f"sm_{target}", _hash(decides)[:24],
             _hash(json.dumps(compiler.versions()))[:8])
    return "-".join(parts) + ".cubin"


@cache
def sources(module: str) -> str:
    """A hash of the module's source, and of all of this package that it imports when imported."""
    todo, seen = [module.rpartition(".")[2], *FRONT], {}
    while todo:
        name = todo.pop()
        path = HERE / f"{name}.py"
        if name not in seen and path.is_file():
            seen[name] = path.read_text()
            todo += re.findall(r"^from refsd\.numba_ops\.cuda\.(\w+) import", seen[name], re.M)
            for names in re.findall(r"^from refsd\.numba_ops\.cuda import (\(?[\w\s,]+)",
                                    seen[name], re.M):
                todo += re.findall(r"\w+", names)
    return _hash(json.dumps(seen, sort_keys=True))


def _hash(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()


@cache
def _folder(root: str | None) -> Path | None:
    folder = own_folder("cubins")
    if folder is not None:
        oldest = time.time() - DAYS * 24 * 3600
        with suppress(OSError):  # another process tidies up too
            for path in folder.glob("*.cubin"):
                if path.stat().st_mtime < oldest:
                    path.unlink()
    return folder


def _candidates(folder: Path, name: str) -> list[Path]:
    """The file itself; without a compiler those of other versions as well."""
    if compiler.versions():
        return [folder / name] if (folder / name).is_file() else []
    return sorted(folder.glob(name.rpartition("-")[0] + "-*.cubin"))


def _find(folder: Path | None, name: str) -> Cubin | None:
    for path in _candidates(folder, name) if folder is not None else []:
        try:
            found = read(path.read_bytes(), path.name)
            os.utime(path)
            return found
        except (OSError, ModelError) as problem:
            why = getattr(problem, "strerror", None) or problem
            warnings.warn(f"a kept kernel is damaged and is made anew: {why}", stacklevel=2)
    return None


def _made(factory, constants, capability, folder, name) -> Cubin:
    global compiled
    compiled += 1
    logger.info("compiling kernels for the GPU, once: %d", compiled)
    made = compiler.compiled(factory, constants, capability)
    if folder is not None:
        try:
            write_file(folder / name, written(made))
        except ResourceError as problem:
            warnings.warn(not_kept(folder, problem.__context__), stacklevel=2)
    return made


def written(made: Cubin) -> list[bytes]:
    """The bytes of a file."""
    header = {**made._asdict(), "schema": 1, "compiler": compiler.versions(),
              "sha256": hashlib.sha256(made.code).hexdigest()}
    del header["code"]
    return [json.dumps(header, sort_keys=True).encode() + b"\n", made.code]


def read(data: bytes, where: str) -> Cubin:
    """The kernel in the bytes of a file. Raises ModelError if they are not as they were written."""
    line, _, code = data.partition(b"\n")
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        raise ModelError(f"{where}: does not begin with a line of JSON. Remove it") from None
    check(header, RULES, where)
    if hashlib.sha256(code).hexdigest() != header["sha256"]:
        raise ModelError(f"{where}: the code has another hash than its header says. Remove it")
    fields = {key: header[key] for key in Cubin._fields if key != "code"}
    return Cubin(**{**fields, "arguments": tuple(fields["arguments"])}, code=code)
