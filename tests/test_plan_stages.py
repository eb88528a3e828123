"""What a process holds in each stage of a drawing, planned without weights."""

import pytest

import refsd
from refsd.bands import graph
from refsd.contracts import Spec
from refsd.numba_ops import pool
from refsd.numba_ops.cpu import planned
from refsd.pipelines import vae_tiling
from refsd.pipelines.asked import Request, decoding_room, peak_bytes, planned_stages
from refsd.pipelines.memory import weight_bytes
from refsd.pipelines.outline import outline
from refsd.weights import streaming
from refsd.weights.passing import passing_bytes

AS_IS, BF16 = {"weights": "as-is"}, {"dtype": "bfloat16"}
INT8 = {**BF16, "weights": "int8"}


@pytest.fixture
def small_sizes(monkeypatch):
    """Of a model of 18 MB: what comes from the pool, blocks and what is read ahead, bands.

    A group norm's pixels that wait for a whole block, 128 KiB, are none of the pool's.
    """
    for module in (pool, planned):
        monkeypatch.setattr(module, "LEAST", 2**17 + 2**12)
    monkeypatch.setattr(streaming, "BLOCK", 2**20)
    monkeypatch.setattr(streaming, "AHEAD", 3 * 2**20)
    monkeypatch.setattr(graph, "BAND", 2**19)


@pytest.mark.parametrize("options, offload, tiling", [
    (AS_IS, None, "off"), (AS_IS, "component", "off"), (AS_IS, "block", "exact"),
    (BF16, "component", "exact"), (BF16, "block", "off"), (BF16, "block", "exact"),
    (INT8, "component", "off"), (INT8, "block", "exact")])
def test_the_pool_holds_what_was_replayed(options, offload, tiling, small_sizes, monkeypatch):
    """At the peak of a whole drawing: weights that come and go, results, and gaps.

    Where reading ahead is done at once; a thread may be later. A convolution's bias, of 256
    channels and a panel at most, is counted to what it works in, and lies apart.
    """
    monkeypatch.setattr(streaming.Streamer, "_start", streaming.Streamer._read_ahead)
    pipe = refsd.StableDiffusionPipeline.from_pretrained(backend="numba", offload=offload,
                                                         **options)
    pipe.vae.tiling = tiling
    monkeypatch.setattr(pool, "_arena", arena := pool.Arena(2**30))
    pipe("a red cube", width=128, height=128, num_inference_steps=1, generator=1,
         output_type="np")

    replays, replay = [], planned.Replay
    monkeypatch.setattr(planned, "Replay", lambda: replays.append(replay()) or replays[-1])
    planned_stages(outline("bundled"), Request(
        128, 128, backend="numba", tiling=tiling, offload=offload, **options), None)
    for name in ("resident", "touched"):
        assert 0 <= getattr(replays[0]._pool, name) - getattr(arena, name) <= (
            (256 + 32) * 4 + 2 * pool.LINE)


def test_each_stage_has_its_own_weights(small_sizes):
    def of(offload, **options):
        found = planned_stages(outline("bundled"), Request(
            64, 64, backend="numba", offload=offload, **options), None)
        assert [stage.name for stage in found] == ["text_encoder", "unet", "decode"]
        return found

    pipe = refsd.StableDiffusionPipeline.from_pretrained(backend="numba")
    whole, component, block = map(of, (None, "component", "block"))
    assert {stage.weights for stage in whole} == {weight_bytes(pipe)}
    sizes = [sum(leaf.nbytes for leaf in refsd.weights.flatten(part.tree).values())
             for part in (pipe.text_encoder, pipe.unet)]
    for stage, size in zip(component, sizes):
        assert size <= stage.weights < 1.1 * size  # which is packed, with its panels
    assert all(0 < stage.weights < 2 * 2**20 for stage in block)
    for one, other, third in zip(whole, component, block):
        assert one.ahead == other.ahead == 0 < third.ahead <= 3 * 2**20
        assert one.libraries == other.libraries == third.libraries
        assert one.kept == other.kept == third.kept
    assert component[1].bytes < whole[1].bytes and block[1].bytes < component[1].bytes
    assert max(stage.bytes for stage in block) == peak_bytes(
        outline("bundled"), Request(64, 64, backend="numba", offload="block"), None)


def test_the_decoder_goes_in_bands_where_it_does_not_fit(small_sizes):
    asked = {"width": 320, "height": 320, "backend": "numba", "offload": "block"}
    off, auto, exact = (planned_stages(outline("bundled"), Request(**asked, tiling=tiling), free)
                        for tiling, free in (("off", None), ("auto", 2**40), ("exact", None)))
    assert off == auto and exact[:2] == off[:2] and exact[2].bytes < off[2].bytes
    for less, wanted in ((0, off), (1, exact)):
        assert planned_stages(outline("bundled"), Request(**asked), off[2].bytes - less) == wanted


def test_a_budget_that_the_decoder_fits_into_in_bands_alone():
    """What is chosen is what the drawing does, to the byte where it turns."""
    found, asked = outline("bundled"), {"width": 1024, "height": 1024, "backend": "numpy"}
    off, exact = (peak_bytes(found, Request(**asked, tiling=tiling), None)
                  for tiling in ("off", "exact"))
    assert exact < off
    pipe, latents = refsd.StableDiffusionPipeline.from_pretrained(backend="numpy"), (1, 4, 128, 128)
    assert pipe.vae.room is None
    for budget, in_bands in ((off, False), (off - 1, True)):
        pipe.vae.room = decoding_room(found, Request(**asked), budget)
        network = vae_tiling.tiled(pipe.vae, len, "decoder", Spec(latents, "float32"), "auto")
        assert (network is not len) == in_bands
    pipe = refsd.StableDiffusionPipeline.from_pretrained(backend="numpy", memory_budget=2**30)
    assert pipe.vae.room == decoding_room(found, Request(backend="numpy"), 2**30) < 2**30


@pytest.mark.parametrize("stored, form, dtype, read, made", [
    ("F16", None, "float32", [20], [40]), ("F16", "as-is", "float32", [20], []),
    ("F16", None, "bfloat16", [20], [20]), ("F16", "int8", "bfloat16", [20], [20, 10]),
    ("F32", None, "float32", [40], []), ("F32", "bfloat16", "float32", [40, 20], []),
    ("BF16", None, "bfloat16", [20], []), ("BF16", "int8", "float64", [20], [80, 10]),
    ("BF16", "as-is", "float32", [20], []), ("F8_E4M3", None, "bfloat16", [10, 40, 20], []),
    ("F8_E4M3", "as-is", "float32", [10, 40, 20], []), ("Q8_0", "int8", "float32", [10, 40], [10]),
    ("F8_E5M2_SCALED", None, "float32", [10, 40], []), ("I8", "int8", "float32", [10], []),
    ("F64", None, "float32", [80, 40], [])])
def test_what_a_weight_takes_while_it_is_streamed(stored, form, dtype, read, made):
    assert passing_bytes(10, stored, form, dtype) == (read, made)
