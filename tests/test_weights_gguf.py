"""GGUF files: blocks are the numbers that they stand for, and damaged files are refused."""

import io
import os
import random
import struct
import sys
import tracemalloc

import gguf
import numpy as np
import pytest
from test_weights_single import assert_part, bare, whole
from weights_samples import TINY, refused, write_folder

from refsd.errors import RefsdError, ResourceError
from refsd.weights import load_checkpoint, memory, read_safetensors
from refsd.weights.gguf import parse
from refsd.weights.header import BLOCKS, TensorInfo, read_header

TYPES = gguf.GGMLQuantizationType


def write(path, tensors, metadata=None):
    """name -> array of floats, or (bytes as rows of uint8, type)."""
    writer = gguf.GGUFWriter(path, "sd1")
    for key, value in (metadata or {}).items():
        (writer.add_array if isinstance(value, (list, tuple)) else writer.add_string)(key, value)
    for name, array in tensors.items():
        if isinstance(array, tuple):
            writer.add_tensor(name, array[0], raw_dtype=TYPES[array[1]])
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(dtype, shape, seed=0):
    """Random bytes of a tensor of a type of blocks."""
    size = gguf.quant_shape_to_byte_shape(shape, TYPES[dtype])
    return np.random.default_rng(seed).integers(0, 256, size, "u1"), dtype


@pytest.mark.parametrize("dtype", BLOCKS)
def test_blocks_are_what_the_package_makes_of_them(tmp_path, dtype):
    """Of every byte that there may be; more rows than are decoded at a time."""
    raw, _ = stored = blocks(dtype, (3, 5, 2048))
    path = write(tmp_path / "x.gguf", {"w": stored})
    with np.errstate(all="raise"):  # some scales are not finite
        found = read_safetensors(path)["w"]
    assert found.shape == (3, 5, 2048) and found.dtype == np.float32
    with np.errstate(all="ignore"):
        assert np.array_equal(found, gguf.dequantize(raw, TYPES[dtype]), equal_nan=True)
    assert read_safetensors(path, dtype="float64")["w"].dtype == np.float64


def test_q8_0_and_q4_0_are_their_formulas(tmp_path):
    """A float16 d, and 32 q: d q of signed bytes; d (q - 8) of nibbles, the low ones first."""
    eight = struct.pack("<e32b", 0.25, *range(-16, 16))
    four = struct.pack("<e16B", -3.0, *(low | high << 4 for low, high in zip(
        range(16), reversed(range(16)))))
    path = write(tmp_path / "x.gguf", {
        "eight": (np.frombuffer(eight, "u1")[None], "Q8_0"),
        "four": (np.frombuffer(four, "u1")[None], "Q4_0")})
    found = read_safetensors(path)
    assert found["eight"].tolist() == [[0.25 * q for q in range(-16, 16)]]
    assert found["four"].tolist() == [[-3.0 * (q - 8) for q in (*range(16), *range(15, -1, -1))]]


def test_a_long_tensor_is_decoded_in_pieces(tmp_path):
    """The memory of the result and of the file's bytes, and little besides."""
    raw, _ = stored = blocks("Q8_0", (1, 32 * 50_000))
    path = write(tmp_path / "x.gguf", {"w": stored})
    header = read_header(path)
    assert memory.needed_bytes(header.tensors.values(), "float32") == 2 * 4 * 32 * 50_000
    tracemalloc.start()
    found = read_safetensors(path)["w"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < found.nbytes + raw.nbytes + (4 << 20)
    with np.errstate(all="ignore"):
        assert np.array_equal(found, gguf.dequantize(raw, TYPES.Q8_0), equal_nan=True)


def test_the_header_says_what_the_packages_reader_says(tmp_path):
    tensors = {"f16": np.ones((2, 3, 1, 1), "f2"), "f32": np.ones((5,), "f4"),
               "bf16": (np.arange(24, dtype="u1").reshape(2, 12), "BF16"),
               "i64": np.arange(3, dtype="i8"), "q": blocks("Q5_1", (7, 64)),
               "k": blocks("Q6_K", (1, 512))}
    path = write(tmp_path / "x.gguf", tensors, {"modelspec.prediction_type": "v",
                                                "words": ["a", "b"], "numbers": [1, 2]})
    ours, theirs = read_header(path), gguf.GGUFReader(path)
    assert ours.metadata == {"general.architecture": "sd1", "modelspec.prediction_type": "v"}
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.dtype == tensor.tensor_type.name
        assert info.shape == tuple(map(int, reversed(tensor.shape)))
        assert ours.data + info.start == tensor.data_offset
        assert info.stop - info.start == tensor.n_bytes and info.count == tensor.n_elements
    found = read_safetensors(path)
    assert found["i64"].tolist() == [0, 1, 2] and found["f16"].dtype == np.float16
    bits = np.arange(24, dtype="u1").view("<u2").astype("u4") << 16
    assert found["bf16"].ravel().tolist() == bits.view("f4").tolist()


# Models.


def halves(tensors):
    return {name: array.astype("f2") for name, array in tensors.items()}


def test_stable_diffusion_cpps_file_is_a_single_file(tmp_path, caplog):
    """The names of the latent diffusion code; axes of 1 before all others are lost."""
    positions = np.arange(8, dtype="i4")
    path = write(tmp_path / "x.gguf", {
        **whole(), "cond_stage_model.transformer.text_model.embeddings.position_ids": positions})
    found = load_checkpoint(path, configs=TINY)
    for component in TINY:
        assert_part(found, component)
    path = write(tmp_path / "half.gguf", halves(whole()))
    unet = load_checkpoint(path, configs=TINY, dtype="float64")["unet"]
    name = "mid_block.attentions.0.proj_in.weight"
    theirs = whole()["model.diffusion_model.middle_block.1.proj_in.weight"]
    assert unet.tensors[name].dtype == np.float64
    assert (unet.tensors[name] == theirs.astype("f2")).all()
    assert not caplog.records


def test_comfyuis_rows_have_their_shapes_back(tmp_path):
    """The UNet alone, under bare names; kernels as rows, their shapes in the metadata."""
    stored, shapes = {}, {}
    for name, array in bare("unet", seed=1).items():
        stored[name] = array
        if array.ndim > 1 and array.size % 32 == 0:
            shapes["comfy.gguf.orig_shape." + name] = list(array.shape)
            rows = gguf.quantize(array.reshape(-1, 32), TYPES.Q8_0)
            stored[name] = rows, "Q8_0"
    assert shapes
    path = write(tmp_path / "unet.gguf", stored, shapes)
    others = write_folder(tmp_path / "others")
    found = load_checkpoint(path, configs=TINY, replaced=dict.fromkeys(("vae", "text_encoder"),
                                                                       others))  # fmt: skip
    for name, array in bare("unet", seed=1).items():
        if name == "middle_block.1.proj_in.weight":
            rows = gguf.dequantize(gguf.quantize(array.reshape(-1, 32), TYPES.Q8_0), TYPES.Q8_0)
            mine = found["unet"].tensors["mid_block.attentions.0.proj_in.weight"]
            assert (mine == rows.reshape(array.shape)).all()
    vae = write(tmp_path / "vae.gguf", halves(bare("vae")))
    assert "vae" in load_checkpoint(others, replaced={"vae": vae})


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "x.gguf", {"w": np.ones(2, "f4")})
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(lambda: read_header(path), str(path), 'pip install "refsd[gguf]"', error=ResourceError)


# Damage.


def header(*, version=3, tensors=None, keys=b"", key_count=0, infos=b"", count=0):
    return struct.pack("<4sIQQ", b"GGUF", version, count if tensors is None else tensors,
                       key_count) + keys + infos


def text(word):
    word = word if isinstance(word, bytes) else word.encode()
    return struct.pack("<Q", len(word)) + word


def info(name="w", sizes=(32,), kind=0, start=0):
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, start)


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def padded(head, body=b""):
    return head + b"\0" * (-len(head) % 32) + body


U32 = "<I"
ALIGNED = key("general.alignment", 4, struct.pack(U32, 24))
DAMAGED = {
    "version 1": (header(version=1) + b"\0" * 8, "version 1"),
    "big-endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "version 50331648"),
    "cut after the magic": (b"GGUF" + b"\3\0\0\0" + b"\0" * 6, "incomplete"),
    "2^60 tensors": (header(tensors=1 << 60), "1,152,921,504,606,846,976 tensors"),
    "2^60 keys": (header(key_count=1 << 60), "keys"),
    "a key of 2^60 bytes": (header(key_count=1, keys=struct.pack("<Q", 1 << 60)), "incomplete"),
    "a key of 2^64 - 1 bytes": (header(key_count=1, keys=b"\xff" * 8), "incomplete"),
    "a key that is no text": (header(key_count=1, keys=text(b"\xff\xfe")), "not UTF-8"),
    "a key twice": (header(key_count=2, keys=2 * key("a", 7, b"\1")), "'a' appears twice"),
    "a key of no type": (header(key_count=1, keys=key("a", 99, b"")), "unknown type 99"),
    "an array of 2^62": (header(key_count=1, keys=key("a", 9, struct.pack("<IQ", 0, 1 << 62))),
                         "incomplete"),
    "an array of 2^62 texts": (header(key_count=1, keys=key("a", 9, struct.pack(
        "<IQ", 8, 1 << 62))), "at most 1,048,576"),
    "an array of texts that end": (header(key_count=1, keys=key("a", 9, struct.pack(
        "<IQ", 8, 2) + text("b"))), "incomplete"),
    "an array of arrays": (header(key_count=1, keys=key("a", 9, struct.pack("<IQ", 9, 1))),
                           "unknown type 9"),
    "an alignment of 24": (header(key_count=1, keys=ALIGNED), "a power of two"),
    "an alignment of text": (header(key_count=1, keys=key("general.alignment", 8, text("32"))),
                             "a power of two"),
    "a tensor of no type": (padded(header(infos=info(kind=99), count=1)), "unknown type 99"),
    "2^31 dimensions": (header(infos=text("w") + struct.pack(U32, 1 << 31), count=1),
                        "2147483648 dimensions"),
    "2^64 numbers": (padded(header(infos=info(sizes=(1 << 32, 1 << 32)), count=1)), "no F32"),
    "rows of 33 in blocks of 32": (padded(header(infos=info(sizes=(33, 32), kind=8), count=1)),
                                   "no Q8_0"),
    "2^40 numbers": (padded(header(infos=info(sizes=(1 << 40,)), count=1)), "incomplete"),
    "an offset of 2^63": (padded(header(infos=info(start=1 << 63), count=1)), "leaves a gap"),
    "two in one place": (padded(header(infos=info() + info("v"), count=2), b"\0" * 256),
                         "overlaps"),
    "two of one name": (padded(header(infos=info() + info(start=128), count=2), b"\0" * 256),
                        "two tensors are named 'w'"),
    "bytes after the end": (padded(header(infos=info(), count=1), b"\0" * 161), "after the last"),
    "another shape in the metadata": (padded(header(
        key_count=1, infos=info(), count=1, keys=key("comfy.gguf.orig_shape.w", 9, struct.pack(
            "<IQ2i", 5, 2, 4, 4))), b"\0" * 128), "(4, 4)"),
    "a negative shape in the metadata": (padded(header(
        key_count=1, infos=info(), count=1, keys=key("comfy.gguf.orig_shape.w", 9, struct.pack(
            "<IQ2i", 5, 2, -8, -4))), b"\0" * 128), "(-8, -4)"),
}  # fmt: skip


@pytest.mark.parametrize("content, words", [(c, w) for c, *w in DAMAGED.values()], ids=DAMAGED)
def test_damaged_files_are_refused(tmp_path, content, words):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    refused(lambda: read_safetensors(path), str(path), *words)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_header_has_an_end(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(header(key_count=1, keys=key("a", 9, struct.pack("<IQ", 0, 150_000_000))))
    os.truncate(path, 200_000_000)  # a hole
    refused(lambda: read_header(path), "more than 100,000,000 bytes")
    cut = io.BytesIO(header(key_count=1))
    refused(lambda: parse(cut, 1000, "x.gguf"), "x.gguf", "It changed while it was read")


@pytest.mark.parametrize("name", ["a", "comfy.gguf.orig_shape.w"])
def test_arrays_of_metadata_take_no_memory(tmp_path, name):
    """The package's own reader makes an array of every element."""
    path = tmp_path / "x.gguf"
    long = key(name, 9, struct.pack("<IQ", 0, 1 << 20) + b"\0" * (1 << 20))
    path.write_bytes(padded(header(key_count=1, keys=long)))
    tracemalloc.start()
    assert read_header(path).metadata == {}
    assert tracemalloc.get_traced_memory()[1] < 1 << 18
    tracemalloc.stop()


def test_cut_and_flipped_files_are_read_or_refused(tmp_path):
    """Lengths, and 600 flipped bits, most of them in the header: one line, or a result."""
    path = write(tmp_path / "x.gguf", {
        "a": np.ones((2, 3), "f2"), "q": blocks("Q4_K", (2, 256)), "e": blocks("Q8_0", (1, 32))},
        {"comfy.gguf.orig_shape.q": [2, 2, 128], "words": ["a", "b"]})
    good, draw = path.read_bytes(), random.Random(11)
    end = read_header(path).data
    variants = [good[:i] for i in range(0, len(good) - 32, 3)]
    cut = len(variants)
    for _ in range(600):
        place = draw.randrange(end if draw.random() < 0.9 else len(good))
        flipped = bytearray(good)
        flipped[place] ^= 1 << draw.randrange(8)
        variants.append(bytes(flipped))
    refusals = 0
    for i, content in enumerate(variants):
        path.write_bytes(content)
        try:
            read_safetensors(path, dtype="float32")
        except RefsdError as error:
            refusals += 1
            assert "\n" not in str(error) and len(str(error)) < 1000, error
        else:
            assert i >= cut, f"cut to {3 * i} bytes, and read"
    assert cut + 100 < refusals < len(variants)


def test_memory_is_that_of_the_numbers():
    quantized = [TensorInfo("Q4_0", (2, 32), 0, 36)]
    assert memory.needed_bytes(quantized, None) == 2 * 4 * 64
    assert memory.needed_bytes(quantized, "float64") == 2 * 8 * 64
