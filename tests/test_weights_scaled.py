"""float8 weights, with and without scales, through every way in which a model is loaded."""

import json

import numpy as np
import pytest
from test_weights_gguf import write as write_gguf
from test_weights_single import bare, whole
from weights_samples import STEM, TINY, file_of, refused, tiny_tensors, write_folder

from refsd.families import SD1
from refsd.weights import float8, load_checkpoint, memory, read_safetensors
from refsd.weights.header import read_header

CODE = {"F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "F32": np.float32, "U8": np.uint8, "F16": "f2",
        "BF16": "u2"}  # fmt: skip
E4M3, E5M2 = "F8_E4M3", "F8_E5M2"


def codes(array, seed=0):
    """Codes of float8 in the shape of an array: finite ones of both types."""
    return np.random.default_rng(seed).integers(0, 0x78, array.shape, "u1")


def write(path, tensors, metadata=None):
    """A safetensors file of name -> (dtype, array)."""
    header, body = {"__metadata__": metadata or {}}, b""
    for name, (dtype, array) in tensors.items():
        data = np.ascontiguousarray(array, CODE[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(np.shape(array)),
                        "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    path.write_bytes(file_of(header, body))
    return path


def scaled(tensors, dtype=E4M3, style="old", factor=0.37):
    """Every matrix as float8 with a scale, as a version of ComfyUI writes it; and metadata."""
    stored, layers = {}, {}
    for name, array in tensors.items():
        if not (name.endswith(".weight") and array.ndim == 2 and "embed" not in name):
            stored[name] = "F32", array
            continue
        layer, scale = name.removesuffix(".weight"), np.float32(factor)
        stored[name] = dtype, codes(array)
        stored[layer + {"old": ".scale_weight"}.get(style, ".weight_scale")] = "F32", scale
        said = {"format": {E4M3: "float8_e4m3fn", E5M2: "float8_e5m2"}[dtype]}
        if style == "old":
            stored[layer + ".scale_input"] = "F32", np.float32(1)
        elif style == "noted":
            note = np.frombuffer(json.dumps(said).encode(), "u1")
            stored[layer + ".comfy_quant"] = "U8", note
            stored[layer + ".input_scale"] = "F32", np.float32(2)
        layers[layer.removeprefix(SD1.layouts["unet"].prefix)] = said
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
    return stored, metadata if style == "metadata" else None


def assert_scaled(found, dtype=E4M3, factor=0.37):
    name = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2.weight"
    array = tiny_tensors("unet")[name]
    expected = float8.widen(codes(array), dtype) * np.float32(factor)
    assert expected.dtype == np.float32
    assert (found["unet"].tensors[name] == expected).all()


@pytest.mark.parametrize("style", ["old", "noted", "metadata", "plain"])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_comfyuis_scales_are_applied(tmp_path, caplog, dtype, style):
    """A whole file; the marker of the older form in each of its prefixes."""
    stored, metadata = scaled(whole(), dtype, style)
    if style == "old":
        stored["model.diffusion_model.scaled_fp8"] = dtype, np.zeros(0)
        stored["scaled_fp8"] = dtype, np.zeros(2)
    path = write(tmp_path / "x.safetensors", stored, metadata)
    assert_scaled(load_checkpoint(path, configs=TINY), dtype)
    assert not caplog.records
    header = read_header(path)
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.ff.net.2.weight"
    assert header.tensors[name].dtype == f"{dtype}_SCALED"
    assert memory.needed_bytes([header.tensors[name]], "float32") == 8 * header.tensors[name].count
    assert read_safetensors(path, dtype="float64", names=[name])[name].dtype == np.float64


def test_scales_are_applied_in_folders_shards_and_parts(tmp_path):
    model = write_folder(tmp_path / "model")
    file = model / "unet" / f"{STEM['unet']}.safetensors"
    stored, _ = scaled(tiny_tensors("unet"))
    write(file, {**stored, "scaled_fp8": (E4M3, np.zeros(0))})
    assert_scaled(load_checkpoint(model))
    index = {"weight_map": dict.fromkeys(read_header(file).tensors, "a-00001-of-00001.safetensors")}
    index["weight_map"] |= dict.fromkeys(read_header(file).applied, "a-00001-of-00001.safetensors")
    file.rename(file.parent / "a-00001-of-00001.safetensors")
    (file.parent / f"{STEM['unet']}.safetensors.index.json").write_text(json.dumps(index))
    assert_scaled(load_checkpoint(model))
    alone = write(tmp_path / "unet.safetensors", scaled(bare("unet"))[0])
    others = dict.fromkeys(("vae", "text_encoder"), write_folder(tmp_path / "others"))
    assert_scaled(load_checkpoint(alone, configs=TINY, replaced=others))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_float8_without_scales_loads_everywhere(tmp_path, dtype):
    def plain(tensors):
        return {name: (dtype, codes(array)) for name, array in tensors.items()}

    file = write(tmp_path / "x.safetensors", plain(whole()))
    name = "down_blocks.0.resnets.0.conv1.weight"
    expected = float8.widen(codes(tiny_tensors("unet")[name]), dtype)
    assert (load_checkpoint(file, configs=TINY)["unet"].tensors[name] == expected).all()
    model = write_folder(tmp_path / "model")
    write(model / "unet" / f"{STEM['unet']}.safetensors", plain(tiny_tensors("unet")))
    assert (load_checkpoint(model)["unet"].tensors[name] == expected).all()


def one(**changes):
    """A layer with a scale, changed."""
    layer = {"weight": (E4M3, np.full((2, 3), 0x38)), "weight_scale": ("F32", np.float32(2)),
             "comfy_quant": ("U8", b'{"format": "float8_e4m3fn"}')}
    found = {f"a.{name}": value for name, value in (layer | changes).items() if value is not None}
    return {name: (dtype, np.frombuffer(array, "u1") if isinstance(array, bytes) else array)
            for name, (dtype, array) in found.items()}


def note(text):
    return {"comfy_quant": ("U8", text.encode())}


APPLIED = {
    "as it is": one(), "nothing said": one(comfy_quant=None), "of one element": one(
        weight_scale=("F32", np.full(1, 2))), "half": one(weight_scale=("F16", np.float16(2))),
    "full precision": one(**note(
        '{"format": "float8_e4m3fn", "full_precision_matrix_mult": true}')),
}  # fmt: skip
LEFT = {
    "one a row": one(weight_scale=("F32", np.full((2, 1), 2))),
    "integers": one(weight_scale=("U8", np.uint8(2))),
    "of float16": one(weight=("F16", np.ones((2, 3)))),
    "of another format": one(**note('{"format": "mxfp8"}')),
    "of the other float8": one(**note('{"format": "float8_e5m2"}')),
    "of a format with more": one(**note('{"format": "float8_e4m3fn", "convrot": true}')),
    "of a format that is a list": one(**note('{"format": ["float8_e4m3fn"]}')),
    "no JSON": one(**note("{")), "null JSON": one(**note("[]")),
    "a long note": one(**note('{"format": "float8_e4m3fn"}' + " " * 4096)),
    "two scales": one(scale_weight=("F32", np.float32(3))),
    "no weight": one(weight=None),
}  # fmt: skip


@pytest.mark.parametrize("tensors", APPLIED.values(), ids=APPLIED)
def test_one_number_for_a_float8_tensor_is_applied(tmp_path, tensors):
    found = read_safetensors(write(tmp_path / "x.safetensors", tensors))
    assert found.keys() == {"a.weight"} and found["a.weight"].tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize("tensors", LEFT.values(), ids=LEFT)
def test_other_scales_are_left_in_place(tmp_path, tensors):
    header = read_header(write(tmp_path / "x.safetensors", tensors))
    assert header.tensors.keys() == tensors.keys() and not header.applied
    assert not any(info.scale for info in header.tensors.values())


@pytest.mark.parametrize("layers", ['{"layers": {"b": 1, "a": {"format": "nvfp4"}}}',
                                    '{"layers": []}', "[]", "{"])
def test_metadata_that_says_otherwise_or_nothing(tmp_path, layers):
    path = write(tmp_path / "x.safetensors", one(comfy_quant=None),
                 {"_quantization_metadata": layers})
    assert bool(read_header(path).applied) == ("nvfp4" not in layers)


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv", "weight_scale_2",
                                  "weight_scalar", "comfy_quant"])
def test_scales_that_are_left_are_refused_by_name(tmp_path, name):
    layer = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.ff.net.2."
    stored = {n: ("F32", array) for n, array in whole().items()}
    stored[layer + "weight"] = E4M3, codes(whole()[layer + "weight"])
    path = write(tmp_path / "x.safetensors", {**stored, layer + name: ("F32", np.ones((5, 1)))})
    refused(lambda: load_checkpoint(path, configs=TINY), "with scales", f"ff.net.2.{name}")


def test_ggufs_tensors_have_no_scales(tmp_path):
    """The names mean nothing there: blocks have their own."""
    path = write_gguf(tmp_path / "x.gguf", {"a.weight": np.ones(2, "f4"),
                                            "a.weight_scale": np.ones(1, "f4")})
    assert read_safetensors(path).keys() == {"a.weight", "a.weight_scale"}


@pytest.mark.parametrize("form", ["as-is", "bfloat16", "int8"])
def test_scaled_and_quantized_weights_take_other_forms(tmp_path, form):
    """As is, a product with a scale is float32: no half holds it. int8 is made of what it is."""
    path = write(tmp_path / "x.safetensors", scaled(whole())[0])
    name = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2.weight"
    plain = load_checkpoint(path, configs=TINY)["unet"].tensors[name]
    other = load_checkpoint(path, configs=TINY, weights=form)["unet"].tensors[name]
    bound = {"as-is": 0, "bfloat16": 2.0**-8, "int8": 1 / 254}[form]  # half of a step
    assert np.abs(other - plain).max() <= bound * np.abs(plain).max() and other.dtype == "f4"
    assert (other.nbytes < plain.nbytes) == (form != "as-is")
    stored = {"a.weight": (np.zeros((2, 34), "u1"), "Q8_0")}
    quantized = write_gguf(tmp_path / "x.gguf", stored)
    assert memory.needed_bytes(read_header(quantized).tensors.values(), "float32", form) > 0
