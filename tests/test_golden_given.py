"""What a port was fed is declared, is never its error, and is what the rest is judged on."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from golden_compare_samples import B, W, X, right
from golden_port_ops import ROUND, Ops
from golden_runs import Dump, port

from refsd.__main__ import main
from refsd.errors import UsageError
from refsd.golden.comparing.bisect import bisect
from refsd.golden.comparing.bisect_report import Answer, as_json
from refsd.golden.comparing.candidate import Candidate
from refsd.golden.comparing.compare import compare
from refsd.golden.comparing.given import said
from refsd.golden.comparing.verdicts import AtLeast, Status
from refsd.golden.packs.pack import Pack
from refsd.golden.tolerances.formats import round_to

SCALED = "denoise/001/scaled"  # what the second step's network reads


@pytest.fixture(scope="module")
def run(runs):
    with Pack.open(runs / "level3") as opened:
        yield opened


def bad(pack, runs, tensors, **options):
    found = bisect(pack, Dump(tensors), model=runs / "model", **options)
    return [row.name for row in found.bad], found


def fed(pack, other, format="float32"):
    """What the port dumps whose network was handed other latents than its sampler has."""
    def after(name, array):
        return (other(array), other(array)) if name == SCALED else (array, array)

    return port(pack, Ops(format=format), after=after)


@pytest.mark.parametrize("format", ["float32", "bfloat16"])
def test_what_was_fed_is_not_wrong_and_the_rest_is_judged_on_it(runs, run, format):
    dump = fed(run, lambda array: ROUND[format](array * np.float32(1.25)), format)
    assert bad(run, runs, dump, format=format)[0] == [SCALED]
    names, found = bad(run, runs, dump, format=format, given=["denoise/001/scal*"])
    assert names == []
    row = next(row for row in found.rows if row.name == SCALED)
    assert row.status == Status.EXTERNAL and row.beyond == np.prod(row.entry.shape)
    assert found.sentence.endswith(", 1 was given.") and found.remarks == ()
    line, = said(found.given, "what follows is judged on it")
    assert line.startswith(f"{SCALED} was given, and differs from the golden tensor by 2")
    assert line.endswith("is golden: what follows is judged on it")
    # the sampler's own result, which has the same numbers in the pack, is judged as before
    assert next(r for r in found.rows if r.name == "denoise/000/latents").status == "explained"


def test_what_was_fed_and_not_dumped_is_the_golden(runs, run):
    """Declared: also where the port's own result of the same name elsewhere is another."""
    own, pair = "denoise/000/latents", "denoise/001/concat"

    def after(name, array):
        return (array * np.float32(1.25),) * 2 if name == own else (array, array)

    dump = port(run, Ops(), after=after)
    del dump[SCALED]
    assert bad(run, runs, dump)[0] == [own]
    names, found = bad(run, runs, dump, given=[SCALED])  # it was not fed it
    assert names == [own, pair]
    assert said(found.given, "") == (
        "1 tensor was given and not dumped: taken to be as in the pack",)
    dump = fed(run, lambda array: run.read(SCALED))
    del dump[SCALED], dump[own]
    names, found = bad(run, runs, dump, given=[SCALED])
    assert names == []
    assert not next(row for row in found.rows if row.name == pair).computed


def test_a_block_that_was_fed_is_what_its_last_op_gives(runs, run):
    """A port whose block is replaced by the golden one; the reader knows it under another name."""
    block = "unet/000/mid_block.resnets.0"
    last, = run.entries[block].sources
    dump = port(run, Ops(), after=lambda name, array: (array, run.read(last) if name == last
                                                       else array))
    wrong = {name: array * np.float32(1.25) if name.startswith(block) else array
             for name, array in dump.items() if name != last}
    readers = [e.name for e in run.entries.values() if block in e.sources]
    for declared in (block, last):
        names, found = bad(run, runs, wrong, given=[declared])
        assert set(names) & set(readers) == set() and readers
        assert not any(row.computed for row in found.rows if row.name in readers)


@pytest.mark.parametrize("format", ["float32", "float16", "bfloat16"])
def test_a_rounding_is_recognised_whatever_the_port_computes_in(runs, run, format):
    exact = run.read(SCALED)
    given = {SCALED: ROUND[format](exact), "denoise/noise": run.read("denoise/noise"),
             "unet/000/conv_in": run.read("unet/000/conv_in")}
    _, found = bad(run, runs, given, given=[SCALED, "denoise/noise"])
    assert said(found.given, "") == (
        "2 tensors were given as in the pack, or as a rounding of it",)
    assert found.given[1].notes == (
        "given: the golden tensor" + (f", rounded to {format}" if format != "float32" else ""),)
    # of other formats only the port's own is
    given[SCALED] = round_to(exact, "fp8_e5m2")
    for own, beyond in (("fp8_e5m2", False), ("float32", True), ("int8", True)):
        _, found = bad(run, runs, given, given=[SCALED], format=own)
        assert bool(found.given[0].beyond) == beyond
    # between two numbers of the format is no rounding to it
    if format != "float32":
        off = given | {SCALED: np.nextafter(ROUND[format](exact), np.float32(9))}
        _, found = bad(run, runs, off, given=[SCALED])
        assert found.given[0].beyond == exact.size


def test_what_is_not_judged_is_spoken_of_too(runs, run):
    dump = {SCALED: 2 * run.read(SCALED), "unet/000/conv_in": run.read("unet/000/conv_in")}
    names, found = bad(run, runs, dump, only=["unet/*", "umet/*"], given=[SCALED, "none*"])
    assert names == [] and SCALED not in [row.name for row in found.rows]
    assert [verdict.name for verdict in found.given] == [SCALED]
    assert found.remarks == ("--given 'none*' fits no tensor of the pack",
                             "--only 'umet/*' fits no tensor of the pack")


def test_nothing_left_to_judge(runs, run):
    dump = {SCALED: run.read(SCALED)}
    with pytest.raises(UsageError, match=r"tensors but what it was given"):
        bad(run, runs, dump, given=[SCALED])
    with pytest.raises(UsageError, match="nothing is left to judge"):
        bad(run, runs, dump, given=[SCALED], only=[SCALED])


@pytest.mark.parametrize("changed", [np.nan, np.inf])
def test_what_is_not_finite_is_named(runs, run, changed):
    other = run.read(SCALED).copy()
    other[0, 0, 0, 0] = changed
    _, found = bad(run, runs, {SCALED: other, "denoise/noise": run.read("denoise/noise")},
                   given=[SCALED])
    assert "by infinitely much, in 1 of" in said(found.given, "")[0]


def test_a_given_tensor_of_another_shape_fails(runs, run):
    dump = {SCALED: run.read(SCALED)[:, :2], "denoise/noise": run.read("denoise/noise")}
    assert bad(run, runs, dump, given=[SCALED])[0] == [SCALED]


# compare, the command line and the reports, on the small pack


@pytest.fixture
def mine(tmp_path):
    """A port that was fed other ids, and whose projection is right on its own x."""
    other = X + np.float32(1)
    y = (other.astype("f8") @ W.T.astype("f8") + B).astype("f4")
    np.savez(tmp_path / "c.npz", **right() | {"unet/000/proj:x": other, "unet/000/proj": y})
    return tmp_path / "c.npz"


def test_compare_holds_what_was_fed_to_nothing(pack, mine):
    def status(name, **options):
        with Candidate.open(mine) as candidate:
            found = compare(pack, candidate, **options)
        return next(v.status for v in found.verdicts if v.name == name), found

    x = "unet/000/proj:x"
    assert status(x)[0] == Status.WRONG
    kind, found = status(x, given=["*proj:x", "unet/001/conv_out", "nothing"])
    assert kind == Status.EXTERNAL and "--given 'nothing' fits no tensor of the pack" in (
        found.remarks)
    assert found.first.name == "unet/000/proj" and found.compared == found.expected - 1 == 3
    # declared and not there: not missing
    kind, found = status("unet/000/conv_out", given=["unet/000/conv_out"], only=["unet/000/*"])
    assert kind == Status.EXTERNAL and found.given[0].notes[0].startswith("given and not dumped")
    with pytest.raises(UsageError, match="the one tensor is not there"):
        status("unet/000/conv_out", only=["unet/000/conv_out"])
    with pytest.raises(UsageError, match="all of it that is in the candidate is given"):
        status(x, given=[x], only=[x])


@pytest.mark.parametrize("command", ["bisect", "compare"])
def test_every_report_says_it(network, mine, tmp_path, capsys, command):
    files = [tmp_path / f"r{end}" for end in (".json", ".md", ".xml", ".html")]
    code = main(["golden", command, str(network), str(mine), "--given", "unet/000/proj:x",
                 "--given", "nothing*",
                 *(word for file in files for word in ("--report", str(file)))])
    assert code == (command == "compare")
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("given: unet/000/proj:x was"))
    line = line.removeprefix("given: ")
    assert "--given 'nothing*' fits no tensor of the pack" in out
    found, (_, markdown, xml, html) = json.loads(files[0].read_text()), files
    assert found["given"] == [line]
    row = next(row for row in found["rows" if command == "bisect" else "tensors"]
               if row["name"] == "unet/000/proj:x")
    assert row["status"] == "given"
    assert "## Given\n\n* unet/000/proj:x was given, and differs" in (
        markdown.read_text())
    assert "## `unet/000/proj:x`" not in markdown.read_text()
    values = [p.get("value") for p in ElementTree.parse(xml).iter("property")
              if p.get("name") == "given"]
    assert values == [line]
    assert "<h2>What the port was given</h2><ul><li>unet/000/proj:x was given" in html.read_text()


def test_a_floor_counts_no_given_tensors(network, mine):
    with Pack.open(network) as pack, Candidate.open(mine) as candidate:
        found = bisect(pack, candidate, given=["unet/000/proj:weight", "*/mid_block"])
        answer = Answer.of(found, pack, candidate, AtLeast(share=1.0))
    # ids, x, proj and two conv_out, of which one is there; not what is given, and proj's bias
    assert (answer.judged, answer.wanted) == (4, 5) and not answer.ok
    absent, other = as_json(answer)["given"]
    assert absent.startswith("1 tensor was given and not") and other.startswith("unet/000/mid_b")
