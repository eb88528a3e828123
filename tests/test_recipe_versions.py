"""A recipe names all that may change a bit of its picture, and repro what of it has changed."""

from dataclasses import replace

import llvmlite
import numba
import numpy as np
import pytest
import scipy
import threadpoolctl
from test_metadata import RECIPE

from refsd.backends import BACKENDS
from refsd.cli import drawing, repro
from refsd.numba_ops import simd

HERE = [name for name, backend in BACKENDS.items() if backend.device == "cpu"]
PIXELS = np.zeros((16, 8, 3), np.uint8)
ALWAYS = {"refsd", "python", "numpy", "scipy", "tokenizers", "safetensors", "pillow", "machine",
          "numpy vectors"}


@pytest.mark.parametrize("backend", HERE)
def test_versions_are_those_of_the_backend(backend):
    found = drawing.versions(backend)
    own = {"numba": {"numba", "llvmlite", "vector width", "bfloat16 products", "processor"},
           "numpy": {"blas"}}
    assert found.keys() == ALWAYS | own[backend]
    assert all(found.values()) and {type(value) for value in found.values()} == {str}
    assert found["scipy"] == scipy.__version__
    if backend == "numba":
        assert (found["numba"], found["llvmlite"], found["vector width"]) == (
            numba.__version__, llvmlite.__version__, f"{simd.WIDTH} bytes")


def test_blas_is_named_with_the_processor_that_it_takes_this_for(monkeypatch):
    """OPENBLAS_CORETYPE changes the order of its sums."""
    pool = {"user_api": "blas", "internal_api": "openblas", "version": "0.3.31",
            "architecture": "Haswell", "num_threads": 2}
    others = [pool, {**pool, "user_api": "openmp"}, {**pool, "version": None, "architecture": "X"}]
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: others)
    assert drawing.versions("numpy")["blas"] == "openblas 0.3.31 Haswell, openblas X"


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("missing", [False, True])
def test_whatever_differs_is_named_as_a_possible_cause(backend, missing):
    now = drawing.versions(backend)
    for name in now:
        then = {key: value for key, value in now.items() if key != name}
        recipe = replace(RECIPE, backend=backend, versions=then if missing else {
            **then, name: "another"})
        found = repro.compare(PIXELS, PIXELS ^ 1, recipe)
        words = "not recorded" if missing else "another"
        assert repro._in_words(found, recipe)[1:] == [
            f"a possible cause: {name} was {words} then, is {now[name]} now"]


def test_where_nothing_differs_that_is_said():
    recipe = replace(RECIPE, versions=drawing.versions(RECIPE.backend))
    lines = repro._in_words(repro.compare(PIXELS, PIXELS ^ 1, recipe), recipe)
    assert lines[1:] == [
        "nothing that the recipe records differs; refsd doctor checks this machine"]


def test_causes_are_not_sought_where_the_file_was_changed():
    recipe = replace(RECIPE, pixels=drawing.digest(PIXELS))
    lines = repro._in_words(repro.compare(PIXELS ^ 1, PIXELS, recipe), recipe)
    assert lines[1:] == ["the new picture is the recorded one: the file was changed since"]
