"""The VAE in overlapping tiles that are blended, and in bands that give the bits of the whole."""

import tracemalloc

import numpy as np
import pytest
import tiny

from refsd import functional as F
from refsd.__main__ import main
from refsd.backends import Backend
from refsd.bands import compute, graph
from refsd.cli.png import read_png
from refsd.cli.recipe import parse_recipe
from refsd.contracts import Spec
from refsd.errors import UsageError
from refsd.families import sd1
from refsd.half import HALVES
from refsd.models.config import VAEConfig
from refsd.models.vae import decode
from refsd.networks import shapes_of, validate
from refsd.ops import conv
from refsd.ops.bands import Sums
from refsd.pipelines import autoencoder, vae_tiling
from refsd.pipelines.autoencoder import VAE
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline
from refsd.registry import trace, use, watch
from refsd.weights import to_tree

BACKENDS = ("numpy", "numba")


def small_vae(backend="numpy", dtype="float32", **changes):
    """The VAE of tests/tiny.py, with a sample_size of its own."""
    config = VAEConfig.from_json(validate("vae", {**tiny.VAE, **changes}))
    tensors = {name: tensor.astype(HALVES.get(dtype, dtype))
               for name, tensor in tiny.tensors("vae").items()}
    return VAE(to_tree(tensors), config, backend)


def normal(*shape):
    return np.random.default_rng(5).standard_normal(shape).astype("f4")


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


@pytest.fixture
def bands_of(monkeypatch):
    """Bands of so many bytes, and what may be kept between passes: all, unless it says."""
    def set_sizes(size, kept=2**30):
        monkeypatch.setattr(graph, "BAND", size)
        monkeypatch.setattr(graph, "KEPT", kept)
    return set_sizes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("height, width", [(5, 7), (9, 16), (16, 9), (33, 17), (40, 40)])
def test_bands_have_the_bits_of_the_whole(backend, height, width, bands_of):
    """Winograd's tiles, slices of im2col and blocks of group norms are cut where the whole's are.
    """
    vae, latents = small_vae(backend), normal(1, 4, height, width)
    bands_of(2**18 if height > 20 else 2**14)
    made = vae.decode(latents, tiling="exact")
    np.testing.assert_array_equal(bits(made), bits(vae.decode(latents, tiling="off")))


@pytest.mark.parametrize("backend", BACKENDS)
def test_encoding_in_bands_has_the_bits_of_the_whole(backend, bands_of):
    """Two pictures at once; the halving's bands pad at the bottom of the last one only."""
    vae, image = small_vae(backend), normal(2, 3, 72, 56)
    bands_of(2**15)
    made, whole = (vae.encode(image, tiling=how) for how in ("exact", "off"))
    np.testing.assert_array_equal(bits(made.mean), bits(whole.mean))
    np.testing.assert_array_equal(bits(made.logvar), bits(whole.logvar))


@pytest.mark.parametrize("kept", [0, 2**15, 2**17])
def test_what_is_kept_between_passes_changes_no_bit(kept, bands_of):
    vae, latents = small_vae(), normal(1, 4, 6, 5)
    bands_of(2**13, kept)
    made = vae.decode(latents, tiling="exact")
    np.testing.assert_array_equal(bits(made), bits(vae.decode(latents, tiling="off")))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes_have_the_bits_of_the_whole(backend, dtype, bands_of):
    vae, latents = small_vae(backend, dtype), normal(1, 4, 7, 6)
    bands_of(2**13)
    made, whole = (vae.decode(latents, tiling=how) for how in ("exact", "off"))
    assert str(made.dtype) == dtype
    np.testing.assert_array_equal(bits(made), bits(whole))


def test_memory_does_not_grow_with_the_picture(bands_of, monkeypatch):
    """Nothing is kept between passes, nor longer in one than its bands are waited for."""
    bands_of(2**13, kept=0)
    monkeypatch.setattr(conv, "SLICE_BYTES", 2**19)
    weight, last, line = normal(8, 8, 3, 3), normal(1, 8, 3, 3), np.ones(8, "f4")

    def network(x):
        x = F.conv2d(x, weight, padding=1)
        x = F.add(x, F.conv2d(F.silu(F.group_norm(x, line, line, groups=8, eps=1.0)), weight,
                              padding=1))
        x = F.upsample_nearest(x, height=2 * x.shape[2], width=2 * x.shape[3])
        return F.conv2d(x, last, padding=1)

    def most(height):
        x = normal(1, 8, height, 16)
        tracemalloc.start()
        made = compute(network, x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - 2 * made.nbytes  # its bands, and these joined

    most(64)  # whatever is imported and cached at first
    low, high, plane = most(256), most(1024), 768 * 16 * 8 * 4
    assert high < low + plane / 8, (low, high)  # partial sums of 64 numbers and more


@pytest.mark.parametrize("side, kept, times", [
    (512, 2**30, 1), (1024, 2**30, 1.06), (512, 2**26, 3.1), (512, 0, 12)])
def test_what_is_kept_decides_the_work(side, kept, times, bands_of, monkeypatch):
    """Multiplications of the convolutions of Stable Diffusion 1's decoder, of shapes alone.

    512 with a sixteenth of what is kept is 2048, of whose pixels it has a sixteenth.
    """
    bands_of(2**23, kept)
    config, counts = VAEConfig.from_json(validate("vae", sd1.VAE)), []

    def group_norm(shape, weight, bias, *, groups, eps, bands):
        for _ in bands():
            pass
        return lambda band: band

    def answer(op, inputs, options, inferred):
        counts[-1] += inferred.flops if op == "conv2d" else 0
        return np.broadcast_to(np.float32(0), inferred.shape)

    tree = to_tree({name: np.broadcast_to(np.float32(0), shape)
                    for name, shape in shapes_of("vae", sd1.VAE).items()
                    if name.startswith(("decoder", "post_quant_conv"))})
    latents = np.broadcast_to(np.float32(0), (1, 4, side // 8, side // 8))
    with use("numba"):
        bands = graph.Graph()
        monkeypatch.setattr(bands.rules, "group_norm", group_norm)
        source = bands.source(latents)
        for tracer in (answer, bands.answer):
            counts.append(0)
            with trace(tracer):
                picture = decode(latents if tracer is answer else source, **tree, config=config)
        with trace(answer):
            bands.compute(picture)
    assert counts[1] / counts[0] == pytest.approx(times, rel=0.01)  # to the digits of memory.md


def test_large_kernels_have_no_bands():
    with use("numpy"), pytest.raises(UsageError, match="fft has no bands .* for a 7 x 7 kernel"):
        compute(lambda x: F.conv2d(x, normal(2, 2, 7, 7)), normal(1, 2, 9, 9))


def test_a_backend_without_bands_says_so():
    for module in ("refsd.registry", "refsd.numba_ops.cuda"):
        with pytest.raises(UsageError, match="'its own' has no exact tiling; take tiling off or"):
            graph.rules_of(Backend("its own", module))


@pytest.mark.parametrize("shape", [(1, 2, 3, 5, 7), (2, 2, 4, 3, 200), (1, 1, 7, 61, 64),
                                   (1, 2, 16, 11, 1), (1, 1, 1, 1, 3)])
@pytest.mark.parametrize("rows", [1, 8])
def test_sums_that_come_in_bands_are_numpys(shape, rows):
    N, groups, channels, H, W = shape
    x = 3 * normal(*shape) + 1
    sums = Sums(N, groups, channels, H * W)
    for i in range(0, H, rows):
        sums.add(x[:, :, :, i:i + rows].reshape(N, groups, channels, -1))
    np.testing.assert_array_equal(sums.total(), x.reshape(N, groups, -1).sum(axis=-1))


def test_blending_is_a_ramp_between_neighbours():
    """Tiles of 4 latents, every 3: the picture's first 24 rows are the first tile's own."""
    vae = small_vae(sample_size=32)
    vae.enable_tiling()
    latents = normal(1, 4, 6, 3)
    made, parts = vae.decode(latents), [vae.decode(latents[:, :, i:i + 4]) for i in (0, 3)]
    share = (np.arange(8) / 8)[:, None].astype("f4")
    between = parts[0][:, :, 24:] * (1 - share) + parts[1][:, :, :8] * share
    wanted = np.concatenate([parts[0][:, :, :24], between, parts[1][:, :, 8:]], axis=2)
    np.testing.assert_array_equal(made, wanted)
    vae.disable_tiling()
    assert abs(vae.decode(latents) - made).max() > 0.01


def test_what_fits_into_one_tile_is_whole():
    vae = small_vae(sample_size=32)
    latents = normal(1, 4, 4, 3)
    np.testing.assert_array_equal(vae.decode(latents, tiling="blend"), vae.decode(latents))


@pytest.mark.parametrize("name, value, message", [
    ("tile_latent_min_size", 1, "tile_latent_min_size is 1; give at least 2"),
    ("tile_sample_min_size", 7.5, "tile_sample_min_size is 7.5; give at least 2"),
    ("tile_overlap_factor", 1, "tile_overlap_factor is 1; give a number from 0 to 0.5"),
    ("tiling", "tiles", "vae.tiling is 'tiles'; give one of off, auto, exact, blend"),
])
def test_what_cannot_be_tiled_is_refused(name, value, message):
    vae = small_vae(sample_size=32)
    vae.enable_tiling()
    with pytest.raises(UsageError, match=message):
        setattr(vae, name, value)
        vae.decode(normal(1, 4, 6, 4))


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_auto_takes_bands_where_the_memory_is_short(part, caplog, monkeypatch):
    """At 4096 pixels a side, of the bundled model's sizes; nothing is computed."""
    vae = small_vae(block_out_channels=[64, 64, 128, 128])
    whole, banded = (vae_tiling.coding_bytes(vae, part, 512, 512, how) for how in ("off", "exact"))
    assert banded < whole / 2 and vae_tiling.coding_bytes(vae, part, 512, 512, "auto") == banded
    assert vae_tiling.fitting_tiling(vae, part, 512, 512, whole) == "off"
    assert vae_tiling.fitting_tiling(vae, part, 512, 512, None) == "off" and not caplog.messages
    assert vae_tiling.fitting_tiling(vae, part, 512, 512, whole - 1) == "exact"
    line, = caplog.messages
    assert f"the VAE's {part} works in bands of rows" in line and "The bits are the same" in line


def test_auto_decides_at_each_call_and_not_for_listeners(caplog, monkeypatch):
    vae, latents, heard = small_vae(), normal(1, 4, 3, 2), []
    whole = vae.decode(latents)
    monkeypatch.setattr(autoencoder, "TILED_FROM", 0)
    monkeypatch.setattr(vae_tiling, "free_bytes", lambda backend: 1)
    monkeypatch.setattr(vae_tiling, "_banded_bytes", lambda *sizes: 0)
    with watch(lambda op, *others: heard.append(op)):
        vae.decode(latents)
    assert heard.count("group_norm") == 22 and not caplog.messages
    np.testing.assert_array_equal(bits(vae.decode(latents)), bits(whole))
    line, = caplog.messages
    assert "works in bands of rows" in line


def test_a_pipeline_takes_diffusers_words(model):
    pipe = StableDiffusionPipeline.from_pretrained(model, backend="numpy")
    latents = normal(1, 4, 6, 5)
    whole = pipe.to_output(latents, "np")
    pipe.enable_vae_tiling()
    assert pipe.vae.use_tiling and abs(pipe.to_output(latents, "np") - whole).max() > 0.01
    pipe.disable_vae_tiling()
    assert not pipe.vae.use_tiling
    np.testing.assert_array_equal(pipe.to_output(latents, "np"), whole)


def test_the_command_line_and_its_recipe(model, tmp_path, capsys):
    """sd-cli's --vae-tiling without a value takes bands; blended tiles are another picture."""
    def draw(name, *args):
        path = str(tmp_path / name)
        assert main(["a red cat", "-m", model, "--steps", "1", "-s", "1", "-W", "64", "-H", "48",
                     "--backend", "numpy", "-q", *args, "-o", path]) == 0
        picture = read_png(path)
        return picture.pixels, parse_recipe(picture.texts["refsd"], name).vae_tiling, path

    whole, bare, blended = (draw(name, *args) for name, args in (
        ("a.png", ()), ("b.png", ("--vae-tiling",)), ("c.png", ("--vae-tiling", "blend"))))
    assert [whole[1], bare[1], blended[1]] == ["auto", "exact", "blend"]
    np.testing.assert_array_equal(bare[0], whole[0])
    assert (blended[0] != whole[0]).any()
    assert main(["repro", blended[2], "-m", model, "-q"]) == 0
    capsys.readouterr()
    assert main(["--vae-tiling", "a red cat"]) == 2
    assert "--vae-tiling: got 'a red cat'; give one of auto, off, exact, blend" in (
        capsys.readouterr().err)


@pytest.mark.parametrize("side, measured", [(512, 465e6), (1024, 1.20e9)])
def test_the_memory_of_bands_is_estimated(side, measured):
    """What docs/memory.md has of Stable Diffusion 1's VAE, within tests/test_memory.py's 1.5."""
    tree = to_tree({name: Spec(shape, "float32")
                    for name, shape in shapes_of("vae", sd1.VAE).items()})
    vae = VAE(tree, VAEConfig.from_json(validate("vae", sd1.VAE)), "numba")
    estimated = vae_tiling.coding_bytes(vae, "decoder", side // 8, side // 8, "exact")
    assert 1 / 1.5 < estimated / measured < 1.5, estimated
