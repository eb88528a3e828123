"""refsd profile: the recorder, the tables, the Chrome trace, the command."""

import json
import time

import numpy as np
import pytest
import tiny

import refsd
from refsd import functional as F
from refsd import registry
from refsd.__main__ import main
from refsd.contracts import Spec
from refsd.leaf import Weight
from refsd.numba_ops import memory
from refsd.profiling import Call, Profile, Recorder, Span, profile
from refsd.profiling.tables import Costs, block, describe, group, tables
from refsd.profiling.trace import layers, trace
from refsd.weights import to_tree

STEPS = 3
CALL = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "generator": 7}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    path = tiny.write_model(tmp_path_factory.mktemp("models") / "tiny")
    return refsd.StableDiffusionPipeline.from_pretrained(path)


@pytest.fixture(scope="module")
def timed(pipe):
    """A profile, and the seconds that everything took, warming up included."""
    begun = time.perf_counter()
    found = profile(pipe, "a red cat", **CALL)
    return found, time.perf_counter() - begun


def x():
    return np.ones((2, 6), "f4")


def test_a_timed_watcher_is_told_when_the_kernel_ran():
    heard, plain = [], []
    with refsd.watch(lambda *event: heard.append(event), timed=True):
        before = time.perf_counter_ns()
        with refsd.watch(lambda *event: plain.append(event)):
            y = F.silu(x())
        after = time.perf_counter_ns()
    (name, inputs, options, output, begun, ended), = heard
    assert name == "silu" and output is y and list(inputs) == ["x"] and options == {}
    assert before <= begun <= ended <= after
    assert plain == [heard[0][:4]]


def test_the_time_is_the_kernels_own(monkeypatch):
    """The clock stands at 0 and moves where this test moves it."""
    clock = [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock[0])

    def slow(x):
        clock[0] += 5000
        return x

    monkeypatch.setitem(registry._kernels, ("numpy", "silu"), slow)
    recorder = Recorder(backend="numpy")
    with refsd.watch(recorder, timed=True), recorder.stage("text"):
        F.silu(x())
        clock[0] += 700  # Python between two ops
        F.silu(x())
    row, = tables(recorder.profile)["stages"]
    assert (row["seconds"], row["in_ops"], row["calls"]) == (10.7e-6, 10e-6, 2)
    assert row["profiling"] == 0 and row["outside"] == pytest.approx(0.7e-6, abs=1e-12)


def test_the_recorder_names_the_layers():
    tensors = {"blocks.0.norm.weight": x()[0], "blocks.0.norm.bias": x()[0], "out.weight": x()}
    weights = to_tree({name: Weight(array, f"unet.{name}") for name, array in tensors.items()})
    recorder = Recorder(backend="numpy")
    with refsd.watch(recorder, timed=True), recorder.stage("text"):
        F.silu(x())
        F.layer_norm(x(), **weights["blocks"][0]["norm"], eps=1e-5)
        F.silu(x())
        F.linear(x(), weights["out"]["weight"])
    calls = recorder.profile.calls
    assert [(call.op, call.layer) for call in calls] == [
        ("silu", ""), ("layer_norm", "unet.blocks.0.norm"), ("silu", "unet.blocks.0.norm"),
        ("linear", "unet.out")]
    assert calls[1].inputs["x"] == Spec((2, 6), "float32") and calls[1].options == {"eps": 1e-5}


def test_layout_copies_are_counted_where_they_are_made(monkeypatch):
    def copying(x):
        memory.count_copy()
        return x

    recorder = Recorder(backend="numba")
    with refsd.use("numba"), refsd.watch(recorder, timed=True), recorder.stage("text"):
        monkeypatch.setitem(registry._kernels, ("numba", "silu"), copying)
        F.silu(x())
        F.exp(x())
        F.silu(x())
    assert [call.copies for call in recorder.profile.calls] == [1, 0, 1]
    found = tables(recorder.profile)
    assert found["stages"][0]["layout_copies"] == 2
    assert {row["op"]: row["layout_copies"] for row in found["ops"]} == {"silu": 2, "exp": 0}


@pytest.mark.parametrize("layer, name", [
    ("unet.down_blocks.0.resnets.1.conv1", "unet.down_blocks.0"), ("unet.conv_in", "unet.conv_in"),
    ("unet.mid_block.resnets.0.norm1", "unet.mid_block"), ("", ""),
    ("vae.decoder.up_blocks.3.resnets.0.conv1", "vae.decoder.up_blocks.3"),
    ("vae.decoder.mid_block.attentions.0.to_q", "vae.decoder.mid_block"),
    ("vae.post_quant_conv", "vae.post_quant_conv"),
    ("text_encoder.encoder.layers.11.mlp.fc1", "text_encoder.encoder.layers.11"),
])
def test_blocks(layer, name):
    assert block(layer) == name


def test_rates_are_the_contracts_counts_over_the_time():
    weight = Spec((4, 3, 3, 3), "float32")
    options = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "algorithm": "auto"}
    inputs = {"x": Spec((1, 3, 8, 8), "float32"), "weight": weight, "bias": None}
    calls = [Call("conv2d", "unet.conv_in", "step 1", 1000, 3000, inputs, options),
             Call("conv2d", "unet.conv_in", "step 2", 5000, 9000, inputs, options)]
    found = Profile("numpy", False, [Span("denoise", 0, 12000)], [], calls)
    row, = group(found, Costs(found), lambda call: {"call": describe(call)})
    flops, read = 2 * 2 * 4 * 64 * 27, 2 * 4 * (3 * 64 + 4 * 27 + 4 * 64)
    assert row == {"call": "1x3x8x8 4x3x3x3 padding=1", "calls": 2, "flops": flops, "bytes": read,
                   "layout_copies": 0,
                   "seconds": 6e-6, "share": 0.5, "gflop_per_second": flops / 6000,
                   "gb_per_second": read / 6000}


def test_a_profile_draws_the_same_picture(pipe, timed):
    again = pipe("a red cat", **CALL, output_type="np").images
    assert np.array_equal(timed[0].images, again)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_profile_hears_all_that_a_generation_calls(pipe, guidance):
    heard = []
    with refsd.watch(lambda op, *_: heard.append(op)):
        pipe("a red cat", **{**CALL, "guidance_scale": guidance}, negative_prompt="dog",
             clip_skip=1, output_type="np")
    found = profile(pipe, "a red cat", **{**CALL, "guidance_scale": guidance},
                    negative_prompt="dog", clip_skip=1)
    assert [call.op for call in found.calls] == heard


def test_stages_and_steps_hold_all_calls_and_the_time_adds_up(timed):
    found, seconds = timed
    shown = tables(found)
    assert [row["name"] for row in shown["stages"]] == ["text", "denoise", "decode"]
    assert [row["name"] for row in shown["steps"]] == [f"step {i + 1}" for i in range(STEPS)]
    assert sum(row["calls"] for row in shown["stages"]) == len(found.calls)
    assert sum(row["calls"] for row in shown["steps"]) == shown["stages"][1]["calls"] > 0
    for span, row in zip(found.stages + found.steps, shown["stages"] + shown["steps"]):
        names = {call.stage for call in found.calls if span.begun <= call.begun < span.ended}
        assert names == ({row["name"]} if row["name"] != "denoise" else
                         {step["name"] for step in shown["steps"]})
        assert row["outside"] >= 0 and row["in_ops"] > 0 and row["profiling"] > 0
        assert row["in_ops"] + row["profiling"] + row["outside"] == pytest.approx(row["seconds"])
    # Stages follow each other, steps too: between them is one line of Python.
    stages = sum(row["seconds"] for row in shown["stages"])
    assert stages <= shown["seconds"] < seconds
    for spans in (found.stages, found.steps):
        assert all(a.ended <= b.begun for a, b in zip(spans, spans[1:]))
    assert all(a.ended == b.begun for a, b in zip(found.steps, found.steps[1:]))
    in_ops = sum(row["in_ops"] for row in shown["stages"])
    for table in ("ops", "blocks", "layers", "calls"):
        rows = shown[table]
        assert sum(row["seconds"] for row in rows) == pytest.approx(in_ops)
        assert sum(row["calls"] for row in rows) == len(found.calls)
        assert [row["seconds"] for row in rows] == sorted((row["seconds"] for row in rows),
                                                          reverse=True)
    assert {row["block"].split(".")[0] for row in shown["blocks"]} == {
        "", "text_encoder", "unet", "vae"}
    assert all(row["algorithm"] for row in shown["calls"] if row["op"] == "conv2d")


def check_trace(found):
    """The format's rules: keys and types of each event, and complete events properly nested."""
    assert set(found) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert found["displayTimeUnit"] in ("ms", "ns")
    complete = []
    for event in found["traceEvents"]:
        assert event["ph"] in ("X", "M") and isinstance(event["name"], str) and event["name"]
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and event["args"]["name"]
        else:
            assert isinstance(event["cat"], str) and event["ts"] >= 0 and event["dur"] >= 0
            # nanoseconds again, so that sums are exact
            times = round(event["ts"] * 1000), round((event["ts"]) * 1000) + round(
                event["dur"] * 1000)
            complete.append((event, *times))
    depths, stack = [], []
    for event, begun, ended in complete:
        while stack and stack[-1][2] <= begun and (stack[-1][1], stack[-1][2]) != (begun, ended):
            stack.pop()
        assert not stack or (stack[-1][1] <= begun and ended <= stack[-1][2]), event
        depths.append([one[0]["cat"] for one in stack] + [event["cat"]])
        stack.append((event, begun, ended))
    return complete, depths


def test_the_trace_is_well_formed_and_nested(timed):
    found, _ = timed
    text = json.dumps(trace(found, about={"model": "tiny"}), allow_nan=False)
    complete, depths = check_trace(json.loads(text))
    assert json.loads(text)["otherData"] == {"model": "tiny", "backend": "numba", "exact": False}

    counts = {cat: [d[-1] for d in depths].count(cat) for cat in ("generation", "stage", "step",
                                                                  "op")}
    assert counts == {"generation": 1, "stage": 3, "step": STEPS, "op": len(found.calls)}
    order = ["generation", "stage", "step", "layer", "op"]
    for depth in depths:  # the outer kinds first, only layers in layers
        ranks = [order.index(cat) for cat in depth]
        assert ranks == sorted(ranks)
        assert [cat for cat in depth if cat != "layer"] == list(dict.fromkeys(
            cat for cat in depth if cat != "layer"))
    assert {tuple(dict.fromkeys(depth)) for depth in depths if depth[-1] == "op"} == {
        ("generation", "stage", "layer", "op"), ("generation", "stage", "step", "layer", "op"),
        ("generation", "stage", "op"), ("generation", "stage", "step", "op")}

    ops = [event for event, *_ in complete if event["cat"] == "op"]
    conv = next(event for event in ops if event["args"]["layer"] == "unet.conv_in")
    assert conv["args"]["flops"] == 2 * 2 * 8 * 16 * 4 * 9  # 2 pictures of 4 x 4, 4 to 8 channels
    assert conv["args"]["algorithm"] == "im2col" and conv["args"]["shapes"].startswith("2x4x4x4 ")
    paths = {event["args"]["path"] for event, *_ in complete if event["cat"] == "layer"}
    assert {"unet", "unet.down_blocks.0", "unet.down_blocks.0.resnets.0.conv1"} <= paths


def test_the_traces_times_are_the_profiles(timed):
    found, _ = timed
    complete, _ = check_trace(json.loads(json.dumps(trace(found))))
    nanoseconds = {cat: sum(ended - begun for event, begun, ended in complete
                            if event["cat"] == cat) for cat in ("generation", "stage", "op")}
    assert nanoseconds["generation"] == found.nanoseconds
    assert nanoseconds["op"] == sum(call.nanoseconds for call in found.calls)
    # Everything is in a stage but for the lines of Python between the three. A machine that is
    # busy elsewhere may stop there too: 0.1 s is that.
    assert 0 <= nanoseconds["generation"] - nanoseconds["stage"] < 0.1e9


def test_layers_open_and_close():
    def call(layer, begun, stage="a"):
        return Call("silu", layer, stage, begun, begun + 1, {}, {})

    found = list(layers([call("u.d.0.c", 0), call("u.d.0.e", 2), call("u.d.1.c", 4), call("", 6),
                         call("u.d.1.c", 8, "b"), call("u.d.1.c", 10, "c")]))
    assert {(path, span.begun, span.ended, depth) for span, depth, path in found} == {
        ("u", 0, 5, 1), ("u.d.0", 0, 3, 2), ("u.d.0.c", 0, 1, 3), ("u.d.0.e", 2, 3, 3),
        ("u.d.1", 4, 5, 2), ("u.d.1.c", 4, 5, 3),
        ("u", 8, 9, 1), ("u.d.1", 8, 9, 2), ("u.d.1.c", 8, 9, 3),
        ("u", 10, 11, 1), ("u.d.1", 10, 11, 2), ("u.d.1.c", 10, 11, 3)}
    assert len(found) == 12


def run(capfd, *args):
    capfd.readouterr()
    code = main(["profile", *args])
    said = capfd.readouterr()
    return code, said.out, said.err


def test_the_command(tmp_path, capfd):
    model, path = str(tiny.write_model(tmp_path / "model")), tmp_path / "trace.json"
    code, out, err = run(capfd, "a cat", "-m", model, "--steps", "2", "-W", "40", "--trace",
                         str(path), "-v", "--top", "1000")
    assert code == 0 and err.endswith("refsd: a step to warm up, then 2 steps\n")
    assert out.startswith("model, 40 x 32, numba, float32, ")
    for title in ("by stage", "step 1 ", "step 2 ", "by op", "by block", "by layer",
                  "layout copies: text ", "by call, the slowest", "by call, the most frequent",
                  "unet.up_blocks.1"):
        assert f"\n{title}" in out
    assert "nan" not in out and "(before the first layer) concat" in out
    complete, _ = check_trace(json.loads(path.read_text()))
    assert len(complete) > 200


@pytest.mark.parametrize("options, backend, algorithms", [
    ([], "numba", {"im2col", "winograd4"}), (["--exact"], "numba", {"im2col"}),
    (["--backend", "numpy"], "numpy", {"im2col"}),
])
def test_the_command_as_json(capfd, options, backend, algorithms):
    """Of the bundled model, and with the prompt that is there."""
    code, out, err = run(capfd, "--steps", "1", "-W", "64", "-H", "64", "--json", *options)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["backend"], found["exact"]) == (backend, "--exact" in options)
    assert (found["width"], found["sampler_steps"], found["dtype"]) == (64, 1, "float32")
    taken = {row["algorithm"] for row in found["calls"]} - {None}
    assert algorithms <= taken and not (taken - algorithms - {"winograd2"})
    if options:
        assert taken == algorithms


@pytest.mark.parametrize("args, code, words", [
    (["--trace", "x.txt"], 2, "end in .json"),
    (["--trace", "no/such/x.json"], 4, "does not exist"),
    (["--top", "0"], 2, "--top is 0"),
    (["-b", "2"], 2, "-b: there is no such option"),
    (["--steps", "0"], 2, "--steps is 0"),
    (["--backend", "abacus"], 2, "backend 'abacus' is not one of"),
])
def test_what_is_refused(capfd, args, code, words):
    got, out, err = run(capfd, *args)
    assert (got, out) == (code, "")
    assert err.startswith("refsd: error: ") and words in err and err.count("\n") == 1
