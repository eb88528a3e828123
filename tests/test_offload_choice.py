"""Which weights are away: what is asked for, what a budget chooses, and what commands say of it."""


import re
from dataclasses import replace

import numpy as np
import pytest
import tiny
from offload_samples import cut, draw, load, small_blocks, source  # noqa: F401  a fixture

from refsd.backends import BACKENDS, find_backend
from refsd.errors import ResourceError, UsageError
from refsd.pipelines.memory import weight_bytes, working_bytes
from refsd.pipelines.offload import streamers
from refsd.tree import flatten
from refsd.weights import reader, streaming


def test_refusals(tiny_model):
    with pytest.raises(UsageError, match="offload is 'disk'; give none, auto, component or block"):
        load(tiny_model, offload="disk")
    assert not list(streamers(load(tiny_model, offload="none")))
    with pytest.raises(UsageError, match="memory_budget lets refsd choose"):
        load(tiny_model, offload="block", memory_budget=2**30)
    with pytest.raises(UsageError, match="memory_budget is 0; give an integer"):
        load(tiny_model, memory_budget=0)
    pipe = load(tiny_model, offload="component")
    with pytest.raises(UsageError, match="read from their file while they are used: load the model "
                                         "without offload"):
        pipe.load_lora_weights({"unet.conv_in.lora_A.weight": np.zeros((2, 4, 3, 3), "f4")})


def test_a_backend_on_a_device_keeps_its_weights(tiny_model, monkeypatch):
    from refsd.backends import BACKENDS, Backend

    there = Backend("elsewhere", "refsd.ops", device="cuda")
    monkeypatch.setitem(BACKENDS, "elsewhere", there)
    with pytest.raises(UsageError, match="keeps weights on its device; leave it out"):
        load(tiny_model, backend="elsewhere", offload="block")


@pytest.mark.parametrize("mode", [None, *streaming.MODES])
def test_a_budget_chooses(tiny_model, mode, caplog):
    from refsd.pipelines.asked import Request, offloads
    from refsd.pipelines.outline import outline

    ways = {way.options["offload"]: way.bytes for way in offloads(
        outline(str(tiny_model)), Request(backend="numpy"))}
    assert ways[None] > ways["component"] > ways["block"]
    with caplog.at_level("INFO"):
        pipe = load(tiny_model, memory_budget=ways[mode])
    assert f"offload: {mode or 'none'}, with which a picture takes about" in caplog.text
    assert {one.mode for one in streamers(pipe)} == ({mode} if mode else set())
    pipe = load(tiny_model, memory_budget=1)  # the least, where nothing fits
    assert source(pipe).mode == "block"


def test_auto_asks_what_is_free(tiny_model, monkeypatch):
    for free, modes in ((2**40, set()), (1, {"block"}), (None, set())):
        monkeypatch.setattr("refsd.pipelines.offload.free_bytes", lambda backend, free=free: free)
        with monkeypatch.context() as patch:
            patch.setattr(streaming, "check_memory", lambda *_, **__: None)
            assert {one.mode for one in streamers(load(tiny_model, offload="auto"))} == modes


def test_too_little_memory_names_what_changes_no_bit(tiny_model, monkeypatch):
    monkeypatch.setattr("refsd.weights.memory.available_bytes", lambda: 300_000)
    with pytest.raises(ResourceError, match=r"With offload='component' \(--offload component\)"):
        load(tiny_model)
    assert load(tiny_model, offload="component")
    monkeypatch.setattr("refsd.weights.memory.available_bytes", lambda: 70_000)
    with pytest.raises(ResourceError, match="With offload='block'"):
        load(tiny_model)
    assert load(tiny_model, offload="block")
    monkeypatch.setattr("refsd.weights.memory.available_bytes", lambda: 1000)
    with pytest.raises(ResourceError, match="the weights need"):
        load(tiny_model, offload="block")
    assert load(tiny_model, offload="block", force=True)


def test_estimates_count_what_is_there_at_once(tiny_model):
    sizes = [[leaf.loaded_bytes for leaf in flatten(part.tree).values()]
             for part in load(tiny_model, offload="block").networks.values()]
    vae = sum(sizes[2])
    for mode in (None, *streaming.MODES):
        wanted = max(streaming.most_bytes(mode, sizes), vae)
        assert weight_bytes(load(tiny_model, offload=mode)) == wanted
    assert streaming.most_bytes(None, sizes) > streaming.most_bytes("component", sizes)


def test_a_trace_shows_reading_beside_computing(tiny_model):
    from refsd.profiling import profile
    from refsd.profiling.trace import trace

    pipe = load(tiny_model, offload="block")
    found = profile(pipe, "red cat", num_inference_steps=3, height=32, width=32)
    events = trace(found)["traceEvents"]
    reads = [event for event in events if event.get("cat") == "read"]
    assert {event["tid"] for event in reads} == {1, 2}  # the first of a network is waited for
    assert {event["name"].split(".")[0] for event in reads} >= {"unet", "vae"}
    assert all(event["args"]["bytes"] > 0 and event["dur"] > 0 for event in reads)
    assert {"ph": "M", "name": "thread_name", "ts": 0, "pid": 1, "tid": 2,
            "args": {"name": "reading weights"}} in events
    assert source(pipe).listener is None
    plain = trace(profile(load(tiny_model), "red cat", num_inference_steps=1, height=32, width=32))
    assert {event["tid"] for event in plain["traceEvents"]} == {1}


def test_the_command_line(tiny_model, tmp_path, capsys):
    from PIL import Image

    from refsd.__main__ import main

    line = ["red cat", "-m", str(tiny_model), "--backend", "numpy", "-W", "32", "-H", "32",
            "--steps", "2", "-s", "1", "-q", "--disable-image-metadata"]
    pictures = []
    for i, options in enumerate(([], ["--offload", "component"], ["--offload", "block"],
                                 ["--offload", "auto"], ["--budget", "1KiB"])):
        out = tmp_path / f"{i}.png"
        assert main([*line, "-o", str(out), *options]) == 0
        pictures.append(np.asarray(Image.open(out)))
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])
    assert "offload: block, with which a picture takes about" in capsys.readouterr().err
    assert main(["plan", "-m", "sd1", "--backend", "numpy", "--offload", "block"]) == 0
    said = capsys.readouterr().out
    assert "offload block" in said and "--offload component" in said


@pytest.mark.parametrize("mode", streaming.MODES)
def test_a_failing_read_ends_the_command_with_4(tmp_path, capsys, monkeypatch, mode):
    from refsd.__main__ import main

    folder, read, count = tiny.write_model(tmp_path / "m"), reader._read, 0

    def failing(*args):
        nonlocal count
        count += 1
        if count == 100:
            cut(folder)
        return read(*args)

    monkeypatch.setattr(reader, "_read", failing)
    assert main(["red cat", "-m", str(folder), "--backend", "numpy", "-W", "32", "-H", "32",
                 "--steps", "4", "-q", "--disable-image-metadata", "--offload", mode,
                 "-o", str(tmp_path / "x.png")]) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "weights that were to be read while they are used" in said
    assert not (tmp_path / "x.png").exists()


def test_a_drawing_that_does_not_fit_names_the_way_with_which_it_does(tiny_model, monkeypatch):
    pipe = load(tiny_model)
    needed, here = working_bytes(pipe, 32, 32, 1), weight_bytes(pipe)

    def said(free):
        monkeypatch.setattr("refsd.pipelines.request.free_bytes", lambda backend: free)
        with pytest.raises(ResourceError, match="ask for smaller or fewer pictures") as error:
            draw(pipe)
        assert "\n" not in str(error.value) and error.value.exit_code == 4
        return str(error.value)

    for mode in streaming.MODES:
        saved = here - weight_bytes(load(tiny_model, offload=mode))
        assert re.search(rf"\. Loaded with offload='{mode}' \(--offload {mode}\) it takes .* less "
                         "and fits$", said(needed - saved))
    assert ". The least is" in said(needed - saved - 1)  # the smallest picture is larger than this
    monkeypatch.setitem(BACKENDS, "numpy", replace(find_backend("numpy"), device="cuda"))
    assert ". The least is" in said(needed - 1)


def test_a_picture_is_drawn_again_inside_less_memory(tiny_model, tmp_path, monkeypatch):
    from refsd.__main__ import main

    modes, components = [], streaming.Streamer.components

    def noted(self, *args, **options):
        modes.append(self.mode)
        return components(self, *args, **options)

    monkeypatch.setattr(streaming.Streamer, "components", noted)
    picture, common = str(tmp_path / "x.png"), ["-m", str(tiny_model), "--backend", "numpy", "-q"]
    assert main(["red cat", "-W", "32", "-H", "32", "--steps", "1", "-o", picture, *common]) == 0
    for options in ([], ["--offload", "block"], ["--budget", "1KiB"]):
        assert main(["repro", picture, *common, *options]) == 0
    assert modes == ["block", "block"]
