"""bisect on ports that dump nothing but their blocks, by bounds across them and by the spread."""

import math
import re

import numpy as np
import pytest
from golden_mistakes import MISTAKES
from golden_port_ops import Ops
from golden_runs import Dump, blocks, measure_spread, mistaken, port

from refsd.golden.comparing.bisect import bisect
from refsd.golden.comparing.excess import rms
from refsd.golden.comparing.port_inputs import Inputs
from refsd.golden.packs.pack import Pack

FORMAT, BLIND = "bfloat16", "fp8_e4m3"
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


@pytest.fixture(scope="module")
def blind(runs):
    """As judged in a format of 3 bits, of which a block's bound is larger than the block."""
    with Pack.open(runs / "level3") as opened:
        measure_spread(opened, FORMAT)
        for entry in opened.entries.values():
            if FORMAT in entry.tolerance:
                entry.tolerance[BLIND] = entry.tolerance[FORMAT]
        yield opened


def judged(pack, runs, dump, *, format=FORMAT, **options):
    return bisect(pack, Dump(blocks(pack, dump)), format=format, model=runs / "model", **options)


@pytest.mark.parametrize("key", SHOWN)
def test_the_wrong_block_is_named(runs, pack, key):
    dump = port(pack, Ops(format=FORMAT, mistake=key, where=MISTAKES[key].where))
    found = judged(pack, runs, dump, first_only=True)
    assert (found.first.name, found.first.status) == (SHOWN[key], "wrong"), found.sentence
    count = len(found.first.computed)
    assert f"with the {count} ops from " in found.sentence if count > 1 else (
        f"with {found.first.computed[0]} that was not dumped" in found.sentence)


@pytest.mark.parametrize("format", ["float32", FORMAT])
def test_heads_in_another_order_are_seen_through_a_transformer_block(runs, pack, format):
    """Two dozen ops: the block, and not a region one step later."""
    dump = port(pack, Ops(format=format, mistake="head_order", where="unet"))
    found = judged(pack, runs, dump, format=format, first_only=True)
    assert (found.first.name, found.first.status) == (SHOWN["geglu_halves"], "wrong")
    assert len(found.first.computed) > 20


def test_what_follows_a_wrong_block_is_not_wrong_on_its_own_inputs(runs, pack):
    dump = port(pack, Ops(format=FORMAT, mistake="softmax_axis", where="unet/000"))
    first = MISTAKES["softmax_axis"].first.partition(".transformer")[0]
    found = judged(pack, runs, dump)
    assert found.first.name == first
    # a wrong axis of the softmax is made in every attention of the network
    assert all(re.search(r"attentions\.\d$", row.name) for row in found.later)
    after = next(row for row in found.rows if row.name == "unet/000/mid_block.resnets.0")
    assert after.status == "explained" and after.inherited > 5 * after.local


@pytest.mark.parametrize("format", ["float32", "float16", FORMAT])
def test_bounds_across_blocks_tell_right_from_wrong(runs, format):
    """Without a spread: carried as variances, through 24 ops and more, they stay rounding's."""
    with Pack.open(runs / "level3") as pack:
        right = blocks(pack, port(pack, Ops(format=format, seed=1)))
        wrong = blocks(pack, mistaken(pack, "geglu_halves", format=format))
        found = bisect(pack, Dump(right), format=format, model=runs / "model")
        assert found.first is None, found.sentence
        computed = [row for row in found.rows if row.computed]
        assert max(len(row.computed) for row in computed) > 20
        assert {row.status for row in computed} == {"explained"}
        assert np.median([row.times for row in computed]) > 0.1  # the bounds are not idle
        found = bisect(pack, Dump(wrong), format=format, model=runs / "model")
    assert (found.first.name, found.first.status) == (SHOWN["geglu_halves"], "wrong")
    assert found.first.times > 5 and not [row for row in found.rows if row.status == "missing"
                                          and row.entry.op == "block"]


@pytest.mark.parametrize("format", ["float32", "float16", FORMAT])
def test_what_is_carried_is_what_a_port_is_off_by(runs, monkeypatch, format):
    """Op by op the predicted deviation against the measured one, where nothing in it is dumped."""
    seen, error_of = {}, Inputs.error_of

    def watched(inputs, entry, given, truth):
        found = error_of(inputs, entry, given, truth)
        seen[entry.name] = truth, found / math.sqrt(3)
        return found

    monkeypatch.setattr(Inputs, "error_of", watched)
    with Pack.open(runs / "level3") as pack:
        dump = port(pack, Ops(format=format))
        bisect(pack, Dump(blocks(pack, dump)), format=format, model=runs / "model",
               only=["text/000/*layers.0", "unet/000/*blocks.*", "decode/*blocks.0*"])
        same = {entry.sha256: dump[name] for name, entry in pack.entries.items() if name in dump}
        ratios = {}
        for name, (truth, deviation) in seen.items():
            measured = rms(same[pack.entries[name].sha256].reshape(truth.shape), truth)
            if measured:
                ratios[name] = rms(deviation, 0.0) / measured
    assert len(ratios) > 150
    # Errors of a layer's inputs are not independent: a tenth of the ops has somewhat more.
    assert min(ratios.values()) > 0.7, min(ratios, key=ratios.get)
    assert max(ratios.values()) < (12 if format == "float32" else 4), max(ratios, key=ratios.get)


def test_right_blocks_are_explained_and_it_is_said_by_what(runs, blind):
    for seed in range(2):
        found = judged(blind, runs, port(blind, Ops(format=FORMAT, seed=seed)), format=BLIND)
        assert found.first is None, found.sentence
        assert not [row for row in found.rows if row.status == "open"]
        assert [row for row in found.rows if row.notes == ("by the spread",)]


def test_without_a_spread_a_bound_above_the_tensors_size_says_nothing(runs):
    """Neither that the block is right nor that it is wrong."""
    with Pack.open(runs / "level3") as pack:
        wrong = port(pack, Ops(format=FORMAT, mistake="geglu_halves", where="unet"))
        found = judged(pack, runs, wrong, format=BLIND)
    row = next(row for row in found.rows if row.name == SHOWN["geglu_halves"])
    assert (row.status, row.notes) == (
        "open", ("the bound says nothing here: dump an op between",))
    assert found.first is None and "could not be judged" in found.sentence


def test_by_the_spread_a_block_is_wrong_where_the_bound_says_nothing(runs, blind):
    dump = blocks(blind, port(blind, Ops(format=FORMAT)))
    name = SHOWN["geglu_halves"]
    found = judged(blind, runs, dump | {name: dump[name][:, ::-1]}, format=BLIND)
    assert (found.first.name, found.first.status) == (name, "wrong")
    lost = dump[name].copy()
    lost[0, 0, 0, 0] = np.inf
    with Pack.open(runs / "level3") as pack:
        for each in (pack, blind):
            found = judged(each, runs, dump | {name: lost}, format=BLIND).first
            assert (found.name, found.status, found.at) == (name, "wrong", (0, 0, 0, 0))


def test_an_error_that_only_all_together_shows_is_a_region(runs, pack):
    """The block's own share is within the spread, all of it is not, and nothing before is bad."""
    name = SHOWN["geglu_halves"]
    given = f"{name.rpartition('.attentions')[0]}.resnets.0"
    dump = blocks(pack, port(pack, Ops(format=FORMAT)))
    limit = pack.entries[name].tolerance[FORMAT]["spread"]["rms"]
    dump |= {given: dump[given] + 0.9 * limit, name: dump[name] + 1.5 * limit}
    found = judged(pack, runs, dump, only=[name])
    assert (found.first.name, found.first.status) == (name, "suspect")
    assert "dump the ops between" in found.sentence


def test_float32_blocks_are_held_to_both(runs, pack):
    """The bound tells more here; the spread is asked as well."""
    found = bisect(pack, Dump(blocks(pack, mistaken(pack, "geglu_halves"))),
                   model=runs / "model", first_only=True).first
    assert (found.name, found.status) == (SHOWN["geglu_halves"], "wrong")
