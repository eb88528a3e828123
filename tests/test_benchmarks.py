"""The benchmarks: right results pass, wrong ones are not timed, and no figure is typed by hand."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import agreement, calls, figures, machine, results_file, sections, tables, targets
from benchmarks.workers import RunnerError, start_workers, time_in_rounds
from refsd.contracts import Spec
from refsd.leaf import Weight
from refsd.registry import ops

ROOT = Path(__file__).parent.parent
SMALL = {
    "conv2d": ({"x": (2, 16, 16, 24), "weight": (24, 16, 3, 3), "bias": (24,)},
               {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "algorithm": "auto"}),
    "linear": ({"x": (2, 9, 40), "weight": (33, 40), "bias": None}, {}),
    "attention": ({"q": (2, 40, 32), "k": (2, 50, 32), "v": (2, 50, 32)},
                  {"heads": 4, "mask": None, "causal": False}),
    "group_norm": ({"x": (2, 16, 8, 8), "weight": (16,), "bias": (16,)},
                   {"groups": 4, "eps": 1e-5}),
    "layer_norm": ({"x": (2, 9, 40), "weight": (40,), "bias": (40,)}, {"eps": 1e-5}),
    "silu": ({"x": (1, 16, 8, 8)}, {}),
    "geglu": ({"x": (2, 9, 64)}, {}),
}


def result_of(name, **changes):
    """A small call's arrays and options, and what the CPU kernel makes of it."""
    from benchmarks import refsd_side

    inputs, options = SMALL[name][0], SMALL[name][1] | changes
    run = refsd_side.prepare({"kind": "op", "op": name, "inputs": inputs, "options": options},
                             "numba", 1)
    return calls.make_arrays(inputs), options, np.array(run())


def test_the_calls_are_those_of_the_models():
    found, total = calls.distinct_calls(), Counter()
    for call in found:
        for part, count in call.count.items():
            total[part, call.op] += count
    # As tests/test_models_structure.py counts them from the published architecture.
    assert total["unet", "conv2d"] == 98 and total["unet", "attention"] == 32
    assert total["unet", "linear"] == 16 * 10 + 22 + 2 and total["unet", "geglu"] == 16
    assert total["decode", "conv2d"] == 36 and total["decode", "group_norm"] == 30
    assert len({call.name for call in found}) == len(found)
    for call in found:
        specs = {k: None if s is None else Spec(s, "float32") for k, s in call.inputs.items()}
        inferred = ops()[call.op].contract(**specs, **call.options)
        assert (inferred.shape, inferred.flops, inferred.bytes) == (call.output, call.flops,
                                                                    call.bytes)


@pytest.mark.parametrize("name, changes", [(name, {}) for name in calls.TIMED] + [
    ("conv2d", {"algorithm": name}) for name in ("im2col", "winograd2", "winograd4")])
def test_a_right_result_passes_and_a_wrong_corner_does_not(name, changes):
    arrays, options, result = result_of(name, **changes)
    verdict = agreement.check(name, arrays, options, result)
    assert 0 < verdict["share_of_bound"] <= 1 and verdict["outputs"] > 0
    assert verdict["algorithm"] == changes.get("algorithm", verdict["algorithm"])
    wrong = result.copy()
    wrong[(-1,) * wrong.ndim] += np.float32(1e-2)
    with pytest.raises(AssertionError, match="allowed"):
        agreement.check(name, arrays, options, wrong)


def test_pictures_without_channels_at_the_edge_are_sampled_with_their_padding():
    """Stride 2 and padding on one side, as the VAE halves its pictures."""
    arrays = calls.make_arrays({"x": (1, 5, 8, 10), "weight": (7, 5, 3, 3), "bias": (7,)})
    options = {"stride": 2, "padding": ((0, 1), (0, 1)), "dilation": 1, "groups": 1,
               "algorithm": "auto"}
    whole = ops()["conv2d"].definition(*arrays.values(), **options)
    sample = agreement.draw("conv2d", arrays, options, whole.shape, "im2col")
    part = ops()["conv2d"].definition(*sample.args, **sample.options)
    np.testing.assert_allclose(part, sample.take(whole), rtol=0, atol=46 * 2**-24 * 10)


def test_a_peer_in_half_precision_is_refused():
    arrays, options, result = result_of("linear")
    assert agreement.compare("linear", arrays, options, result, None)["error"] < 1e-6
    x, weight, _ = arrays.values()
    half = (x.astype("f2").astype("f4") @ weight.T.astype("f2").astype("f4"))
    with pytest.raises(AssertionError, match="differs by"):
        agreement.compare("linear", arrays, options, half, None)


class Judged:
    """Workers whose referee says what the test wants; it is its own workers too."""

    def __init__(self, verdicts):
        self.by_side, self.verdicts, self.ran = {"refsd": self, "torch": self}, verdicts, []

    def settle(self):
        """Nothing is running."""

    def each(self, requests):
        return {side: {} for side in requests}

    def ask(self, who, do=None, **message):
        if who == "referee":
            return {"judged": self.verdicts}
        if "run" in (who, do):
            self.ran.append(who if do else message["variant"])
        return {"seconds": 0.5}


def row_of(verdicts, tmp_path):
    run = sections.Run(None, 1, 2, tmp_path, print)
    found = Judged(verdicts)
    return sections.compete(run, found, {"kind": "op"}, ["refsd", "PyTorch"]), found.ran


def test_what_is_red_is_not_timed(tmp_path):
    fine = {"error": 1e-7}
    row, ran = row_of({"refsd": {"red": "3 of 9 outside"}, "PyTorch": fine}, tmp_path)
    assert row["seconds"] == {} and ran == [] and row["not_timed"] == {"refsd": "3 of 9 outside"}
    row, ran = row_of({"refsd": fine, "PyTorch": {"red": "differs"}}, tmp_path)
    assert list(row["seconds"]) == ["refsd"] and set(ran) == {"numba", ("refsd", "numba")}
    row, _ = row_of({"refsd": fine, "PyTorch": fine}, tmp_path)
    assert {name: len(s) for name, s in row["seconds"].items()} == {"refsd": 2, "PyTorch": 2}
    assert row["not_timed"] == {}


def test_red_and_failed_sections_are_told_and_the_others_measured(tmp_path, monkeypatch, capsys):
    def red(run):
        run.results.begin("red")["linear"] = {"not_timed": {"refsd": "outside"}, "seconds": {}}

    def broken(run):
        run.results.begin("broken")
        raise RunnerError("no memory")

    def fine(run):
        run.results.begin("fine")["linear"] = {"not_timed": {}, "seconds": {"refsd": [1.0]}}

    monkeypatch.setattr(command, "SECTIONS", {"broken": broken, "red": red, "fine": fine})
    out = str(tmp_path / "x.json")
    assert command.main(["run", "--out", out, "--cache", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "broken FAILED: RunnerError: no memory" in said
    assert "linear: refsd not timed: outside" in said and "section broken is not complete" in said
    kept = results_file.load(out)["sections"]
    assert [kept[s]["finished"] for s in ("broken", "red", "fine")] == [False, False, True]
    assert command.main(["run", "--out", out, "--cache", str(tmp_path), "--only", "fine"]) == 1
    assert "fine: kept from" in capsys.readouterr().out


def test_workers_take_turns_and_a_dead_one_is_reported(tmp_path):
    inputs, options = SMALL["linear"]
    job = {"kind": "op", "op": "linear", "inputs": inputs, "options": options}
    names = {"refsd": ("refsd", "numba"), "refsd on NumPy": ("refsd", "numpy")}
    with start_workers(["refsd"], 1, tmp_path) as found:
        for who in names.values():
            found.ask(who, "prepare", job=job)
            found.ask(who, "result")
        judged = found.by_side["refsd"].ask("referee", others={})["judged"]
        assert judged["refsd"]["share_of_bound"] <= 1
        seconds, slower = time_in_rounds(found, names, 3)
        assert {len(samples) for samples in seconds.values()} == {3}
        assert seconds.keys() | slower.keys() == names.keys()
        with pytest.raises(RunnerError, match="no_such"):
            found.ask(("refsd", "no_such"), "prepare", job=job)
            found.ask(("refsd", "no_such"), "run", times=1)
        found.by_side["refsd"].process.kill()
        with pytest.raises(RunnerError, match="ended with code"):
            found.ask(("refsd", "numba"), "run", times=1)


HEADER = {"schema": 1, "threads": 2, "rounds": 5, "versions": dict.fromkeys(
    ("torch", "diffusers", "openvino", "numba"), "1.0"), "source": "abc", "machine": {
    "cpu": "A processor", "cores": 2, "caches": {"L1d": "48K"}, "simd_bytes": 64}}
CONV = {"op": "conv2d", "inputs": {"x": [2, 8, 64, 64], "weight": [8, 8, 3, 3], "bias": None},
        "options": {}, "output": [2, 8, 64, 64], "flops": 2e9, "bytes": 10**6,
        "count": {"unet": 3}, "agreement": {"refsd": {"algorithm": "winograd4",
                                                      "share_of_bound": 0.0123}},
        "not_timed": {}, "seconds": {
            "refsd": [0.010, 0.011, 0.013], "PyTorch": [0.03, 0.04, 0.05],
            "PyTorch channels-last": [0.020, 0.022, 0.033], "OpenVINO": [0.016, 0.015, 0.014]}}
RESULTS = HEADER | {"sections": {
    "peaks": {"finished": True, "date": "2026-01-02 03:04 UTC", "rows": {
        "fma": {"flops": 1e10, "seconds": {"refsd": [0.03, 0.04]}},
        "copy": {"bytes": 10**9, "seconds": {"refsd": [0.05, 0.04]}}}},
    "ops": {"finished": True, "date": "2026-01-02 03:05 UTC", "rows": {
        "conv2d 2x8x64x64 8x8x3x3": CONV, "linear 2x4 4x4": CONV | {
            "op": "linear", "seconds": {}, "not_timed": {"refsd": "7 | 9 are outside"}}}},
    "unet": {"finished": True, "date": "2026-01-02 03:06 UTC", "rows": {"unet": {
        k: CONV[k] for k in ("flops", "bytes", "seconds", "not_timed")}}},
    "half": {"finished": True, "date": "2026-01-02 03:06 UTC", "rows": {"unet": {
        "flops": 2e9, "bytes": 10**6, "not_timed": {}, "agreement": {
            "refsd": {"error": 1e-7}, "refsd bfloat16": {"error": 7 / 512},
            "refsd int8": {"error": 1e-7}},
        "seconds": {"refsd": [0.02], "refsd bfloat16": [0.01], "refsd int8": [0.018],
                    "PyTorch bfloat16": [0.05], "PyTorch autocast": [0.04],
                    "OpenVINO by itself": [0.02]}}}},
    "memory": {"finished": True, "date": "2026-01-02 03:07 UTC", "rows": {
        "refsd": {"bytes": 6_600_000_000, "prepared": 1_500_000_000},
        "refsd-int8": {"bytes": 2_040_000_000, "prepared": 0}}},
}}


def test_medians_quartiles_and_the_better_form_of_a_peer():
    assert figures.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert figures.peer(CONV, "PyTorch").median == 0.022
    assert figures.ratio(CONV, "PyTorch") == pytest.approx(0.5)
    assert figures.share(CONV, RESULTS) == pytest.approx(2e9 / 0.011 / (1e10 / 0.03))
    total = figures.totals(RESULTS, "unet")
    assert list(total) == ["conv 3x3"]  # a linear layer has no time
    assert total["conv 3x3"]["seconds"] == pytest.approx(
        {"refsd": 0.033, "PyTorch": 0.066, "OpenVINO": 0.045})


def test_bfloat16_is_held_against_float32_and_the_best_form_of_each_peer():
    row = RESULTS["sections"]["half"]["rows"]["unet"]
    assert figures.half(row) == {"refsd": (0.01,) * 3, "float32": 0.5, "PyTorch": 0.25,
                                 "OpenVINO": 0.5}
    assert figures.half({"seconds": {}}) is None
    partial = figures.half({"seconds": {"refsd bfloat16": [0.01]}})
    assert partial == {"refsd": (0.01,) * 3} | dict.fromkeys(("float32", "PyTorch", "OpenVINO"))
    assert ("| 0.50 | 0.25 | 0.50 | 18 ms, 0.90 |  | refsd bfloat16 7.0, refsd int8 0.0 |"
            in "\n".join(tables.halves(RESULTS)))
    assert tables.halves(HEADER | {"sections": {}}) == []


def test_int8_is_held_to_what_it_stands_for_before_it_is_timed(tmp_path):
    from benchmarks import refsd_side

    truth, files = np.linspace(-1, 1, 90, dtype="float32"), {}
    dense = truth * np.float32(1.03)  # what rounding to int8 costs is no error of a kernel
    for name, result in {"truth": truth, sections.DENSE: dense, "refsd int8": dense,
                         "refsd bfloat16 and int8": dense * np.float32(1.01)}.items():
        files[name] = str(tmp_path / f"{name}.npy")
        np.save(files[name], result)
    job = {"kind": "unet", "allowed": agreement.HALF, "held_to": sections.HELD_TO}
    found = refsd_side.referee(job, truth, files)
    assert list(found) == ["refsd", sections.DENSE, *sections.INT8]
    assert found["refsd int8"] == {"error": 0} and 0.009 < found[
        "refsd bfloat16 and int8"]["error"] < 0.011
    np.save(files["refsd int8"], dense * np.float32(1.001))
    assert "differs by" in refsd_side.referee(job, truth, files)["refsd int8"]["red"]
    del files[sections.DENSE]
    assert "no result of" in refsd_side.referee(job, truth, files)["refsd int8"]["red"]


def test_dense_weights_are_those_that_int8_stands_for(tiny_model):
    from benchmarks import refsd_side

    job = {"kind": "unet", "folder": tiny_model}
    dense, int8, both = (refsd_side._load(job, variant).tensors for variant in (
        "int8 dense numba", "int8 numba", "bfloat16 int8 numba"))
    weight = int8["conv_in.weight"]
    assert (weight.values.dtype, both["conv_in.weight"].dtype.name) == ("int8", "bfloat16")
    assert type(dense["conv_in.weight"]) is Weight
    np.testing.assert_array_equal(dense["conv_in.weight"], weight.dense())


def test_a_slow_form_is_left_out_but_not_for_being_wider():
    seconds = {"numba": 9, "bfloat16 numba": 3, "bfloat16 numpy": 5}

    class Quiet:
        def __init__(self):
            self.by_side = {"refsd": self}

        def settle(self):
            pass

        def ask(self, *runner, variant=None, times):
            return {"seconds": seconds[variant or runner[0][1]]}

    runners = {variant: ("refsd", variant) for variant in seconds}
    times, slower = time_in_rounds(Quiet(), runners, 3)
    assert slower == {"bfloat16 numpy": 5} and list(times) == ["numba", "bfloat16 numba"]


def test_goals_are_met_or_missed_by_what_was_measured():
    found = {what: (measured, verdict) for what, _, measured, verdict in targets.verdicts(RESULTS)}
    assert found["UNet step, time in units of PyTorch's"] == ("0.50", "met, 17% below the limit")
    assert found["UNet step, time in units of OpenVINO's"][1] == "missed, 2% above the limit"
    measured, verdict = found["3x3 convolutions from 64x64 up, times PyTorch's speed, the lowest"]
    assert measured.startswith("2.00") and verdict.startswith("met")
    assert found["peak memory of a picture by Stable Diffusion 1.5"] == (
        "6.60 GB (1.50 GB of it other forms of the weights)", "missed, 10% above the limit")
    assert found["the same in bfloat16"] == ("not measured", "open")
    assert found["the same with int8 weights"][1] == "met, 15% below the limit"
    assert found["UNet step in bfloat16, time in units of float32's"][1].startswith("met")
    assert found["UNet step in bfloat16, time in units of PyTorch's"][0] == "0.25"
    assert found["CLIP, time in units of PyTorch's"] == ("not measured", "open")


def pages(folder):
    """Pages and results of a machine, tables made."""
    (folder / "docs").mkdir()
    (folder / "results").mkdir()
    (folder / "results" / "x.json").write_text(json.dumps(RESULTS))
    for page in tables.PAGES:
        (folder / page).write_text(f"before\n{tables.BEGIN}\n{tables.END}\nafter\n")
    assert tables.write(folder, folder / "results") == list(tables.PAGES)
    return folder


@pytest.mark.parametrize("page, figure, other", [
    ("README.md", "11 ms", "10 ms"), ("README.md", "0.50", "0.49"),
    ("README.md", "6.60 GB", "5.60 GB"), ("README.md", "2.04 GB", "2.05 GB"),
    ("docs/benchmarks.md", "winograd4 0.012", "winograd4 0.011"),
    ("docs/benchmarks.md", "7 \\| 9 are outside", "8 \\| 9 are outside"),
])
def test_a_figure_that_was_changed_by_hand_is_found(tmp_path, page, figure, other):
    path = pages(tmp_path) / page
    assert tables.stale(tmp_path, tmp_path / "results") == {}
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and figure in text
    path.write_text(text.replace(figure, other, 1))
    assert list(tables.stale(tmp_path, tmp_path / "results")) == [page]


def test_the_tables_of_this_project_are_those_of_its_results():
    assert list(tables.stale(ROOT)) == [], "run: python -m benchmarks table"


def test_another_source_is_told_apart_and_golden_packs_are_no_part_of_it(tmp_path):
    (tmp_path / "golden").mkdir()
    found = []
    for name, text in (("a.py", "1"), ("golden/b.py", "1"), ("a.py", "2"), ("c.py", "")):
        (tmp_path / name).write_text(text)
        found.append(machine.source(tmp_path))
    assert found[0] == found[1] and len(set(found)) == 3


def test_results_go_on_where_they_stopped_and_belong_to_one_source(tmp_path):
    path, said = tmp_path / "x.json", []
    first = results_file.Results(path, HEADER, say=said.append)
    first.begin("ops")["linear"] = {"seconds": {"refsd": [1.0]}}
    first.finish("ops")
    again = results_file.Results(path, HEADER | {"rounds": 9}, say=said.append)
    assert again.finished("ops") and not again.finished("unet") and said == []
    other = results_file.Results(path, HEADER | {"source": "def"}, say=said.append)
    assert not other.finished("ops") and "another source" in said[0]
    assert not results_file.Results(path, HEADER, fresh=("ops",)).finished("ops")
    assert results_file.Results(path, HEADER, fresh=("unet",)).finished("ops")
    path.write_text(json.dumps(HEADER | {"schema": 2}))
    with pytest.raises(ValueError, match="schema 2"):
        results_file.load(path)


def test_an_op_gets_pictures_and_weights_as_a_network_has_them():
    from benchmarks import refsd_side
    from refsd.numba_ops.memory import layout_copies

    inputs, options = SMALL["conv2d"]
    arrays = calls.make_arrays(inputs)
    given = refsd_side.as_in_a_network(arrays, "numba")
    for array, same in zip(given, arrays.values()):
        np.testing.assert_array_equal(array, same)
    before = layout_copies()
    run = refsd_side.prepare({"kind": "op", "op": "conv2d", "inputs": inputs, "options": options},
                             "numba", 1)
    run()
    assert layout_copies() == before  # nothing had to be laid out
