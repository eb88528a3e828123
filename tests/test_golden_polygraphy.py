"""Polygraphy's JSON read and written; tests/parity/test_golden_polygraphy.py asks Polygraphy.

polygraphy_inputs.json and polygraphy_outputs.json are what Polygraphy 0.53.6 saved of a model with
the outputs z = x y and w, which is z in float16:
`polygraphy run m.onnx --onnxrt --seed 1 --save-inputs in.json --save-outputs out.json`.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest

from refsd.__main__ import main
from refsd.errors import ModelError, UsageError
from refsd.golden.comparing import dumps_polygraphy
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.packs.pack import Pack, Writer
from refsd.golden.porting.polygraphy import export_polygraphy

SAVED = Path(__file__).parent
X = np.arange(24, dtype="float32").reshape(1, 4, 2, 3)


def arrays(path, **options):
    with Candidate.open(path, **options) as candidate:
        return {name: candidate.read(name) for name in candidate.names()}


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return base64.b64encode(file.getvalue()).decode()


def saved(*runs):
    """A RunResults: of each runner the arrays of its iterations."""
    return {"lst": [[runner, [{"outputs": {name: {"values": entry} for name, entry in
                                           outputs.items()},
                               "runtime": 1e-3, "runner_name": runner,
                               "polygraphy_class": "IterationResult"} for outputs in iterations]]
                    for runner, iterations in runs], "polygraphy_class": "RunResults"}


def entry(array, **options):
    return {"array": npy(array, **options), "polygraphy_class": "ndarray"}


def write(path, found):
    path.write_text(json.dumps(found))
    return path


# -- read


def test_what_polygraphy_saved():
    inputs = arrays(SAVED / "polygraphy_inputs.json")
    outputs = arrays(SAVED / "polygraphy_outputs.json")
    assert list(inputs) == ["x", "y"] and list(outputs) == ["z", "w"]
    assert inputs["x"].shape == (2, 3) and inputs["x"].dtype == "float32"
    assert np.array_equal(outputs["z"], inputs["x"] * inputs["y"])
    assert outputs["w"].dtype == "float16"
    assert np.array_equal(outputs["w"], outputs["z"].astype("float16"))


@pytest.mark.parametrize("array", [
    X, X.astype("float16"), X.astype("int64"), X.astype(">f4"), np.asfortranarray(X),
    X > 3, np.float32(2.5).reshape(()), np.zeros((0, 3), "f4"), X[:, :1, :1, :2],
    np.arange(1 << 16, dtype="f8"),
], ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays_of_any_length(array, tmp_path):
    """Base64 ends in no, one or two signs; a text is decoded in several parts."""
    found = arrays(write(tmp_path / "out.json", saved(("a", [{"y": entry(array)}]))))
    assert found["y"].shape == array.shape and np.array_equal(found["y"], array)


def test_bfloat16_of_ml_dtypes(tmp_path):
    bits = (X.view("uint32") >> 16).astype("uint16").view("V2")
    path = write(tmp_path / "out.json", saved(("a", [{"y": entry(bits)}])))
    with Candidate.open(path) as candidate:
        assert candidate.info("y").dtype == "bfloat16"
        assert np.array_equal(candidate.read("y"), X)  # small whole numbers


def test_several_iterations_and_runners(tmp_path):
    outputs = [{"y": entry(X)}, {"y": entry(X + 1)}]
    runs = [("trt-runner-N0-11/30/26-09:17:54", outputs),
            ("onnxrt-runner-N0-11/30/26-09:17:55", outputs[:1])]
    found = arrays(write(tmp_path / "a.json", saved(*runs)))
    assert list(found) == ["trt-runner-N0/000/y", "trt-runner-N0/001/y", "onnxrt-runner-N0/y"]
    assert np.array_equal(found["trt-runner-N0/001/y"], X + 1)
    assert list(arrays(write(tmp_path / "b.json", saved(runs[0])))) == ["000/y", "001/y"]
    twice = [("a-11/30/26-09:17:54", outputs[:1]), ("a-11/30/26-09:17:55", outputs[:1])]
    assert list(arrays(write(tmp_path / "c.json", saved(*twice)))) == [
        f"{runner}/y" for runner, _ in twice]


def test_a_folder_of_iterations_among_other_json(tmp_path):
    for i in range(2):
        write(tmp_path / f"{i:010d}.json", saved(("a", [{"y": entry(X + i)}])))
    write(tmp_path / "config.json", {"array": "of nothing"})
    write(tmp_path / "export.json", {"tensors": {}})
    (tmp_path / "broken.json").symlink_to("nowhere")
    assert list(arrays(tmp_path)) == ["000/y", "001/y"]
    with Candidate.open(tmp_path, name_map={"unet/*/conv_in": "*/y"}) as candidate:
        assert np.array_equal(candidate.read("unet/001/conv_in"), X + 1)
        assert candidate.troubles == []
    assert list(arrays(tmp_path / "0000000001.json")) == ["001/y"]
    (tmp_path / "0000000000.json").unlink()
    assert list(arrays(tmp_path)) == ["y"]


def test_one_set_of_inputs_and_names_that_mean_something(tmp_path):
    """A tensor may be called as the keys around it are."""
    found = arrays(write(tmp_path / "in.json", {"array": entry(X), "lst": entry(X + 1), 'a"array':
                                                entry(X + 2), "outputs": entry(X + 3)}))
    assert list(found) == ["array", "lst", 'a"array', "outputs"]
    assert all(np.array_equal(array, X + i) for i, array in enumerate(found.values()))
    old = {"lst": [["a", [{"outputs": {"y": {"values": {
        "array": npy(X), "__polygraphy_encoded_ndarray": "polygraphy_serialized_json_type"},
        "__polygraphy_encoded_LazyArray": "polygraphy_serialized_json_type"}}, "runtime": 1,
        "runner_name": "a", "__polygraphy_encoded_IterationResult":
        "polygraphy_serialized_json_type"}]]],
        "__polygraphy_encoded_RunResults": "polygraphy_serialized_json_type"}
    assert np.array_equal(arrays(write(tmp_path / "old.json", old))["y"], X)


def test_arrays_are_not_held(tmp_path, monkeypatch):
    """Nor counted among the text that is; more of that than allowed is refused."""
    path = write(tmp_path / "out.json", saved(("a", [{"y": entry(np.zeros(10_000))}])))
    monkeypatch.setattr(dumps_polygraphy, "MAX_TEXT", 400)
    assert arrays(path)["y"].shape == (10_000,)
    for name in ("y" * 400, "y"):
        path = write(tmp_path / "long.json", saved(("a", [{name: entry(X)} for _ in range(4)])))
        with pytest.raises(ModelError, match="besides its arrays, at most 400 are allowed"):
            Candidate.open(path)


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_a_file_is_read_in_pieces_of_any_size(piece, tmp_path, monkeypatch):
    """A key may lie in two of them, also behind the backslash that makes it none."""
    written = {f'{"x" * i}\\"array": "': entry(X + i) for i in range(9)}
    path = write(tmp_path / "out.json", saved(("a", [written])))
    monkeypatch.setattr(dumps_polygraphy, "PIECE", piece)
    found = arrays(path)
    assert list(found) == list(written)
    assert all(np.array_equal(array, X + i) for i, array in enumerate(found.values()))


@pytest.mark.parametrize("bad, words", [
    ({"tensor": "gAJ9cQA=", "polygraphy_class": "Tensor"}, "is a torch.Tensor, which Polygraphy"),
    ({"array": "k05V!!!!"}, "no base64"),
    ({"array": "k05VTVBZAQB"}, "no base64"),
    ({"array": ""}, "not a readable .npy file"),
    ({"array": base64.b64encode(b"no array").decode()}, "not a readable .npy file"),
    ({"array": npy(X)[:-8]}, "which are not the 91 bytes that follow"),
    ({"array": npy(np.array([{}]), allow_pickle=True)}, "holds pickled Python objects"),
    ({"array": npy(np.zeros(2, "c8"))}, "holds complex64; save plain"),
    ({"array": 3}, 'expected "array" with the base64 of a .npy file'),
    (7, 'expected "array" with the base64 of a .npy file'),
])
def test_one_bad_array_beside_a_good_one(bad, words, tmp_path):
    path = write(tmp_path / "out.json", saved(("a", [{"good": entry(X), "bad": bad}])))
    with Candidate.open(path) as candidate:
        assert candidate.names() == ["good"]
        [trouble] = candidate.troubles
        assert (trouble.name, trouble.file) == ("bad", str(path)) and words in trouble.why
        assert np.array_equal(candidate.read("good"), X)


def test_base64_that_is_broken_further_on(tmp_path):
    text = npy(np.zeros(1 << 15, "f4"))
    path = write(tmp_path / "out.json", saved(("a", [{"y": {"array": text[:-80] + "!" + text[-79:]},
                                                      "z": {"array": text}}])))
    with Candidate.open(path) as candidate:
        assert candidate.read("y") is None and "no base64" in candidate.trouble("y")
        assert np.array_equal(candidate.read("z"), np.zeros(1 << 15))


def test_a_name_twice_and_a_key_in_disguise(tmp_path):
    text = json.dumps(saved(("a", [{"y": entry(X), "q": entry(X)}])))
    (tmp_path / "out.json").write_text(text.replace('"q"', '"y"'))
    with pytest.raises(ModelError, match="'y' is there twice"):
        Candidate.open(tmp_path / "out.json")
    for disguised in ("99", "0+999999999999999", "²"):
        (tmp_path / "out.json").write_text('[{"z": {"\\u0061rray": "' + disguised + '"}}]')
        with pytest.raises(ModelError, match='expected "array"'):
            Candidate.open(tmp_path / "out.json")


@pytest.mark.parametrize("text, words", [
    ("", "empty, expected JSON that Polygraphy saved"),
    ("[3]", "expected Polygraphy's RunResults"), ("3", "expected Polygraphy's RunResults"),
    ('{"lst": [{"lst": []}]}', "expected Polygraphy's RunResults"),
    ('{"lst": [["a", [{"outputs": [], "runner_name": "a"}]]]}', "expected Polygraphy's RunRes"),
    ('[{"y": {"array": "k05VTVBZ', "not valid JSON"),
])
def test_what_is_none(text, words, tmp_path):
    (tmp_path / "out.json").write_text(text)
    with pytest.raises(ModelError, match=words):
        Candidate.open(tmp_path / "out.json")
    if "k05V" in text:  # a port that was stopped while it saved is not passed over in a folder
        with pytest.raises(ModelError, match=words):
            Candidate.open(tmp_path)
    else:
        with pytest.raises(UsageError, match="or Polygraphy's JSON in this folder"):
            Candidate.open(tmp_path)


# -- written


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    place = tmp_path_factory.mktemp("packs") / "pack"
    with Writer(place, recipe={}, model={}, kind="run", title="For Polygraphy") as writer:
        writer.add("unet/000/conv_in:x", X, stage="unet", step=0)
        writer.add("tokens/000/ids", np.arange(7).reshape(1, 7), stage="tokens")
        for step in (0, 1):
            writer.add(f"unet/{step:03}/conv_in", 2 * X + step, stage="unet", step=step, op="mul",
                       inputs={"a": "tensor:unet/000/conv_in:x", "b": 2.0})
    with Pack.open(place) as opened:
        yield opened


def test_a_pack_comes_back(pack, tmp_path):
    assert export_polygraphy(pack, tmp_path / "out") == list(pack.entries)
    inputs = arrays(tmp_path / "out" / "inputs.json")
    outputs = arrays(tmp_path / "out" / "outputs.json")
    assert list(inputs) == ["unet/000/conv_in:x", "tokens/000/ids"]
    assert list(outputs) == ["unet/000/conv_in", "unet/001/conv_in"]
    for name, array in {**inputs, **outputs}.items():
        assert array.dtype == pack.read(name).dtype and np.array_equal(array, pack.read(name))
    assert arrays(tmp_path / "out").keys() == pack.entries.keys()


def test_names_of_the_graph_one_step_and_another_layout(pack, tmp_path, capsys):
    names = write(tmp_path / "names.json", {"unet/000/conv_in:x": "sample", "unet/*/conv_in": "y"})
    command = ["golden", "export", str(pack.path), "-o", str(tmp_path / "out"), "--to",
               "polygraphy", "--map", str(names), "--layout", "NHWC"]
    assert main([*command, "--only", "unet/000/*"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 2 tensors as polygraphy\n"
    found = arrays(tmp_path / "out")
    assert list(found) == ["sample", "y"]
    assert np.array_equal(found["y"], (2 * X).transpose(0, 2, 3, 1))
    command[4] = str(tmp_path / "other")
    assert main(command) == 2
    assert ("'unet/000/conv_in' and 'unet/001/conv_in' would both be called 'y'; give one of them"
            in capsys.readouterr().err)
    assert not (tmp_path / "other").exists()


def test_a_file_without_arrays_is_left_out(pack, tmp_path):
    export_polygraphy(pack, tmp_path / "out", only=["*/conv_in"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["outputs.json"]
    export_polygraphy(pack, tmp_path / "in", only=["tokens/*"])
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["inputs.json"]


def test_parts_have_no_name(pack, tmp_path, capsys):
    for mine in ("qkv[..., :1]", ["a", "b"]):
        with pytest.raises(UsageError, match="is made of parts of tensors"):
            export_polygraphy(pack, tmp_path / "out", name_map={"unet/000/conv_in": mine})
    command = ["golden", "export", str(pack.path), "-o", str(tmp_path / "out"), "--map", "m.json"]
    assert main(command) == 2
    assert "--map names the tensors of --to polygraphy" in capsys.readouterr().err
