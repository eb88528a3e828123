"""Golden packs of a text that a GPT-2 continues: what is in them, replayed, compared, bisected."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tiny_gpt2

from refsd import GPT2
from refsd.__main__ import main
from refsd.errors import UsageError
from refsd.golden.comparing.bisect import bisect
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.packs.pack import Pack
from refsd.golden.recording import kinds, replay
from refsd.golden.recording.invariants import Worst
from refsd.golden.recording.make import make
from refsd.golden.recording.pipeline_ops import next_token
from refsd.golden.recording.record import Selection
from refsd.golden.recording.request import Request
from refsd.golden.recording.text import TextRequest
from refsd.golden.tolerances import spread, tolerance
from refsd.golden.tolerances.bounds.pipeline import pipeline_bound
from refsd.random import TorchGenerator

REQUEST = TextRequest("red cat", tokens=4, temperature=1.5, repetition_penalty=1.1, seed=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_gpt2.write(tmp_path_factory.mktemp("gpt2") / "model")


@pytest.fixture(scope="module")
def levels(folder, tmp_path_factory):
    """A pack of every level, with all steps opened."""
    place, found = tmp_path_factory.mktemp("levels"), []
    for level in range(5):
        make(place / str(level), REQUEST, model=folder, tolerance=tolerance.of,
             selection=Selection(level=level, steps=None, attention=("*h.1*",)))
        found.append(Pack.open(place / str(level)))
    return found


def names(pack, stage=None):
    return [entry.name for entry in pack.manifest.tensors if stage in (None, entry.stage)]


def test_what_each_level_has(levels):
    assert names(levels[0]) == ["tokens/000/ids", "next/ids"]
    step = ["next/000/logits", "next/000/probabilities", "next/000/noise", "next/000/token"]
    assert names(levels[1])[1:5] == step and len(levels[1].entries) == 2 + 4 * 4
    inside = [name.removeprefix("gpt2/000/") for name in names(levels[2])
              if name.startswith("gpt2/000/") and ":" not in name]
    assert inside == ["wte", "wpe", "add", "h.0", "h.1", "ln_f", "slice", "wte.2"]
    ops = Counter(entry.op for entry in levels[3].manifest.tensors if entry.stage == "gpt2")
    assert ops["attention"] == 8 and ops["concat"] == 2 * 2 * 3 and ops["gelu_tanh"] == 8
    assert ops["layer_norm"] == 4 * 5 and ops["linear"] == 4 * (2 * 4 + 1)
    opened = [entry.name for entry in levels[4].manifest.tensors
              if entry.op in ("attention_scores", "attention_probabilities")]
    assert len(opened) == 2 * 4 and all("/h.1.attn.attention." in name for name in opened)
    for lower, higher in zip(levels, levels[1:]):
        assert set(names(lower)) < set(names(higher))


def test_it_is_the_text_that_is_generated(levels, folder):
    """In float64; the noise is what the seed draws, in float32."""
    model, pack = REQUEST.load(folder), levels[3]
    found = model.generate("red cat", max_new_tokens=4, temperature=1.5, repetition_penalty=1.1,
                           generator=7, stop_ids=())
    assert pack.read("next/ids").tolist() == [found.ids] == [pack.manifest.recipe["ids"]]
    assert [int(pack.read(f"next/{i:03d}/token").item()) for i in range(4)] == found.ids
    ids = model.tokenizer("red cat")
    logits = model([ids + found.ids]).logits
    for i in range(4):
        read = pack.read(f"next/{i:03d}/logits")[0, 0]
        assert np.allclose(read, logits[0, len(ids) - 1 + i], rtol=1e-6, atol=1e-6)  # of float32
        assert abs(pack.read(f"next/{i:03d}/probabilities").sum() - 1) < 1e-6
    generator = TorchGenerator(7)
    for i in range(4):
        noise = generator.exponential(tiny_gpt2.END + 1)
        assert np.array_equal(pack.read(f"next/{i:03d}/noise"), noise)
    model = pack.manifest.model
    assert model["name"] == "model" and model["configs"]["gpt2"]["n_embd"] == 24
    assert model["max_length"] == 32 and list(model["files"]) == ["model.safetensors"]


def test_all_of_it_can_be_replayed(levels, folder):
    pack = levels[4]
    weights, seen = replay.weights(pack, folder), Counter()
    for entry in pack.manifest.tensors:
        if entry.op in (None, "block"):
            continue
        found = replay.replay(entry, replay.arrays_of(entry, tensor=pack.read, weight=weights))
        truth = pack.read(entry.name)
        if entry.dtype == "int64":
            assert np.array_equal(found, truth), entry.name
        elif (most := entry.tolerance.get("float32", {}).get("worst")) is not None:
            assert abs(found - truth).max() <= most, entry.name
        seen[entry.op] += 1
    assert seen["next_token"] == 4 and seen["softmax"] == 4 and seen["attention_scores"] == 4
    with pytest.raises(UsageError, match="Say where it is"):
        replay.weights(pack)("weight:gpt2.wte.weight")


def test_what_must_hold_holds(levels):
    checks = {check["name"].partition(":")[0] for check in levels[4].manifest.invariants}
    assert checks == {"attention", "layer_norm", "softmax"}
    assert all(0 <= check["value"] <= check["limit"] for check in levels[4].manifest.invariants)
    worst = Worst()
    worst.softmax(np.array([[0.5, 0.5 + 1e-12]]), "x")
    [(value, limit, name)] = worst.found.values()
    assert value > limit and name == "x"


@pytest.mark.parametrize("wrong", [None, "h.0.mlp.c_fc.weight"])
def test_a_port_is_compared_and_bisected(levels, folder, tmp_path, wrong):
    """refsd's own float32 as the port: right, and with one weight off by a hundredth of itself."""
    weights = tiny_gpt2.tensors()
    if wrong:
        weights[wrong] = weights[wrong] * np.float32(1.01)
    tiny_gpt2.write(tmp_path / "model", weights=weights)
    port = GPT2.from_pretrained(tmp_path / "model", backend="numpy")
    truth = REQUEST.settled(REQUEST.load(folder))
    make(tmp_path / "mine", truth, pipe=port, model=tmp_path / "model",
         selection=Selection(level=3, steps=None))
    pack = levels[3]
    with Pack.open(tmp_path / "mine") as mine:
        assert names(mine) == names(pack)  # it goes on with the truth's tokens
    with Candidate.open(tmp_path / "mine") as candidate:
        found = bisect(pack, candidate, model=folder)
    first = found.first and found.first.name
    assert first == (wrong and "gpt2/000/h.0.mlp.c_fc"), found.sentence
    # its own inputs are right: no further op is blamed, but for the same weight in later steps
    assert {row.name.rpartition("/")[2] for row in found.later} <= {"h.0.mlp.c_fc"}


def test_a_port_that_chooses_wrongly_is_found(levels, folder, tmp_path):
    """At another temperature it takes other tokens; the tensors are right all the same."""
    truth = REQUEST.settled(REQUEST.load(folder))
    make(tmp_path / "mine", replace(truth, temperature=0.01), model=folder,
         selection=Selection(level=3, steps=None))
    with Candidate.open(tmp_path / "mine") as candidate:
        found = bisect(levels[3], candidate, model=folder)
    blamed = {row.name.rpartition("/")[2] for row in found.bad}
    assert blamed == {"token"}, found.sentence


@pytest.mark.parametrize("logits, noise, options, allowed", [
    ([1, 2, 0], None, {}, 0), ([1, 2, 2], None, {}, np.inf), ([1, 2, 2 - 1e-9], None, {}, np.inf),
    ([1, 2, 2], [1, 1, 3], {"temperature": 1.0}, 0),
    ([1, 2, 2], [1, 1, 1 + 1e-9], {"temperature": 1.0}, np.inf),
    ([1, 2, 0], [1e-3, 1, 1], {"temperature": 1.0, "top_k": 1}, np.inf),  # the cut decides
    ([1, 2, 0], None, {"repetition_penalty": 2.0}, np.inf), ([3], None, {}, 0)])
def test_which_tokens_a_port_may_take(logits, noise, options, allowed):
    options = {"temperature": 0.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0,
               **options}
    inputs = {"logits": np.float64(logits), "ids": np.array([1]),
              "noise": None if noise is None else np.float64(noise)}
    if noise is None:
        del inputs["noise"]
    truth = next_token(**inputs, **options)
    assert truth.dtype == "int64" and truth.shape == (1,)
    assert pipeline_bound("next_token", inputs, options, truth, "float32").tolist() == [allowed]


def test_a_spread_is_measured(folder, tmp_path):
    make(tmp_path / "p", REQUEST, model=folder, tolerance=tolerance.of,
         selection=Selection(level=1))
    spread.add_spread(tmp_path / "p", formats=("float32", "bfloat16"), runs=2, model=folder)
    with Pack.open(tmp_path / "p") as pack, Candidate.open(tmp_path / "p") as same:
        for step in range(4):
            limits = pack.entries[f"next/{step:03d}/logits"].tolerance
            size = abs(pack.read(f"next/{step:03d}/logits")).max()
            assert 1e-9 * size < limits["float32"]["spread"]["rms"] < 1e-4 * size
            assert limits["bfloat16"]["spread"]["rms"] > 1e3 * limits["float32"]["spread"]["rms"]
        assert compare(pack, same).ok


def test_a_recipe_tells_its_kind():
    drawn = {"prompt": "a", "width": 8, "height": 8, "steps": 1, "cfg_scale": 1.0,
             "scheduler": {"_class_name": "DDIMScheduler"}}
    assert kinds.kind_of(drawn) is Request and kinds.kind_of(REQUEST.plain()) is TextRequest
    told = REQUEST.settled(None) if REQUEST.ids else TextRequest("a", ids=(1, 2))
    assert kinds.request_of(json.loads(json.dumps(told.plain()))) == told
    assert kinds.request_of(drawn) == Request(**drawn)
    del drawn["width"]
    assert kinds.kind_of(drawn) is Request  # though a text needs no more than the prompt


def test_the_command_records_the_bundled_model(tmp_path, capfd):
    assert main(["golden", "make", "-o", str(tmp_path / "p"), "--text", "a glossy", "--tokens", "2",
                 "--level", "3", "--spread", "0", "-q"]) == 0
    with Pack.open(tmp_path / "p") as pack:
        assert pack.manifest.model["name"] == "refsd bundled GPT-2"
        opened = {entry.step for entry in pack.manifest.tensors if entry.stage == "gpt2"}
        assert opened == {0}  # as --record-steps says where it says nothing
        assert replay.weights(pack)("weight:gpt2.wpe.weight").shape == (64, 96)
        assert "noise" not in "".join(names(pack))
    assert main(["golden", "info", str(tmp_path / "p")]) == 0
    capfd.readouterr()


@pytest.mark.parametrize("args, words", [
    (["--text"], "give a prompt"), (["a", "--tokens", "3"], "--tokens is for --text"),
    (["a", "--text", "--ops"], "--suite nor --ops"),
    (["a", "--text", "--tokens", "99"], "tokens is 99; give an integer from 1 to 31"),
    (["a", "--text", "--level", "2", "--tokens", "2", "--record-steps", "5"],
     "step 5 is to be opened")])
def test_what_the_command_refuses(folder, tmp_path, capfd, args, words):
    code = main(["golden", "make", "-o", str(tmp_path / "p"), "-m", str(folder), "-q", *args])
    assert code == 2 and words in capfd.readouterr().err
