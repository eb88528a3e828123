"""examples/dump.h and run_ops.c: built strictly, with sanitizers if there are any, and judged."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from test_golden_readers import COMPILER, FOLDER

from refsd.__main__ import main
from refsd.golden.comparing.candidate import Candidate

EXAMPLES = FOLDER.parent / "examples"
STRICT = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

WRITER = """\
#include "dump.h"
#include <stdlib.h>
int main(int argc, char **argv)
{
    static unsigned char data[8 * 64];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i / 8 % 60);
    size_t shape[] = {2, 3, 2, 2}, many[9] = {1}, row[] = {5};
    struct dump d = dump_open(argv[1]);
    dump_tensor(&d, "unet/000/conv_in", DUMP_FLOAT32, NULL, 4, shape, data, 96);
    dump_tensor(&d, "half", DUMP_FLOAT16, "NHWC", 4, shape, data, 48);
    dump_tensor(&d, "short \\"a\\\\b\\"", DUMP_BFLOAT16, "NC4HW4", 4, shape, data, 64);
    dump_tensor(&d, "ids", DUMP_INT64, NULL, 1, row, data, 40);
    dump_tensor(&d, "one", DUMP_FLOAT32, NULL, 0, NULL, data, 4);
    if (argc > 2) dump_tensor(&d, "nine", DUMP_FLOAT32, NULL, 9, many, data, 4);
    return dump_close(&d) ? 7 : 0;
}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Builds a program out of C text, as if it stood among the examples."""
    if COMPILER is None:
        pytest.skip("no C compiler here")
    place = tmp_path_factory.mktemp("c")

    def built(text, name):
        source, program = place / f"{name}.c", place / name
        source.write_text(text.replace('"../golden', f'"{FOLDER}'))
        command = [COMPILER, *STRICT, f"-I{EXAMPLES}", source, "-o", program, "-lm"]
        return str(program) if subprocess.run(
            command[:1] + extra + command[1:], capture_output=bool(extra)).returncode == 0 else None

    extra = SANITIZERS  # not every compiler has their libraries
    extra = extra if built("int main(void) { return 0; }\n", "empty") else []
    return built


def run(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def writer(build):
    return build(WRITER, "writer")


def test_what_c_writes_is_read(writer, tmp_path):
    assert run(writer, tmp_path).returncode == 0
    data = (np.arange(8 * 64) // 8 % 60).astype("u1").tobytes()
    wide = (np.frombuffer(data, "<u2", 32).astype("u4") << 16).view("f4")
    shape = 2, 3, 2, 2
    wanted = {
        "unet/000/conv_in": np.frombuffer(data, "<f4", 24).reshape(shape),
        "half": np.frombuffer(data, "<f2", 24).reshape(2, 2, 2, 3).transpose(0, 3, 1, 2),
        'short "a\\b"': wide.reshape(2, 1, 2, 2, 4).transpose(0, 1, 4, 2, 3).reshape(
            2, 4, 2, 2)[:, :3],
        "ids": np.frombuffer(data, "<i8", 5), "one": np.frombuffer(data, "<f4", 1).reshape(())}
    with Candidate.open(tmp_path) as candidate:
        assert set(candidate.names()) == set(wanted) and not candidate.troubles
        for name, array in wanted.items():
            found = candidate.read(name, array.shape)
            assert found.shape == array.shape and np.array_equal(found, array), name
            assert candidate.info(name).dtype in ("float32", "float16", "bfloat16", "int64")
    # each file is NumPy's as well; one in a layout is flat there
    shapes = [np.load(tmp_path / f"{i:05d}.npy").shape for i in range(5)]
    assert shapes == [shape, (24,), (32,), (5,), ()]


def test_what_c_cannot_write_is_said(writer, tmp_path):
    assert run(writer, tmp_path / "none").returncode == 7
    assert run(writer, "x" * 3000).returncode == 7
    assert run(writer, tmp_path, "nine axes").returncode == 7
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "00001.npy").symlink_to("/dev/full")
    assert run(writer, tmp_path / "mine").returncode == 7


@pytest.fixture(scope="module")
def loop(build):
    return build((EXAMPLES / "run_ops.c").read_text(), "run_ops")


@pytest.mark.parametrize("family, cases", [("activation", 6), ("linear", 8), ("norm", 7)])
def test_the_loop_over_a_pack_of_ops_is_green(loop, tmp_path, capsys, family, cases):
    done = run(loop, FOLDER / "ops" / family, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == f"{cases} cases in {tmp_path}\n"
    pack = FOLDER / "ops" / family
    assert main(["golden", "compare", str(pack), str(tmp_path), "--at-least", str(cases)]) == 0
    assert capsys.readouterr().out.startswith(f"All {cases} tensors are within the tolerance")


def test_a_mistake_in_c_is_named(build, tmp_path, capsys):
    text, count = re.subn(r'option\(c, "eps"\)', "1e-3", (EXAMPLES / "run_ops.c").read_text())
    assert count == 1
    assert run(build(text, "wrong"), FOLDER / "ops" / "norm", tmp_path).returncode == 0
    assert main(["golden", "compare", str(FOLDER / "ops" / "norm"), str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("ops/group_norm/") and "It looks like wrong_eps" in said


def test_the_loop_refuses_what_is_no_pack(loop, tmp_path):
    assert run(loop).returncode == 2
    done = run(loop, tmp_path, tmp_path)
    assert done.returncode == 4 and str(tmp_path).encode() in done.stderr
    pack = shutil.copytree(FOLDER / "ops" / "norm", tmp_path / "pack")
    assert run(loop, pack, tmp_path / "none").returncode == 4
    index = (pack / "index.tsv").read_text().splitlines(keepends=True)
    for damaged in "damaged\n", index[2].replace("\t36\t", "\t37\t"):
        (pack / "index.tsv").write_text("".join(index[:2]) + damaged)
        done = run(loop, pack, tmp_path)
        assert done.returncode == 3 and b": damaged" in done.stderr
    (pack / "index.tsv").write_text("".join(index))
    (pack / "tensors-00000.safetensors").write_bytes(b"")
    assert run(loop, pack, tmp_path).returncode == 4
