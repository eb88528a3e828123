"""Weights that are away: the same bits, bounded memory, failing reads, and no thread left."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

import refsd
from refsd.errors import ResourceError, UsageError
from refsd.pipelines.offload import streamers
from refsd.tree import flatten
from refsd.weights import reader, streaming

BLOCK, AHEAD = 12_000, 24_000  # of a model of 160 kB in float32


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", BLOCK)
    monkeypatch.setattr(streaming, "AHEAD", AHEAD)
    yield
    wait_for_threads()


def wait_for_threads():
    """A thread that reads ahead ends by itself."""
    deadline = time.monotonic() + 10
    while (left := [one for one in threading.enumerate() if one.name == "refsd weights"]):
        assert time.monotonic() < deadline, left
        time.sleep(0.001)


def load(path, **options):
    return refsd.StableDiffusionPipeline.from_pretrained(
        path, **{"backend": "numpy", **options})


def draw(pipe, seed=0, steps=3, **options):
    return pipe("red cat", 32, 32, num_inference_steps=steps, generator=seed, output_type="np",
                **options).images


def source(pipe):
    found, = streamers(pipe)
    return found


def groups(streamer):
    return list(dict.fromkeys(streamer._groups.values()))


@pytest.mark.parametrize("mode", streaming.MODES)
@pytest.mark.parametrize("options", [
    {}, {"dtype": "float64"}, {"dtype": "bfloat16"}, {"dtype": "float16"}, {"dtype": "int8"},
    {"weights": "int8"}, {"weights": "float16"}, {"weights": "as-is"}], ids=str)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_pictures_have_the_same_bits(tiny_model, backend, options, mode):
    plain = load(tiny_model, backend=backend, **options)
    away = load(tiny_model, backend=backend, offload=mode, **options)
    assert all(leaf.nbytes == 0 for leaf in flatten(away.unet.tree).values())
    for seed in (0, 1):  # the second call follows what the first one did
        np.testing.assert_array_equal(draw(away, seed), draw(plain, seed))


@pytest.mark.parametrize("mode", streaming.MODES)
def test_bands_of_the_vae_have_the_same_bits(tiny_model, mode):
    plain, away = load(tiny_model, backend="numba"), load(tiny_model, backend="numba", offload=mode)
    for pipe in (plain, away):
        pipe.vae.tiling = "exact"
    np.testing.assert_array_equal(draw(away), draw(plain))


def test_no_more_is_in_memory_than_is_meant(tiny_model):
    pipe = load(tiny_model, offload="block")
    streamer, most, largest = source(pipe), 0, max(group.size for group in groups(source(pipe)))

    def look(*_):
        nonlocal most
        most = max(most, streamer.present_bytes())

    with refsd.watch(look):
        draw(pipe)
    everything = sum(group.size for group in groups(streamer))
    assert most <= largest + max(AHEAD, largest) < everything / 2
    sizes = [[leaf.loaded_bytes for leaf in flatten(part.tree).values()]
             for part in pipe.networks.values()]
    assert most <= streaming.most_bytes("block", sizes)
    assert most > BLOCK  # it did read ahead


def test_networks_share_their_memory(tiny_model):
    pipe, seen = load(tiny_model, offload="component"), set()
    streamer = source(pipe)
    with refsd.watch(lambda *_: seen.add(streamer.present_bytes())):
        draw(pipe)
    sizes = [sum(leaf.loaded_bytes for leaf in flatten(part.tree).values())
             for part in pipe.networks.values()]
    assert max(seen) == max(sizes) == streaming.most_bytes("component", [[size] for size in sizes])
    assert len(groups(streamer)) == 3


def test_what_is_not_used_is_not_read_again(tiny_model):
    pipe, names = load(tiny_model, offload="component"), []
    streamer = source(pipe)
    draw(pipe)
    streamer.listener = lambda name, size, *_: names.append(size)
    draw(pipe)
    vae = flatten(pipe.vae.tree)
    decoder = sum(leaf.loaded_bytes for name, leaf in vae.items()
                  if name.startswith(("decoder", "post_quant")))
    assert names[-1] == decoder


def test_reading_runs_ahead(tiny_model):
    """Once the order is known, all but the first block of each network is there or on its way."""
    pipe = load(tiny_model, offload="block")
    streamer, threads = source(pipe), []
    draw(pipe)
    streamer.listener = lambda *_: threads.append(threading.current_thread().name)
    draw(pipe)
    assert threads.count("refsd weights") > 0.7 * len(threads)


def test_an_unexpected_order_is_read_where_it_is_asked_for(tiny_model):
    plain, away = load(tiny_model), load(tiny_model, offload="block")
    draw(away)
    leaves, wanted = flatten(away.unet.tree), flatten(plain.unet.tree)
    names = list(leaves)
    for name in np.random.default_rng(0).permutation(names + names):
        np.testing.assert_array_equal(leaves[name], wanted[name])
        np.testing.assert_array_equal(np.asarray(leaves[name][0]), wanted[name][0])
    np.testing.assert_array_equal(draw(away), draw(plain))


def test_a_single_file_and_shards(tiny_model, tmp_path):
    import json

    from refsd.weights import load_checkpoint, write_safetensors

    folder = tiny.write_model(tmp_path / "shards")
    place = folder / "unet"
    found = tiny.tensors("unet")
    names = list(found)
    parts = {"diffusion_pytorch_model-00001-of-00002.safetensors": names[::2],
             "diffusion_pytorch_model-00002-of-00002.safetensors": names[1::2]}
    (place / "diffusion_pytorch_model.safetensors").unlink()
    for file, some in parts.items():
        write_safetensors(place / file, {name: found[name] for name in some})
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {}, "weight_map": {name: file for file, some in parts.items()
                                        for name in some}}))
    assert len(load_checkpoint(folder)) == 3
    wanted = draw(load(tiny_model))
    for mode in streaming.MODES:
        np.testing.assert_array_equal(draw(load(folder, offload=mode)), wanted)


def cut(folder, part="unet"):
    """A file that shrinks after it was checked."""
    file = next(Path(folder, part).glob("*.safetensors"))
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("mode", streaming.MODES)
def test_a_file_that_shrinks_ends_the_drawing(tmp_path, mode):
    pipe = load(tiny.write_model(tmp_path / "m"), offload=mode)

    def shrink(pipe, step, *_):
        if step == 0:
            cut(tmp_path / "m", "unet" if mode == "block" else "vae")
        return {}

    with pytest.raises(ResourceError, match="to be read .*changed while") as error:
        draw(pipe, callback_on_step_end=shrink)
    assert error.value.exit_code == 4 and "\n" not in str(error.value)
    wait_for_threads()


@pytest.mark.parametrize("mode", streaming.MODES)
def test_a_disk_that_fails_ends_the_drawing_and_the_next_one_draws(tiny_model, mode, monkeypatch):
    pipe, wanted, read = load(tiny_model, offload=mode), draw(load(tiny_model)), reader._read
    count = 0

    def failing(*args):
        nonlocal count
        count += 1
        if count > 150:
            raise ResourceError("disk: reading failed: Input/output error. See whether it is well")
        return read(*args)

    with monkeypatch.context() as patch, pytest.raises(ResourceError, match="reading failed"):
        patch.setattr(reader, "_read", failing)
        draw(pipe, steps=20)
    wait_for_threads()
    np.testing.assert_array_equal(draw(pipe), wanted)


def test_a_drawing_that_is_stopped_leaves_no_thread(tiny_model):
    pipe, wanted = load(tiny_model, offload="block"), draw(load(tiny_model))

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, callback_on_step_end=stop)
    wait_for_threads()
    np.testing.assert_array_equal(draw(pipe), wanted)


def test_a_dropped_pipeline_takes_its_weights_along(tiny_model):
    import gc
    import weakref

    pipe = load(tiny_model, offload="block")
    draw(pipe)
    streamer = weakref.ref(source(pipe))
    wait_for_threads()
    del pipe
    gc.collect()
    assert streamer() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_reads_on(tiny_model):
    pipe, wanted = load(tiny_model, offload="block"), draw(load(tiny_model))
    draw(pipe)
    streamer = source(pipe)
    with streamer._turn, streamer._state:  # another thread may hold them
        child = os.fork()
        if not child:
            threading.Thread(target=time.sleep, args=(10,), daemon=True).start()
            os._exit(0 if np.array_equal(draw(pipe), wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_two_threads_may_draw_at_once(tiny_model):
    from concurrent.futures import ThreadPoolExecutor

    pipe, wanted = load(tiny_model, offload="block"), [draw(load(tiny_model), i) for i in range(4)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda seed: draw(type(pipe).from_pipe(pipe), seed), range(4)))
    np.testing.assert_array_equal(found, wanted)


def test_bad_weights_are_named_once(tmp_path, caplog):
    found = tiny.tensors("vae")
    found["decoder.conv_in.bias"][0] = np.nan
    pipe = load(tiny.write_model(tmp_path / "m", vae=found), offload="block")
    pipe.check_finite = False
    assert not caplog.messages
    draw(pipe)
    draw(pipe)
    bad = [said for said in caplog.messages if "NaN or infinite" in said]
    assert len(bad) == 1 and "decoder.conv_in.bias" in bad[0]


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
    from refsd.pipelines.figures import Request, offloads
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
    from refsd.pipelines.memory import weight_bytes

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
