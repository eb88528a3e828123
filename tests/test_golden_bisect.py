"""bisect names the first wrong op of a port that shares no code with refsd, and the reason."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from golden_mistakes import MISTAKES
from golden_port_ops import Ops
from golden_runs import WEIGHTS, Dump, blocks, fused, mistaken, port
from threadpoolctl import threadpool_info

from refsd import parallel
from refsd.__main__ import main
from refsd.errors import UsageError
from refsd.golden.comparing.bisect import bisect
from refsd.golden.comparing.excess import excess
from refsd.golden.packs.pack import Pack
from refsd.golden.recording.replay import arrays_of
from refsd.golden.tolerances.formats import FORMATS
from refsd.registry import dispatch, ops, use

SEEDS = 2
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pack(runs):
    with Pack.open(runs / "level3") as opened:
        yield opened


def test_the_port_has_every_tensor_that_an_op_made(pack):
    entries = pack.entries.values()
    made = {e.name for e in entries if e.op not in (None, "block") or e.stage == "tokens"}
    dump = port(pack, Ops())
    assert made <= dump.keys()
    extra = {name for name in dump.keys() - pack.entries.keys()
             if not name.startswith(("unet/001/", "unet/002/"))}
    assert not extra


def test_names_the_wrong_op_and_why(runs, pack, capsys):
    """30 mistakes and more: the op of each, the reason of four in five."""
    right, lines = 0, []
    for key, mistake in MISTAKES.items():
        found = bisect(pack, Dump(mistaken(pack, key, whole=False)), model=runs / "model",
                       first_only=True)
        assert found.first is not None, f"{key}: not found"
        assert found.first.name == mistake.first, f"{key}: {found.sentence}"
        reason = found.first.finding and found.first.finding.reason
        right += reason in mistake.reasons
        lines.append(f"{key:<18} {reason!s:<22} {mistake.first}")
    print("\n".join(lines))
    assert len(MISTAKES) >= 30
    assert right >= 0.8 * len(MISTAKES), capsys.readouterr().out


@pytest.mark.parametrize("format", ["float32", "float16", "bfloat16"])
def test_rounding_is_no_mistake(runs, pack, format):
    """Sums in an order that the seed draws. tests/parity has 20 seeds of each."""
    for seed in range(SEEDS):
        dump = Dump(port(pack, Ops(format=format, seed=seed)))
        found = bisect(pack, dump, format=format, model=runs / "model")
        assert found.first is None, f"seed {seed}: {found.sentence}"
        judged = [row for row in found.rows if row.status == "explained"]
        assert len(judged) >= 380
        assert max(row.times for row in judged) > 0.5  # the bounds are not idle


class Sorted(Ops):
    """Adds up the smallest terms first: the sum drifts as far down as it can and comes back."""

    def _sum(self, x):
        return np.cumsum(np.sort(x, axis=-1), axis=-1, dtype="f4")[..., -1]


def test_a_bad_order_of_sums_is_no_mistake(runs, pack):
    found = bisect(pack, Dump(port(pack, Sorted())), model=runs / "model")
    assert found.first is None, found.sentence
    # ... and is no excuse for a wrong eps, which is as small.
    dump = Dump(mistaken(pack, "group_norm_eps", Sorted))
    found = bisect(pack, dump, model=runs / "model", first_only=True)
    assert found.first.name == MISTAKES["group_norm_eps"].first
    assert found.first.finding.reason == "wrong_eps"


def test_a_short_format_is_not_taken_for_float32(runs, pack):
    dump = Dump(port(pack, Ops(format="bfloat16")))
    found = bisect(pack, dump, model=runs / "model", first_only=True)
    assert found.first.name == "text/000/text_model.embeddings.token_embedding"


def test_two_mistakes_are_two_offenders(runs, pack):
    """The second is wrong on its own inputs, whatever it was handed."""
    second = "decode/decoder.up_blocks.1.resnets.0.add"

    def after(name, array):
        return (-array, -array) if name == second else (array, array)

    dump = Dump(port(pack, Ops(mistake="geglu_halves", where="unet"), after=after))
    found = bisect(pack, dump, model=runs / "model")
    assert found.first.name == MISTAKES["geglu_halves"].first
    assert second in [row.name for row in found.later]
    assert all("geglu" in row.name or row.name == second for row in found.later)
    inherited = next(row for row in found.rows if row.name == "decode/decoder.conv_out")
    assert inherited.status == "explained" and inherited.inherited > 1000 * inherited.local


def test_the_first_nan_is_named_and_not_its_heirs(runs, pack):
    place = "unet/000/mid_block.resnets.0.conv1"

    def after(name, array):
        if name == place:
            array = array.copy()
            array[0, 0, 0, 0] = np.nan
        return array, array

    found = bisect(pack, Dump(port(pack, Ops(), after=after)), model=runs / "model")
    assert found.first.name == place and found.first.at == (0, 0, 0, 0)
    assert found.first.finding.reason == "nan"
    heir = next(row for row in found.rows if row.name == "denoise/000/guided")
    assert heir.status == "explained" and heir.inherited == math.inf


def test_a_single_wrong_element_is_called_one(runs, pack):
    """Two threads that add to the same number; and a tile that was never written."""
    name = "unet/000/mid_block.resnets.0.conv1"
    dump = port(pack, Ops())
    for at, said in (((0, 3, 1, 1), "allows, in 1 of 128 elements, at (0, 3, 1, 1)"),
                     ((1, 2, slice(0, 2), slice(0, 2)), "4 of 128 elements, in a tile: [1, 2, ")):
        array = dump[name].copy()
        array[at] += 1
        found = bisect(pack, Dump(dump | {name: array}), model=runs / "model", only=[name])
        assert said in found.sentence, found.sentence
        assert found.first.beyond == np.size(array[at])
    found = bisect(pack, Dump(dump | {name: -dump[name]}), model=runs / "model", only=[name])
    assert found.first.beyond > 100 and " elements" not in found.sentence


def test_ids_may_be_floats_and_may_be_wrong(runs, pack):
    """Wrong ids are named; an op that cannot take them is not judged."""
    dump = port(pack, Ops())
    right = dump | {"tokens/000/ids": dump["tokens/000/ids"].astype("f4")}
    assert bisect(pack, Dump(right), model=runs / "model").first is None

    wrong = dump | {"tokens/000/ids": dump["tokens/000/ids"] + 10**6}
    rows = bisect(pack, Dump(wrong), model=runs / "model").rows
    assert (rows[0].name, rows[0].status) == ("tokens/000/ids", "wrong")
    assert (rows[1].entry.op, rows[1].status) == ("embedding", "open")
    assert "there are rows 0 to" in rows[1].notes[0]


@pytest.mark.parametrize("format", ["float32", "float16", "bfloat16"])
def test_what_is_not_dumped_is_computed(runs, pack, format):
    found = bisect(pack, fused(port(pack, Ops(format=format))), format=format,
                   model=runs / "model")
    assert found.first is None, found.sentence
    assert not [row for row in found.rows if row.borrowed]
    convolution = next(r for r in found.rows if r.name == "unet/000/down_blocks.0.resnets.0.conv1")
    assert convolution.computed == ("unet/000/down_blocks.0.resnets.0.silu",)


def test_a_mistake_in_a_fused_op_shows_in_the_next(runs, pack):
    found = bisect(pack, fused(mistaken(pack, "no_silu")), model=runs / "model",
                   first_only=True).first
    assert found.name == "unet/000/time_embedding.linear_2"
    assert found.finding.reason == "missing_silu"


def test_a_port_that_dumps_blocks_is_judged_block_by_block(runs, pack):
    """From a pack of all ops, those between two blocks are computed."""
    right = bisect(pack, Dump(blocks(pack, port(pack, Ops()))), model=runs / "model")
    assert right.first is None, right.sentence
    judged = {row.name for row in right.rows if row.status == "explained"}
    assert "unet/000/down_blocks.0.attentions.0" in judged

    wrong = Dump(blocks(pack, mistaken(pack, "geglu_halves")))
    found = bisect(pack, wrong, model=runs / "model", first_only=True).first
    assert (found.name, found.status) == ("unet/000/down_blocks.0.attentions.0", "wrong")
    assert MISTAKES["geglu_halves"].first in found.computed


def with_spread(pack, rms):
    """The pack as if its making had found this spread of every tensor."""
    for entry in pack.entries.values():
        entry.tolerance["float32"] = {"spread": {"rms": rms, "max": 4 * rms}}
    return pack


def test_blocks_give_a_region(runs, pack):
    """Level 2, no inputs: the total error against what a right port may differ by."""
    dump = mistaken(pack, "geglu_halves")
    mine = blocks(pack, dump)
    with Pack.open(runs / "level2") as shallow:
        found = bisect(with_spread(shallow, 1e-4), Dump(mine), model=runs / "model")
    assert found.first.status == "suspect"
    assert found.first.name == "unet/000/down_blocks.0.attentions.0"
    assert found.good.name == "unet/000/down_blocks.0.resnets.0"
    assert found.good.name in found.sentence and found.first.name in found.sentence


def test_without_inputs_and_spread_nothing_is_claimed(runs, pack):
    mine = blocks(pack, mistaken(pack, "geglu_halves"))
    with Pack.open(runs / "level2") as shallow:
        found = bisect(shallow, Dump(mine), model=runs / "model")
    rows = {row.name: row for row in found.rows}
    assert rows["unet/000/down_blocks.0.attentions.0"].status == "open"
    assert "could not be judged" in found.sentence


def test_a_model_that_is_not_found_is_said(runs, pack):
    """A pack of somebody's folder does not keep where it lies: without weights little is judged."""
    found = bisect(pack, Dump({"unet/000/conv_in": pack.read("unet/000/conv_in"),
                               "denoise/noise": pack.read("denoise/noise")}))
    assert "1 could not be judged (not to be computed on the port's own inputs: the pack was " in (
        found.sentence)
    assert found.sentence.endswith("Say where it is, with -m MODEL).")


def test_a_dump_with_other_names_is_refused(runs, pack):
    with pytest.raises(UsageError, match="none of the pack's"):
        bisect(pack, Dump({"x": np.zeros(3)}), model=runs / "model")


def test_int8_is_a_format_of_weights_and_shared_exponents_are_refused(runs, pack):
    coarse = {part: {name: eight_bits(w) if w.ndim > 1 else w for name, w in found.items()}
              for part, found in WEIGHTS.items()}
    dump = Dump(port(pack, Ops(), weights=coarse))
    assert bisect(pack, dump, format="int8", model=runs / "model").first is None
    assert bisect(pack, dump, model=runs / "model", first_only=True).first is not None
    with pytest.raises(UsageError, match="share an exponent"):
        bisect(pack, dump, format="bfloat8_b", model=runs / "model")


def eight_bits(weight):
    """Each output channel in 127 steps either way of its largest."""
    step = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True) / 127
    return (np.rint(weight / step) * step).astype("f4")


@pytest.mark.parametrize("large, limited", [(1 << 22, True), (0, False)])
def test_small_tensors_take_one_thread_of_blas(runs, pack, monkeypatch, large, limited):
    """Its threads spin while they wait for each other, which costs most where others run."""
    monkeypatch.setattr("refsd.golden.comparing.bisect.LARGE", large)
    seen = []

    class Watching(Dump):
        def read(self, name, shape=None):
            seen.append(max([pool["num_threads"] for pool in threadpool_info()
                             if pool["user_api"] == "blas"], default=1))
            return super().read(name, shape)

    with parallel.limited(2):
        bisect(pack, Watching({"tokens/000/ids": pack.read("tokens/000/ids")}),
               only=["tokens/000/ids"])
        assert set(seen) == ({1} if limited else {2})


def test_excess_by_hand():
    half = FORMATS["float16"]
    times, at, rms, *_ = excess(np.array([1.0, 2.5, 3.0]), np.array([1.0, 2.0, 3.0]), 0.25, half)
    assert (times, at) == (2.0, (1,))
    assert math.isclose(rms, 0.5 / math.sqrt(3))

    nan, inf = math.nan, math.inf
    assert excess(np.array([nan, inf]), np.array([nan, inf]), 0.0, half)[0] == 0
    assert excess(np.array([nan]), np.array([1.0]), 1.0, half)[0] == inf
    assert excess(np.array([1.0]), np.array([nan]), 1.0, half)[0] == inf
    assert excess(np.array([inf]), np.array([70000.0]), 1.0, half)[0] == 0  # beyond 65504
    assert excess(np.array([inf]), np.array([60000.0]), 1.0, half)[0] == inf
    assert excess(np.array([-inf]), np.array([70000.0]), 1.0, half)[0] == inf
    assert excess(np.array([1.0]), np.array([1.0]), 0.0, half)[0] == 0
    assert excess(np.array([1.5]), np.array([1.0]), 0.0, half)[0] == inf


def command(runs, mine, *options):
    return main(["golden", "bisect", str(runs / "level3"), str(mine), "-m",
                 str(runs / "model"), *options])


def test_the_command_says_it_first(runs, pack, tmp_path, capsys):
    np.savez(tmp_path / "mine.npz", **mistaken(pack, "groups"))
    assert command(runs, tmp_path / "mine.npz") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{MISTAKES['groups'].first} (op group_norm, tensor ")
    assert "in 2 groups, not in 4" in lines[0]
    assert "wrong_groups" in lines[3]

    assert command(runs, tmp_path / "mine.npz", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["first"]["name"] == MISTAKES["groups"].first
    assert found["first"]["finding"]["reason"] == "wrong_groups"
    assert len(found["rows"]) == len(pack.entries)


def test_the_command_gives_0_when_all_is_explained(runs, pack, tmp_path, capsys):
    np.savez(tmp_path / "mine.npz", **port(pack, Ops(format="float16")))
    assert command(runs, tmp_path / "mine.npz", "--format", "fp16") == 0
    assert capsys.readouterr().out.startswith("All of the ")


def test_a_pack_is_its_own_port(runs, pack):
    """Though its inputs were rounded on their way there, and cancel in sums."""
    mine = {name: pack.read(name) for name in pack.entries}
    found = bisect(pack, Dump(mine), model=runs / "model")
    noted = [row.name for row in found.rows if row.notes == ("the golden result",)]
    assert noted and found.first is None
    mine[noted[0]] = mine[noted[0]] + np.float32(1e-6) * abs(mine[noted[0]]).max()
    assert bisect(pack, Dump(mine), model=runs / "model").first.name == noted[0]


def test_a_pack_of_single_ops():
    """Every op alone on hard inputs, which the pack gives; one of a port's ops is another one."""
    wrong = ops()["gelu_tanh"].definition
    with Pack.open(ROOT / "golden" / "ops" / "activation") as cases, use("numpy"):
        mine = {}
        for entry in cases.entries.values():
            if entry.op is not None:
                given = arrays_of(entry, tensor=cases.read, weight=None)
                mine[entry.name] = dispatch(entry.op, (), given | entry.options)
        assert len(mine) > 30
        found = bisect(cases, Dump(mine))
        assert found.first is None, found.sentence

        names = [entry.name for entry in cases.entries.values() if entry.op == "gelu"]
        for name in names:
            mine[name] = wrong(cases.read(cases.entries[name].inputs["x"].removeprefix("tensor:")))
        found = bisect(cases, Dump(mine))
    assert found.first.name == names[0]
    assert found.first.finding.reason == "gelu_tanh"
    assert {row.name for row in found.bad} <= set(names)
