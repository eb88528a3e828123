"""Cubins: how they are made, kept, and found again. A compiler is needed, a GPU is not."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refsd.errors import ModelError, ResourceError
from refsd.numba_ops.cuda import compiler, store
from refsd.numba_ops.cuda.plan import Factory, Plan
from refsd.numba_ops.cuda.pointwise import pointwise_kernel

ROOT = Path(store.__file__).parents[3]
SILU = ("silu", "float32")
A_CUBIN = compiler.Cubin("silu", ("array", "uint32"), 256, 0, 0, 24, 0, "80", b"\x7fELF" * 99)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty store."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("REFSD_CACHE", str(tmp_path))
    return tmp_path / "cubins"


@pytest.fixture
def made(monkeypatch):
    """What is compiled, in order; none of it really is."""
    said = []

    def compiled(factory, constants, capability):
        said.append((factory.name, constants, capability))
        return A_CUBIN._replace(target=compiler.target_of(factory, capability))

    monkeypatch.setattr(compiler, "compiled", compiled)
    return said


def test_a_kernel_is_compiled_and_described():
    cubin = compiler.compiled(pointwise_kernel, SILU, 80)
    assert (cubin.threads, cubin.shared, cubin.static, cubin.spills, cubin.target) == (
        256, 0, 0, 0, "80")
    assert cubin.arguments == (*["array"] * 3, *["uint32"] * 17, *["float32"] * 2)
    assert 10 < cubin.registers < 60
    assert cubin.code.startswith(b"\x7fELF") and cubin.entry.encode() in cubin.code


def test_shared_memory_is_summed():
    """Of a kernel that declares some itself, and asks for more."""
    def make(gpu):
        cuda, uint32, float32 = gpu.cuda, gpu.uint32, gpu.float32

        def kernel(x):
            room, more = cuda.shared.array(512, float32), cuda.shared.array(3, float32)
            i = uint32(cuda.threadIdx.x)
            room[i] = x[i]
            more[0] = x[0]
            cuda.syncthreads()
            x[i] = room[uint32(127) - i] + more[0]

        return Plan(kernel, (gpu.array("float32"),), 128, shared=1024)

    cubin = compiler.compiled(Factory(make, ((),), 75, ""), (), 75)
    assert (cubin.static, cubin.shared, cubin.threads) == (2060, 1024, 128)


@pytest.mark.parametrize("since, only, capability, target", [
    (75, "", 75, "75"), (75, "", 89, "89"), (80, "", 120, "120"), (90, "a", 90, "90a"),
    (80, "", 75, None), (90, "a", 100, None), (90, "a", 80, None)])
def test_the_target(since, only, capability, target):
    factory = Factory(pointwise_kernel.make, (), since, only)
    if target is None:
        with pytest.raises(ValueError, match="is for compute capability .* choose a kernel by"):
            compiler.target_of(factory, capability)
    else:
        assert compiler.target_of(factory, capability) == target


def test_it_is_kept_and_found(folder, made):
    first = store.cubin(pointwise_kernel, SILU, 80)
    assert store.kept(pointwise_kernel, SILU, 80) and not store.kept(
        pointwise_kernel, SILU, 86)
    assert store.cubin(pointwise_kernel, SILU, 80) == first == A_CUBIN
    store.cubin(pointwise_kernel, ("silu", "float16"), 80)
    store.cubin(pointwise_kernel, SILU, 86)
    assert made == [("pointwise.pointwise_kernel", *what) for what in [
        (SILU, 80), (("silu", "float16"), 80), (SILU, 86)]]
    (path,) = folder.glob("pointwise.pointwise_kernel_silu_float32-sm_80-*.cubin")
    header, code = path.read_bytes().split(b"\n", 1)
    assert code == A_CUBIN.code and json.loads(header)["compiler"] == compiler.versions()
    assert path.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("damage", [
    lambda data: data[:-1], lambda data: b"", lambda data: b"{}\n", lambda data: b"[]\n" + data,
    lambda data: data.replace(b'"threads": 256', b'"threads": 0'),
    lambda data: data.replace(b"ELF", b"ELG", 1), lambda data: b"[" * 99999,
    lambda data: data.replace(b'"schema": 1', b'"schema": 2')])
def test_a_damaged_file_is_made_anew(folder, made, damage):
    store.cubin(pointwise_kernel, SILU, 80)
    (path,) = folder.glob("*.cubin")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="damaged and is made anew"):
        assert store.cubin(pointwise_kernel, SILU, 80) == A_CUBIN
    assert store.cubin(pointwise_kernel, SILU, 80) == A_CUBIN
    assert len(made) == 2
    with pytest.raises(ModelError):
        store.read(damage(b"".join(store.written(A_CUBIN))), "x")


def test_versions_decide_where_there_is_a_compiler(folder, made, monkeypatch):
    store.cubin(pointwise_kernel, SILU, 80)
    monkeypatch.setattr(compiler, "versions", lambda: {"numba-cuda": "99"})
    assert not store.kept(pointwise_kernel, SILU, 80)
    store.cubin(pointwise_kernel, SILU, 80)
    assert len(made) == 2 and len(list(folder.glob("*.cubin"))) == 2
    monkeypatch.setattr(compiler, "versions", dict)  # carried to a machine without one
    assert store.kept(pointwise_kernel, SILU, 80)
    assert store.cubin(pointwise_kernel, SILU, 80) == A_CUBIN
    assert len(made) == 2


def test_sources_decide(tmp_path, monkeypatch):
    """The kernel's own file, those that it imports, and what stands for the compiler; no others."""
    copy = tmp_path / "cuda"
    shutil.copytree(store.HERE, copy)
    monkeypatch.setattr(store, "HERE", copy)

    def names(edited):
        path = copy / edited
        before = path.read_text()
        path.write_text(before + "# another line\n")
        store.sources.cache_clear()
        name = store.file_name(pointwise_kernel, SILU, "80")
        path.write_text(before)
        return name

    store.sources.cache_clear()
    plain = store.file_name(pointwise_kernel, SILU, "80")
    assert all(names(f"{edited}.py") != plain for edited in
               ("pointwise", "formulas", "numbers", "layout", "front", "ptx", "ptx_hopper",
                "ptx_matrices", "plan", "compiler"))
    assert all(names(f"{edited}.py") == plain for edited in ("lockstep", "meaning", "store"))
    store.sources.cache_clear()


def test_no_two_variants_share_a_name():
    names = [store.file_name(factory, constants, compiler.target_of(factory, capability))
             for capability in (75, 80, 90) for factory, constants in store.variants(capability)]
    assert len(names) == len(set(names)) and all(re.fullmatch(r"[\w.-]{1,160}", n) for n in names)


def test_what_cannot_be_kept_costs_a_warning(folder, made, monkeypatch):
    folder.mkdir(mode=0o700)
    folder.chmod(0o770)
    store._folder.cache_clear()
    with pytest.warns(UserWarning, match="are not kept .* others may write there"):
        assert store.cubin(pointwise_kernel, SILU, 80) == A_CUBIN
    folder.chmod(0o700)
    store._folder.cache_clear()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refsd.atomic.os.replace", full)
    with pytest.warns(UserWarning, match="could not be kept .*No space left.*make room there"):
        assert store.cubin(pointwise_kernel, SILU, 80) == A_CUBIN
    assert not list(folder.glob("*.cubin"))


def test_old_files_are_removed(folder, made):
    store.cubin(pointwise_kernel, SILU, 80)
    store.cubin(pointwise_kernel, ("silu", "float16"), 80)
    (old,) = folder.glob("*float16*")
    os.utime(old, (0, 0))
    store._folder.cache_clear()
    store.cubin(pointwise_kernel, SILU, 80)
    assert [path.name for path in folder.glob("*.cubin")] == [
        store.file_name(pointwise_kernel, SILU, "80")]


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setattr(compiler, "_version", lambda name: "" if name == "numba-cuda" else "1")
    with pytest.raises(ResourceError, match=r"numba-cuda is not installed: pip install 'refsd\["):
        compiler.compiled(pointwise_kernel, SILU, 80)


@pytest.mark.parametrize("library", ["nvvm", "nvJitLink"])
def test_a_missing_library_is_named(library, monkeypatch):
    from cuda.pathfinder import DynamicLibNotFoundError

    def fail(*_):
        raise DynamicLibNotFoundError(f"Failure finding \"lib{library}.so\": many\nlines")

    monkeypatch.setattr("refsd.numba_ops.cuda.front.compile_ptx", fail)
    with pytest.raises(ResourceError, match=f"library {library} is not found: pip install") as e:
        compiler.compiled(pointwise_kernel, SILU, 80)
    assert "\n" not in str(e.value)


def test_a_full_store_imports_no_numba(folder):
    """In a process of its own, which would have to compile if it did not find it."""
    made = store.cubin(pointwise_kernel, SILU, 80)
    program = """
import hashlib, sys
from refsd.numba_ops.cuda import store
from refsd.numba_ops.cuda.pointwise import pointwise_kernel
cubin = store.cubin(pointwise_kernel, ("silu", "float32"), 80)
print(hashlib.sha256(cubin.code).hexdigest(), store.compiled)
print([name for name in ("numba", "llvmlite", "cuda.core", "cuda.bindings") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert done.stdout.split("\n")[:2] == [f"{hashlib.sha256(made.code).hexdigest()} 0", "[]"]
    assert not done.stderr
