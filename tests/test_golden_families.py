"""Golden packs, and the tools about them, of models with other parts than Stable Diffusion 1's.

The port is refsd itself in float32, with what its parts record, and with a mistake planted.
"""

import functools
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import tiny_three
import tiny_xl
from golden_runs import Dump

from refsd.__main__ import main
from refsd.errors import UsageError
from refsd.golden.comparing.bisect import bisect
from refsd.golden.comparing.verdicts import Status
from refsd.golden.packs.pack import Pack
from refsd.golden.porting import port
from refsd.golden.recording import replay
from refsd.golden.recording.make import make
from refsd.golden.recording.names import is_alone, stage_of
from refsd.golden.recording.record import Recorder, Selection
from refsd.golden.recording.request import Request, load_truth
from refsd.golden.recording.run import run
from refsd.golden.recording.texts import ReadOutput
from refsd.golden.tolerances.bounds.pipeline import pipeline_bound
from refsd.golden.tolerances.simulate import simulate
from refsd.golden.tolerances.spread import add_spread
from refsd.models import mmdit
from refsd.pipelines import quantize
from refsd.pipelines.auto import AutoPipelineForText2Image
from refsd.profiling import profile
from refsd.profiling.audit import Audit
from refsd.registry import watch

MODELS = {"two texts": tiny_xl.write_model, "three texts": tiny_three.write_model}
PARTS = {
    "two texts": ["tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "unet", "vae",
                  "scheduler"],
    "three texts": ["tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder", "text_encoder_2",
                    "text_encoder_3", "transformer", "vae", "scheduler"],
}
ENDS = {  # of the first of the two texts
    "two texts": ["tokens/000/ids", "text/000/hidden_states.1", "tokens_2/000/ids",
                  "text_2/000/hidden_states.2", "text_2/000/text_embeds", "text/000/prompt_embeds",
                  "denoise/text_embeds", "denoise/time_ids"],
    "three texts": ["tokens/000/ids", "text/000/text_embeds", "text/000/hidden_states.2",
                    "tokens_2/000/ids", "text_2/000/text_embeds", "text_2/000/hidden_states.2",
                    "tokens_3/000/ids", "text_3/000/last_hidden_state", "text/000/prompt_embeds",
                    "denoise/pooled_projections"],
}
ALWAYS = ["denoise/final", "picture/image", "picture/pixels"]


@functools.cache
def family(name, place):
    """A tiny model, its truth, and a pack of all ops of a run of two steps."""
    model = MODELS[name](place / "model")
    pipe = load_truth(model)
    asked = Request(prompt="red cat", negative_prompt="re", width=32, height=32, steps=2,
                    cfg_scale=5.0, scheduler=pipe.scheduler.config.plain())
    make(place / "all", asked, pipe=pipe, model=model, selection=Selection(level=3))
    return SimpleNamespace(name=name, model=model, pipe=pipe, asked=asked,
                           pack=Pack.open(place / "all"))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return {name: tmp_path_factory.mktemp("family") for name in MODELS}


@pytest.fixture(params=MODELS)
def one(request, places):
    return family(request.param, places[request.param])


@pytest.fixture
def of(places):
    return lambda name: family(name, places[name])


class Kept(dict):
    """In place of a Writer."""

    def add(self, name, array, **more):
        self[name] = np.array(array)

    def holds(self, name):
        return name in self

    def checkpoint(self, *args, **options):
        """Of no interest here."""


def single(one):
    return AutoPipelineForText2Image.from_pretrained(one.model, backend="numpy", exact=True)


def dumped(one, pipe):
    kept = Kept()
    run(pipe, one.asked, Recorder(kept, Selection(level=3)))
    return Dump({name: kept[name] for name in kept.keys() & one.pack.entries.keys()})


def test_every_level_holds_the_ones_below(one, tmp_path):
    names = []
    for level in (0, 1, 2):
        make(tmp_path / str(level), one.asked, pipe=one.pipe, model=one.model,
             selection=Selection(level=level))
        with Pack.open(tmp_path / str(level)) as pack:
            names.append(set(pack.entries))
    names.append(set(one.pack.entries))
    assert names[0] < names[1] < names[2] < names[3]
    again = [name.replace("/000/", "/001/") for name in ENDS[one.name] if "/000/" in name]
    assert names[0] == {*ENDS[one.name], *again, *ALWAYS}


def test_the_manifest_says_what_the_model_is_made_of(one):
    about = one.pack.manifest.model
    assert about["family"] == {"two texts": "Stable Diffusion XL",
                               "three texts": "Stable Diffusion 3"}[one.name]
    assert about["parts"] == PARTS[one.name]
    networks = {part for part in PARTS[one.name] if part != "scheduler"
                and not part.startswith("tokenizer")}
    assert about["configs"].keys() == networks
    assert about["max_lengths"].keys() == {p for p in PARTS[one.name] if p.startswith("tokenizer")}


def test_inputs_are_known_by_the_name_that_they_were_given(of):
    """Also where a pipeline copied them, once for each picture, or cast them."""
    two, three = of("two texts").pack.entries, of("three texts").pack.entries
    assert two["unet/000/add_embedding.reshape"].inputs["x"] == "tensor:denoise/time_ids"
    assert two["unet/000/add_embedding.concat"].inputs["arrays"][0] == "tensor:denoise/text_embeds"
    assert two["text/concat.3"].inputs["arrays"] == [
        "tensor:text_2/001/text_embeds", "tensor:text_2/000/text_embeds"]
    assert three["text/concat.7"].inputs["arrays"] == ["tensor:text/concat.6",
                                                       "tensor:text/concat.3"]
    pooled = three["transformer/000/time_text_embed.text_embedder.linear_1"].inputs["x"]
    assert pooled == "tensor:denoise/pooled_projections"
    for entries in (two, three):
        left = {name.rpartition(":")[2] for name in entries if ":" in name}
        assert left == {"ids", "index", "timesteps"}


def test_blocks_are_what_modules_of_these_names_give(of):
    """The places of a transformer's patches are not with the time that is embedded next."""
    three, two = of("three texts").pack.entries, of("two texts").pack.entries
    outputs = {name: three[f"transformer/000/{name}"].inputs["output"].rpartition("/")[2]
               for name in ("pos_embed", "time_text_embed", "transformer_blocks.0", "norm_out")}
    assert outputs == {"pos_embed": "pos_embed.add",
                       "time_text_embed": "time_text_embed.text_embedder.add",
                       "transformer_blocks.0": "transformer_blocks.0.ff_context.add",
                       "norm_out": "norm_out.add.2"}
    assert three["transformer/000/pos_embed.slice.2"].inputs["x"].endswith("pos_embed.slice")
    places = three["transformer/000/pos_embed.to_image"].inputs["x"]
    assert places == "weight:transformer.pos_embed.pos_embed"
    assert three["text_3/000/encoder.block.1"].op == "block"
    time = two["unet/000/time_embedding"].inputs["output"]
    assert time == "tensor:unet/000/time_embedding.linear_2"
    assert two["unet/000/add_embedding.reshape"].inputs["x"] == "tensor:denoise/time_ids"


@pytest.mark.parametrize("part, stage", [
    ("text_encoder", "text"), ("text_encoder_3", "text_3"), ("tokenizer", "tokens"),
    ("tokenizer_2", "tokens_2"), ("unet", "unet"), ("transformer", "transformer"),
    ("vae", "decode"), ("gpt2", "gpt2")])
def test_stages_are_named_after_the_parts(part, stage):
    assert stage_of(part) == stage


def test_a_right_port_passes_and_every_op_replays(one):
    found = bisect(one.pack, dumped(one, single(one)), model=one.model)
    assert found.first is None, found.sentence
    assert len(found.rows) == len(one.pack.entries)
    # The second step is not opened, and a spread was not measured.
    assert {row.entry.name for row in found.rows if row.status != Status.WITHIN} == {
        "denoise/001/eps_uncond", "denoise/001/eps_cond"}


class Instead:
    """A network that is told something else."""

    def __init__(self, network, **told):
        self._network, self._told = network, told

    def __getattr__(self, name):
        return getattr(self._network, name)

    def __call__(self, *args, **options):
        changed = {key: change(options[key]) for key, change in self._told.items()}
        return self._network(*args, **options | changed)


def other_halves(rows):
    return np.concatenate(np.split(rows, 2)[::-1])


MISTAKES = {
    "the sizes left out": ("two texts", {"time_ids": np.zeros_like},
                           "unet/000/add_embedding.reshape"),
    "the vector left out": ("two texts", {"text_embeds": np.zeros_like},
                            "unet/000/add_embedding.concat"),
    "the texts' vectors exchanged": ("two texts", {"text_embeds": other_halves},
                                     "unet/000/add_embedding.concat"),
    "the pooled text not added": ("three texts", {"pooled_projections": np.zeros_like},
                                  "transformer/000/time_text_embed.text_embedder.linear_1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_first_op_that_is_given_something_else_is_named(of, mistake):
    name, told, first = MISTAKES[mistake]
    one = of(name)
    wrong = single(one)
    setattr(wrong, wrong.denoises, Instead(wrong.denoiser, **told))
    found = bisect(one.pack, dumped(one, wrong), model=one.model, first_only=True)
    assert found.first.entry.name == first, found.sentence


def test_shift_and_scale_exchanged_are_named(of, monkeypatch):
    """adaLN's: x (1 + shift) + scale, in the first block where the sum with 1 is made."""
    one, right = of("three texts"), mmdit.modulate
    monkeypatch.setattr(mmdit, "modulate", lambda x, shift, scale: right(x, scale, shift))
    found = bisect(one.pack, dumped(one, single(one)), model=one.model, first_only=True)
    assert found.first.entry.name == "transformer/000/transformer_blocks.0.norm1_context.add"


def test_texts_in_the_wrong_order_are_named(of, monkeypatch):
    """The second text encoder's states before the first's."""
    one = of("two texts")
    wrong = single(one)
    right = type(wrong).embed

    def exchanged(pipe, *texts, **options):
        prompts = right(pipe, *texts, **options)
        turned = [np.concatenate([states[:, :, 16:], states[:, :, :16]], axis=2)
                  for states in (prompts.positive, prompts.negative)]
        return prompts._replace(positive=turned[0], negative=turned[1])

    monkeypatch.setattr(type(wrong), "embed", exchanged)
    found = bisect(one.pack, dumped(one, wrong), model=one.model, first_only=True)
    assert found.first.entry.name == "text/000/prompt_embeds", found.sentence


def test_probabilities_have_the_mask(of, tmp_path):
    """T5's places are added to its scores: the recorded shares are those that weigh the values."""
    one, name = of("three texts"), "text_3/000/encoder.block.1.layer.0.SelfAttention.attention"
    make(tmp_path / "pack", one.asked, pipe=one.pipe, model=one.model, selection=Selection(
        level=4, attention=(name,), include=(name, f"{name}.*", name.replace("attention", "v"))))
    with Pack.open(tmp_path / "pack") as pack:
        shares = pack.read(f"{name}.probabilities").astype("f8")
        v, result = (pack.read(other).astype("f8") for other in (
            name.replace("attention", "v"), name))
        heads = np.stack(np.split(v, shares.shape[1], axis=2), axis=1)
        mixed = np.concatenate(list((shares @ heads).swapaxes(0, 1)), axis=2)
        # S products of shares and values that float32 holds, within 2^-24 each, and their sum
        assert abs(mixed - result).max() <= 3 * 2**-24 * abs(v).max()

        entry = pack.entries[f"{name}.probabilities"]
        inputs = replay.arrays_of(entry, tensor=pack.read, weight=None)
        found = replay.replay(entry, inputs)
        bound = pipeline_bound(entry.op, inputs, entry.options, found, "float32")
        assert (abs(found - shares) <= 2 * bound).all()
        assert bound.max() < 1e-3
        del inputs["mask"]
        without = pipeline_bound(entry.op, inputs, entry.options, found, "float32")
        assert (bound > without).any()


def test_the_shift_of_a_pictures_size_is_recorded(tmp_path):
    scheduler = {**tiny_three.SCHEDULER, "use_dynamic_shifting": True}
    model = tiny_three.write_model(tmp_path / "model", scheduler=scheduler,
                                   without=("text_encoder_3",))
    pipe = load_truth(model)
    asked = Request(prompt="red cat", width=32, height=32, steps=2, cfg_scale=5.0,
                    scheduler=pipe.scheduler.config.plain())
    make(tmp_path / "pack", asked, pipe=pipe, model=model, selection=Selection(level=2, steps=()))
    with Pack.open(tmp_path / "pack") as pack:
        entry = pack.entries["denoise/001/latents"]
        assert entry.options["mu"] == pipe.scheduler.mu_of(4)
        found = bisect(pack, Dump({name: pack.read(name) for name in pack.entries}), model=model)
        assert {row.status for row in found.rows if row.entry.op in (
            "scheduler_step", "scale_model_input")} == {Status.WITHIN}
        assert "text_encoder_3" not in pack.manifest.model["parts"]


def test_sizes_that_a_model_has_no_places_for_are_refused(of):
    asked = vars(of("three texts").asked)
    for wrong in ({"width": 40}, {"height": 208}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Request(**{**asked, **wrong}).check(of("three texts").pipe)


def test_what_is_odd_in_a_text_is_said_once_for_all_runs(of, tmp_path, caplog):
    one = of("two texts")
    pipe = load_truth(one.model)
    odd = Request(**{**vars(one.asked), "prompt": "a (red:1.2) cat " + "cat " * 20, "steps": 1})
    with caplog.at_level(logging.WARNING):
        make(tmp_path / "pack", odd, pipe=pipe, model=one.model, selection=Selection(level=0))
        add_spread(tmp_path / "pack", formats=("float32",), runs=2, pipe=pipe)
    assert len(caplog.records) == 1 and "(red:1.2)" in caplog.text


def test_a_ports_plan_has_all_that_a_pack_has(one):
    plan = port.plan("mine", str(one.model))
    blocks = {port.kind_of(entry.name) for entry in one.pack.entries.values()
              if entry.op == "block" or is_alone(entry.name.rpartition("/")[2])} - {None}
    assert blocks == {block["name"] for block in plan["blocks"]}
    stages = {entry.stage for entry in one.pack.entries.values()}
    assert stages == set(plan["stages"])
    inside = {stage_of(part) for part in PARTS[one.name]}
    used = {entry.op for entry in one.pack.entries.values()
            if entry.stage in inside and (entry.stage, entry.step) != ("text", None)}
    # A band of the picture is cut out before it is decoded, here the whole.
    used -= {"block", None, "unscale_latents", "slice"}
    assert used <= {op["name"] for op in plan["ops"] if op["calls"]}
    page = port.readme(plan, {})
    layer = {"two texts": "unet/000/conv_in", "three texts": "transformer/000/context_embedder"}
    assert f"`{layer[one.name]}.npy`" in page and layer[one.name] in one.pack.entries


def test_a_profile_draws_the_same_picture(one):
    pipe, options = single(one), {"num_inference_steps": 2, "generator": 7, "guidance_scale": 4.0,
                                  "negative_prompt": "re", "height": 32, "width": 32}
    found = profile(pipe, "red cat", **options)
    drawn = pipe("red cat", output_type="np", **options).images
    np.testing.assert_array_equal(found.images, drawn)
    assert [stage.name for stage in found.stages] == ["text", "denoise", "decode"]
    assert len(found.steps) == 2
    encoders = {call.layer.partition(".")[0] for call in found.calls if call.stage == "text"}
    assert {name for name in encoders if name} == {
        part for part in PARTS[one.name] if part.startswith("text_encoder")}
    assert not any(".text_model." in call.layer for call in found.calls)


def test_a_profile_says_once_what_is_odd_in_a_text(of, caplog):
    with caplog.at_level(logging.WARNING):
        profile(single(of("two texts")), "a (red:1.2) cat", num_inference_steps=1)
    assert len(caplog.records) == 1 and "(red:1.2)" in caplog.text


def test_of_an_encoder_is_recorded_what_is_read():
    read = []
    output = ReadOutput(SimpleNamespace(text_embeds=None, pooler_output=1, hidden_states=[2, 3, 4]),
                        lambda path, array: read.append((path, array)))
    assert output.text_embeds is None and output.hidden_states[-2] == 3
    assert output.pooler_output == output.pooler_output == 1
    assert read == [("hidden_states.1", 3), ("pooler_output", 1)]


def test_an_audit_sees_every_part(one):
    audit, pipe = Audit(), single(one)
    with watch(audit):
        pipe("red cat", num_inference_steps=1, height=32, width=32, generator=7)
    parts = {row.layer.partition(".")[0] for row in audit.rows if row.layer}
    assert parts == {part for part in PARTS[one.name] if part != "scheduler"
                     and not part.startswith("tokenizer")}


def test_a_model_in_int8_draws(one, tmp_path):
    layers, error = quantize.measure(single(one), "red cat", steps=1, worst=1)
    assert {layer.name.partition(".")[0] for layer in layers} == {
        part for part in PARTS[one.name] if part != "scheduler"
        and not part.startswith("tokenizer")}
    assert 0 < error < 1 and layers[0].latents is not None
    quantize.write(one.model, tmp_path / "small", keep=())
    small = AutoPipelineForText2Image.from_pretrained(tmp_path / "small", backend="numpy",
                                                      exact=True)
    plain, changed = (pipe("red cat", num_inference_steps=1, generator=0,
                           output_type="latent").images for pipe in (single(one), small))
    # the same weights, multiplied by their scales once and for all
    assert np.linalg.norm(changed - plain) / np.linalg.norm(plain) == pytest.approx(error, rel=1e-3)


def test_a_simulation_tells_each_texts_error(one):
    found = simulate(one.pipe, one.asked, "bf16", rank=None)
    texts = {name for name in ENDS[one.name] if name.startswith("text") and "/000/" in name}
    assert found.errors.keys() == {*texts, "denoise/final", "picture/image"}
    assert all(0 < error < 1 for error in found.errors.values())
    assert {layer.name.partition("/")[0] for layer in found.layers} >= {
        stage_of(part) for part in PARTS[one.name] if part.startswith("text_encoder")}


def test_a_second_tokenizer_is_exported(of, tmp_path, capsys):
    model = str(of("two texts").model)
    config = of("two texts").model / "tokenizer_2" / "tokenizer_config.json"
    before = config.read_text()
    try:
        config.write_text(json.dumps({**json.loads(before), "pad_token": "!"}))
        for part, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
            out = tmp_path / part
            assert main(["export", "tokenizer", "-m", model, "--part", part, "-o", str(out)]) == 0
            found = json.loads((out / "special.json").read_text())["pad_token"]["content"]
            assert found == pad
    finally:
        config.write_text(before)


def test_what_has_no_second_tokenizer_is_refused(tmp_path, capsys):
    model = str(tiny.write_model(tmp_path / "model"))
    command = ["export", "tokenizer", "-m", model, "--part", "tokenizer_2", "-o"]
    assert main([*command, str(tmp_path / "x")]) == 2
    assert "which has no tokenizer_2; give one of tokenizer" in capsys.readouterr().err
