"""Environment variables: every one that refsd reads is documented, and odd values do no harm."""

import logging
import re
import subprocess
import sys
import warnings

import numba
import pytest
from chaos import ROOT, environment

from refsd import parallel
from refsd.__main__ import main
from refsd.cli import doctor, output
from refsd.cli.report import Warnings
from refsd.errors import ResourceError, UsageError
from refsd.numba_ops import cache, levels, settings, vector

READ = re.compile(r"""environ(?:\.\w+\(|\[)\s*["'](\w+)|\{([^}]*)\}\.isdisjoint\(os\.environ""")


def test_every_variable_that_is_read_is_in_the_table():
    table = (ROOT / "docs" / "cli.md").read_text().partition("### Environment variables")[2]
    table = table.partition("\n## ")[0]
    found = set(doctor.THREAD_SETTINGS)
    for path in (ROOT / "refsd").rglob("*.py"):
        for one, several in READ.findall(path.read_text()):
            found |= {one} if one else set(re.findall(r'"(\w+)"', several))
        found |= set(re.findall(r'"(REFSD_[A-Z0-9_]+)"', path.read_text()))
    assert {"REFSD_CACHE", "REFSD_SIMD_BYTES", "REFSD_BFLOAT16", "REFSD_INT8", "GOMP_SPINCOUNT",
            "OMP_WAIT_POLICY"} <= found
    assert [name for name in sorted(found) if f"`{name}`" not in table] == []


def folder(**changes):
    """Where kernels are kept with these variables, and what is said of it."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for name, value in changes.items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        return cache.cache_folder.__wrapped__(), [str(one.message) for one in said]


@pytest.mark.parametrize("value", ["{}/a", "{}/a/", "~/a", "a"])
def test_places_of_the_cache(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    found, said = folder(HOME=str(tmp_path), REFSD_CACHE=value.format(tmp_path))
    assert said == [] and found.resolve().parents[1] == tmp_path / "a"


@pytest.mark.parametrize("value", ["", None])
def test_without_a_place_it_is_in_the_home(tmp_path, value):
    found, said = folder(HOME=str(tmp_path), REFSD_CACHE=value)
    assert said == [] and found.parents[1] == tmp_path / ".cache" / "refsd"


@pytest.mark.parametrize("changes, where", [
    ({"REFSD_CACHE": "/proc/refsd"}, "/proc/refsd"),
    ({"REFSD_CACHE": "/dev/null/refsd"}, "/dev/null/refsd"),
    ({"REFSD_CACHE": "/dev/shm/../null"}, "/dev/shm/../null"),
    ({"REFSD_CACHE": "", "HOME": "/proc/nobody"}, "/proc/nobody"),
    ({"REFSD_CACHE": "~nobody-of-this-name/x"}, "home"),
    ({"REFSD_CACHE": "x" * 5000}, "File name too long"),
])
def test_a_place_that_cannot_be_written_is_named_with_the_way_out(changes, where):
    found, said = folder(**changes)
    assert found is None and len(said) == 1
    assert said[0].startswith("compiled kernels are not kept (") and where in said[0]
    assert "name a folder of your own in REFSD_CACHE. Kernels are compiled in every" in said[0]
    assert "Errno" not in said[0] and "\n" not in said[0]


def test_a_place_where_others_may_write_is_named_too(tmp_path):
    tmp_path.chmod(0o777)
    found, said = folder(REFSD_CACHE=str(tmp_path))
    assert found is None and f"({tmp_path}: it belongs to another user or others may" in said[0]


def test_tidying_up_never_breaks_a_run(tmp_path, monkeypatch):
    def gone(current):
        raise FileNotFoundError

    monkeypatch.setattr(cache, "_remove_old", gone)
    assert folder(REFSD_CACHE=str(tmp_path / "x"))[0].is_dir()


@pytest.mark.parametrize("value, width", [("16", 16), ("64", 64), ("", vector.WIDTH),
                                          (None, vector.WIDTH), ("8", None), ("abc", None),
                                          ("-16", None), (" 32", None)])
def test_the_vector_width(monkeypatch, value, width):
    monkeypatch.delenv("REFSD_SIMD_BYTES", raising=False)
    if value is not None:
        monkeypatch.setenv("REFSD_SIMD_BYTES", value)
    if width is None:
        with pytest.raises(UsageError, match=f"REFSD_SIMD_BYTES is '{value}'; give 16, 32 or 64"):
            vector._width()
    elif value:
        assert vector._width() == width
    else:  # the processor's, whatever this process was started with
        assert vector._width() in (16, 32, 64)


@pytest.mark.parametrize("value", ["amx", "Dot", "0", " dot"])
def test_a_level_of_bfloat16_products_that_is_none(monkeypatch, value):
    monkeypatch.setenv("REFSD_BFLOAT16", value)
    with pytest.raises(UsageError, match=f"REFSD_BFLOAT16 is '{value}'; give dot or widen, or"):
        levels._choose()


@pytest.mark.parametrize("features, width, chosen", [
    ("+avx512f,+avx512bf16", 64, ("dot", "AVX512-BF16")),
    ("+avx512f,-avx512bf16", 64, ("widen", "no AVX512-BF16 here")),
    ("+avx512f,+avx512bf16", 32, ("widen", "vectors are of 32 bytes, AVX512-BF16 wants 64")),
    ("", 64, ("widen", "no AVX512-BF16 here")),  # as NUMBA_CPU_NAME=generic has it
])
def test_the_level_of_bfloat16_products(monkeypatch, features, width, chosen):
    monkeypatch.delenv("REFSD_BFLOAT16", raising=False)
    monkeypatch.setattr(numba.config, "CPU_FEATURES", features)
    monkeypatch.setattr(levels, "WIDTH", width)
    assert levels._choose() == chosen
    monkeypatch.setenv("REFSD_BFLOAT16", "widen")
    assert levels._choose() == ("widen", "REFSD_BFLOAT16 says so")
    monkeypatch.setenv("REFSD_BFLOAT16", "dot")
    if chosen[0] == "dot":
        assert levels._choose() == ("dot", "REFSD_BFLOAT16 says so")
    else:
        with pytest.raises(UsageError, match=f"REFSD_BFLOAT16 is 'dot': {chosen[1]}; give widen"):
            levels._choose()


@pytest.mark.parametrize("forced, features, chosen", [
    ("", "+avx512f,+avx512vnni", ("vnni", "AVX512-VNNI")),
    ("", "+avx512f,+avx512bf16", ("float32", "no AVX512-VNNI here")),
    ("float32", "+avx512vnni", ("float32", "REFSD_INT8 says so")),
    ("vnni", "+avx512f", "REFSD_INT8 is 'vnni': no AVX512-VNNI here; give float32, or unset it"),
    ("amx", "+avx512vnni", "REFSD_INT8 is 'amx'; give vnni or float32, or unset it"),
])
def test_the_level_of_int8_products(monkeypatch, forced, features, chosen):
    monkeypatch.setenv("REFSD_INT8", forced)
    monkeypatch.setattr(numba.config, "CPU_FEATURES", features)
    monkeypatch.setattr(levels, "WIDTH", 64)
    arguments = "REFSD_INT8", "vnni", "float32", "AVX512-VNNI"
    if isinstance(chosen, tuple):
        assert levels._choose(*arguments) == chosen
    else:
        with pytest.raises(UsageError, match=chosen):
            levels._choose(*arguments)


@pytest.mark.parametrize("value", ["", "0", "-1", "abc", "4,2", "1.5", "1e3", "²"])
def test_numbers_of_threads_for_numba(monkeypatch, value):
    monkeypatch.setenv("NUMBA_NUM_THREADS", value)
    with pytest.raises(UsageError, match="NUMBA_NUM_THREADS is .*; give a positive integer, or"):
        parallel.check_environment()


def test_kernels_without_a_compiler(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(UsageError, match="NUMBA_DISABLE_JIT is set.*unset it, or take the backend"):
        settings._import_numba()


# What the libraries read by themselves, in one process each: nothing may be an unexplained end.
@pytest.mark.parametrize("changes, code, words", [
    ({"NUMBA_OPT": "abc", "NUMBA_BOUNDSCHECK": "x"}, 0,
     ["NUMBA_OPT is 'abc', which Numba cannot read", "NUMBA_BOUNDSCHECK is 'x', which"]),
    ({"REFSD_SIMD_BYTES": "8", "OMP_NUM_THREADS": "4,2", "OPENBLAS_NUM_THREADS": "abc",
      "HF_HOME": "", "HF_HUB_OFFLINE": "abc", "NO_COLOR": "1", "COLUMNS": "0", "LC_ALL": "C",
      "TMPDIR": "/nonexistent", "HOME": "/proc/nobody"}, 1, ["REFSD_SIMD_BYTES is '8'; give 16"]),
], ids=["unreadable", "many"])
def test_doctor_with_odd_variables(changes, code, words):
    done = subprocess.run([sys.executable, "-m", "refsd", "doctor"], capture_output=True,
                          text=True, env=environment(**changes), timeout=120)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert all(line.startswith("refsd: warning: ") for line in done.stderr.splitlines())
    assert all(word in done.stderr + done.stdout for word in words)
    assert ("numba backend" in done.stdout and "FAILED" in done.stdout) == (code == 1)


def test_without_any_temporary_folder_that_is_said(monkeypatch, tmp_path):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(ResourceError, match="The picture is lost: a temporary folder cannot be"):
        output.save(b"x", output.Target(str(tmp_path / "none" / "x.png")), "The picture")


def test_a_warning_has_one_prefix_whichever_command_gives_it(monkeypatch, capfd):
    """A command's own handler hears what happens within it, else the one around all commands."""
    def run(options):
        warnings.warn("a: first", stacklevel=1)
        with Warnings(show=False) as inner:
            logging.getLogger("refsd.x").warning("second")
        assert inner.said == ["second"]
        logging.getLogger("refsd.x").warning("third")
        return 0

    monkeypatch.setattr("refsd.cli.ops.run", run)
    before = logging.getLogger("refsd").handlers[:], warnings.showwarning
    assert main(["ops"]) == 0
    assert capfd.readouterr() == ("", "refsd: warning: a: first\nrefsd: warning: third\n")
    assert (logging.getLogger("refsd").handlers, warnings.showwarning) == before


def test_no_warning_brings_a_prefix_of_its_own():
    """Said through Warnings, "refsd:" would come twice."""
    for path in (ROOT / "refsd").rglob("*.py"):
        for call in re.findall(r"(?:warn|warning|say)\(\s*f?\"(\w+:)", path.read_text()):
            assert call != "refsd:", path
