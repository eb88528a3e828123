"""Recording golden packs: what is in them, what it is called, and that all of it can be replayed.

The model is tests/tiny.py's, but for memory, where the bundled one has tensors worth counting.
"""

import json
import tracemalloc
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import tiny

from refsd import parallel, schedulers
from refsd.__main__ import main
from refsd.cli import sampler_names
from refsd.cli.drawing import choose_sampler
from refsd.errors import ModelError, UsageError
from refsd.golden.packs.manifest import references
from refsd.golden.packs.pack import Pack
from refsd.golden.packs.writer import Writer
from refsd.golden.recording import invariants, replay
from refsd.golden.recording.make import make
from refsd.golden.recording.names import Namer, block_of, full, is_alone, parent
from refsd.golden.recording.record import Event, Recorder, Selection
from refsd.golden.recording.request import Request, load_truth
from refsd.golden.recording.run import run
from refsd.golden.tolerances.bounds import bound
from refsd.golden.tolerances.bounds.pipeline import PIPELINE_BOUNDS, pipeline_bound
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.random import TorchGenerator
from refsd.registry import ops
from refsd.weights import read_safetensors


@pytest.fixture(scope="module")
def pipe(model):
    return load_truth(model)


def recipe(pipe, **changes):
    scheduler = pipe.scheduler.config.plain()
    return Request(**{"prompt": "red cat", "width": 32, "height": 40, "steps": 3, "cfg_scale": 4.0,
                     "scheduler": scheduler, "seed": 5} | changes)


def record(folder, pipe, model, changes=None, **selection):
    """An open pack of a run."""
    make(folder, recipe(pipe, **(changes or {})), pipe=pipe, model=model,
         selection=Selection(**selection))
    return Pack.open(folder)


@pytest.fixture(scope="module")
def levels(pipe, model, tmp_path_factory):
    """A pack of every level."""
    folder = tmp_path_factory.mktemp("levels")
    return [record(folder / str(level), pipe, model, level=level, attention=("*",))
            for level in range(5)]


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Names.

def test_names_follow_the_checkpoint():
    namer, found = Namer(), []
    for op, layer in [("timestep_embedding", None), ("linear", "time_embedding.linear_1"),
                      ("conv2d", "conv_in"), ("concat", None),
                      ("group_norm", "up.0.resnets.1.norm1"), ("silu", None),
                      ("conv2d", "up.0.resnets.1.conv1"), ("silu", None),
                      ("linear", "up.0.resnets.1.time_emb_proj"), ("to_image", None),
                      ("add", None), ("linear", "up.0.attentions.1.attn1.to_out.0"),
                      ("add", None), ("linear", "up.0.attentions.1.ff.net.0.proj"),
                      ("geglu", None), ("conv2d", "conv_in"), ("silu", None)]:
        found += [path for path, _ in namer.add(op, layer, None)]
    found += [path for path, _ in namer.end()]
    assert found == [
        "time_embedding.timestep_embedding", "time_embedding.linear_1", "conv_in",
        "up.0.resnets.1.concat", "up.0.resnets.1.norm1", "up.0.resnets.1.silu",
        "up.0.resnets.1.conv1", "up.0.resnets.1.silu.2", "up.0.resnets.1.time_emb_proj",
        "up.0.resnets.1.to_image", "up.0.resnets.1.add", "up.0.attentions.1.attn1.to_out.0",
        "up.0.attentions.1.attn1.add", "up.0.attentions.1.ff.net.0.proj",
        "up.0.attentions.1.ff.geglu", "conv_in.2", "silu"]


@pytest.mark.parametrize("path, block", [
    ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", "down_blocks.0.attentions.1"),
    ("mid_block.resnets.0.conv1", "mid_block.resnets.0"), ("conv_in", None),
    ("text_model.encoder.layers.11.mlp.fc1", "text_model.encoder.layers.11"),
    ("text_model.embeddings.token_embedding", "text_model.embeddings"),
    ("decoder.up_blocks.2.upsamplers.0.conv", "decoder.up_blocks.2.upsamplers.0"),
    ("time_embedding.linear_1", "time_embedding"), ("decoder.conv_norm_out", None)])
def test_blocks(path, block):
    assert block_of(path) == block
    assert is_alone(path) == (block is None)


def test_parents_and_full_names():
    assert [parent(p) for p in ("conv_in", "a.attn1.to_out.0", "a.ff.net.2", "a.resnets.0.conv1")] \
        == ["", "a.attn1", "a.ff", "a.resnets.0"]
    assert full("unet", 3, "conv_in") == "unet/003/conv_in"
    assert full("decode", None, "decoder.conv_in") == "decode/decoder.conv_in"


# Levels.

def test_levels_hold_more_and_more(levels):
    names = [set(pack.entries) for pack in levels]
    for fewer, more in zip(names, names[1:]):
        whole = {name for name in fewer if ":" not in name}  # inputs become references
        assert whole < more
    assert {"tokens/000/ids", "text/000/last_hidden_state", "denoise/final", "picture/image",
            "picture/pixels"} < names[0]
    assert {"denoise/noise", "denoise/initial", "schedule/timesteps", "denoise/002/latents",
            "denoise/002/eps_uncond", "denoise/002/eps_cond", "denoise/002/guided"} < names[1]
    assert {"unet/000/conv_in", "unet/000/down_blocks.0.attentions.0", "unet/000/time_embedding",
            "unet/000/up_blocks.0.upsamplers.0", "unet/000/conv_norm_out", "unet/000/conv_out",
            "text/001/text_model.encoder.layers.1", "decode/decoder.mid_block.attentions.0",
            "decode/decoder.conv_out"} < names[2]
    assert not any(name.startswith("unet/001") for name in names[3])
    attention = "unet/000/mid_block.attentions.0.transformer_blocks.0.attn1.attention"
    assert attention in names[3]
    assert {f"{attention}.scores", f"{attention}.probabilities"} == {
        name for name in names[4] - names[3] if name.startswith(attention)}


def test_every_op_of_the_networks_is_there_once(levels, pipe):
    """Each weight is given to an op of the pack, but those that drawing does not use."""
    used = {reference for entry in levels[3].entries.values()
            for value in entry.inputs.values() for reference in references(value)
            if reference.startswith("weight:")}
    with_prefix = replay.weights(levels[3], pipe.name)
    unused = ("weight:vae.encoder.", "weight:vae.quant_conv.")
    parts = {"text_encoder": "text_model.", "unet": "", "vae": ""}
    from refsd.tree import flatten

    wanted = {f"weight:{part}.{prefix}{path}" for part, prefix in parts.items()
              for path in flatten(getattr(pipe, part).tree)}
    assert used == {name for name in wanted if not name.startswith(unused)}
    assert all(with_prefix(name).dtype == np.float32 for name in sorted(used)[:3])


def test_weights_are_the_files(levels, model):
    read = replay.weights(levels[3], model)
    stored = read_safetensors(Path(model) / "unet" / "diffusion_pytorch_model.safetensors")
    assert np.array_equal(read("weight:unet.conv_in.weight"), stored["conv_in.weight"])
    with pytest.raises(ModelError, match="not a weight"):
        read("unet.conv_in.width")


def test_weights_of_another_model_are_refused(levels, tmp_path):
    other = tiny.write_model(tmp_path / "model", seed=1)
    with pytest.raises(ModelError, match="differ from the pack's"):
        replay.weights(levels[3], other)("unet.conv_in.weight")
    with pytest.raises(UsageError, match="Say where it is"):
        replay.weights(levels[3])("unet.conv_in.weight")


@pytest.mark.parametrize("level", [2, 4])
def test_every_op_replays_within_the_rounding_of_its_inputs(levels, model, level):
    """The truth was computed from unrounded float64; the pack's inputs are rounded to float32.

    That is what a port in tf32 does with 2^-11 in place of 2^-24, and bounds are linear in both.
    Pipeline ops' bounds count one rounding at least for each of their inputs: twice them is enough.
    """
    pack, count = levels[level], 0
    weight = replay.weights(pack, model)
    for entry in pack.entries.values():
        if entry.op not in ops() and entry.op not in PIPELINE_BOUNDS:
            continue
        inputs = replay.arrays_of(entry, tensor=pack.read, weight=weight)
        found, golden = replay.replay(entry, inputs), pack.read(entry.name)
        assert found.shape == golden.shape
        wide = {name: replay.raise_to_float64(value) for name, value in inputs.items()}
        if entry.op in PIPELINE_BOUNDS:
            allowed = 2 * pipeline_bound(entry.op, wide, entry.options, found, "float32")
        else:
            allowed = bound(entry.op, wide, entry.options, found, format="tf32").worst * 2.0**-13
        error = np.abs(found.astype("f8") - golden.astype("f8"))
        # The second term: the golden tensor itself is rounded.
        assert (error <= allowed + 2.0**-24 * np.abs(found) + 2.0**-149).all(), entry.name
        count += 1
    assert count > (20 if level == 2 else 300)


def test_a_block_is_the_op_that_ends_it(levels):
    blocks = [entry for entry in levels[3].entries.values() if entry.op == "block"
              and entry.inputs]  # the noise predicted in steps that are not opened has none
    assert len(blocks) > 30
    for entry in blocks:
        (reference,) = entry.inputs.values()
        same = reference.removeprefix("tensor:")
        assert np.array_equal(levels[3].read(entry.name), levels[3].read(same))
        assert levels[3].entries[same].index < entry.index


def test_replay_refuses_what_it_cannot(levels):
    entry = levels[3].entries["denoise/000/guided"]
    with pytest.raises(UsageError, match="give cond, uncond"):
        replay.replay(entry, {"uncond": np.zeros(1)})
    with pytest.raises(UsageError, match="cannot be replayed"):
        replay.replay(levels[2].entries["unet/000/down_blocks.0.resnets.0"], {})


def test_text_that_was_encoded_once_is_referred_to(pipe, model, tmp_path):
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2"
    pack = record(tmp_path / "all", pipe, model, level=3, steps=None)
    later = pack.entries[f"unet/002/{layer}.attention"]
    assert later.inputs["k"] == f"tensor:unet/000/{layer}.to_k"
    assert f"unet/002/{layer}.to_k" not in pack.entries
    pack = record(tmp_path / "last", pipe, model, level=3, steps=(2,))
    later = pack.entries[f"unet/002/{layer}.attention"]
    assert later.inputs["k"] == f"tensor:unet/002/{layer}.attention:k"
    assert not any(name.startswith("unet/000") for name in pack.entries)


def test_the_tokens_are_there_in_words(levels):
    assert levels[0].entries["tokens/000/ids"].note == "red</w> cat</w>"
    assert levels[0].entries["tokens/001/ids"].note == ""


# The truth.

def test_a_sampler_without_betas_is_recorded_as_it_runs(pipe, model, tmp_path):
    """Nothing asks it for alphas; what each step was given replays it."""
    name = "FlowMatchEulerDiscreteScheduler"
    config = schedulers.from_config({"_class_name": name}).config
    pack = record(tmp_path / "flow", pipe, model, {"scheduler": config.plain()}, level=1)
    assert "schedule/sigmas" in pack.entries and "schedule/alphas_cumprod" not in pack.entries
    steps = [entry for entry in pack.entries.values() if entry.op == "scheduler_step"]
    assert len(steps) == 3
    weight = replay.weights(pack, model)
    for entry in steps:
        found = replay.replay(entry, replay.arrays_of(entry, tensor=pack.read, weight=weight))
        # a product and a sum in float32, and the latents before them rounded to it: 3 roundings
        assert np.abs(found - pack.read(entry.name)).max() <= 3 * 2.0**-24 * np.abs(found).max()


def test_a_vaes_shift_is_recorded_where_there_is_one(pipe, model, tmp_path, monkeypatch):
    """The tensor that it decodes replays; without a shift a pack says nothing of one."""
    for shift in (0.0, 0.0609):
        monkeypatch.setattr(pipe.vae, "config", replace(pipe.vae.config, shift_factor=shift))
        pack = record(tmp_path / f"{shift}", pipe, model, level=1)
        entry = pack.entries["decode/latents"]
        assert entry.options.get("shift_factor", 0.0) == shift and len(entry.options) == 1 + (
            shift > 0)
        arrays = replay.arrays_of(entry, tensor=pack.read, weight=replay.weights(pack, model))
        found, stored = replay.replay(entry, arrays), pack.read(entry.name)
        assert np.abs(found - stored).max() <= 3 * 2.0**-24 * np.abs(found).max()  # roundings to it


@pytest.mark.parametrize("name", [name for name in sampler_names.SAMPLERS if name != "dpm++sde"])
def test_the_run_is_the_pipelines(pipe, model, tmp_path, monkeypatch, name):
    """The same picture as the pipeline's in float64, and each step of the sampler replays."""
    drawing = StableDiffusionPipeline.from_pretrained(model, backend="numpy", dtype="float64",
                                                      exact=True)
    choose_sampler(drawing, name)
    changes = {"scheduler": drawing.scheduler.config.plain(), "steps": 5,
               "eta": 0.5 if name == "ddim" else 0.0}
    pack = record(tmp_path / name, pipe, model, changes, level=1)
    monkeypatch.setattr("refsd.pipelines.stages.initial_latents", rounded_start)
    drawn = drawing("red cat", width=32, height=40, num_inference_steps=5, guidance_scale=4.0,
                    eta=changes["eta"], generator=Noise(5), output_type="latent").images
    assert np.array_equal(pack.read("denoise/final"), drawn.astype("f4"))

    weight = replay.weights(pack, model)
    steps = [entry for entry in pack.entries.values() if entry.op == "scheduler_step"]
    assert len(steps) == len(pack.read("schedule/timesteps"))
    for entry in steps:
        inputs = replay.arrays_of(entry, tensor=pack.read, weight=weight)
        found = replay.replay(entry, inputs)
        wide = {key: replay.raise_to_float64(value) for key, value in inputs.items()}
        allowed = pipeline_bound("scheduler_step", wide, entry.options, found, "float32")
        assert (np.abs(found - pack.read(entry.name)) <= 2 * allowed).all(), entry.name


def test_noise_of_a_brownian_path_is_refused(pipe, model, tmp_path):
    changes = {"scheduler": {"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": 5}}
    with pytest.raises(UsageError, match="DPMSolverSDEScheduler has noise of a Brownian path"):
        record(tmp_path / "x", pipe, model, changes, level=1)


class Noise:
    """float32's stream in any dtype, as golden packs have it."""

    def __init__(self, seed):
        self.generator = TorchGenerator(seed)

    def randn(self, shape, dtype="float32"):
        return self.generator.randn(shape, "float32").astype(dtype)


def rounded_start(scheduler, shape, dtype, generator):
    """In place of stages.initial_latents: what a port in float32 begins with."""
    noise = generator.randn(shape, dtype)
    return (noise * float(scheduler.init_noise_sigma)).astype("f4").astype(dtype)


def test_the_noise_is_float32s(levels):
    noise = TorchGenerator(5).randn((1, 4, 5, 4), "float32")
    assert levels[1].read("denoise/noise").tobytes() == noise.tobytes()
    assert np.array_equal(levels[1].read("denoise/initial"), noise)  # DDIM: sigma is 1


def test_the_pixels_are_the_pictures(levels):
    pack = levels[1]
    image = pack.read("picture/image")
    assert image.shape == (1, 40, 32, 3)
    assert np.array_equal(pack.read("picture/pixels"), (image * 255).round().astype("uint8"))


def test_checkpoints(levels):
    marks = [(m["percent"], m["step"], m["tensor"]) for m in levels[1].manifest.checkpoints]
    assert marks == [(0, 0, "denoise/initial"), (25, 1, "denoise/000/latents"),
                     (50, 2, "denoise/001/latents"), (75, 2, "denoise/001/latents"),
                     (100, 3, "denoise/002/latents")]
    assert levels[0].manifest.checkpoints == []


def test_unguided_and_without_steps_of_the_negative_prompt(pipe, model, tmp_path, caplog):
    """What is asked for beside it is idle, and is said to be."""
    idle = {"negative_prompt": "blue", "guidance_rescale": 0.5}
    pack = record(tmp_path / "one", pipe, model, {"cfg_scale": 1.0, **idle}, level=1)
    for name in idle:
        assert any(said.startswith(f"{name} changes nothing") for said in caplog.messages), name
    assert "tokens/001/ids" not in pack.entries and "denoise/000/guided" not in pack.entries
    step = pack.entries["denoise/000/latents"]
    assert step.inputs["model_output"] == "tensor:denoise/000/eps_cond"


def test_a_step_that_is_none_is_refused(pipe, model, tmp_path):
    with pytest.raises(UsageError, match="step 3 is to be opened; the run has the steps 0 to 2"):
        record(tmp_path / "pack", pipe, model, level=2, steps=(0, 3))
    assert not (tmp_path / "pack").exists()


# What a pack's maker can rely on.

def test_same_bytes_for_any_threads(pipe, model, tmp_path):
    found = []
    for threads in (1, 2):
        with parallel.limited(threads):
            record(tmp_path / str(threads), pipe, model, level=2)
        found.append(bytes_of(tmp_path / str(threads)))
    assert found[0] == found[1]


class Cut(Exception):
    """Stands for a machine that goes down."""


def test_an_interrupted_recording_goes_on(pipe, model, tmp_path, monkeypatch):
    monkeypatch.setattr("refsd.golden.recording.make.Writer", Small)
    record(tmp_path / "whole", pipe, model, level=2)
    monkeypatch.setattr("refsd.golden.recording.make.Writer", Failing)
    for left in (30, 50):
        Failing.left = left
        with pytest.raises(Cut):
            make(tmp_path / "cut", recipe(pipe), pipe=pipe, model=model,
                 selection=Selection(level=2), resume=left > 30)
    monkeypatch.setattr("refsd.golden.recording.make.Writer", Small)
    make(tmp_path / "cut", recipe(pipe), pipe=pipe, model=model, selection=Selection(level=2),
         resume=True)
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


class Small(Writer):
    """With shards so small that there are several."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options, shard_bytes=20_000)


class Failing(Small):
    left = 0

    def add(self, *args, **options):
        Failing.left -= 1
        if Failing.left < 0:
            raise Cut
        return super().add(*args, **options)


def test_shards_together_are_the_whole(pipe, model, tmp_path, levels):
    parts = [record(tmp_path / str(i), pipe, model, level=2, shard=(i, 3)) for i in (1, 2, 3)]
    names = [{name for name in part.entries if ":" not in name} for part in parts]
    assert set.union(*names) == {name for name in levels[2].entries if ":" not in name}
    assert sum(map(len, names)) == len(set.union(*names))


@pytest.mark.parametrize("selection, wanted", [
    ({"include": ("unet/*/mid_block.*",)}, lambda e: fnmatchcase(e.name, "unet/*/mid_block.*")),
    ({"exclude": ("unet/*", "decode/*")}, lambda e: e.stage not in ("unet", "decode")),
    ({"op": "group_norm"}, lambda e: e.op == "group_norm"),
])
def test_filters(pipe, model, tmp_path, levels, selection, wanted):
    pack = record(tmp_path / "pack", pipe, model, level=3, **selection)
    found = {name for name in pack.entries if ":" not in name}
    assert found == {e.name for e in levels[3].entries.values() if wanted(e) and ":" not in e.name}
    # What is needed to replay them came along, with the same numbers.
    for name in sorted(found)[:5]:
        entry = pack.entries[name]
        inputs = replay.arrays_of(entry, tensor=pack.read, weight=replay.weights(pack, model))
        assert entry.op == "block" or entry.op is None or replay.replay(entry, inputs).size
        assert np.array_equal(pack.read(name), levels[3].read(name))


@pytest.mark.parametrize("part, tensor, name", [
    ("text_encoder", "text_model.encoder.layers.1.mlp.fc1.bias",
     "text/000/text_model.encoder.layers.1.mlp.fc1"),
    ("unet", "conv_in.weight", "unet/000/conv_in"),
    ("unet", "mid_block.attentions.0.norm.weight", "unet/000/mid_block.attentions.0.norm"),
    ("vae", "post_quant_conv.bias", "decode/post_quant_conv"),
    ("vae", "decoder.conv_out.bias", "decode/decoder.conv_out"),
])
def test_nan_is_refused_by_name(tmp_path, capfd, part, tensor, name):
    tensors = tiny.tensors(part)
    tensors[tensor].flat[0] = np.nan
    model = tiny.write_model(tmp_path / "model", **{part: tensors})
    code = main(["golden", "make", "-o", str(tmp_path / "pack"), "-m", str(model), "red cat",
                 "--steps", "1", "--level", "0", "--spread", "0"])
    err = capfd.readouterr().err
    assert code == 3 and f"{name}: " in err and "NaN" in err


def test_what_float32_cannot_hold_is_refused_by_name(tmp_path, pipe):
    recorder = Recorder(Nowhere(), Selection(0))
    with pytest.raises(ModelError, match="decode/latents: 1e.39 is beyond float32"):
        recorder.tensor("decode", None, "latents", np.array([1.0, -1e39]), level=1)


def test_memory_is_a_shard_and_an_op(tmp_path):
    """At level 3 the bundled model's UNet call is 20 MB; recording it takes 4 MB.

    A shard that is filling (1 MB, and one tensor more), its copy as it is rounded, hashed and
    summed up in float64 (3 MB of the largest tensor, 0.8 MB in float32), and the table of entries
    (2.3 kB each, measured, for 600).
    """
    pipe = load_truth()
    asked = Request(prompt="", width=128, height=128, steps=1, cfg_scale=3.0,
                   scheduler=pipe.scheduler.config.plain())
    selection = Selection(level=3, include=("unet/*",))
    with parallel.limited(1):
        alone = _peak(lambda: run(pipe, asked, Recorder(Nowhere(), Selection(0))))

        def recording():
            with Writer(tmp_path / "pack", recipe={}, model={}, shard_bytes=1 << 20) as writer:
                run(pipe, asked, Recorder(writer, selection))

        taken = _peak(recording) - alone
    size = sum(path.stat().st_size for path in (tmp_path / "pack").glob("*.safetensors"))
    assert size > 15e6
    assert taken < (1 << 20) + 4 * 0.8e6 + 600 * 2300


def _peak(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Nowhere:
    """A Writer that keeps nothing."""

    def add(self, *args, **options):
        return None

    def holds(self, name):
        return False


# Invariants.

def test_invariants_hold(levels):
    found = {mark["name"].partition(":")[0]: mark for mark in levels[3].manifest.invariants}
    assert found.keys() == {"group_norm", "layer_norm", "attention", "schedule"}
    for mark in levels[3].manifest.invariants:
        assert mark["value"] <= mark["limit"], mark["name"]


@pytest.mark.parametrize("wrong, name", [
    (lambda x, n: (x, n * 1.001), "mean square"), (lambda x, n: (x, n + 1e-3), "|mean| of a row"),
])
def test_invariants_see_a_wrong_norm(wrong, name):
    x = np.random.default_rng(0).standard_normal((2, 8, 5, 3))
    grouped = x.reshape(2, 2, -1)
    normal = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(
        grouped.var(-1, keepdims=True) + 1e-5)
    _, broken = wrong(grouped, normal)
    weight, bias = np.linspace(0.5, 2, 8), np.linspace(-1, 1, 8)
    for values, fine in ((normal, True), (broken, False)):
        y = values.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
        worst = invariants.Worst()
        worst.look(Event("group_norm", {"x": x, "weight": weight, "bias": bias},
                         {"groups": 2, "eps": 1e-5}, y), "a", deep=False)
        (value, limit, _), = [v for key, v in worst.found.items() if name in key]
        assert (value <= limit) == fine


def test_invariants_see_a_schedule_that_rises():
    worst = invariants.Worst()
    worst.schedule(np.array([0.9, 0.5, 0.6, 0.1], "f4"), None)
    ((value, limit, _),) = worst.found.values()
    assert value > limit


def test_manifest_says_what_was_done(levels, model):
    manifest = levels[3].manifest
    assert manifest.recipe["prompt"] == "red cat" and manifest.recipe["dtype"] == "float64"
    assert manifest.recipe["selection"]["level"] == 3
    assert manifest.model["configs"]["unet"]["norm_num_groups"] == 4
    assert manifest.model["configs"]["unet"]["norm_eps"] == 1e-5  # nobody gave it
    assert manifest.model["scheduler"]["clip_sample"] is False
    assert set(manifest.model["files"]) == {
        "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors"}
    assert str(model) not in json.dumps(manifest.model)
