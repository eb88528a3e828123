"""What the tools say of one tensor, of none, and of what they were told: small words."""

import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from golden_compare_samples import B, W, X, right
from golden_runs import Dump

from refsd.__main__ import main
from refsd.errors import UsageError
from refsd.golden.comparing.bisect import bisect
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.comparing.report import sentence
from refsd.golden.packs.pack import Pack, Writer

PROJ = "unet/000/proj"


@pytest.fixture
def said(network, tmp_path, capsys):
    """The first line of a golden command on the small pack and a port of one tensor."""
    def command(name, *args, mine=None):
        np.savez(tmp_path / "c.npz", **({PROJ: right()[PROJ]} if mine is None else mine))
        code = main(["golden", name, str(network), str(tmp_path / "c.npz"), *args])
        return code, capsys.readouterr().out.splitlines()[0]

    return command


def test_one_tensor(said):
    assert said("bisect") == (0, "The one tensor judged is within the tolerance of float32; 7 are "
                                 "not in the port's dump.")
    assert said("bisect", "--only", PROJ, "--only", "unet/000/mid_block") == (
        0, "The one tensor judged is within the tolerance of float32; 1 is not in the port's dump.")
    assert said("bisect", "--at-least", "2")[1].startswith(
        "Only 1 tensor could be judged, and 2 are wanted. The one tensor judged")
    assert said("compare") == (0, "The one tensor compared is within the tolerance of float32; 4 "
                                  "of the pack's 5 are missing from the candidate.")
    assert said("compare", "--only", PROJ, "--only", "unet/000/mid_block")[1].endswith(
        "; 1 of the pack's 2 is missing from the candidate.")


def test_one_op_that_was_not_dumped(tmp_path):
    """A chain of one: by its name, not as "the 1 ops"."""
    y = X.astype("f8") @ W.T.astype("f8") + B
    with Writer(tmp_path / "p", recipe={}, model={}) as pack:
        for name, array in (("a:x", X), ("a:weight", W), ("a:bias", B)):
            pack.add(name, array, stage="s", step=None)
        pack.add("a", y.astype("f4"), op="linear", stage="s", step=None,
                 inputs={name: f"tensor:a:{name}" for name in ("x", "weight", "bias")})
        pack.add("b", (y * 2).astype("f4"), op="add", stage="s", step=None,
                 inputs={"a": "tensor:a", "b": "tensor:a"})
    with Pack.open(tmp_path / "p") as pack:
        found = bisect(pack, Dump({"a:x": X, "b": (y * 3).astype("f4")}))
    assert found.sentence.startswith("b (op add, tensor 4), with a that was not dumped, is the fi")


def test_a_pack_of_ops_without_its_inputs_is_whole(tmp_path, capsys):
    """compare --all on what a port has of the committed ops: results, and no NAME:PARAMETER."""
    folder = Path(__file__).parents[1] / "golden" / "ops" / "activation"
    with Pack.open(folder) as pack:
        results = {name: pack.read(name) for name, entry in pack.entries.items() if entry.op}
        inputs = len(pack.entries) - len(results)
    np.savez(tmp_path / "c.npz", **results)
    command = ["golden", "compare", str(folder), str(tmp_path / "c.npz"), "--all"]
    assert main(command) == 0
    assert f"{inputs} given" in capsys.readouterr().out
    results.popitem()
    np.savez(tmp_path / "c.npz", **results)
    assert main(command) == 1 and "is missing from the candidate" in capsys.readouterr().out


def test_no_tensor(pack, tmp_path):
    np.savez(tmp_path / "c.npz", other=X)
    with Candidate.open(tmp_path / "c.npz") as candidate:
        with pytest.raises(UsageError, match=rf"dump has no {PROJ}\. Name its"):
            bisect(pack, candidate, only=[PROJ])
        with pytest.raises(UsageError, match="none of the pack's 8 tensors. Name its"):
            bisect(pack, candidate)
        with pytest.raises(UsageError, match="the one tensor is not there"):
            compare(pack, candidate, only=[PROJ])


@pytest.mark.parametrize("command, wanted", [("golden make", "2^64 - 1 (0)"),
                                             ("draw", "a new one (the default)")])
def test_help_says_the_seed_that_is_taken(capsys, command, wanted):
    with suppress(SystemExit):
        main([*command.split(), "--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert re.search(r"--seed N a number from 0 to " + re.escape(wanted) if wanted[0] == "2" else
                     r"--seed N a number from 0 to 2\^64 - 1; below 0: " + re.escape(wanted), text)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A pack of a row of tokens and what an embedding makes of them: right ports copy it."""
    folder = tmp_path_factory.mktemp("table") / "p"
    rows = W[:, :8] / 3
    ids = np.array([[1, 7, 3, 9, 9, 9, 9, 9]])
    none = {"float32": {"spread": {"rms": 0.0, "max": 0.0, "runs": 3, "confidence": 0.9999}}}
    with Writer(folder, recipe={}, model={}) as pack:
        pack.add("tokens/ids", ids, stage="tokens", step=None)
        pack.add("text/table", rows, stage="text", step=None)
        pack.add("text/rows", rows[ids], op="embedding", stage="text", step=None, tolerance=none,
                 inputs={"ids": "tensor:tokens/ids", "weight": "tensor:text/table"})
        pack.add("text/sum", rows[ids] * 2, op="add", stage="text", step=None, tolerance=none,
                 inputs={"a": "tensor:text/rows", "b": "tensor:text/rows"})
    return folder, ids, rows


def asked(table, arrays):
    """What compare and bisect say of a port."""
    np.savez(table[0].parent / "c.npz", **arrays)
    with Pack.open(table[0]) as pack, Candidate.open(table[0].parent / "c.npz") as candidate:
        return sentence(compare(pack, candidate)), bisect(pack, candidate).sentence


def test_where_no_port_rounds_the_sentence_says_so(table):
    """Not "infinitely far": what the numbers are, and why nothing is allowed."""
    _, ids, rows = table
    one = rows[ids].copy()
    one[0, 3, 5] = np.nextafter(one[0, 3, 5], np.float32(9))
    compared, bisected = asked(table, {"tokens/ids": ids, "text/rows": one})
    assert "infinitely" not in compared and "is right; embedding copies numbers and rounds none. " \
        "It is off by up to " in compared
    assert compared.endswith("1 in units of the last place, in 1 of 64 elements, at (0, 3, 5).")
    assert "beyond what float32 rounding allows (embedding copies numbers and rounds none), in 1 " \
        "of 64 elements" in bisected
    # a sum rounds, but this one to no other number
    one = 2 * rows[ids]
    compared, _ = asked(table, {"text/sum": np.nextafter(one, np.float32(9))})
    assert "no rounding of float32 reaches this place. It is" in compared
    compared, _ = asked(table, {"text/table": np.nextafter(rows, np.float32(9))})
    assert "a port in float32 holds this very number. It is" in compared
    # a NaN is one, and no matter of rounding
    one[0, 0, 0] = np.nan
    assert "rounds" not in " ".join(asked(table, {"text/rows": one, "tokens/ids": ids}))


def test_ids_that_are_filled_up_with_another_token(table):
    _, ids, _ = table
    for padded in (np.where(ids == 9, 0, ids), np.where(np.arange(8) > 4, 2, ids)):
        compared, bisected = asked(table, {"tokens/ids": padded})
        what = f"the text is filled up with {padded[0, -1]}, not with 9"
        assert what in bisected and f"It looks like padding_token: {what}" in compared
        assert "no port rounds whole numbers. It is off by up to" in compared
    at = np.arange(8)
    for other in (np.where(at == 7, 0, ids), np.where(at > 5, [[1, 2] * 4], ids),
                  np.where(ids == 7, 0, ids)):
        assert "filled up" not in " ".join(asked(table, {"tokens/ids": other}))
