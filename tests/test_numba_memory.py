"""Packed weights hold the same values, once; activations are never copied."""

import gc
import logging
import weakref

import numpy as np
import pytest
import tiny

import refsd
from refsd import functional as F
from refsd.leaf import Weight
from refsd.numba_ops import memory, pool, threads, weights
from refsd.numba_ops.cpu import conv_winograd
from refsd.numba_ops.cpu.pixels import MOST_KC
from refsd.pipelines import autoencoder
from refsd.registry import use, watch
from refsd.tree import flatten

SHAPES = [(1, 1), (5, 3), (32, 7), (64, 64), (65, 9), (320, 33),
          (1, 1, 1, 1), (4, 5, 1, 1), (64, 3, 3, 3), (33, 2, 5, 3), (96, 1, 3, 3), (7, 65, 1, 2)]
# Beyond the rows: what the last panel reads, and what alignment takes.
SURPLUS = 2 * memory.panel_width("f8") * 8 + memory.WIDTH


def draw(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")


def load(folder, backend="numba"):
    return refsd.StableDiffusionPipeline.from_pretrained(folder, backend=backend)


def picture(pipe):
    return pipe("a red cube", num_inference_steps=2, generator=1, output_type="np").images


def kernels(pipe):
    """The matrices and convolution kernels of a pipeline, by name."""
    return {f"{part}.{name}": leaf for part in ("text_encoder", "unet", "vae")
            for name, leaf in flatten(getattr(pipe, part).tree).items()
            if leaf.ndim in (2, 4) and not name.startswith("embeddings.")}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_weights_hold_the_same_values(shape, dtype):
    for weight in (draw(*shape, dtype=dtype), draw(*shape[::-1], dtype=dtype).T):
        found = weights.pack_weight(weight)
        np.testing.assert_array_equal(found, weight)
        assert (found.dtype, found.shape) == (weight.dtype, weight.shape)
        assert weights.is_packed(found) and not weights.is_packed(weight)
        flat, step = weights.columns(found)
        assert np.shares_memory(flat, found)
        start, end = memory.address_range(found)
        rows = weight[0].size
        assert 0 <= end - start - rows * step * weight.itemsize <= SURPLUS
        # Row r of the matrix is what one tap of one input has for all outputs, then zeros.
        matrix = np.lib.stride_tricks.as_strided(flat, (rows, step), (flat.itemsize * step,
                                                                      flat.itemsize))
        np.testing.assert_array_equal(matrix[:, :shape[0]],
                                      np.moveaxis(weight, (0, 1), (-1, -2)).reshape(rows, shape[0]))
        assert not matrix[:-1, shape[0]:].any()


def test_memory_that_ends_too_early_is_not_read():
    """A view with the right strides, but nothing behind its last row: kernels read beyond that."""
    step = weights.row_step(8, np.dtype("f4"))
    whole = memory.aligned_empty(5 * step, np.float32)
    short = whole.reshape(5, step)[:, :8].T
    assert short.strides == weights.pack_weight(np.zeros((8, 5), "f4")).strides
    assert not weights.is_packed(short)
    assert not weights.is_packed(weights.pack_weight(draw(64, 5))[8:])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_layout_of_weights_changes_no_bit(dtype):
    calls = [(F.linear, draw(3, 20, 33, dtype=dtype), draw(70, 33, dtype=dtype), {})]
    for kernel, options in [((40, 16, 3, 3), {"padding": 1}), ((40, 16, 3, 3), {"stride": 2}),
                            ((40, 8, 3, 3), {"padding": 1, "groups": 2}), ((40, 16, 1, 1), {}),
                            ((16, 1, 3, 3), {"padding": 1, "groups": 16})]:
        for algorithm in ("im2col", "winograd2", "winograd4", "fft"):
            if "winograd" not in algorithm or (kernel[2:] == (3, 3) and "stride" not in options):
                calls.append((F.conv2d, draw(2, 16, 13, 12, dtype=dtype),
                              draw(*kernel, dtype=dtype), options | {"algorithm": algorithm}))
    with use("numba"):
        for function, x, weight, options in calls:
            plain = function(x, weight, **options)
            packed = function(x, weights.pack_weight(weight), **options)
            np.testing.assert_array_equal(packed, plain)


def test_garbage_behind_the_outputs_reaches_no_result():
    """The fill of each row is zero; were it NaN, no result would change."""
    x, x4 = draw(20, 9), draw(1, 9, 12, 13)
    with use("numba"):
        for weight, call in [
                (draw(40, 9), lambda w: F.linear(x, w)),
                *((draw(40, 9, 3, 3), lambda w, a=a: F.conv2d(x4, w, padding=1, algorithm=a))
                  for a in ("im2col", "winograd2", "winograd4"))]:
            spoilt = weights.pack_weight(weight)
            flat, step = weights.columns(spoilt)
            rows = np.lib.stride_tricks.as_strided(flat, (weight[0].size - 1, step), (4 * step, 4))
            rows[:, 40:] = np.nan
            np.testing.assert_array_equal(call(spoilt), call(weight))


def frozen(weight):
    """Read-only by its flag, which whoever has the array sets again."""
    weight.flags.writeable = False
    return weight


def frozen_view(weight):
    """A read-only view of a read-only array."""
    return frozen(frozen(weight)[:])


def in_a_buffer(weight):
    """A read-only view of memory that others write to."""
    buffer = bytearray(weight.tobytes())
    view = memoryview(buffer).toreadonly()
    return np.frombuffer(view, weight.dtype).reshape(weight.shape)


def owner_of(weight):
    """Whoever may write to the memory of an array that is read-only itself."""
    while isinstance(weight.base, np.ndarray):
        weight = weight.base
    if weight.base is not None:
        return np.frombuffer(weight.base.obj, weight.dtype)
    weight.flags.writeable = True
    return weight


CHANGEABLE = {"writable": lambda w: w, "packed": weights.pack_weight, "frozen": frozen,
              "frozen view": frozen_view, "read-only view": lambda w: frozen(w[:]),
              "buffer": in_a_buffer}
USES = {"linear": ((16, 16), lambda w: F.linear(draw(3, 16), w)),
        **{algorithm: ((16, 16, 3, 3), lambda w, a=algorithm: F.conv2d(
            draw(1, 16, 12, 12), w, padding=1, algorithm=a))
           for algorithm in ("im2col", "winograd2", "winograd4", "fft")}}


@pytest.mark.parametrize("use_of", USES)
@pytest.mark.parametrize("kind", CHANGEABLE)
def test_a_change_in_place_is_seen(kind, use_of):
    """Whatever its flag says before and after: nothing made of a weight outlives a change of it."""
    shape, call = USES[use_of]
    weight = CHANGEABLE[kind](draw(*shape))
    with use("numba"):
        before = call(weight)
        owner = weight if kind == "packed" else owner_of(weight)
        owner *= 2
        owner.flags.writeable = weight.flags.writeable
        after = call(weight)
        np.testing.assert_array_equal(after, call(weight.copy()))
    assert not np.array_equal(after, before)


def test_a_file_that_is_mapped_may_change(tmp_path):
    """Its map is read-only, the file is not."""
    path, x = tmp_path / "weight.npy", draw(3, 16)
    np.save(path, draw(8, 16))
    weight = np.load(path, mmap_mode="r")
    with use("numba"):
        before = F.linear(x, weight)
        np.load(path, mmap_mode="r+")[:] = 1
        after = F.linear(x, weight)
        np.testing.assert_array_equal(after, F.linear(x, np.ones((8, 16), "f4")))
    assert not np.array_equal(before, after)


def test_kept_copies_are_counted_and_go_with_the_weight():
    x, weight = draw(1, 16, 8, 8), Weight(draw(16, 16, 3, 3))
    with use("numba"):
        F.conv2d(x, weight, padding=1)
        kept = weight.prepared_bytes
        assert 0 <= kept - 9 * 16 * weights.row_step(16, weight.dtype) * 4 <= SURPLUS
        F.conv2d(x, weight, padding=1)
    assert weight.prepared_bytes == kept
    packed = weakref.ref(weights.columns(weight)[0])
    del weight
    assert packed() is None


def test_of_spectra_the_last_size_is_kept():
    weight, kept = Weight(draw(16, 8, 3, 3)), []
    with use("numba"):
        for side in (40, 20, 60, 20):
            F.conv2d(draw(1, 16, side, side), weight, groups=2, algorithm="fft")
            kept.append(weight.prepared_bytes)
    assert kept[0] > kept[1] == kept[3] > 2 * weight.nbytes and kept[2] > kept[0]


def test_a_pipeline_holds_its_weights_once(folder):
    """All kernels of the tree are packed, nothing is kept beside them, and all goes with it."""
    pipe = load(folder)
    assert all(weights.is_packed(leaf.dense()) for leaf in kernels(pipe).values())
    for name, leaf in kernels(load(folder, "numpy")).items():
        np.testing.assert_array_equal(kernels(pipe)[name], leaf)
    picture(pipe)
    assert sum(leaf.prepared_bytes for leaf in kernels(pipe).values()) == 0
    alive = [weakref.ref(leaf) for leaf in kernels(pipe).values()]
    alive += [weakref.ref(weights.columns(leaf)[0]) for leaf in kernels(pipe).values()]
    del pipe, leaf
    gc.collect()
    assert not any(reference() is not None for reference in alive)


def test_the_layout_of_a_pipelines_weights_changes_no_bit(folder):
    pipe = load(folder)
    packed = picture(pipe)
    for part in (pipe.text_encoder, pipe.unet, pipe.vae):
        part.tree = in_checkpoint_order(part.tree)
    assert not any(weights.is_packed(leaf) for leaf in kernels(pipe).values())
    np.testing.assert_array_equal(picture(pipe), packed)


def in_checkpoint_order(tree):
    """The tree with copies of its arrays in C order."""
    if isinstance(tree, dict):
        return {key: in_checkpoint_order(child) for key, child in tree.items()}
    if isinstance(tree, list):
        return [in_checkpoint_order(child) for child in tree]
    return tree.copy(order="C")


def test_the_same_weights_serve_both_backends(folder):
    """The numpy backend on a tree that was packed for numba, and users' own calls with leaves."""
    pipe, plain = load(folder), load(folder, "numpy")
    wanted = picture(plain)
    for part in ("text_encoder", "unet", "vae"):
        getattr(plain, part).tree = getattr(pipe, part).tree
    # BLAS sums in another order where an operand is transposed; tests/test_stages.py bounds that.
    np.testing.assert_allclose(picture(plain), wanted, atol=1e-3)

    weight = pipe.unet.tree["time_embedding"]["linear_1"]["weight"]
    x = draw(4, weight.shape[1])
    with use("numba"):
        np.testing.assert_array_equal(F.linear(x, weight), F.linear(x, weight.copy(order="C")))


def copies(call):
    """How many activations a call copied for their layout, by op."""
    found, before = {}, [memory.layout_copies()]

    def listen(op, inputs, options, output):
        now = memory.layout_copies()
        if now > before[0]:
            found[op] = found.get(op, 0) + now - before[0]
        before[0] = now

    with watch(listen):
        call()
    return found


def last(x):
    """The same picture with its channels adjacent in memory, as kernels hand pictures on."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


@pytest.fixture(params=["bundled", "tiny"])
def pipe(request, folder):
    return load(folder if request.param == "tiny" else None)


def test_a_generation_copies_nothing_for_its_layout(pipe):
    side, width = pipe.unet.config.sample_size, pipe.text_encoder.tree["final_layer_norm"][
        "weight"].size
    sample, text = last(draw(2, pipe.unet.in_channels, side, side)), draw(2, 16, width)
    ids = np.zeros((2, 16), np.int64)
    assert copies(lambda: pipe.text_encoder(ids)) == {}
    assert copies(lambda: pipe.unet(sample, 500, text)) == {}
    assert copies(lambda: pipe.vae.decode(last(draw(1, 4, side, side)))) == {}
    image = last(draw(1, 3, *2 * [side * pipe.vae.config.downscale]))
    # Of the moments the second half of the channels is clamped: not adjacent pixels, 4 channels.
    assert copies(lambda: pipe.vae.encode(image)) == {"clamp": 1}


def test_the_copies_are_counted(pipe):
    """Latents in C order, as a generator draws them, are copied once, by the first convolution."""
    side, width = pipe.unet.config.sample_size, pipe.text_encoder.tree["final_layer_norm"][
        "weight"].size
    sample, text = draw(2, pipe.unet.in_channels, side, side), draw(2, 16, width)
    assert copies(lambda: pipe.unet(sample, 500, text)) == {"conv2d": 1}


@pytest.mark.parametrize("op, call", [
    ("linear", lambda: F.linear(draw(8, 20).T, weights.pack_weight(draw(3, 8)))),
    ("linear", lambda: F.linear(draw(4, 20, 8)[:, ::2].transpose(1, 0, 2),
                                weights.pack_weight(draw(3, 8)))),
    ("linear", lambda: F.linear(draw(20, 8), draw(3, 8))),
    ("conv2d", lambda: F.conv2d(last(draw(1, 8, 5, 6)), draw(3, 8, 1, 1))),
    ("group_norm", lambda: F.group_norm(draw(1, 4, 5, 6), draw(4), draw(4), groups=2, eps=1e-5)),
    ("to_tokens", lambda: F.to_tokens(draw(1, 4, 5, 6))),
    ("to_image", lambda: F.to_image(draw(1, 8, 6)[:, :, ::2], height=2, width=4)),
    ("add", lambda: F.add(last(draw(1, 4, 5, 6)), draw(1, 4, 5, 6))),
    ("silu", lambda: F.silu(draw(20, 8)[:, ::2])),
    ("upsample_nearest", lambda: F.upsample_nearest(draw(1, 4, 5, 6), height=10, width=12)),
    ("layer_norm", lambda: F.layer_norm(draw(8, 20).T, draw(8), draw(8), eps=1e-5)),
    ("conv2d", lambda: F.conv2d(draw(1, 4, 5, 6), weights.pack_weight(draw(3, 4, 3, 3)))),
])
def test_every_place_that_copies_counts(op, call):
    with use("numba"):
        assert copies(call) == {op: 1}


def test_a_leaf_is_copied_once_and_the_others_are_spoken_of(monkeypatch, caplog):
    monkeypatch.setattr(weights, "_logged", False)
    monkeypatch.setattr(weights, "LEAST", 4 * 64 * 64)
    x, plain, small = draw(3, 64), draw(64, 64), draw(63, 64)
    leaf, packed = Weight(draw(64, 64)), weights.pack_weight(plain)
    with use("numba"), caplog.at_level(logging.WARNING, "refsd"):
        assert copies(lambda: [F.linear(x, leaf) for _ in range(3)]) == {"linear": 1}
        assert copies(lambda: [F.linear(x, packed) for _ in range(3)]) == {}
        assert copies(lambda: [F.linear(x, small) for _ in range(3)]) == {"linear": 3}
        assert not caplog.messages
        assert copies(lambda: [F.linear(x, plain) for _ in range(3)]) == {"linear": 3}
    [message] = caplog.messages
    assert "(64, 64)" in message and "refsd.numba_ops.weights.pack_weight(weight)" in message


def test_the_decoder_works_where_the_unet_did(pipe, monkeypatch):
    side = pipe.unet.config.sample_size
    monkeypatch.setattr(pool, "_arena", pool.Arena(4 * pool.LEAST))
    pool.take(pool.LEAST)
    waiting = []

    def decode(latents, **weights):
        waiting.append(pool.idle_bytes())
        return latents

    monkeypatch.setattr(autoencoder.vae, "decode", decode)
    pipe.vae.decode(draw(1, 4, side, side))
    assert waiting == [pool.LEAST]


def test_the_workspace_of_winograd_is_bounded():
    """Where all tiles are one block, a thread has one piece of a panel transformed at a time."""
    tracked = []

    def workspace(dtype, *sizes, real=conv_winograd.workspace):
        tracked.append([size * np.dtype(dtype).itemsize for size in sizes])
        return real(dtype, *sizes)

    x, weight = last(draw(1, 512, 8, 8)), weights.pack_weight(draw(512, 512, 3, 3))
    with pytest.MonkeyPatch.context() as patch, use("numba"):
        patch.setattr(conv_winograd, "workspace", workspace)
        F.conv2d(x, weight, padding=1, algorithm="winograd4")
    [[_, _, panels]] = tracked
    piece = 36 * (MOST_KC + 1) * memory.panel_width("f4") * 4
    assert panels == threads.count() * piece < 36 * weight.nbytes / 9
