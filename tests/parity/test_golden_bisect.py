"""bisect on ports whose arithmetic is torch's, and on bare NumPy's, over 20 orders of sums.

Make the table of mistakes with `pytest -s tests/parity/test_golden_bisect.py`.
"""

from functools import partial

import numpy as np
import pytest
import torch
from golden_mistakes import MISTAKES
from golden_port_ops import Ops
from golden_runs import Dump, blocks, fused, mistaken, port, write_pack
from golden_torch_port import TorchOps

from refsd.golden.comparing.bisect import bisect
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.packs.pack import Pack
from refsd.golden.tolerances.spread import add_spread

SEEDS = range(20)
PARTS = {"blocks": blocks, "fused": lambda pack, dump: fused(dump).tensors,
         "unet": lambda pack, dump: {k: v for k, v in dump.items() if k.startswith("unet/")}}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tensors are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("bisect")
    write_pack(place, 3)
    return place


@pytest.fixture(scope="module")
def pack(folder):
    with Pack.open(folder / "level3") as opened:
        yield opened


def test_every_mistake_on_torch(folder, pack, capsys):
    """The right op for all of them, the right reason for four in five."""
    right, lines = 0, []
    for key, mistake in MISTAKES.items():
        dump = mistaken(pack, key, TorchOps, whole=False)
        found = bisect(pack, Dump(dump), model=folder / "model", first_only=True)
        reason = found.first and found.first.finding and found.first.finding.reason
        lines.append(f"{key:<18} {reason!s:<22} {found.first and found.first.name}")
        assert found.first is not None and found.first.name == mistake.first, (
            f"{key}: {found.sentence}")
        right += reason in mistake.reasons
    print("\n".join(lines))
    assert len(MISTAKES) >= 30 and right >= 0.8 * len(MISTAKES), "\n".join(lines)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A pack with the spread that its making measures, in float32 and bfloat16."""
    place = tmp_path_factory.mktemp("measured")
    write_pack(place, 3)
    add_spread(place / "level3", model=place / "model")
    with Pack.open(place / "level3") as opened:
        yield place, opened


@pytest.mark.parametrize("format", ["float32", "float16", "bfloat16"])
def test_where_compare_names_a_block_bisect_names_it_too(measured, tmp_path, format):
    """Of ports that dump their blocks alone; the block, or one before it."""
    place, pack = measured
    named = 0
    for key in MISTAKES:
        dump = blocks(pack, mistaken(pack, key, format=format))
        np.savez(tmp_path / "c.npz", **dump)
        with Candidate.open(tmp_path / "c.npz") as candidate:
            by_spread = compare(pack, candidate, format=format, only=dump).first
        found = bisect(pack, Dump(dump), format=format, model=place / "model", first_only=True)
        if by_spread is not None:
            named += 1
            assert found.first is not None, key
            assert found.first.entry.index <= by_spread.entry.index, f"{key}: {found.sentence}"
    assert named >= 20


@pytest.mark.parametrize("kind", [Ops, TorchOps])
@pytest.mark.parametrize("format", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("part", PARTS)
def test_no_false_alarm_on_parts(measured, kind, format, part):
    """Also held to the spread: ports that leave out ops, or all but their network."""
    place, pack = measured
    for seed in SEEDS[:5]:
        dump = port(pack, kind(format=format, seed=seed))
        found = bisect(pack, Dump(PARTS[part](pack, dump)), format=format, model=place / "model")
        assert found.first is None, f"seed {seed}: {found.sentence}"
        assert not [row for row in found.rows if row.status == "open"]


@pytest.mark.parametrize("kind", [Ops, TorchOps, partial(Ops, eager=True)],
                         ids=["numpy", "torch", "eager"])
@pytest.mark.parametrize("format", ["float32", "float16", "bfloat16"])
def test_no_false_alarm(folder, pack, kind, format):
    for seed in SEEDS:
        dump = Dump(port(pack, kind(format=format, seed=seed)))
        found = bisect(pack, dump, format=format, model=folder / "model")
        assert found.first is None, f"seed {seed}: {found.sentence}"
