"""Weights that are away come from folders, shards, single files and GGUF, for every family."""

import json

import gguf
import numpy as np
import pytest
import tiny
import tiny_three
import tiny_xl
from offload_samples import draw, load, small_blocks, wait_for_threads  # noqa: F401  a fixture
from test_weights_gguf import TYPES, write
from test_weights_single import bare, whole
from weights_samples import TINY, write_folder

import refsd
from refsd.backends import find_backend
from refsd.leaf import Away
from refsd.quantized import Quantized
from refsd.tree import flatten
from refsd.weights import load_checkpoint, streaming, write_safetensors

FORMS = {"float32": {}, "bfloat16": {"dtype": "bfloat16"}, "int8": {"weights": "int8"}}
FAMILIES = {"sdxl": tiny_xl.write_model, "sd3": tiny_three.write_model}


def halves(tensors):
    return {name: array.astype("f2") for name, array in tensors.items()}


def single(place):
    write_safetensors(place / "x.safetensors", halves(whole()))
    return place / "x.safetensors", {"configs": TINY}


def cpps(place):
    return write(place / "x.gguf", halves(whole())), {"configs": TINY}


def comfys(place):
    """A UNet of blocks whose shapes are in the metadata, beside the other networks in a folder."""
    stored, shapes = {}, {}
    for name, array in bare("unet").items():
        stored[name] = array
        if array.ndim > 1 and array.size % 32 == 0:
            shapes["comfy.gguf.orig_shape." + name] = list(array.shape)
            stored[name] = gguf.quantize(array.reshape(-1, 32), TYPES.Q8_0), "Q8_0"
    file, others = write(place / "x.gguf", stored, shapes), write_folder(place / "others")
    return file, {"configs": TINY, "replaced": dict.fromkeys(("vae", "text_encoder"), others)}


def shards(place):
    folder = tiny.write_model(place / "shards") / "unet"
    found, stem = tiny.tensors("unet"), "diffusion_pytorch_model"
    (folder / f"{stem}.safetensors").unlink()
    files = {name: f"{stem}-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(found)}
    for file in {*files.values()}:
        write_safetensors(folder / file, {name: found[name] for name in found
                                          if files[name] == file})
    (folder / f"{stem}.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": files}))
    return folder.parent, {}


def assert_same_leaf(away, leaf):
    assert (away.name, away.shape, away.dtype) == (leaf.name, leaf.shape, leaf.dtype)
    found = away.fetch()
    assert type(found) is type(leaf)
    if isinstance(leaf, Quantized):
        np.testing.assert_array_equal(found.values, leaf.values)
        np.testing.assert_array_equal(found.scale, leaf.scale)
    np.testing.assert_array_equal(found.dense(), leaf.dense())


@pytest.mark.parametrize("mode", streaming.MODES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", [single, cpps, comfys, shards])
def test_every_file_gives_the_same_leaves(tmp_path, place, form, mode):
    path, how = place(tmp_path)
    options = {"dtype": "float32", **FORMS[form], **how}
    plain = load_checkpoint(path, **options)
    for backend in ("numpy", "numba"):
        streamer = streaming.Streamer(mode, find_backend(backend))
        away = load_checkpoint(path, **options, offload=streamer)
        assert away.keys() == plain.keys()
        for part, component in away.items():
            assert component.tensors.keys() == plain[part].tensors.keys()
            for name, leaf in component.tensors.items():
                assert isinstance(leaf, Away)
                assert_same_leaf(leaf, plain[part].tensors[name])


def test_shards_are_drawn_with(tiny_model, tmp_path):
    folder, _ = shards(tmp_path)
    assert len(list((folder / "unet").glob("*.safetensors"))) == 2
    wanted = draw(load(tiny_model))
    for mode in streaming.MODES:
        np.testing.assert_array_equal(draw(load(folder, offload=mode)), wanted)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: write_model(root / name) for name, write_model in FAMILIES.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_draw_the_same(models, family, form):
    def drawn(mode):
        pipe = refsd.AutoPipelineForText2Image.from_pretrained(
            models[family], backend="numpy", offload=mode, **FORMS[form])
        if mode is not None:
            assert all(isinstance(leaf, Away) for network in pipe.networks.values()
                       for leaf in flatten(network.tree).values())
        return [draw(pipe, seed, 2) for seed in (0, 1)]

    wanted = drawn(None)
    for mode in streaming.MODES:
        np.testing.assert_array_equal(drawn(mode), wanted)
