"""Weights in int8 and in two bytes: what they stand for, how ops read them, loading, quantize."""

import copy
import gc
import json
import pickle
import weakref

import numpy as np
import pytest
import tiny
from weights_samples import refused

import refsd
from refsd import functional as F
from refsd import quantized
from refsd.__main__ import main
from refsd.cli import recipe
from refsd.errors import UsageError
from refsd.half import HALVES, to_half
from refsd.numba_ops.memory import layout_copies
from refsd.numba_ops.panels import right_matrix
from refsd.numba_ops.weights import pack_all
from refsd.quantized import Quantized, quantize
from refsd.registry import use
from refsd.weights import checkpoint, load_checkpoint, read_safetensors, write_safetensors
from refsd.weights.forms import FORMS, hold
from refsd.weights.header import read_header
from refsd.weights.memory import needed_bytes

EPS = 2.0**-24  # of rounding to float32
SHAPES = [(5, 7), (33, 20), (64, 1), (6, 5, 3, 3), (40, 24, 3, 3), (33, 16, 1, 1), (3, 16, 3, 3)]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def exact(values, scale):
    return values.astype("f8") * scale.astype("f8").reshape(-1, *[1] * (values.ndim - 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")


def load(folder, backend="numpy", **options):
    return refsd.StableDiffusionPipeline.from_pretrained(folder, backend=backend, **options)


# -- one leaf


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_errs_by_half_a_step_of_its_channel_and_what_it_stands_for_is_not_rounded(shape):
    array = draw(*shape) * 10.0 ** np.linspace(-27, 30, shape[0], dtype="f4").reshape(
        -1, *[1] * (len(shape) - 1))
    values, scale = quantize(array)
    largest = np.abs(array.reshape(shape[0], -1)).max(axis=1)
    assert values.dtype == np.int8 and scale.dtype == np.float32 and values.min() >= -127
    assert (largest * (1 - EPS) <= 127 * scale.astype("f8")).all()
    assert (127 * scale.astype("f8") <= largest * (1 + 2.0**-15 + EPS)).all()
    # half a step, and the rounding of the quotient, at most 127, before it is rounded again
    bound = scale.astype("f8").reshape(-1, *[1] * (len(shape) - 1)) * (0.5 + 127 * EPS)
    assert (np.abs(array - exact(values, scale)) <= bound).all()
    np.testing.assert_array_equal(Quantized(values, scale).dense(), exact(values, scale))


def test_channels_of_zeros_and_of_next_to_nothing_are_zeros():
    array = np.zeros((3, 4), "f4")
    array[1] = 1e-44
    np.testing.assert_array_equal(Quantized(*quantize(array)).dense(), np.zeros((3, 4)))


def test_it_is_used_like_the_array_that_it_stands_for():
    values, scale = quantize(draw(6, 5))
    for dtype in ("float32", "float64", "bfloat16", "float16"):
        weight = Quantized(values, scale, dtype, "unet.conv_in.weight")
        dense = weight.dense()
        assert dense.dtype == weight.dtype == HALVES.get(dtype, dtype)
        assert (weight.shape, weight.nbytes, len(weight)) == ((6, 5), 30 + 24, 6)
        np.testing.assert_array_equal(np.asarray(weight), dense)
        np.testing.assert_array_equal(weight[1:3].T, dense[1:3].T)
        np.testing.assert_array_equal(weight.rows([[4, 0]]), dense[[[4, 0]]])
        for again in (copy.copy(weight), copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
            np.testing.assert_array_equal(again.values, values)
            assert (again.name, again.dtype) == (weight.name, weight.dtype)
        for array in (dense, weight.values, weight.scale):
            with pytest.raises(ValueError):
                array[:] = 1
    assert repr(Quantized(values, scale, name="a")) == "<weight a int8 as float32 (6, 5)>"
    with pytest.raises(ValueError, match="one number for each of the outputs"):
        Quantized(values, scale[:5])


@pytest.mark.parametrize("half", HALVES)
def test_halves_read_as_float32_are_themselves(half):
    array = np.array([[1, 3e-8, -65504], [np.inf, np.nan, -0.0]], "f4").astype(HALVES[half])
    weight = Quantized(array)
    assert (weight.dtype, weight.nbytes) == (np.float32, 12)
    np.testing.assert_array_equal(weight.dense(), array.astype("f4"))


# -- ops


def leaf_of(array, form):
    values, scale = quantize(array) if form == "int8" else (array.astype(HALVES[form]), None)
    return Quantized(values, scale, "float32", "unet.layer.weight")


@pytest.mark.parametrize("form", ["int8", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_op_on_a_leaf_is_the_op_on_what_it_stands_for_bit_by_bit(shape, form):
    leaf = leaf_of(draw(*shape), form)
    packed = {"layer.weight": leaf}
    pack_all(packed)
    packed = packed["layer.weight"]
    assert packed.nbytes == leaf.nbytes and packed.prepared_bytes == 0
    np.testing.assert_array_equal(packed.dense(), leaf.dense())

    def call(weight):
        if len(shape) == 2:
            return F.linear(draw(9, shape[1], seed=1), weight, bias)
        return F.conv2d(x, weight, bias, padding=shape[-1] // 2)

    x, bias = draw(2, 9, 10, shape[1], seed=1).transpose(0, 3, 1, 2), draw(shape[0], seed=2)
    for backend in ("numpy", "numba"):
        with use(backend):
            wanted = call(leaf.dense())
            np.testing.assert_array_equal(call(leaf), wanted)
            before = layout_copies()
            np.testing.assert_array_equal(call(packed), wanted)
            assert backend == "numpy" or layout_copies() == before
    assert packed.prepared_bytes == 0


def test_what_kernels_know_of_a_leaf_goes_with_it():
    leaf = leaf_of(draw(5, 7), "int8")
    first = right_matrix(leaf)[0]
    assert right_matrix(leaf)[0] is first and leaf.prepared_bytes == 35
    memory = weakref.ref(first)
    del leaf, first
    gc.collect()
    assert memory() is None


def test_rows_of_a_table_are_looked_up_alone(monkeypatch):
    leaf, ids = leaf_of(draw(9, 4), "int8"), np.array([[8, 0], [3, 3]])
    wanted = leaf.dense()[ids]
    for backend in ("numpy", "numba"):
        with use(backend):
            np.testing.assert_array_equal(F.embedding(ids, leaf), wanted)
    monkeypatch.setattr(Quantized, "dense", lambda self: pytest.fail("the whole table"))
    with use("numba"):
        F.embedding(ids, leaf)


# -- loading


def test_forms_are_the_same_for_the_command_line():
    assert recipe.FORMS == FORMS


@pytest.mark.parametrize("form", FORMS)
def test_a_model_held_in_a_form_reads_as_float32(folder, form):
    plain, held = load_checkpoint(folder), load_checkpoint(folder, weights=form)
    for part, component in held.items():
        for name, leaf in component.tensors.items():
            wanted = plain[part].tensors[name].dense()
            if form == "int8" and wanted.ndim >= 2:
                wanted = Quantized(*quantize(wanted)).dense()
            elif form in HALVES and wanted.ndim >= 2:
                wanted = wanted.astype(HALVES[form]).astype("f4")
            assert (leaf.name, leaf.dtype, leaf.shape) == (f"{part}.{name}", "f4", wanted.shape)
            np.testing.assert_array_equal(leaf.dense(), wanted)
            small = wanted.ndim >= 2 and form in ("int8", *HALVES)
            size = wanted.nbytes if not small else (
                wanted.size + 4 * len(wanted) if form == "int8" else 2 * wanted.size)
            assert leaf.nbytes == size


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_pictures_are_those_of_the_values_it_stands_for(folder, form):
    for backend in ("numpy", "numba"):
        pipe, dense = load(folder, backend, weights=form), load(folder, backend)
        for part, other in zip((pipe.text_encoder, pipe.unet, pipe.vae),
                               (dense.text_encoder, dense.unet, dense.vae)):
            fill(other.tree, part.tree)
        found, wanted = (p("a red cat", 16, 16, 2, generator=1, output_type="latent").images
                         for p in (pipe, dense))
        np.testing.assert_array_equal(found, wanted)


def fill(tree, source):
    """Put the dense arrays of another tree in place of the leaves."""
    for key, leaf in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(leaf, (dict, list)):
            fill(leaf, source[key])
        else:
            tree[key] = source[key].dense()


def test_a_file_of_halves_is_held_as_it_is(tmp_path):
    halves = {name: array.astype("f2") for name, array in tiny.tensors("unet", 0).items()}
    folder = tiny.write_model(tmp_path / "halves", unet=halves)
    tensors = load_checkpoint(folder, weights="as-is")["unet"].tensors
    for name, leaf in tensors.items():
        assert leaf.nbytes == leaf.size * (2 if leaf.ndim >= 2 else 4)
        np.testing.assert_array_equal(leaf.dense(), halves[name].astype("f4"))


def test_what_int8_cannot_stand_for_stays_and_is_said(tmp_path, caplog):
    tensors = tiny.tensors("unet", 0)
    tensors["conv_in.weight"][0, 0, 0, 0] = np.nan
    folder = tiny.write_model(tmp_path / "nan", unet=tensors)
    leaf = load_checkpoint(folder, weights="int8")["unet"].tensors["conv_in.weight"]
    assert np.isnan(leaf.dense()).sum() == 1 and "conv_in.weight" in caplog.text
    assert type(hold(np.full((2, 2), 2.0**127), "a", form="int8", stored="F32",
                     dtype="float32")) is not Quantized


def test_forms_that_make_no_sense_are_refused(folder):
    refused(lambda: load(folder, weights="int4"), "'int4'", "as-is", error=UsageError)
    refused(lambda: load_checkpoint(folder, dtype=None, weights="int8"), "needs a dtype",
            error=UsageError)


def test_one_tensor_at_a_time_is_read(folder, monkeypatch):
    """No float32 matrix is alive any more when the next one has been read."""
    alive = []

    def watched(*args, **options):
        for name, array in original(*args, **options):
            assert not any(reference() is not None for reference in alive), name
            if array.ndim >= 2:
                alive.append(weakref.ref(array))
            yield name, array
            del array

    original = checkpoint.iter_tensors
    monkeypatch.setattr(checkpoint, "iter_tensors", watched)
    load_checkpoint(folder, weights="int8", force=True)
    assert len(alive) > 50


def test_the_memory_that_is_asked_for_follows_the_form(folder):
    tensors = read_header(folder / "unet" / "diffusion_pytorch_model.safetensors").tensors.values()
    large = sum(t.stop - t.start for t in tensors if len(t.shape) >= 2) // 4
    small = sum(t.stop - t.start for t in tensors if len(t.shape) < 2)
    most = 2 * max(t.stop - t.start for t in tensors)
    for form, size in (("int8", 1), ("bfloat16", 2), ("float32", 4)):
        assert needed_bytes(tensors, "float32", form) == large * size + small + most


# -- refsd quantize


@pytest.fixture(scope="module")
def small(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "model"
    assert main(["quantize", "-m", str(folder), "-o", str(out), "--steps", "1", "--worst", "2",
                 "--keep", "unet.conv_out.*", "--json"]) == 0
    return out


def test_a_quantized_folder_is_read_back_to_the_bit(folder, small):
    plain, held = load_checkpoint(folder), load_checkpoint(small)
    for part, component in held.items():
        for name, leaf in component.tensors.items():
            wanted = plain[part].tensors[name].dense()
            if wanted.ndim >= 2 and name != "conv_out.weight":
                values, scale = quantize(wanted)
                np.testing.assert_array_equal(leaf.values, values)
                np.testing.assert_array_equal(leaf.scale, scale)
                assert leaf.name == f"{part}.{name}"
            else:
                assert type(leaf) is not Quantized
                np.testing.assert_array_equal(leaf.dense(), wanted)
    expanded = load_checkpoint(small, weights="float32")["unet"].tensors["conv_in.weight"]
    assert type(expanded) is not Quantized
    np.testing.assert_array_equal(expanded, held["unet"].tensors["conv_in.weight"].dense())


def test_the_report_has_each_layers_error_and_the_latents(folder, small):
    report = json.loads((small / "quantize.json").read_text())
    layers = {layer["name"]: layer for layer in report["layers"]}
    kept = [name for name, layer in layers.items() if layer["kept"]]
    assert kept == ["unet.conv_out.weight"] and "vae.decoder.conv_in.weight" in layers
    assert sum(layer["latents"] is not None for layer in report["layers"]) == 2
    # the calibration run again, with the folder's weights
    wanted, found = (load(path, "numba")("a photo", num_inference_steps=1, generator=0,
                                         output_type="latent").images for path in (folder, small))
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert report["latents"] == pytest.approx(float(error), rel=1e-6) and error > 0
    assert all(0 < layer["own"] < 0.05 for layer in report["layers"])


def test_scales_that_do_not_belong_are_refused(small, tmp_path):
    import shutil

    name = "conv_in.weight"
    for change, words in [(lambda t: t.pop(name + "_scale"), f"{name} is I8"),
                          (lambda t: t.update({name + "_scale": t[name + "_scale"].reshape(-1)}),
                           "with a scale F32"),
                          (lambda t: t.update({name: t[name].astype("f4")}), "_scale")]:
        folder = tmp_path / words.split()[-1]
        shutil.copytree(small, folder)
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = read_safetensors(file)
        change(tensors)
        write_safetensors(file, tensors)
        refused(lambda folder=folder: load_checkpoint(folder), words)


@pytest.mark.parametrize("stored, dtype", [("float16", "float32"), ("bfloat16", "float32"),
                                           ("bfloat16", "bfloat16")])
def test_halves_are_held_where_they_were_read(stored, dtype):
    """Rounding them to what they are would take longer than all else of reading."""
    array = to_half(np.ones((3, 5), np.float32), stored)
    stored = {"float16": "F16", "bfloat16": "BF16"}[stored]
    leaf = hold(array, "a", form="as-is", stored=stored, dtype=dtype)
    assert np.shares_memory(leaf.values if isinstance(leaf, Quantized) else leaf.dense(), array)


@pytest.mark.parametrize("piece", [1, 40, 10**6])
def test_pieces_of_some_outputs_are_quantized_as_all_at_once(monkeypatch, piece):
    array = np.random.default_rng(3).standard_normal((7, 5, 3, 3)).astype("f4")
    rows, rint = [], np.rint

    def counted(values, out):
        rows.append(len(values))
        return rint(values, out=out)

    monkeypatch.setattr(quantized, "PIECE", piece)
    monkeypatch.setattr(np, "rint", counted)
    for given in (array, array.transpose(0, 2, 3, 1)):
        values, scale = quantize(given)
        wide = rint(given / scale[:, None, None, None])
        np.testing.assert_array_equal(values, wide)
        assert values.dtype == np.int8
    assert rows[:len(rows) // 2] == {1: [1] * 7, 40: [1] * 7, 10**6: [7]}[piece]
