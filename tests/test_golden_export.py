"""Packs, weights and tokenizers as files for other languages: everything is read back."""

import hashlib
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tiny

from refsd.__main__ import main
from refsd.errors import ResourceError, UsageError
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.layouts import LAYOUTS, to_layout
from refsd.golden.packs.pack import Pack, Writer
from refsd.golden.porting.export import KINDS, Files, chosen, export_pack
from refsd.golden.porting.tokenizer_export import arrays, export_tokenizer, unicode_tables
from refsd.golden.porting.weights_export import export_weights
from refsd.half import HALVES
from refsd.text import CLIPTokenizer
from refsd.text.vocabulary import clip_vocabulary, read_vocabulary
from refsd.weights import load_checkpoint, read_safetensors, write_safetensors


def some(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


TENSORS = {
    "tokens/000": np.arange(77, dtype="int64").reshape(1, 77),
    "unet/000/conv_in:x": some(2, 4, 5, 3),
    "unet/000/conv_in": some(2, 6, 5, 3, seed=1),
    "unet/000/mid_block.attentions.0.proj": some(1, 15, 33, seed=2),
    "decode/scale": np.float32(0.18215).reshape(()),
    "picture": np.arange(24, dtype="uint8").reshape(1, 2, 4, 3),
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    place = tmp_path_factory.mktemp("packs") / "pack"
    with Writer(place, recipe={}, model={}, kind="run", title="For export") as writer:
        for name, array in TENSORS.items():
            stage = name.partition("/")[0]
            conv = name == "unet/000/conv_in"
            writer.add(name, array, stage=stage, op="conv2d" if conv else None,
                       step=0 if "/000/" in name else None,
                       inputs={"x": "tensor:unet/000/conv_in:x", "weight": "weight:unet.w",
                               "bias": None} if conv else {},
                       options={"padding": 1} if conv else {})
    with Pack.open(place) as opened:
        yield opened


# -- packs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NC4HW4", "TILE32"])
def test_a_pack_comes_back_from_every_kind_and_layout(pack, tmp_path, kind, layout):
    export_pack(pack, tmp_path / "out", kind, layout=layout)
    kept = None if kind == "raw" else layout  # index.json says it itself
    with Candidate.open(tmp_path / "out", layout=kept) as found:
        assert found.extra(TENSORS) == []
        for name, array in TENSORS.items():
            back = found.read(name, array.shape)
            assert back.dtype == array.dtype and back.shape == array.shape
            assert back.tobytes() == array.tobytes(), (name, layout)


def test_the_list_says_where_and_what(pack, tmp_path):
    export_pack(pack, tmp_path / "out", "raw", layout="nhwc")
    listed = json.loads((tmp_path / "out" / "index.json").read_text())
    data = (tmp_path / "out" / "tensors.bin").read_bytes()
    assert listed["layout"] == "NHWC" and list(listed["tensors"]) == list(TENSORS)
    for name, entry in listed["tensors"].items():
        assert entry["offset"] % 64 == 0
        raw = data[entry["offset"]:entry["offset"] + entry["bytes"]]
        assert hashlib.sha256(raw).hexdigest() == entry["sha256"]
        stored = np.frombuffer(raw, entry["dtype"]).reshape(entry["stored"])
        assert np.array_equal(stored, to_layout(TENSORS[name], "NHWC"))
    conv = listed["tensors"]["unet/000/conv_in"]
    assert (conv["op"], conv["options"]) == ("conv2d", {"padding": 1})
    assert conv["inputs"]["weight"] == "weight:unet.w"


def test_only_some_tensors(pack, tmp_path):
    out = export_pack(pack, tmp_path / "out", "npy", only=["unet/*", "picture"])
    assert list(out.tensors) == [name for name in TENSORS if name.startswith(("unet", "picture"))]
    assert (tmp_path / "out" / "unet" / "000" / "conv_in__x.npy").is_file()
    with pytest.raises(UsageError, match="--only 'vae.*' fits no name; the first there is: tokens"):
        export_pack(pack, tmp_path / "no", "npy", only=["vae*"])
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_written(pack, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match="full: is not empty"):
        export_pack(pack, tmp_path / "full", "raw")
    with pytest.raises(ResourceError, match="file: is a file"):
        export_pack(pack, tmp_path / "file", "raw")
    with pytest.raises(UsageError, match="--to is 'hdf5'"):
        export_pack(pack, tmp_path / "out", "hdf5")
    with pytest.raises(UsageError, match="layout 'CHWN'"):
        export_pack(pack, tmp_path / "out", "raw", layout="CHWN")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_broken_export_has_no_list(tmp_path):
    with pytest.raises(RuntimeError), Files(tmp_path / "out", "raw") as out:
        out.add("x", some(3))
        raise RuntimeError
    assert not (tmp_path / "out" / "index.json").exists()
    with Files(tmp_path / "two", "npy") as out:
        out.add("x", some(3))
        with pytest.raises(UsageError, match="x: there are two"):
            out.add("x", some(3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_a_clear_error(tmp_path, kind):
    """A limit on the size of files stands in for it."""
    resource = pytest.importorskip("resource", reason="limits on files are POSIX's")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(ResourceError) as error, Files(tmp_path / "out", kind) as out:
            for k in range(3):
                out.add(f"t{k}", some(5000, seed=k))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in str(error.value) and str(tmp_path) in str(error.value)
    assert not {"index.json", "export.json"} & {path.name for path in (tmp_path / "out").iterdir()}


def test_large_safetensors_are_cut_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("refsd.golden.porting.export.SHARD_BYTES", 1000)
    with Files(tmp_path / "out", "safetensors") as out:
        for k in range(5):
            out.add(f"t{k}", some(100, seed=k))
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [len(read_safetensors(file)) for file in files] == [2, 2, 1]
    for k in range(5):
        file = tmp_path / "out" / out.tensors[f"t{k}"]["file"]
        assert np.array_equal(read_safetensors(file)[f"t{k}"], some(100, seed=k))


def test_the_command(pack, tmp_path, capsys):
    assert main(["golden", "export", str(pack.path), "-o", str(tmp_path / "a"), "--to", "npz"]) == 0
    assert "6 tensors as npz" in capsys.readouterr().out
    assert main(["golden", "export", str(pack.path), "-o", str(tmp_path / "b"), "--json",
                 "--only", "picture", "--layout", "NHWC"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == ["picture"]


def test_onnx_says_what_it_needs(pack, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)  # as if it were not installed
    command = ["golden", "export", str(pack.path), "-o", str(tmp_path / "out"), "--to", "onnx"]
    assert main(command) == 2
    assert "needs the onnx package: pip install refsd[onnx]" in capsys.readouterr().err
    assert main([*command, "--layout", "NHWC"]) == 2
    assert "onnx keeps the logical layout" in capsys.readouterr().err
    assert main([*command[:-1], "onnx-networks", "--layout", "NHWC"]) == 2
    assert "onnx-networks keeps the logical layout" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- weights


def weights_of(tiny_model):
    return {f"{part}.{name}": array for part, found in load_checkpoint(tiny_model).items()
            for name, array in found.tensors.items()}


@pytest.mark.parametrize("kind, layout, dtype", [
    ("raw", "NCHW", "float32"), ("raw", "TILE32", "float16"), ("npy", "HWIO", "float32"),
    ("safetensors", "NHWC", "float16"), ("npz", "TRANSPOSED", "float32"),
    *((kind, "NHWC", "bfloat16") for kind in ("raw", "npy", "npz", "safetensors")),
])
def test_weights_come_back(tiny_model, tmp_path, kind, layout, dtype):
    export_weights(tiny_model, tmp_path / "out", kind, layout=layout, dtype=dtype)
    wanted = weights_of(tiny_model)
    with Candidate.open(tmp_path / "out", layout=None if kind == "raw" else layout) as found:
        assert sorted(found.names()) == sorted(wanted)
        for name, array in wanted.items():
            back = found.read(name, array.shape)
            assert found.info(name).dtype == dtype
            assert np.array_equal(back, array.astype(HALVES.get(dtype, dtype))), name


def test_parts_and_patterns(tiny_model, tmp_path, caplog):
    out = export_weights(tiny_model, tmp_path / "a", "raw", parts=["vae"],
                         only=["vae.decoder.conv_*"])
    assert {name.rpartition(".")[0] for name in out.tensors} == {
        "vae.decoder.conv_in", "vae.decoder.conv_out", "vae.decoder.conv_norm_out"}
    with pytest.raises(UsageError, match="--part 'clip' is not one of: text_encoder, unet, vae"):
        export_weights(tiny_model, tmp_path / "b", "raw", parts=["clip"])
    with pytest.raises(UsageError, match="--dtype is 'int8'"):
        export_weights(tiny_model, tmp_path / "b", "raw", dtype="int8")
    with pytest.raises(UsageError, match="fits no name"):
        chosen(["a"], ["b"])
    large = tiny.tensors("unet")
    large["conv_in.bias"] = np.full_like(large["conv_in.bias"], 1e6)
    other = tiny.write_model(tmp_path / "large", unet=large)
    export_weights(other, tmp_path / "c", "raw", dtype="float16", only=["*.conv_in.bias"])
    assert "unet.conv_in.bias: numbers beyond float16 became infinite" in caplog.text


def test_the_weights_command(tiny_model, tmp_path, capsys):
    assert main(["export", "weights", "-m", str(tiny_model), "-o", str(tmp_path / "out"), "--json",
                 "--part", "unet", "--dtype", "float16"]) == 0
    said = json.loads(capsys.readouterr().out)
    wanted = [a for name, a in weights_of(tiny_model).items() if name.startswith("unet.")]
    assert (said["tensors"], said["bytes"]) == (len(wanted), sum(a.size * 2 for a in wanted))


def test_every_layout_takes_every_weight(tiny_model):
    shapes = {array.shape for array in weights_of(tiny_model).values()}
    for name in LAYOUTS:
        for shape in shapes:
            assert to_layout(np.zeros(shape, "float32"), name).size >= np.prod(shape)


# -- tokenizers


class Flat:
    """The six steps of the exported README, on the exported arrays and special.json alone."""

    def __init__(self, found, special):
        self.found, self.special = found, special
        self.rank = {(a, b): (rank, ab) for rank, (a, b, ab) in enumerate(found["merges"].tolist())}
        self.lower = {row[0]: [c for c in row[1:] if c] for row in found["lower"].tolist()}
        self.classes = {name: {c for first, last in found[name].tolist()
                               for c in range(first, last + 1)}
                        for name in ("letters", "digits", "spaces")}

    def ids(self, text):
        kept = []
        for word in self.words(self.normal(text)):
            kept += word if isinstance(word, list) else self.merged(word.encode())
        length = self.special["length"]
        bos, eos, pad = (self.special[f"{name}_token"]["id"] for name in ("bos", "eos", "pad"))
        row = [bos, *kept[:length - 2], eos]
        return row + [pad] * (length - len(row))

    def normal(self, text):
        codes, out = [ord(c) for c in unicodedata.normalize("NFC", text)], []
        for k, code in enumerate(codes):
            if code in self.classes["spaces"]:
                if not k or codes[k - 1] not in self.classes["spaces"]:
                    out.append(32)
            else:
                out += self.lower.get(code, [code])
        return "".join(map(chr, out))

    def words(self, text):
        specials = {token["content"]: token["id"] for role, token in self.special.items()
                    if role.endswith("_token")}
        while text:
            for fixed in (*specials, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"):
                if text.startswith(fixed):
                    yield [specials[fixed]] if fixed in specials else fixed
                    text = text[len(fixed):]
                    break
            else:
                kind = self.kind(text[0])
                n = 1
                while n < len(text) and kind != "digits" and self.kind(text[n]) == kind:
                    if kind == "other" and any(text.startswith(s, n) for s in specials):
                        break
                    n += 1
                if kind != "spaces":
                    yield text[:n]
                text = text[n:]

    def kind(self, character):
        code = ord(character)
        return next((name for name, codes in self.classes.items() if code in codes), "other")

    def merged(self, data):
        ids = [int(self.found["byte_ids"][b]) for b in data[:-1]]
        ids.append(int(self.found["byte_ids_at_end"][data[-1]]))
        while True:
            pairs = [(self.rank[pair][0], k) for k, pair in enumerate(zip(ids, ids[1:]))
                     if pair in self.rank]
            if not pairs:
                return ids
            k = min(pairs)[1]
            ids[k:k + 2] = [self.rank[tuple(ids[k:k + 2])][1]]

    def text(self, ids):
        offsets = self.found["token_offsets"]
        return b"".join(self.found["token_bytes"][offsets[i]:offsets[i + 1]].tobytes()
                        + b" " * int(self.found["token_ends_word"][i]) for i in ids).decode()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """CLIP's tokenizer, written and read back from its files alone."""
    folder = export_tokenizer(clip_vocabulary(), tmp_path_factory.mktemp("t") / "out")
    with Candidate.open(folder / "arrays") as candidate:
        found = {name: candidate.read(name) for name in candidate.names()}
    return folder, Flat(found, json.loads((folder / "special.json").read_text()))


PROMPTS = [
    "", "a photo of an astronaut riding a horse", "It's 2024, WE'LL see: 3.14 != π",
    "naïve café — “quotes” … Ünïcödé ÀÉÎ", "日本語 の 文", "emoji 👩‍🚀🚀 and \t tabs\n\nlines",
    "İstanbul ŞIŞLI ΣΊΣΥΦΟΣ ß ǅ", "e\u0301 versus \u00e9", "<|endoftext|> inside<|startoftext|>x",
    "x²³ ½ Ⅷ ٣", "word " * 100, "'''s't 'RE  rock'n'roll", "\u00a0no-break\u3000wide\x85next",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_follow_from_the_flat_arrays(exported, prompt):
    assert exported[1].ids(prompt) == CLIPTokenizer.clip()(prompt)[0].tolist()


def test_ids_of_random_text(exported):
    """Characters of all planes in words of random length."""
    random = np.random.default_rng(7)
    tokenizer = CLIPTokenizer.clip()
    for _ in range(60):
        codes = [int(c) for c in np.concatenate([
            random.integers(32, 0x250, 20), random.integers(0x250, 0x3000, 5),
            random.integers(0x3000, 0xD800, 3), random.integers(0x1F300, 0x1F700, 2)])]
        random.shuffle(codes)
        text = "".join(map(chr, codes))
        assert exported[1].ids(text) == tokenizer(text)[0].tolist(), ascii(text)


def test_text_follows_from_the_flat_arrays(exported):
    ids = CLIPTokenizer.clip()("a photo of a café, twice")[0]
    kept = [i for i in ids.tolist() if i < 49406]
    assert exported[1].text(kept) == "a photo of a café , twice "


def test_the_published_files_come_back(exported, tmp_path):
    found = read_vocabulary(exported[0])
    assert found.tokens == clip_vocabulary().tokens and found.merges == clip_vocabulary().merges
    text = (exported[0] / "README.md").read_text()
    for name in arrays(clip_vocabulary()):
        assert f"`{name}`" in text


def test_other_vocabularies(tiny_model, tmp_path, capsys):
    assert main(["export", "tokenizer", "-m", str(tiny_model), "-o", str(tmp_path / "out"), "--to",
                 "npy", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["merges"], said["length"]) == (len(tiny.MERGES), tiny.LENGTH)
    merges = np.load(Path(said["folder"]) / "arrays" / "merges.npy")
    names = {i: token for token, i in read_vocabulary(tiny_model / "tokenizer").tokens.items()}
    assert [f"{names[a]} {names[b]}" for a, b, _ in merges] == tiny.MERGES
    assert [names[ab] for _, _, ab in merges] == [m.replace(" ", "") for m in tiny.MERGES]


@pytest.mark.parametrize("mark, part, pad", [
    ("cond_stage_model.", "tokenizer", "<|endoftext|>"),
    ("conditioner.embedders.1.", "tokenizer", "<|endoftext|>"),
    ("conditioner.embedders.1.", "tokenizer_2", "!")])
def test_a_model_without_a_tokenizer_has_clips(tmp_path, capsys, mark, part, pad):
    """It pads as the family of the file does."""
    write_safetensors(tmp_path / "sd.safetensors", {f"{mark}x": np.zeros(1, "f4")})
    assert main(["export", "tokenizer", "-m", str(tmp_path / "sd.safetensors"), "-o",
                 str(tmp_path / "out"), "--json", "--part", part]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 49408
    special = json.loads((tmp_path / "out" / "special.json").read_text())
    assert special["pad_token"]["content"] == pad


def test_tables_are_sorted_and_apart():
    for name, table in unicode_tables().items():
        first, last = table[:, 0].astype("int64"), table[:, -1 if name != "lower" else 0]
        assert (first <= last).all() and (first[1:] > last[:-1]).all(), name
