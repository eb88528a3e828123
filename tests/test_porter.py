"""Somebody else's port, of fused kernels in short formats, is right; its mistakes are named."""

import json

import numpy as np
import pytest
from porter import dumping, trial
from porter.mistakes import MISTAKES

from refsd.golden.comparing.bisect import bisect
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.comparing.name_map import NameMap, Names
from refsd.golden.packs.pack import Pack
from refsd.golden.recording.make import make
from refsd.golden.recording.record import Selection
from refsd.golden.recording.request import Request

CONFIG = json.loads((trial.MODEL / "scheduler/scheduler_config.json").read_text())
RECIPE = Request(prompt="a red cone", width=128, height=128, steps=trial.STEPS,
                 cfg_scale=trial.GUIDANCE,
                 scheduler={key: value for key, value in CONFIG.items()
                            if key != "_diffusers_version"})
# In each part of a chain of fused ops, in what is merged, and where nothing is fused.
SHOWN = ("kernel flipped", "16 groups", "tokens by column", "to_q transposed",
         "upsampled bilinearly", "skip of the other sample", "keys padded to 64",
         "texts of keys swapped", "no final norm", "v taken for eps")

# Beside the rounding that the format has, and in a block all that is in it.
TOGETHER = (("group norm eps 1e-3", "full", "bfloat16", "wrong_eps"),
            ("transformer eps 1e-5", "full", "float16", "wrong_eps"),
            ("layer norm eps 1e-12", "full", "float16", "wrong_eps"),
            ("transformer eps 1e-5", "blocks", "float32", "wrong_eps"),
            ("tanh gelu", "blocks", "float16", "gelu_tanh"))
# Versions whose distances from the right one are 9.99e-6 and 9e-6, which roundings do not tell
# apart: with one processor's roundings it is the one, with another's the other.
LIKE = {"1e-12": [1e-12, 1e-6]}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Bounds alone, which bisect works out itself."""
    place = tmp_path_factory.mktemp("porter") / "pack"
    make(place, RECIPE, selection=Selection(level=3, exclude=("decode/*", "picture/*")))
    with Pack.open(place) as opened:
        yield opened


@pytest.fixture(scope="module")
def model():
    return trial.open_model()


@pytest.mark.parametrize("format", trial.FORMATS)
def test_the_right_port_is_explained(pack, model, format, tmp_path):
    """Whatever it dumps: all graph outputs, its blocks, its UNet on golden inputs."""
    seed = trial.FORMATS.index(format)
    how = {"seed": seed, "eager": bool(seed % 2)}  # the two attentions in turns
    run = trial.run(pack, model, "full", format, **how)
    for kind in dumping.KINDS:
        dump = trial.run(pack, model, kind, format, **how) if kind == "unet" else run
        dumping.write_raw(tmp_path / kind, dumping.part(kind, dump), format)
        with Candidate.open(tmp_path / kind, name_map=dumping.MAPS[kind]) as candidate:
            found = bisect(pack, candidate, format=trial.formats(kind, format))
        assert found.first is None, f"{kind}: {found.sentence}"
        judged = sum(row.status == "explained" for row in found.rows)
        assert judged >= {"full": 281, "blocks": 28, "unet": 197}[kind]


@pytest.mark.parametrize("key", SHOWN)
def test_a_mistake_is_named_and_why(pack, model, key, tmp_path):
    dump = trial.run(pack, model, "full", "float32", bugs=MISTAKES[key].bugs)
    found, compared = trial.verdicts(pack, tmp_path / "dump", dump, "full", "float32")
    assert found.first.name in trial.expected(pack, MISTAKES[key], "full"), found.sentence
    assert found.first.finding.reason in MISTAKES[key].reasons, found.sentence
    assert compared.compared >= 228  # a pack without tolerances has nothing to judge by


@pytest.mark.parametrize("cell", TOGETHER, ids=str)
def test_a_mistake_that_no_element_shows_is_named_by_all_of_them(pack, model, cell, tmp_path):
    """Projected onto what it would make, or by which of two neighbours each number is rounded to.

    Of the right port the same tensor is explained.
    """
    key, kind, format, reason = cell
    wanted = trial.expected(pack, MISTAKES[key], kind)
    for bugs in (MISTAKES[key].bugs, None):
        dump = trial.run(pack, model, kind, format, bugs=bugs)
        dumping.write_raw(tmp_path / str(bugs is None), dumping.part(kind, dump), format)
        with Candidate.open(tmp_path / str(bugs is None),
                            name_map=dumping.MAPS[kind]) as candidate:
            found = bisect(pack, candidate, format=trial.formats(kind, format), only=wanted)
        if bugs is None:
            assert found.first is None, found.sentence
        else:
            assert found.first.name in wanted and "by all its elements together: " in found.sentence
            assert (found.first.finding.reason, found.first.beyond) == (reason, 0)
            eps = key.split()[-1]
            assert reason != "wrong_eps" or any(
                f"eps is {one:g}, " in found.sentence for one in LIKE.get(eps, [float(eps)]))


def test_merged_projections_in_another_order_are_recognised(pack, model, tmp_path):
    """By what reads the same tensor: neither knows the port's weights."""
    bugs = MISTAKES["keys and values swapped"].bugs
    dump = trial.run(pack, model, "unet", "float32", bugs=bugs)
    dumping.write_raw(tmp_path / "dump", dump, "float32")
    block = "unet/000/down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    with Candidate.open(tmp_path / "dump", name_map=dumping.MAPS["unet"]) as candidate:
        found = bisect(pack, candidate, only=[f"{block}.to_k"])
        compared = compare(pack, candidate, only=[f"{block}.to_k"])
    for first in (found.first, compared.first):
        assert first.name == f"{block}.to_k" and first.finding.reason == "swapped_weights"
        assert first.finding.sentence.startswith(f"it is what {block}.to_v should be")


def test_every_mistake_changes_what_it_says(pack, model):
    """And nothing before it: the first dumped tensor that differs is the one that is to be named.

    Weights that are merged are not in the map, but in the dump: what reads them is named.
    """
    right = {kind: trial.run(pack, model, kind, "float32") for kind in ("full", "unet")}
    names, known, mine = NameMap.of(dumping.MAPS["full"]), Names(right["full"]), {}
    for golden in pack.entries:
        parts = (name for made in names.names(golden) for name in made)
        own = next((own.name for name in parts for own in known.fitting(name)), None)
        mine.setdefault(own, set()).add(golden)
    for key, mistake in MISTAKES.items():
        kind = "unet" if mistake.in_unet else "full"
        wrong = trial.run(pack, model, kind, "float32", bugs=mistake.bugs)
        first = next(name for name in wrong if name in mine and not np.array_equal(
            right[kind][name], wrong[name], equal_nan=True))
        assert trial.expected(pack, mistake, "full") & mine[first], f"{key}: {first}"


def test_raw_files_and_an_archive_hold_the_same(pack, model, tmp_path):
    dump = dumping.part("unet", trial.run(pack, model, "unet", "bfloat16"))
    dumping.write_raw(tmp_path / "raw", dump, "bfloat16")
    dumping.write_npz(tmp_path / "all.npz", dump)
    read = []
    for path in (tmp_path / "raw", tmp_path / "all.npz"):
        with Candidate.open(path, name_map=dumping.MAPS["unet"]) as candidate:
            read.append(candidate.read("unet/000/conv_in", (2, 64, 16, 16)))
    assert np.array_equal(*read) and read[0].shape == (2, 64, 16, 16)
