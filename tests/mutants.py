"""Wrong versions of refsd that a port could ship: each changes the meaning of one line.

test_mutants.py plants them one by one in a copy of the package; the tests named with a mutant must
fail there. They are the cheapest ones that do, and each runs on the definitions and models as
any other test.
"""

import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
from _pytest.config import default_plugins

TESTS = Path(__file__).parent


class Mutant(NamedTuple):
    """`old` stands once in the file and becomes `new`; `killer` is a test that must notice."""

    name: str
    file: str
    old: str
    new: str
    killer: str


def _read(text):
    """Mutants from blocks of text: a headline `name | file | killer`, then -old and +new lines."""
    for block in text.strip().split("\n\n"):
        head, *lines = block.splitlines()
        name, file, killer = (part.strip() for part in head.split("|"))
        parts = defaultdict(list)
        for line in lines:
            parts[line[0]].append(line[1:])
        assert set(parts) <= {"-", "+"}, block
        yield Mutant(name, file, "\n".join(parts["-"]), "\n".join(parts["+"]), killer)


MUTANTS = list(_read((TESTS / "mutants.txt").read_text()))


def plant(mutant, package, root):
    """The package below root, with the mutant in it (or as it is, for None).

    All but the file with the mutant are links, so that Python finds what it has compiled of them;
    of that file it finds nothing.
    """
    file = Path("__init__.py" if mutant is None else mutant.file)
    for folder in reversed(file.parents):
        (Path(root) / "refsd" / folder / "__pycache__").mkdir(parents=True)
        for path in [*(package / folder).iterdir(), *(package / folder / "__pycache__").glob("*")]:
            place = folder / path.relative_to(package / folder)
            if not (place.name in ("__pycache__", "data") or file.is_relative_to(place)
                    or place.match(f"{file.parent}/__pycache__/{file.stem}.*")):
                (Path(root) / "refsd" / place).symlink_to(path)
    text = (package / file).read_text()
    if mutant is not None:
        assert text.count(mutant.old) == 1, f"{mutant.name}: {text.count(mutant.old)} places"
        text = text.replace(mutant.old, mutant.new)
    (Path(root) / "refsd" / file).write_text(text)


# What the forked children need and the mutants do not touch.
PRELOAD = ["numpy", "scipy.special", "scipy.fft", "hypothesis", "mpmath", "safetensors.numpy",
           "pytest", *(f"_pytest.{plugin}" for plugin in default_plugins)]


def run_tests(root, killers, log):
    """In a child process: the tests against the package below root. Exits with pytest's code."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(root))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)

    code = pytest.main(["-x", "-q", "--tb=line", "-p", "no:cacheprovider",
                        "-p", "no:unraisableexception", "--assert=plain", "-c", os.devnull,
                        "--rootdir", str(TESTS),
                        *(str(TESTS / killer) for killer in killers)])
    import refsd

    assert Path(refsd.__file__).is_relative_to(root), "the tests ran against another package"
    sys.stdout.flush()
    os._exit(code)
