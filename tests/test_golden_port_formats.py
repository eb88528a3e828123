"""Formats of a port by stage and by op: who is in which, and what compare and bisect make of it."""

import json

import numpy as np
import pytest
from golden_compare_samples import opened

from refsd.__main__ import main
from refsd.errors import UsageError
from refsd.golden.comparing.port_formats import Formats
from refsd.golden.packs.pack import Pack, Writer
from refsd.golden.recording.pipeline_ops import guide
from refsd.golden.tolerances.formats import round_to

MIXED = ["bf16", "denoise/*=fp32"]
UNCOND, COND = np.random.default_rng(8).standard_normal((2, 1, 4, 8, 8)).astype("float32")
GUIDED = guide(UNCOND.astype("f8"), COND.astype("f8"), scale=7.5)
SPREAD = {"float32": {"spread": {"rms": 1e-6, "max": 1e-5}},
          "bfloat16": {"spread": {"rms": 2e-2, "max": 1e-1}}}


@pytest.fixture
def place(tmp_path):
    """A sampler that begins, a network, and the sampler again."""
    with Writer(tmp_path / "p", recipe={}, model={}) as pack:
        pack.add("denoise/uncond", UNCOND, stage="denoise")
        pack.add("denoise/cond", COND, stage="denoise")
        pack.add("denoise/guided", GUIDED, op="guide", stage="denoise", options={"scale": 7.5},
                 inputs={"uncond": "tensor:denoise/uncond", "cond": "tensor:denoise/cond"})
        pack.add("denoise/concat", np.concatenate([GUIDED, GUIDED]), op="concat", stage="denoise",
                 options={"axis": 0}, inputs={"arrays": ["tensor:denoise/guided"] * 2})
        pack.add("unet/000/silu", np.tanh(GUIDED), op="block", stage="unet", step=0,
                 tolerance=SPREAD, inputs={"x": "tensor:denoise/concat"})
        pack.add("denoise/000/eps", np.tanh(GUIDED), op="block", stage="denoise", step=0,
                 tolerance=SPREAD)
    return tmp_path


def formats(place, asked):
    with Pack.open(place / "p") as pack:
        found = Formats(asked, pack.entries)
        return found, pack.entries


def test_who_computes_in_what(place):
    found, entries = formats(place, [*MIXED, "guide=fp16"])
    names = {name: found.of(entry).name for name, entry in entries.items()}
    assert names == {"denoise/uncond": "float32", "denoise/cond": "float32",
                     "denoise/guided": "float16", "denoise/concat": "float32",
                     "unet/000/silu": "bfloat16", "denoise/000/eps": "float32"}
    assert found.name == "bfloat16, denoise/*=float32, guide=float16"
    # what may be inherited is that of the coarsest so far; a cast is that of the reader
    up_to = {name: found.up_to(entry).name for name, entry in entries.items()}
    assert up_to == {**names, "denoise/concat": "float16", "denoise/000/eps": "bfloat16"}
    assert [one.name for one in found.casts(entries["denoise/concat"])] == ["bfloat16"]
    assert found.casts(entries["denoise/guided"]) == []


@pytest.mark.parametrize("asked, default", [("bf16", "bfloat16"), (["bf16"], "bfloat16"),
                                            ([], "float32"), (["guide=bf16"], "float32")])
def test_one_format_alone_and_none(place, asked, default):
    assert formats(place, asked)[0].default.name == default


@pytest.mark.parametrize("asked, why", [
    (["bf16", "fp16"], "format is bfloat16 and float16; give one"),
    ("half", "format is 'half'"), (["denoise/*=half"], "format is 'half'"),
    (["unet/7*=fp16"], "no tensor or op of the pack fits 'unet/7\\*'"),
    (["=fp16", "bf16"], "give one"),
])
def test_formats_that_make_no_sense(place, asked, why):
    with pytest.raises(UsageError, match=why):
        formats(place, asked)


def test_compare_holds_each_tensor_to_its_own(place):
    right = {"denoise/uncond": UNCOND, "denoise/cond": COND,
             "denoise/guided": GUIDED.astype("f4"),
             "unet/000/silu": round_to(np.tanh(GUIDED), "bfloat16").astype("f4"),
             "denoise/000/eps": (np.tanh(GUIDED) + 1e-3).astype("f4")}
    found = opened(place, right, format=MIXED)
    assert found.first is None and found.format == "bfloat16, denoise/*=float32"
    kinds = {v.entry.name: (v.kind, v.format) for v in found.verdicts}
    assert kinds["denoise/guided"] == ("op", "float32")
    assert kinds["unet/000/silu"] == kinds["denoise/000/eps"] == ("spread", "bfloat16")

    coarse = right | {"denoise/guided": (GUIDED * (1 + 1e-3)).astype("f4")}
    assert opened(place, coarse, format="bf16").first is None
    assert opened(place, coarse, format=MIXED).first.entry.name == "denoise/guided"
    assert opened(place, right, format="fp32").first.entry.name == "unet/000/silu"


@pytest.mark.parametrize("command", ["compare", "bisect"])
def test_the_commands_take_them(place, capsys, command):
    np.savez(place / "c.npz", **{"denoise/guided": (GUIDED * (1 + 1e-3)).astype("f4"),
                                 "denoise/uncond": UNCOND, "denoise/cond": COND})
    given = ["golden", command, str(place / "p"), str(place / "c.npz"), "--json"]
    assert main([*given, "--format", "bf16"]) == 0
    capsys.readouterr()
    assert main([*given, "--format", "bf16", "--format", "denoise/*=fp32"]) == 1
    found = json.loads(capsys.readouterr().out)
    row = next(row for row in found["tensors" if command == "compare" else "rows"]
               if row["name"] == "denoise/guided")
    assert (row["status"], row["format"]) == ("wrong", "float32")
    assert found["format"] == "bfloat16, denoise/*=float32"
    assert main([*given, "--format", "denoise/*=hlf"]) == 2
    assert main([*given, "--only", "denoise/u*"]) == 0
