"""Recorded ops and networks as ONNX test cases, read back by onnx and run by onnxruntime."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import tiny_three
import tiny_xl
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from refsd.__main__ import main
from refsd.errors import UsageError
from refsd.golden.comparing.limits import limit_of
from refsd.golden.packs.pack import Pack, Writer
from refsd.golden.porting.onnx import export_onnx
from refsd.golden.porting.onnx_networks import export_networks
from refsd.golden.recording.make import make
from refsd.golden.recording.record import Selection
from refsd.golden.recording.request import Request, load_truth
from refsd.golden.tolerances.spread import add_spread

GOLDEN = Path(__file__).parents[2] / "golden"
FAMILIES = sorted(path.name for path in (GOLDEN / "ops").iterdir())
WRITE = {"one text": tiny.write_model, "two texts": tiny_xl.write_model,
         "three texts": tiny_three.write_model}


def protos(folder, which=0):
    """Every tensor of a test_data_set by its own name, in the order of the files."""
    found = {}
    for kind in ("input", "output"):
        for path in sorted((folder / f"test_data_set_{which}").glob(f"{kind}_*.pb")):
            proto = onnx.TensorProto.FromString(path.read_bytes())
            found[proto.name] = numpy_helper.to_array(proto)
    return found


def ran(folder, arrays, reference=False):
    """What onnxruntime, or ONNX's own evaluator, gives of a model; all but the last are inputs."""
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    if reference:
        evaluator = ReferenceEvaluator(str(folder / "model.onnx"))
        return evaluator.run(None, {key: arrays[key] for key in list(arrays)[:-1]})[0]
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"),
                                           providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == list(arrays)[:-1]
    assert [y.name for y in session.get_outputs()] == list(arrays)[-1:] == ["output_0"]
    [result] = session.run(None, {key: arrays[key] for key in list(arrays)[:-1]})
    return result


def some(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


@pytest.fixture
def pack(tmp_path):
    with Writer(tmp_path / "pack", recipe={}, model={}, kind="ops", title="For ONNX") as writer:
        writer.add("unet/000/conv_in:x", some(1, 4, 5, 5), stage="unet", step=0)
        writer.add("unet/000/conv_in", some(1, 8, 5, 5, seed=1), stage="unet", step=0, op="conv2d",
                   inputs={"x": "tensor:unet/000/conv_in:x", "weight": "weight:unet.conv_in.weight",
                           "bias": None}, options={"padding": 1})
        writer.add("unet/000/up.concat", some(1, 12, 5, 5, seed=2), stage="unet", step=0,
                   op="concat", options={"axis": 1}, inputs={"arrays": [
                       "tensor:unet/000/conv_in", "tensor:unet/000/conv_in:x"]})
        writer.add("unet/000/up", some(3), stage="unet", step=0, op="block")
    with Pack.open(tmp_path / "pack") as opened:
        yield opened


def weight(name):
    assert name == "unet.conv_in.weight"
    return some(8, 4, 3, 3, seed=3)


def test_cases_come_back(pack, tmp_path):
    names = export_onnx(pack, tmp_path / "out", read_weight=weight)
    assert names == ["unet/000/conv_in", "unet/000/up.concat"]
    folder = tmp_path / "out" / "unet__000__conv_in"
    found = protos(folder)
    assert list(found) == ["x", "weight", "output_0"]
    assert np.array_equal(found["x"], some(1, 4, 5, 5))
    assert np.array_equal(found["weight"], some(8, 4, 3, 3, seed=3))
    assert np.array_equal(found["output_0"], some(1, 8, 5, 5, seed=1))
    call = json.loads((folder / "call.json").read_text())
    assert (call["op"], call["inputs"], call["numbers"]) == (
        "conv2d", ["x", "weight"], {"bias": None})
    found = protos(tmp_path / "out" / "unet__000__up.concat")
    assert list(found) == ["arrays.0", "arrays.1", "output_0"]
    assert found["arrays.1"].shape == (1, 4, 5, 5)


def test_a_pack_without_ops_is_refused(pack, tmp_path):
    with pytest.raises(UsageError, match="no op is recorded in it under these names"):
        export_onnx(pack, tmp_path / "out", read_weight=weight, only=["*/up"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_committed_case_runs(family, tmp_path):
    """Each element within the worst case of its op in float32, in another's order of sums.

    But where the mean is 1024 ONNX's GroupNormalization is no port's truth: its definition takes
    E(x^2) - (E x)^2 for a variance, which rounding brings below 0, and gives NaN.
    """
    with Pack.open(GOLDEN / "ops" / family) as pack:
        names = export_onnx(pack, tmp_path / "out", read_weight=None)
        assert names == [name for name, entry in pack.entries.items() if entry.op]
        for name in names:
            folder = tmp_path / "out" / name.replace("/", "__")
            arrays = protos(folder)
            found, truth = ran(folder, arrays), pack.read(name)
            assert (found.dtype, found.shape) == (truth.dtype, truth.shape)
            worst = pack.entries[name].tolerance["float32"]["worst"]
            error = np.abs(found - truth.astype("float64")).max()
            nan = name.startswith("ops/group_norm/big")
            assert np.isnan(error) if nan else error <= worst, name


# -- networks


@pytest.fixture(scope="module", params=WRITE)
def drawn(request, tmp_path_factory):
    """A pack of two steps of a tiny model, with its spread in float32."""
    place = tmp_path_factory.mktemp("drawn")
    model = WRITE[request.param](place / "model")
    pipe = load_truth(model)
    asked = Request(prompt="red cat", negative_prompt="re", width=32, height=64, steps=2,
                    cfg_scale=5.0, scheduler=pipe.scheduler.config.plain())
    make(place / "pack", asked, pipe=pipe, model=model, selection=Selection(level=2, steps=()))
    add_spread(place / "pack", formats=("float32",), runs=3, pipe=pipe)
    with Pack.open(place / "pack") as pack:
        yield request.param, model, pack


def within(pack, names, found):
    """Not further off than other right runs of the whole picture, of which this is a part.

    Measured: up to 0.31 of that by ONNX's evaluator; by onnxruntime, whose exp and tanh are
    approximations, up to 1.6 of it in T5's encoder, and less in all else.
    """
    for name, part in zip(names, np.split(found, len(names)), strict=True):
        golden = pack.read(name)
        limit = limit_of(pack, pack.entries[name], golden, format="float32")
        error = part - golden.astype("float64")
        assert limit.kind == "spread" and np.sqrt(np.mean(error**2)) <= limit.size
        assert np.abs(error).max() <= limit.largest


def test_networks_run(drawn, tmp_path):
    which, model, pack = drawn
    names = export_networks(pack, tmp_path / "out", model=model)
    assert names == {"one text": ["text_encoder", "decode", "unet"], "two texts": [
        "decode", "unet"], "three texts": ["text_encoder_3", "decode", "transformer"]}[which]
    told = json.loads((tmp_path / "out" / "networks.json").read_text())
    assert [*told] == names
    for name, sets in told.items():
        assert len(sets) == {"decode": 1}.get(name, 2)  # two texts, two steps
        for i, one in enumerate(sets):
            arrays = protos(tmp_path / "out" / name, i)
            for key, tensors in one["inputs"].items():
                assert np.array_equal(arrays[key], np.concatenate([*map(pack.read, tensors)]))
            assert one["step"] == (None if "timesteps" not in arrays else i)
            if "timesteps" in arrays:
                assert np.array_equal(arrays["timesteps"], np.full(2, pack.read(
                    "schedule/timesteps")[i]))
            truth = np.concatenate([*map(pack.read, one["output"])])
            assert np.array_equal(arrays["output_0"], truth)
            within(pack, one["output"], ran(tmp_path / "out" / name, arrays, True))


def test_the_command_of_networks(tmp_path, capsys):
    """The whole UNet of the committed pack, all four steps."""
    out = tmp_path / "out"
    assert main(["golden", "export", str(GOLDEN / "bundled"), "-o", str(out), "--to",
                 "onnx-networks", "--only", "unet"]) == 0
    assert capsys.readouterr().out == f"{out}: 1 network as onnx-networks\n"
    assert sorted(path.name for path in out.iterdir()) == ["networks.json", "unet"]
    told = json.loads((out / "networks.json").read_text())["unet"]
    assert [one["step"] for one in told] == [0, 1, 2, 3]
    with Pack.open(GOLDEN / "bundled") as pack:
        assert told[3]["tolerance"] == {name: pack.entries[name].tolerance for name in
                                        ("denoise/003/eps_uncond", "denoise/003/eps_cond")}
        within(pack, told[3]["output"], ran(out / "unet", protos(out / "unet", 3)))


def test_polygraphy_runs_a_network_and_compares(tmp_path, capsys):
    """The recorded steps go in, what comes out is held to the pack; theirs agrees, coarsely."""
    out, mine = tmp_path / "out", tmp_path / "mine.json"
    bundled = GOLDEN / "bundled"
    assert main(["golden", "export", str(bundled), "-o", str(out), "--to", "onnx-networks",
                 "--only", "unet"]) == 0
    code = polygraphy(["run", str(out / "unet" / "model.onnx"), "--onnxrt", "--load-inputs",
                       str(out / "unet" / "inputs.json"), "--save-outputs", str(mine),
                       "--load-outputs", str(out / "unet" / "outputs.json"), "--atol", "1e-4"])
    assert code == 0
    (tmp_path / "map.json").write_text(json.dumps({"denoise/*/eps_uncond": "*/output_0[:1]",
                                                   "denoise/*/eps_cond": "*/output_0[1:]"}))
    capsys.readouterr()
    assert main(["golden", "compare", str(bundled), str(mine), "--map",
                 str(tmp_path / "map.json"), "--only", "denoise/*/eps_*", "--all"]) == 0
    assert "All 8 tensors are" in capsys.readouterr().out


def polygraphy(words):
    """The exit code of Polygraphy's own command."""
    return subprocess.run([sys.executable, "-c", "from polygraphy.tools import main; main()",
                           *words], capture_output=True).returncode


def test_a_pack_without_networks_is_refused(pack, tmp_path):
    with pytest.raises(UsageError, match="it has no network's inputs and output"):
        export_networks(pack, tmp_path / "out")
    assert not (tmp_path / "out").exists()
