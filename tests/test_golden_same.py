"""`golden same`: runs of a port that is deterministic, and of one that is not."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from golden_compare_samples import NETWORK, changed_at
from golden_port_ops import Ops
from golden_runs import measure_spread, port
from safetensors.numpy import save_file

from refsd.__main__ import main
from refsd.errors import UsageError
from refsd.golden.comparing.html import page as page_of
from refsd.golden.comparing.runs import differing, same
from refsd.golden.comparing.runs_report import as_json, sentence, sheet, text, what_differs
from refsd.golden.packs.pack import Pack, Writer

WHERE = "unet/000/down_blocks.0.resnets.0.conv1"
END, COUNT = "denoise/000/guided", 278  # the texts and the first step


@pytest.fixture(scope="module")
def level3(runs):
    with Pack.open(runs / "level3") as pack:
        yield pack


@pytest.fixture(scope="module")
def dumps(level3, tmp_path_factory):
    """What the stand-in port leaves in several runs: twice the same, once with a race in an op."""
    place = tmp_path_factory.mktemp("dumps")

    def race(name, x):
        if name == WHERE:
            x = x.copy()
            x[0, 1, 0, :2] = np.nextafter(x[0, 1, 0, :2], np.float32(9))
        return x, x

    first, raced = port(level3, Ops(), until=END), port(level3, Ops(), after=race, until=END)
    np.savez(place / "first.npz", **first)
    save_file(packed(first), place / "again.safetensors")
    np.savez(place / "raced.npz", **raced)
    save_file(packed(raced), place / "raced.safetensors")
    return place


def packed(arrays):
    """As safetensors wants them: it writes what lies in memory, in whatever order of axes."""
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


@pytest.fixture
def run(capsys):
    def command(*args):
        code = main(["golden", "same", *map(str, args)])
        return code, *capsys.readouterr()

    return command


def test_a_deterministic_port(run, dumps, runs):
    for more in (), ("--pack", runs / "level3"):
        code, out, _ = run(dumps / "first.npz", dumps / "again.safetensors", *more)
        assert code == 0 and out.startswith(f"All {COUNT} tensors have the same bits in both runs.")
        assert "order" not in out


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_a_race_is_named(run, dumps, runs, ending):
    """The op, the elements, how far, that its inputs were the same; whatever the dump's order."""
    code, out, _ = run(dumps / "first.npz", dumps / f"raced{ending}", "--pack", runs / "level3")
    said = out.splitlines()[0]
    assert code == 1 and said.startswith(
        f"{WHERE} (conv2d) is the first tensor that differs: 2 of ")
    assert "elements, in a row: [0, 1, 0, 0:2], by up to 1 ulp of float32 (at (0, 1, 0, " in said
    assert "All that it reads has the same bits: the difference is this op's own." in said
    assert "on inputs of the same bits also" not in out
    found = same([dumps / "first.npz", dumps / f"raced{ending}"], pack=Pack.open(runs / "level3"))
    assert f" {len(found.differing) - 1} more of {COUNT} differ too, the most " in said
    assert [v.name for v in found.differing if v.is_own] == [WHERE]
    before = [v.name for v in found.verdicts].index(WHERE)
    assert all(v.status == "equal" for v in found.verdicts[:before])


def test_without_a_pack_the_order_is_that_of_the_dump(run, dumps):
    _, out, _ = run(dumps / "first.npz", dumps / "raced.npz")
    assert out.startswith(f"{WHERE} is the first tensor that differs: 2 of ")
    assert "order: the tensors stand in the order of their writing: --pack PACK knows" in out
    _, out, _ = run(dumps / "raced.safetensors", dumps / "first.npz")
    assert out.startswith("denoise/000/eps_uncond is the first tensor that differs")
    assert "order: the tensors are sorted by name: --pack" in out


def test_other_orders_of_sums_are_seen_where_they_arise(level3, tmp_path):
    """Layers of the networks that read what every run was given, and no other op."""
    for name, seed in (("a", 0), ("b", 3)):
        np.savez(tmp_path / name, **port(level3, Ops(seed=seed), until=END))
    found = same([tmp_path / "a.npz", tmp_path / "b.npz"], pack=level3)
    own = [v.name.partition("/")[2] for v in found.differing if v.is_own]
    first = "text_model.encoder.layers.0.layer_norm1"
    assert own == [f"000/{first}", f"001/{first}", "000/time_embedding.linear_1", "000/conv_in"]
    assert found.first.name == f"text/000/{first}"


def test_what_an_optimisation_changed(run, level3, runs, tmp_path):
    """Sums in another order are within what two right ports differ by; a factor is not."""
    def factor(name, x):
        x = x * np.float32(1.1) if name == WHERE else x
        return x, x

    for name, ops, after in (("before", Ops(), None), ("after", Ops(seed=5), None),
                             ("wrong", Ops(), factor)):
        np.savez(tmp_path / name, **port(level3, ops, after=after, until=END))
    before, after, wrong = (tmp_path / f"{name}.npz" for name in ("before", "after", "wrong"))
    with Pack.open(runs / "level3") as pack:
        measure_spread(pack, "float32")
        right = same([before, after], pack=pack, format="fp32")
        found = same([before, wrong], pack=pack, format="fp32")
    assert right.ok and len(right.differing) > 200 and sentence(right).startswith(
        f"{len(right.differing)} of {COUNT} tensors differ, all within the rounding of float32. ")
    assert sum(v.status == "explained" and v.spread > 0 for v in right.verdicts) > 200
    # one rounding alone would not explain them
    assert not same([before, after], format="fp32").ok
    # a tenth is far beyond what float32 spreads in the first resnet
    assert found.first.name == WHERE and found.first.spread > 2
    assert "of the spread in the root mean square" in sentence(found)
    # without a pack: one op is one rounding away
    one = {"x": NETWORK}, {"x": NETWORK * np.float32(1 + 2**-9)}, {"x": NETWORK * np.float32(1.01)}
    for name, arrays in zip("abc", one):
        np.savez(tmp_path / name, **arrays)
    code, out, _ = run(tmp_path / "a.npz", tmp_path / "b.npz", "--format", "bf16")
    assert code == 0 and out.startswith(
        "1 of 1 tensors differs, all within the rounding of bfloat16. x is the first tensor that ")
    assert run(tmp_path / "a.npz", tmp_path / "b.npz")[0] == 1
    assert run(tmp_path / "a.npz", tmp_path / "b.npz", "--format", "fp32")[0] == 1
    assert run(tmp_path / "a.npz", tmp_path / "c.npz", "--format", "bf16")[0] == 1


def test_one_element_is_not_hidden_by_many(tmp_path):
    """Held to the step of the largest number, also where the root mean square is small."""
    wrong = changed_at(NETWORK, (1, 2, 3, 4), NETWORK[1, 2, 3, 4] + np.float32(0.1))
    found = twice(tmp_path, {"x": NETWORK}, {"x": wrong}, format="bf16")
    assert found.first.status == "wrong" and found.first.where.startswith("1 of 384 elements, at")


@pytest.mark.parametrize("one, other, ok", [
    (NETWORK, NETWORK + np.float32(0.01), False),  # less than the largest's step, each
    (changed_at(NETWORK, (0, 0, 0, 0), np.inf), changed_at(changed_at(
        NETWORK, (0, 0, 0, 0), np.inf), (0, 0, 0, 1), NETWORK[0, 0, 0, 1] + 1), False),
    (NETWORK, changed_at(NETWORK, (0, 0, 0, 0), np.nan), False),
    (np.arange(3), np.arange(3, dtype="i4"), True),  # another type, the same numbers
    (np.arange(3), np.arange(1, 4), False),
])
def test_what_one_rounding_explains(tmp_path, one, other, ok):
    found = twice(tmp_path, {"x": one}, {"x": other}, format="bf16")
    assert (len(found.differing), found.ok) == (1, ok)


def test_places_in_units_of_a_format(tmp_path):
    """The element that is most units off, not the largest; eight bits are counted as eight."""
    one = np.float32([1000, 1, 1])
    other = one + np.float32([2**-13, 2**-22, 0])  # 2 and 2 units; then 2 and 4
    found = twice(tmp_path, {"x": one}, {"x": other + np.float32([0, 2**-22, 0])}).first
    assert found.at == (1,) and found.metrics.max_ulp == 4
    assert twice(tmp_path, {"x": one}, {"x": other}, format="int8").first.units == "float32"
    for name, byte in (("a", 0x38), ("b", 0x39)):  # 1 and the next
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.f8_e4m3").write_bytes(bytes([byte]))
    found = same([tmp_path / "a", tmp_path / "b"])
    assert (found.first.units, found.first.metrics.max_ulp) == ("fp8_e4m3", 1)
    assert found.remarks[0].startswith("order: the tensors are sorted by name")


def twice(folder, one, other, **options):
    np.savez(folder / "one", **one)
    np.savez(folder / "other", **other)
    return same([folder / "one.npz", folder / "other.npz"], **options)


def bits(*words):
    return np.array(words, "<u4").view("f4")


@pytest.mark.parametrize("one, other, count", [
    (bits(0x7FC00000, 1), bits(0xFFC12345, 1), 0),  # NaNs of other payloads
    (bits(0x7FC00000), bits(0x3F800000), 1),
    (bits(0x80000000, 0), bits(0, 0), 1),  # -0.0 and 0.0
    (bits(0x7F800000), bits(0x7F800000), 0),
    (np.array([1, 2**62]), np.array([1, 2**62 + 1]), 1),
    (np.array([True, False]), np.array([True, True]), 1),
    (np.float16([1, np.nan]), np.float16([1 + 2**-10, np.nan]), 1),
    (np.float32(3), np.float32(3), 0),
    (np.zeros((0, 4), "f4"), np.zeros((0, 4), "f4"), 0),
])
def test_bits(tmp_path, one, other, count):
    assert differing(np.asarray(one), np.asarray(other)).sum() == count
    found = twice(tmp_path, {"x": one}, {"x": other})
    assert (len(found.differing), found.ok) == (count, not count)
    assert json.dumps(as_json(found), allow_nan=False)


@pytest.mark.parametrize("other, said", [
    (changed_at(NETWORK, (1, 2, 3, 4), np.nan),
     "x is the first tensor that differs: 1 of 384 elements, at (1, 2, 3, 4), 1 of them not finite "
     "in one run only (at (1, 2, 3, 4) {} became nan)."),
    (np.rint(NETWORK).astype("i4"), "x is the first tensor that differs: in {}/other.npz it holds "
                                    "int32 of the shape (2, 4, 8, 6)."),
    (NETWORK[:, :2], "x is the first tensor that differs: in {}/other.npz it holds float32 of the "
                     "shape (2, 2, 8, 6)."),
    (NETWORK.astype("f8"), "x is the first tensor that differs, in its type alone: float32 in "
                           "{0}/one.npz, float64 in {0}/other.npz."),
    (np.array([1, 2**62 + 1]), "x is the first tensor that differs: 1 of 2 elements, at (1,) (at "
                               "(1,) 4611686018427387904 became 4611686018427387905)."),
    (np.copysign(NETWORK * 0, -NETWORK), ", in the sign of zeros (at "),
])
def test_other_ways_to_differ(tmp_path, other, said):
    one = NETWORK if other.dtype != "f4" or (other != 0).any() else NETWORK * 0
    one = one if other.ndim > 1 else other - [0, 1]
    found = twice(tmp_path, {"x": one}, {"x": other})
    there = f"{NETWORK[1, 2, 3, 4]:.9g}" if "became nan" in said else tmp_path
    assert said.format(there) in sentence(found) and not found.ok
    assert json.dumps(as_json(found), allow_nan=False)


def test_tensors_that_are_not_in_every_run(run, tmp_path):
    found = twice(tmp_path, {"x": NETWORK, "y": NETWORK}, {"x": NETWORK, "z": NETWORK})
    assert sentence(found) == (f"y is not in {tmp_path}/other.npz. 2 of all 3 are not in every "
                               "run.")
    assert not found.ok and [v.status for v in found.verdicts] == ["equal", "missing", "missing"]
    found = twice(tmp_path, {"x": NETWORK, "y": NETWORK}, {"x": NETWORK + 1})
    assert sentence(found).startswith("x is the first") and sentence(found).endswith(
        " 1 of all 2 is not in every run.")
    found = twice(tmp_path, {"x": NETWORK, "y": NETWORK}, {"x": NETWORK}, format="bf16")
    assert not found.ok, "a format explains no missing tensor"


def test_of_three_runs_it_says_which(run, tmp_path):
    for name, x in zip("abcd", (NETWORK, NETWORK, NETWORK + 1, NETWORK[:1])):
        np.savez(tmp_path / name, x=x, y=NETWORK)
    a, b, c, d = (str(tmp_path / f"{name}.npz") for name in "abcd")
    code, out, _ = run(a, b, c)
    assert code == 1 and out.startswith(
        f"x is the first tensor that differs ({c}): all 384 elements, by up to ")
    found = same([a, c, b, d])
    assert (found.first.status, found.first.others) == ("shape", (d,))
    assert same([a, d, c]).first.status == "shape"
    for name, place in (("e", (0, 0, 0, 0)), ("f", (0, 0, 0, 1))):
        np.savez(tmp_path / name, x=changed_at(NETWORK, place, NETWORK[place] + 0.25),
                 y=NETWORK)
    e, f = (str(tmp_path / f"{name}.npz") for name in "ef")
    both = same([a, e, b, f]).first
    assert (both.beyond, both.others) == (2, (e, f))
    assert both.where == "2 of 384 elements, in a row: [0, 0, 0, 0:2]"
    # the numbers are those of the run that is furthest off, one that lacks it is said besides
    np.savez(tmp_path / "g", y=NETWORK)
    worst = same([a, e, c, str(tmp_path / "g.npz")]).first
    assert worst.metrics.max_abs == pytest.approx(1, abs=1e-6) and worst.status == "open"
    assert worst.notes == (f"not in {tmp_path}/g.npz",)


def test_damaged_files_are_no_agreement(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", NETWORK)
        np.save(tmp_path / name / "y.npy", NETWORK)
    (tmp_path / "b" / "x.npy").write_bytes(b"")
    (tmp_path / "a" / "w.npz").write_bytes(b"PK")
    found = same([tmp_path / "a", tmp_path / "b"])
    assert not found.ok and [v.status for v in found.verdicts] == ["unreadable", "equal"]
    assert len(found.unread) == 1 and "w.npz" in found.unread[0]
    assert sentence(found).startswith(found.unread[0].rstrip("."))
    assert any(line.startswith("unreadable: ") for line in text(found))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A pack of four tensors: given ones, a product, its block, which has the same bits."""
    folder = tmp_path_factory.mktemp("small") / "p"
    names = {name: f"tensor:unet/000/{name}" for name in ("q:x", "q", "block")}
    with Writer(folder, recipe={}, model={}) as pack:
        pack.add("unet/000/q:x", NETWORK, stage="unet", step=0)
        pack.add("unet/000/q", 2 * NETWORK, stage="unet", step=0, op="scale",
                 inputs={"x": names["q:x"]})
        pack.add("unet/000/block", 2 * NETWORK, stage="unet", step=0, op="block")
        pack.add("unet/000/last", 3 * NETWORK, stage="unet", step=0, op="scale",
                 inputs={"x": names["block"]}, tolerance={"float32": {"spread": {
                     "rms": 1e-3, "max": 2e-3, "runs": 4, "confidence": 0.9999}}})
    with Pack.open(folder) as opened:
        yield opened


def test_inputs_and_names(small, tmp_path):
    names = {"unet/000/q:x": "in", "unet/000/q": "qkv[..., :6]", "unet/000/last": "z"}
    last = 3 * NETWORK + np.float32(1e-3)
    one = {"z": 3 * NETWORK, "qkv": np.concatenate([NETWORK, NETWORK], 3), "in": NETWORK}
    # what the map cuts off is compared as well: it is the tensor that the port has
    qkv = changed_at(one["qkv"], (0, 0, 0, 11), 7)
    found = twice(tmp_path, one, {**one, "qkv": qkv, "z": last}, pack=small, name_map=names)
    assert [v.name for v in found.verdicts] == ["unet/000/q:x", "qkv", "unet/000/last"]
    assert found.first.name == "qkv" and not found.verdicts[2].is_own
    # a block that was not dumped is its last op, which was
    found = twice(tmp_path, one, {**one, "z": last}, pack=small, name_map=names)
    assert found.first.is_own and found.first.own_name == "z"
    assert found.first.spread == pytest.approx(1, rel=1e-3)
    # twice the spread, far beyond one rounding to float32; and 2 x 5.2 x 2e-3 for an element alone
    for z, ok in ((last, True), (last + np.float32(9e-4), True), (last + np.float32(1.1e-3), False),
                  (changed_at(one["z"], (0, 0, 0, 0), one["z"][0, 0, 0, 0] + 0.02), True),
                  (changed_at(one["z"], (0, 0, 0, 0), one["z"][0, 0, 0, 0] + 0.022), False),
                  (changed_at(one["z"], (0, 0, 0, 0), np.nan), False)):
        found = twice(tmp_path, one, {**one, "z": z}, pack=small, name_map=names, format="float32")
        assert found.ok == ok, sentence(found)
    turned = {**one, "z": one["z"].swapaxes(2, 3)}  # not the golden shape: of no use as a unit
    found = twice(tmp_path, turned, {**turned, "z": turned["z"] + 1}, pack=small, name_map=names)
    assert found.first.name == "unet/000/last" and found.first.spread is None
    assert not twice(tmp_path, one, {**one, "z": last}, format="float32").ok
    # without it nobody can tell
    for run in (one, two := {**one, "z": last}):
        run.pop("qkv")
    found = twice(tmp_path, one, two, pack=small, name_map=names)
    assert sentence(found).endswith("It arose in this op or in what was not dumped before it: "
                                    "unet/000/block.")
    # where another input is known to differ, that is reason enough
    entry = replace(found.first.entry, inputs={"a": "tensor:unet/000/block", "b": "tensor:x"})
    assert "It arose" in what_differs(replace(found.first, entry=entry, inputs=("", "equal")))
    assert "It arose" not in what_differs(replace(found.first, entry=entry, inputs=("", "open")))
    assert found.remarks == ("name map: 'unet/000/q' leads to 'qkv[..., :6]', which is not there",)
    found = twice(tmp_path, one, {**one, "in": NETWORK + 1}, pack=small, name_map=names)
    assert "No op made it: the runs were not given the same." in sentence(found)


def test_places_in_the_golden_shape(small, tmp_path):
    """Of flat raw files, of axes of one, of an index that gives the stored shape; two passes are
    compared each by itself."""
    one, other = 3 * NETWORK, changed_at(3 * NETWORK, (1, 2, 3, 4), 0)
    stored = {"unet/000/q": {"file": "q.bin", "dtype": "float32", "shape": [2, 8, 6, 4],
                             "layout": "NHWC"}}
    for name, z in (("a", one), ("b", other)):
        (tmp_path / name / "unet/000").mkdir(parents=True)
        (tmp_path / name / "unet/000/last.f32").write_bytes(z.tobytes())
        (tmp_path / name / "q.bin").write_bytes(np.ascontiguousarray(
            z.transpose(0, 2, 3, 1)).tobytes())
        (tmp_path / name / "index.json").write_text(json.dumps({"tensors": stored}))
    found = same([tmp_path / "a", tmp_path / "b"], pack=small)
    assert [v.where for v in found.differing] == ["1 of 384 elements, at (1, 2, 3, 4)"] * 2
    found = twice(tmp_path, {"unet/000/last": one[None]}, {"unet/000/last": other}, pack=small)
    assert found.first.where == "1 of 384 elements, at (1, 2, 3, 4)"
    found = twice(tmp_path, {"u": one[:1], "c": one[1:]}, {"u": one[:1], "c": other[1:]},
                  pack=small, name_map={"unet/000/last": ["u", "c"]})
    assert [v.name for v in found.verdicts] == ["u", "c"] and found.first.name == "c"


def test_what_is_not_in_the_pack_has_a_place(small, tmp_path):
    """Where the dump keeps the order of writing; in a file sorted by name nobody knows."""
    one = {"unet/000/q": NETWORK, "aside": NETWORK, "unet/000/last": NETWORK}
    other = {name: array + 1 for name, array in one.items()} | {"unet/000/q": NETWORK}
    found = twice(tmp_path, one, other, pack=small)
    assert [v.name for v in found.verdicts] == list(one) and found.first.name == "aside"
    assert found.remarks == ("order: 1 are not in the pack and stand in the order of their "
                             "writing",)
    for name, arrays in (("one", one), ("other", other)):
        save_file(arrays, tmp_path / f"{name}.safetensors")
    found = same([tmp_path / "one.safetensors", tmp_path / "other.safetensors"], pack=small)
    assert found.first.name == "unet/000/last" and found.verdicts[-1].name == "aside"
    assert found.remarks == ("order: 1 are not in the pack and are sorted by name",)


def test_layouts_and_raw_files(small, tmp_path):
    """The same numbers NHWC and NCHW are the same; padding is nobody's; bfloat16 is counted so."""
    tiles = np.full((2, 2, 8, 6, 4), 5, "f4")  # 6 channels in fours
    x = np.arange(2 * 6 * 8 * 6, dtype="f4").reshape(2, 6, 8, 6)
    tiles[:, 0], tiles[:, 1, ..., :2] = (x[:, :4].transpose(0, 2, 3, 1),
                                         x[:, 4:].transpose(0, 2, 3, 1))
    half = (x.view("u4") >> 16).astype("u2")
    for name, layout, data, last in (("a", "NHWC", x.transpose(0, 2, 3, 1), half),
                                     ("b", "NC4HW4", tiles, half + np.eye(6, dtype="u2")[0])):
        (tmp_path / name).mkdir()
        raw = np.ascontiguousarray(data).tobytes()
        (tmp_path / name / "x.bin").write_bytes(raw + last.tobytes())
        entry = {"file": "x.bin", "shape": [2, 6, 8, 6]}
        (tmp_path / name / "index.json").write_text(json.dumps({"tensors": {
            "x": {**entry, "dtype": "float32", "layout": layout},
            "half": {**entry, "dtype": "bfloat16", "offset": len(raw)}}}))
    found = same([tmp_path / "a", tmp_path / "b"])
    assert [v.status for v in found.verdicts] == ["equal", "open"]
    assert found.first.metrics.max_ulp == 1 and found.first.units == "bfloat16"
    assert found.first.where == "96 of 576 elements, in a tile: [:, :, :, 0]"


def test_reports(run, dumps, runs, tmp_path):
    files = [tmp_path / f"r{end}" for end in (".json", ".md", ".xml", ".html")]
    code, out, err = run(dumps / "first.npz", dumps / "raced.npz", "--pack", runs / "level3",
                         *(word for file in files for word in ("--report", file)))
    assert code == 1 and err.count("refsd: wrote") == 4
    found = json.loads(files[0].read_text())
    assert (found["kind"], found["same"], found["ok"]) == ("golden-same", False, False)
    assert found["first"] == WHERE and found["own"] == [WHERE] and found["sentence"] in out
    row = next(one for one in found["tensors"] if one["name"] == WHERE)
    assert row["differing"] == 2 and row["units"] == "float32" and row["same_inputs"] is True
    assert row["runs"] == [str(dumps / "raced.npz")]
    assert f"## `{WHERE}`" in files[1].read_text()
    suite = ElementTree.parse(files[2]).getroot().find("testsuite")
    assert int(suite.get("failures")) == found["counts"]["open"]
    assert suite.get("tests") == str(COUNT)
    page = files[3].read_text()
    assert "<h1>Runs against each other</h1>" in page and f"<h3><code>{WHERE}</code></h3>" in page
    assert all(f"{v.name}: {v.status}, {v.times:.3g} times" in page for v in same([
        dumps / "first.npz", dumps / "raced.npz"], pack=Pack.open(runs / "level3")).failing)
    assert page.count("<section ") < 5 and "data:image/png;base64" in page
    # without a pack nobody knows what follows from what
    assert page_of(sheet(same([dumps / "first.npz", dumps / "raced.npz"]))).count("<section ") == 1
    code, out, _ = run(dumps / "first.npz", dumps / "raced.npz", "--json")
    assert code == 1 and json.loads(out)["first"] == WHERE


@pytest.mark.parametrize("args, said", [
    (["first.npz"], "give two dumps or more"),
    (["first.npz", "./first.npz"], "give two dumps or more, each once"),
    (["first.npz", "raced.npz", "--map", "m.json"], "give the pack too"),
    (["first.npz", "none.npz"], "no such file or folder"),
    (["first.npz", "raced.npz", "--format", "fp15"], "did you mean fp1"),
])
def test_refusals(run, dumps, args, said, monkeypatch):
    monkeypatch.chdir(dumps)
    code, out, err = run(*args)
    assert code == 2 and said in err and out == ""


def test_no_dump_at_all():
    with pytest.raises(UsageError, match="no dump: give two"):
        same([])
