"""Compilation before a generation: complete, counted, shown, and nothing afterwards."""

import io
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import tiny
from chaos import environment
from numba import types
from numba.core.caching import NullCache

import refsd
from refsd.__main__ import main
from refsd.cli import compiling
from refsd.cli.compiling import Compiling
from refsd.numba_ops import jit, warmup
from refsd.numba_ops.levels import INT8
from refsd.pipelines import drawing

# Each costs a second or two at the first start. More need a reason.
MOST_KERNELS = 20


@pytest.fixture(scope="module")
def kernels():
    return set(warmup.plan("float32"))


def planned(monkeypatch, path=None, **options):
    """The kernels that a generation asks for, which is not computed."""
    monkeypatch.setattr(drawing, "make_ready", lambda *_: None)
    with jit.planned() as found:
        pipe = refsd.StableDiffusionPipeline.from_pretrained(path, backend="numba", **options)
        pipe.check_finite = False
        with np.errstate(all="ignore"):  # what is not computed may be any number
            pipe("a red cat", num_inference_steps=2, generator=1, output_type="np")
    return set(found)


@pytest.mark.parametrize("exact", [False, True])
def test_the_bundled_models_kernels_are_all_planned(monkeypatch, kernels, exact):
    assert planned(monkeypatch, exact=exact) <= kernels


def test_another_models_too(monkeypatch, kernels, tmp_path):
    tiny.write_model(tmp_path / "model")
    assert planned(monkeypatch, tmp_path / "model") <= kernels


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_planned_is_what_a_generation_needs(monkeypatch, dtype):
    options = {"dtype": dtype}
    used = planned(monkeypatch, **options) | planned(monkeypatch, **options, exact=True)
    assert used == set(warmup.plan(dtype))


def test_int8_is_float32_and_its_own_products(monkeypatch, kernels):
    """Of float32's, all but what packs matrices: a weight with NaN would need that too."""
    used, wanted = planned(monkeypatch, dtype="int8"), set(warmup.plan("int8"))
    assert used <= wanted and kernels < wanted
    assert {kernel.__name__ for kernel, _ in used - kernels} == {
        "_round", "_turn"} | ({"_multiply"} if INT8 == "vnni" else set())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_kernels_are_few(dtype):
    kernels = warmup.plan(dtype)
    assert 10 < len(kernels) <= MOST_KERNELS
    assert len({kernel for kernel, _ in kernels}) == len(kernels), "one is compiled for two types"


def test_float64_has_its_own(kernels):
    double = warmup.plan("float64")
    assert len(double) == len(kernels) and not set(double) & kernels


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_after_a_warmup_nothing_is_compiled(dtype):
    """In a process of its own, in both modes, down to the picture."""
    program = f"""
import refsd
from refsd.numba_ops import jit
for exact in (False, True):
    pipe = refsd.StableDiffusionPipeline.from_pretrained(
        backend="numba", exact=exact, dtype="{dtype}")
    pipe("a red sphere", num_inference_steps=1, generator=1, output_type="np")
print(jit.compilations.count)
"""
    assert main(["warmup", "-q", "--dtype", dtype]) == 0
    done = subprocess.run([sys.executable, "-c", program], env=environment(), check=True,
                          capture_output=True, text=True)
    assert done.stdout == "0\n"


def test_drawing_imports_what_it_needs_and_no_more(tmp_path):
    """Modules, not seconds: most of a warm start is imports. Numba needs SciPy and YAML itself."""
    program = """
import sys
from refsd.__main__ import main
assert main(["a cat", "-q", "--steps", "1", "-o", sys.argv[1]]) == 0
print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.png")],
                          env=environment(), check=True, capture_output=True, text=True)
    found = set(done.stderr.split())
    assert {"numba", "numpy", "tokenizers", "PIL"} <= found
    unwanted = {"torch", "diffusers", "transformers", "huggingface_hub", "safetensors", "tqdm",
                "threadpoolctl", "pytest", "hypothesis", "requests", "httpx", "matplotlib",
                "scipy.optimize", "scipy.stats", "scipy.sparse", "scipy.signal"}
    assert not found & unwanted


def test_the_command_says_what_it_did(capsys):
    assert main(["warmup", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert said.err == ""
    assert set(found) == {"kernels", "compiled", "dtype", "seconds", "cache", "warnings"}
    assert (found["dtype"], found["warnings"]) == ("float32", [])
    assert found["kernels"] == len(warmup.plan("float32"))

    assert main(["warmup"]) == 0
    assert f"{found['kernels']} kernels are ready" in capsys.readouterr().out


def fresh():
    """A kernel that no cache keeps."""
    @jit.jit
    def same(x):
        return x

    same.entry._cache = NullCache()
    return same


def test_progress_counts_to_a_total_known_at_the_start(monkeypatch, caplog):
    kernel = fresh()
    monkeypatch.setattr(warmup, "_ready", set())
    monkeypatch.setattr(warmup, "plan", lambda dtype: [(kernel, (types.float64,)),
                                                       (kernel, (types.int64,))])
    monkeypatch.setattr(jit.compilations, "count", 0)
    with caplog.at_level(logging.INFO, logger="refsd.compiling"):
        warmup.make_ready("float32")
        warmup.make_ready("float32")
    assert [record.getMessage() for record in caplog.records] == [
        "compiling kernels, once: 1 of 2", "compiling kernels, once: 2 of 2"]


def test_a_kernel_by_itself_is_counted_without_a_total(caplog):
    alone = fresh()
    with caplog.at_level(logging.INFO, logger="refsd.compiling"):
        alone(1.0)
        alone(2.0)
    assert len(caplog.records) == 1
    assert " of " not in caplog.records[0].getMessage()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, *, show=True):
    monkeypatch.setattr(sys, "stderr", stream)
    with Compiling(show=show):
        for number in range(1, 4):
            jit.logger.info("compiling kernels, once: %d of %d", number, 3)
    jit.logger.info("compiling kernels, once: %d of %d", 9, 9)
    return stream.getvalue()


def test_on_a_terminal_the_line_counts_in_place(monkeypatch):
    lines = [f"refsd: compiling kernels, once: {i} of 3" for i in (1, 2, 3)]
    said = shown(monkeypatch, Terminal())
    assert said == "".join("\r" + line for line in lines) + "\r" + " " * len(lines[2]) + "\r"


def test_elsewhere_it_comes_now_and_then(monkeypatch):
    said = shown(monkeypatch, io.StringIO())
    assert said == "refsd: compiling kernels, once: 1 of 3\n"
    monkeypatch.setattr(compiling, "QUIET_SECONDS", 0)
    assert shown(monkeypatch, io.StringIO()).count("\n") == 3


def test_quiet_shows_nothing(monkeypatch):
    assert shown(monkeypatch, Terminal(), show=False) == ""


def test_drawing_shows_it_unless_quiet(monkeypatch, tmp_path, capfd):
    tiny.write_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    ask = ["a cat", "-m", "model", "--steps", "1", "-s", "1"]
    for options, visible in (([], True), (["-q"], False), (["--json"], False)):
        with monkeypatch.context() as patch:
            patch.setattr("refsd.cli.session.make_ready", lambda *_: jit.logger.info(
                "compiling kernels, once: %d of %d", 7, 19))
            assert main([*ask, *options]) == 0
        assert ("refsd: compiling kernels, once: 7 of 19\n" in capfd.readouterr().err) == visible
