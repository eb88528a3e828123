"""A backend declared in ten lines is usable wherever those of refsd are."""

import functools
import json
import logging
from dataclasses import dataclass, replace

import numpy as np
import pytest

import refsd
from refsd import algorithms, profiling, registry
from refsd import functional as F
from refsd.__main__ import main
from refsd.backends import BACKENDS, UNKNOWN_MEMORY, Backend, add_backend, choose_backend
from refsd.cli import threads
from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.pipelines import memory

calls = []


def counted(definition):
    """The definition, which also notes its name."""
    @functools.wraps(definition)
    def function(*args, **options):
        calls.append(definition.__name__)
        return definition(*args, **options)
    return function


class Counting(Backend):
    def place(self, tensors):
        calls.append("place")

    def ready(self, dtype):
        calls.append(f"ready for {dtype}")


@pytest.fixture
def counting(monkeypatch):
    registry.kernels("exp")  # imports those of the others
    before = dict(BACKENDS)
    del BACKENDS["cuda"]  # whether it is available is a matter of the machine
    monkeypatch.setattr(registry, "_kernels", dict(registry._kernels))
    monkeypatch.setattr("refsd.backends._logged", set())
    backend = Counting("counting", "refsd.ops")
    add_backend(backend)
    for op in registry.ops().values():
        registry.kernel("counting")(counted(op.definition))
    calls.clear()
    yield backend
    BACKENDS.clear()
    BACKENDS.update(before)


def test_ops_are_sent_to_it(counting):
    with refsd.use("counting"):
        np.testing.assert_array_equal(F.exp(np.zeros(3)), np.ones(3))
    assert calls == ["exp"]


def test_a_pipeline_loads_for_it_estimates_its_memory_and_is_profiled(counting, model):
    pipes = {name: refsd.StableDiffusionPipeline.from_pretrained(model, backend=name)
             for name in ("numpy", "counting")}
    assert calls == ["place"] * 3 and pipes["counting"].device == "cpu"
    options = {"num_inference_steps": 1, "generator": 1, "output_type": "np"}
    images = {name: pipe("a cube", **options).images for name, pipe in pipes.items()}
    np.testing.assert_array_equal(images["counting"], images["numpy"])
    assert calls[3] == "ready for float32" and calls.count("conv2d") > 10
    estimates = {name: memory.estimate_bytes(pipe, 64, 64, 1) for name, pipe in pipes.items()}
    assert estimates["counting"] >= estimates["numpy"]
    for backend in BACKENDS.values():
        assert all(n <= most for n, most in zip(backend.memory, UNKNOWN_MEMORY))

    profile = profiling.profile(pipes["counting"], "a cube", num_inference_steps=1)
    assert profile.backend == "counting" and not any(call.copies for call in profile.calls)
    assert threads.in_use("counting") == threads.in_use("numpy")


def test_its_convolutions_are_explained(counting):
    picture, weight = Spec((1, 8, 9, 9), "float32"), Spec((8, 8, 3, 3), "float32")
    explained = {name: algorithms.explain_conv2d(picture, weight, backend=name, padding=1)
                 for name in ("numpy", "counting")}
    assert explained["counting"] == explained["numpy"]._replace(backend="counting")


def test_the_command_line_takes_and_shows_it(counting, model, tmp_path, capfd):
    path = tmp_path / "a.png"
    common = ["-m", str(model), "--steps", "1", "--backend", "counting", "--json"]
    assert main(["a cube", *common, "-o", str(path)]) == 0 and path.exists()
    assert "conv2d" in calls
    assert main(["a cube", *common, "--tuned", "-o", str(path)]) == 2
    assert "leave it out" in capfd.readouterr().out
    assert main(["profile", "a cube", *common[:-1]]) == 0
    assert "layout copies" not in capfd.readouterr().out
    assert main(["ops", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert all(list(op["kernels"]) == ["numba", "numpy", "counting"] for op in listed)
    assert main(["draw", "--help"]) == 0
    assert "auto, numba, numpy, counting" in capfd.readouterr().out
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["backends"] == {
        "available": ["numba", "numpy", "counting"], "auto": "numba"}


@dataclass(frozen=True)
class Absent(Backend):
    def unavailable(self):
        return "there is no such device"


def test_one_that_is_not_available_is_refused_and_auto_says_why(counting, caplog, capfd):
    add_backend(Absent("device", "not.there"), preferred=True)
    assert next(iter(BACKENDS)) == "device"
    with pytest.raises(UsageError) as caught, refsd.use("device"):
        pass
    assert str(caught.value) == (
        "backend 'device' is not available here: there is no such device. Take another, or auto")
    with caplog.at_level(logging.WARNING, "refsd"):
        assert [choose_backend() for _ in range(2)] == ["numba", "numba"]
    assert caplog.messages == ["backend device is not available here: there is no such device"]
    assert list(registry.kernels("exp")) == ["numba", "numpy", "counting"]
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["backends"] == {
        "available": ["numba", "numpy", "counting"],
        "device is not available": "there is no such device", "auto": "numba"}


def test_without_numba_auto_is_numpy(counting, monkeypatch):
    monkeypatch.setattr("refsd.backends.find_spec", lambda name: None)
    assert choose_backend() == "numpy"
    with pytest.raises(UsageError, match="numba is not installed: pip install numba"):
        choose_backend("numba")


def test_a_preferred_one_is_auto_and_a_name_belongs_to_one(counting):
    add_backend(counting, preferred=True)
    assert choose_backend() == "counting"
    for other in (replace(counting, device="gpu"), Backend("counting", "refsd.ops"),
                  Backend("auto", "refsd.ops")):
        with pytest.raises(ImportError, match=f"a second backend {other.name}; give it another"):
            add_backend(other)
