"""A pack's JSON read by Polygraphy's own classes, and what they save by refsd."""

import ml_dtypes
import numpy as np
import pytest
import torch
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.json import load_json, save_json

from refsd.errors import ModelError
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.packs.pack import Pack, Writer
from refsd.golden.porting.polygraphy import export_polygraphy


def some(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    place = tmp_path_factory.mktemp("packs") / "pack"
    with Writer(place, recipe={}, model={}, kind="run", title="For Polygraphy") as writer:
        writer.add("unet/000/conv_in:x", some(1, 4, 5, 5), stage="unet", step=0)
        writer.add("tokens/000/ids", np.arange(7).reshape(1, 7), stage="tokens")
        for i, dtype in enumerate(("float32", "float64", "float16")):
            writer.add(f"unet/000/block.{i}", some(2, 3 + i, seed=i).astype(dtype), stage="unet",
                       step=0, op="block", keep=True)
    with Pack.open(place) as opened:
        yield opened


def same(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(found, expected)


def test_polygraphy_reads_a_pack(pack, tmp_path):
    export_polygraphy(pack, tmp_path / "out")
    results = RunResults.load(str(tmp_path / "out" / "outputs.json"))
    [(runner, [iteration])] = results.items()
    assert runner == "refsd" and isinstance(iteration, IterationResult)
    assert list(iteration) == [f"unet/000/block.{i}" for i in range(3)]
    [feed] = load_json(str(tmp_path / "out" / "inputs.json"))
    assert list(feed) == ["unet/000/conv_in:x", "tokens/000/ids"]
    for name, array in [*iteration.items(), *feed.items()]:
        same(array, pack.read(name))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "int32", "int8",
                                   "uint8", "bool"])
def test_what_polygraphy_saves(dtype, tmp_path):
    arrays = {"y": some(3, 5).astype(dtype), "scalar": np.ones((), dtype)}
    results = RunResults()
    results.add([arrays, {"y": arrays["scalar"]}], runtime=0.1, runner_name="a")
    results.save(str(tmp_path / "out.json"))
    save_json([arrays], str(tmp_path / "in.json"))
    with Candidate.open(tmp_path / "out.json") as candidate:
        assert candidate.names() == ["000/y", "000/scalar", "001/y"]
        same(candidate.read("000/y"), arrays["y"])
        same(candidate.read("001/y"), arrays["scalar"])
    with Candidate.open(tmp_path / "in.json") as candidate:
        same(candidate.read("y"), arrays["y"])


def test_bfloat16(tmp_path):
    """NumPy's arrays of it are read; torch's tensors, which TensorRT's runner gives, are pickled.
    """
    x = some(3, 5).astype(ml_dtypes.bfloat16)
    results = RunResults()
    results.add([{"y": x}], runner_name="a")
    results.save(str(tmp_path / "out.json"))
    with Candidate.open(tmp_path / "out.json") as candidate:
        assert candidate.info("y").dtype == "bfloat16"
        same(candidate.read("y"), x.astype("float32"))
    results.add([{"y": torch.ones(2, dtype=torch.bfloat16)}], runner_name="a")
    results.save(str(tmp_path / "out.json"))
    with pytest.raises(ModelError, match="'y' is a torch.Tensor, which Polygraphy pickles"):
        Candidate.open(tmp_path / "out.json")
