"""Parts of a port's tensors, and several that make one golden tensor up, by a name map."""

import json
from dataclasses import replace

import numpy as np
import pytest
from golden_port_ops import Ops
from golden_runs import RECIPE, port

from refsd.errors import UsageError
from refsd.golden.comparing.bisect import bisect
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.comparing.layouts import to_layout
from refsd.golden.comparing.name_map import NameMap
from refsd.golden.comparing.parts import parse
from refsd.golden.comparing.report import sentence
from refsd.golden.packs.pack import Pack
from refsd.golden.recording.make import make
from refsd.golden.recording.record import Selection

QKV = np.arange(2 * 3 * 12, dtype="float32").reshape(2, 3, 12)
X = np.arange(2 * 4 * 2 * 3, dtype="float32").reshape(2, 4, 2, 3)


def read(tmp_path, arrays, pairs, name, shape, **options):
    np.savez(tmp_path / "a.npz", **arrays)
    with Candidate.open(tmp_path / "a.npz", name_map=pairs, **options) as candidate:
        found, info = candidate.read(name, shape), candidate.info(name, shape)
        assert (found is None) == (info is None)
        assert found is None or info.bytes == found.nbytes
        assert found is None or options or info.shape == found.shape
        return found if found is not None else candidate.trouble(name)


@pytest.mark.parametrize("text, wanted", [
    ("qkv[..., :4]", QKV[..., :4]), ("qkv[:, :, 8:]", QKV[..., 8:]),
    ("qkv [..., 1::3]", QKV[..., 1::3]), ("qkv[1:][..., -4:]", QKV[1:, :, -4:]),
    ("qkv[0]", QKV[0]), ("qkv", QKV),
])
def test_slices(tmp_path, text, wanted):
    found = read(tmp_path, {"qkv": QKV}, {"a.to_*": text}, "a.to_q", wanted.shape)
    assert np.array_equal(found, wanted)


def test_a_name_that_has_brackets_itself(tmp_path):
    arrays = {"block[0]": QKV, "block": 2 * QKV}
    assert np.array_equal(read(tmp_path, arrays, {"b": "block[0]"}, "b", QKV.shape), QKV)


@pytest.mark.parametrize("array, text", [
    (X.transpose(0, 2, 3, 1), "x[n h w c]"), (X.transpose(2, 3, 0, 1), "x[hwnc]"),
    (X.transpose(0, 2, 3, 1).ravel(), "x[n h w c]"),
    (np.stack([X, -X]).transpose(0, 1, 3, 4, 2), "x[0][n h w c]"),
])
def test_axes_by_letters(tmp_path, array, text):
    assert np.array_equal(read(tmp_path, {"x": array}, {"g": text}, "g", X.shape), X)


def test_axes_of_one_are_left_out_and_tokens_lie_in_rows(tmp_path):
    one = X[:1]
    turned = one[0].transpose(1, 2, 0)  # h w c
    assert np.array_equal(read(tmp_path, {"x": turned}, {"g": "x[h w c]"}, "g", one.shape), one)
    tokens = turned.reshape(1, 6, 4)
    got = read(tmp_path, {"x": one[0]}, {"g": "x[c h w]"}, "g", tokens.shape)
    assert np.array_equal(got, tokens)


def test_two_passes_are_one_batch(tmp_path):
    pairs = {"unet/*/x": ["uncond/*/x", "cond/*/x"]}
    arrays = {"uncond/000/x": X[:1], "cond/000/x": X[1:]}
    assert np.array_equal(read(tmp_path, arrays, pairs, "unet/000/x", X.shape), X)
    # each in its layout, with and without the axis of one
    turned = {name: to_layout(array, "NHWC") for name, array in arrays.items()}
    got = read(tmp_path, turned, pairs, "unet/000/x", X.shape, layout="NHWC")
    assert np.array_equal(got, X)
    pairs = {"unet/*/x": ["uncond/*/x[h w c]", "cond/*/x[h w c]"]}
    bare = {name: array[0] for name, array in turned.items()}
    assert np.array_equal(read(tmp_path, bare, pairs, "unet/000/x", X.shape), X)


@pytest.fixture(scope="module")
def passes(runs, tmp_path_factory):
    """A port that runs its network twice a step, with one sample: each pass under its own name."""
    path = tmp_path_factory.mktemp("passes") / "a.npz"
    with Pack.open(runs / "level3") as pack:
        whole = port(pack, Ops(), until="unet/000/conv_out")
    wide = {name: array for name, array in whole.items() if name.startswith("unet/000/")
            and len(array) == 2}
    np.savez(path, **{f"{one}/{name[5:]}": array[k:k + 1] for name, array in wide.items()
                      for k, one in enumerate(("uncond", "cond"))})
    return path


def test_two_passes_of_a_network_are_bisected_by_a_map(runs, passes):
    with Pack.open(runs / "level3") as pack:
        with Candidate.open(passes, name_map={"unet/*": ["uncond/*", "cond/*"]}) as candidate:
            found = bisect(pack, candidate, model=runs / "model", only=["unet/000/*"])
        assert found.first is None
        assert sum(row.status == "explained" for row in found.rows) > 100
        with Candidate.open(passes, name_map={"unet/*": "cond/*"}) as candidate:
            found = bisect(pack, candidate, model=runs / "model", only=["unet/000/conv_in"])
        assert "it is the first or the second half of the golden batch" in found.sentence
        for half, mine in (("first", "uncond/*"), ("second", "cond/*")):
            with Candidate.open(passes, name_map={"unet/*": mine}) as candidate:
                found = bisect(pack, candidate, model=runs / "model", only=["unet/*attn2.add"])
            assert found.first.finding.reason == "split_batch"
            assert f"it is the {half} half of the golden batch alone" in found.sentence
            with Candidate.open(passes, name_map={"unet/*": mine}) as candidate:
                found = compare(pack, candidate, only=["unet/*attn2.add"])
            assert "off_by_one" not in [f.reason for v in found.verdicts for f in v.findings]
            assert f"it is the {half} half of the golden batch alone" in sentence(found)


def test_a_pack_for_a_port_of_one_sample(runs, passes, tmp_path):
    """--cfg-scale 1: the prompt's own pass, in batches of one."""
    make(tmp_path / "one", replace(RECIPE, cfg_scale=1, negative_prompt=""), model=runs / "model",
         selection=Selection(level=3, include=("unet/000/*",)))
    with Pack.open(tmp_path / "one") as pack, (
            Candidate.open(passes, name_map={"unet/*": "cond/*"})) as candidate:
        found = bisect(pack, candidate, model=runs / "model")
        assert found.first is None and pack.entries["unet/000/conv_in"].shape[0] == 1


def test_one_of_two_passes_is_not_enough(tmp_path):
    np.savez(tmp_path / "a.npz", **{"uncond/000/x": X[:1], "other": X})
    pairs = {"unet/*/x": ["uncond/*/x", "cond/*/x"], "g": "x[0]"}
    with Candidate.open(tmp_path / "a.npz", name_map=pairs) as candidate:
        assert candidate.info("unet/000/x") is None and not candidate.trouble("unet/000/x")
        assert sorted(candidate.remarks(["unet/000/x", "g"])) == [
            "name map: 'g' leads to 'x[0]', which is not there",
            "name map: 'unet/*/x' leads to 'cond/000/x', which is not there"]
        assert candidate.extra(["unet/000/x"]) == ["uncond/000/x", "other"]


@pytest.mark.parametrize("mine, why", [
    ("qkv[0, 0, 0, 0]", "too many indices"), ("qkv[7]", "out of bounds"),
    ("qkv[h w]", "names 2 axes, and the tensor has the shape (2, 3, 12)"),
    ("qkv[n l c h]", "names 4 axes"), (["qkv", "qkv[..., :4]"], "do not make a batch"),
])
def test_parts_that_are_not_there(tmp_path, mine, why):
    assert why in read(tmp_path, {"qkv": QKV}, {"g": mine}, "g", (2, 3, 4))


@pytest.mark.parametrize("mine", ["a[b]", "a[1:2:3:4]", "a[]", "a[::0]", "a[1.5]", "a[n n]", [],
                                  [3], ["a", "b*"], None])
def test_a_map_that_makes_no_sense(mine, tmp_path):
    with pytest.raises(UsageError, match="name map: "):
        NameMap.of({"g": mine})


def test_reading_stays_lazy_and_types_stay(tmp_path):
    (tmp_path / "a.bin").write_bytes(QKV.astype("f2").tobytes())
    (tmp_path / "index.json").write_text(json.dumps({"tensors": {
        "qkv": {"file": "a.bin", "shape": list(QKV.shape), "dtype": "f16"}}}))
    with Candidate.open(tmp_path, name_map={"g": "qkv[..., :4]"}) as candidate:
        info = candidate.info("g", (2, 3, 4))
        assert (info.dtype, info.shape, info.bytes) == ("float16", (2, 3, 4), 48)
        assert np.array_equal(candidate.read("g", (2, 3, 4)), QKV[..., :4])


def test_parsing():
    assert parse("a[0].b [..., :2][h w c]") == ("a[0].b", ((Ellipsis, slice(None, 2)), "hwc"))
    assert parse("plain") == ("plain", ())
