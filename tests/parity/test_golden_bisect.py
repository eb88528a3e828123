"""bisect on ports whose arithmetic is torch's, and on bare NumPy's, over 20 orders of sums.

Make the table of mistakes with `pytest -s tests/parity/test_golden_bisect.py`.
"""

import pytest
import torch
from golden_mistakes import MISTAKES
from golden_port_ops import Ops
from golden_runs import Dump, mistaken, port, write_pack
from golden_torch_port import TorchOps

from refsd.golden.comparing.bisect import bisect
from refsd.golden.packs.pack import Pack

SEEDS = range(20)


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
        found = bisect(pack, Dump(mistaken(pack, key, TorchOps)), model=folder / "model",
                       first_only=True)
        reason = found.first and found.first.finding and found.first.finding.reason
        lines.append(f"{key:<18} {reason!s:<22} {found.first and found.first.name}")
        assert found.first is not None and found.first.name == mistake.first, (
            f"{key}: {found.sentence}")
        right += reason in mistake.reasons
    print("\n".join(lines))
    assert len(MISTAKES) >= 30 and right >= 0.8 * len(MISTAKES), "\n".join(lines)


@pytest.mark.parametrize("kind", [Ops, TorchOps])
@pytest.mark.parametrize("format", ["float32", "float16", "bfloat16"])
def test_no_false_alarm(folder, pack, kind, format):
    for seed in SEEDS:
        dump = Dump(port(pack, kind(format=format, seed=seed)))
        found = bisect(pack, dump, format=format, model=folder / "model")
        assert found.first is None, f"seed {seed}: {found.sentence}"
