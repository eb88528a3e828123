"""bisect on ports that dump nothing but their blocks: the spread holds where bounds have grown."""

import re

import pytest
from golden_mistakes import MISTAKES
from golden_port_ops import Ops
from golden_runs import Dump, blocks, measure_spread, mistaken, port

from refsd.golden.comparing.bisect import bisect
from refsd.golden.packs.pack import Pack

FORMAT = "bfloat16"
# One of each kind of block, with more and fewer ops between two; tests/parity has all mistakes.
SHOWN = {
    "head_order": "text/000/text_model.encoder.layers.0", "timestep": "unet/000/time_embedding",
    "flipped_kernel": "unet/000/down_blocks.0.resnets.0",
    "geglu_halves": "unet/000/down_blocks.0.attentions.0",
    "half_pixel": "unet/000/up_blocks.0.upsamplers.0",
}  # fmt: skip


@pytest.fixture(scope="module")
def pack(runs):
    with Pack.open(runs / "level3") as opened:
        yield measure_spread(opened, FORMAT)


def judged(pack, runs, dump, **options):
    return bisect(pack, Dump(blocks(pack, dump)), format=FORMAT, model=runs / "model", **options)


@pytest.mark.parametrize("key", SHOWN)
def test_the_wrong_block_is_named(runs, pack, key):
    dump = port(pack, Ops(format=FORMAT, mistake=key, where=MISTAKES[key].where))
    found = judged(pack, runs, dump, first_only=True)
    assert (found.first.name, found.first.status) == (SHOWN[key], "wrong"), found.sentence
    count = len(found.first.computed)
    assert f"with the {count} ops from " in found.sentence if count > 1 else (
        f"with {found.first.computed[0]} that was not dumped" in found.sentence)


def test_what_follows_a_wrong_block_is_not_wrong_on_its_own_inputs(runs, pack):
    dump = port(pack, Ops(format=FORMAT, mistake="softmax_axis", where="unet/000"))
    first = MISTAKES["softmax_axis"].first.partition(".transformer")[0]
    found = judged(pack, runs, dump)
    assert found.first.name == first
    # a wrong axis of the softmax is made in every attention of the network
    assert all(re.search(r"attentions\.\d$", row.name) for row in found.later)
    after = next(row for row in found.rows if row.name == "unet/000/mid_block.resnets.0")
    assert after.status == "explained" and after.inherited > 5 * after.local


def test_right_blocks_are_explained_and_it_is_said_by_what(runs, pack):
    for seed in range(2):
        found = judged(pack, runs, port(pack, Ops(format=FORMAT, seed=seed)))
        assert found.first is None, found.sentence
        assert not [row for row in found.rows if row.status == "open"]
        assert [row for row in found.rows if row.notes == ("by the spread",)]


def test_without_a_spread_a_bound_above_the_tensors_size_says_nothing(runs):
    """Neither that the block is right nor that it is wrong."""
    with Pack.open(runs / "level3") as pack:
        wrong = port(pack, Ops(format=FORMAT, mistake="geglu_halves", where="unet"))
        found = judged(pack, runs, wrong)
    row = next(row for row in found.rows if row.name == SHOWN["geglu_halves"])
    assert (row.status, row.notes) == (
        "open", ("the bound says nothing here: dump an op between",))
    assert found.first is None and "could not be judged" in found.sentence


def test_an_error_that_only_all_together_shows_is_a_region(runs, pack):
    """The block's own share is within the spread, all of it is not, and nothing before is bad."""
    name = SHOWN["geglu_halves"]
    given = f"{name.rpartition('.attentions')[0]}.resnets.0"
    dump = blocks(pack, port(pack, Ops(format=FORMAT)))
    limit = pack.entries[name].tolerance[FORMAT]["spread"]["rms"]
    dump |= {given: dump[given] + 0.9 * limit, name: dump[name] + 1.5 * limit}
    found = bisect(pack, Dump(dump), format=FORMAT, model=runs / "model", only=[name])
    assert (found.first.name, found.first.status) == (name, "suspect")
    assert "dump the ops between" in found.sentence


def test_float32_blocks_are_held_to_both(runs, pack):
    """The bound tells more here; the spread is asked as well."""
    found = bisect(pack, Dump(blocks(pack, mistaken(pack, "geglu_halves"))),
                   model=runs / "model", first_only=True).first
    assert (found.name, found.status) == (SHOWN["geglu_halves"], "wrong")
