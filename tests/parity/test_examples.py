"""examples/torch_dump.py: hooks on diffusers' UNet leave a dump that is judged as any port's."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_diffusers import write_model

import refsd
from refsd.__main__ import main

EXAMPLES = Path(refsd.__file__).parents[1] / "examples"
NAMES = EXAMPLES / "torch_names.json"
WRONG = "unet/000/mid_block.resnets.1.norm2"


def half_the_groups(unet):
    unet.mid_block.resnets[1].norm2.num_groups //= 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a pack of its first step with a spread, and dumps: right ones and a wrong one."""
    place = tmp_path_factory.mktemp("torch")
    model = str(write_model(place))
    assert main(["golden", "make", "-o", str(place / "pack"), "a cat", "-m", model, "--level", "3",
                 "--steps", "1", "-W", "64", "-H", "64", "-q", "--spread", "2",
                 "--spread-formats", "float32", *(word for stage in ("tokens", "text", "denoise",
                                                                  "unet")
                   for word in ("--include", f"{stage}/*"))]) == 0
    draw = runpy.run_path(str(EXAMPLES / "torch_dump.py"))["draw"]
    for name, change in (("mine", ()), ("again", ()), ("wrong", (half_the_groups,))):
        draw(place / "pack", model, place / name, *change)
    return place


@pytest.fixture
def golden(folder, capsys):
    def command(action, *args):
        model = () if action == "same" else ("-m", str(folder / "model"))
        code = main(["golden", action, *(arg if arg[:1] == "-" else str(folder / arg)
                                         for arg in args), "--map", str(NAMES), *model, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return command


def test_the_dump_is_green(golden):
    """Every name of the map leads somewhere, and all modules are judged on their own inputs."""
    for action in ("compare", "bisect"):
        code, found = golden(action, "pack", "mine")
        assert code == 0 and found["remarks"] == [], found["sentence"]
    ops = {row["op"] for row in found["rows"] if row["status"] == "explained"}
    assert ops >= {"conv2d", "linear", "group_norm", "layer_norm", "silu", "geglu", "block",
                   "timestep_embedding"}
    assert found["judged"] > 100 and not [row for row in found["rows"] if row["status"] == "open"]


def test_a_mistake_is_named(golden):
    code, found = golden("bisect", "pack", "wrong")
    assert code == 1 and found["first"]["name"] == WRONG and not found["later"]
    assert found["first"]["finding"]["reason"] == "wrong_groups"
    code, found = golden("compare", "pack", "wrong")
    assert code == 1 and found["first"] == WRONG


def test_runs_against_each_other(golden, folder):
    code, found = golden("same", "mine", "again", "--pack", "pack")
    assert code == 0 and found["same"], found["sentence"]
    code, found = golden("same", "mine", "wrong", "--pack", "pack")
    assert code == 1 and found["first"] == WRONG
    # sums are no module: nobody dumped what the norm read
    assert (" It arose in this op or in what was not dumped before it: "
            "unet/000/mid_block.resnets.1.add. ") in found["sentence"]


class Network(torch.nn.Module):
    """Layers that change their results in place, one of them called twice."""

    def __init__(self):
        super().__init__()
        self.linear, self.act = torch.nn.Linear(4, 4), torch.nn.ReLU(inplace=True)

    def forward(self, sample, timestep, *, encoder_hidden_states):
        return self.act(self.act(self.linear(sample)) - encoder_hidden_states).add_(1)


def test_a_file_for_each_step(tmp_path):
    network, x = Network().half(), torch.randn(3, 4, dtype=torch.float16)
    runpy.run_path(str(EXAMPLES / "torch_dump.py"))["Dump"](network, tmp_path / "mine")
    with torch.no_grad():
        for _ in range(2):
            result = network(x, 1, encoder_hidden_states=x + 1)
    first, second = (load_file(tmp_path / "mine" / f"unet-00{step}.safetensors")
                     for step in range(2))
    paths = {"linear", "act", "act.2"}
    assert set(first) == {"denoise/concat", "denoise/000/concat", *(f"unet/000/{p}" for p in paths)}
    assert set(second) == {"denoise/001/concat", *(f"unet/001/{path}" for path in paths)}
    assert second["unet/001/act.2"].dtype == torch.float16
    assert torch.equal(first["unet/000/act.2"] + 1, result)
    assert torch.equal(first["unet/000/linear"], network.linear.forward(x))
