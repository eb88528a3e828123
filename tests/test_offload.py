"""Weights that are away: the same bits, bounded memory, failing reads, and no thread left."""

import os
import threading
import time

import numpy as np
import pytest
import tiny
from offload_samples import (  # noqa: F401  the fixture small_blocks
    AHEAD,
    BLOCK,
    cut,
    draw,
    groups,
    load,
    small_blocks,
    source,
    wait_for_threads,
)

import refsd
from refsd.backends import find_backend
from refsd.errors import ResourceError
from refsd.leaf import Weight
from refsd.numba_ops import weights
from refsd.numba_ops.memory import allocating_with
from refsd.tree import flatten
from refsd.weights import reader, streaming


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


def test_the_thread_reads_and_the_kernels_lay_out(tiny_model, monkeypatch):
    """Kernels wait for the slowest of their threads, so nothing else is to take a processor."""
    backend, threads = type(find_backend("numpy")), {"place": [], "empty": []}

    def noted(name, method):
        def called(self, *args, **options):
            threads[name].append(threading.current_thread().name)
            return method(self, *args, **options)
        return called

    pipe = load(tiny_model, offload="block")
    for name in threads:
        monkeypatch.setattr(backend, name, noted(name, getattr(backend, name)))
    draw(pipe)
    assert "refsd weights" in threads["empty"] and "refsd weights" not in threads["place"]
    assert 0 < len(threads["place"]) <= len(threads["empty"])


def test_what_passes_is_not_where_results_are_placed():
    def refuse(size):
        raise AssertionError(size)

    weight = Weight(np.ones((40, 3), np.float32), "unet.proj.weight")
    with allocating_with(refuse):
        assert find_backend("numba").empty((2, 300), "f4").shape == (2, 300)
        find_backend("numba").place(leaves := {weight.name: weight}, passing=True)
    assert weights.is_packed(leaves[weight.name].dense())


def test_an_unexpected_order_is_read_where_it_is_asked_for(tiny_model):
    plain, away = load(tiny_model), load(tiny_model, offload="block")
    draw(away)
    leaves, wanted = flatten(away.unet.tree), flatten(plain.unet.tree)
    names = list(leaves)
    for name in np.random.default_rng(0).permutation(names + names):
        np.testing.assert_array_equal(leaves[name], wanted[name])
        np.testing.assert_array_equal(np.asarray(leaves[name][0]), wanted[name][0])
    np.testing.assert_array_equal(draw(away), draw(plain))


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
