"""A new op is in every table that lists ops, by its declaration alone."""

import agreement_cases
import agreement_tables
import numpy as np
import op_table
import pytest
from hypothesis import given, settings
from op_table import normal

from refsd import registry
from refsd.golden.porting.contracts import describe_ops
from refsd.golden.recording.case_table import rows
from refsd.golden.tolerances.bounds import bound
from refsd.golden.tolerances.formats import FORMATS, round_to
from refsd.kinds import Map, call
from refsd.options import Flag, Number


@pytest.fixture
def hard_swish(own_ops):
    @registry.op("x (...) -> (...)", Map(roundings=3, curvature=1 / 3, scale=4), flops="5 * size")
    def hard_swish(x):
        """x min(max(x + 3, 0), 6) / 6.   any shape -> the same"""
        return x * np.clip(x + 3, 0, 6) / 6

    return registry.ops()["hard_swish"]


def test_a_map_has_contracts_cases_and_hard_calls(hard_swish):
    described = describe_ops()["hard_swish"]
    assert described["examples"][0]["flops"] == 5 * 24 and len(described["refuses"]) > 1
    assert [row[0] for row in rows(hard_swish)] == [
        "plain", "zeros", "wide", "big", "one", "vector_tails"]
    assert len(agreement_cases.calls("hard_swish")) > len(agreement_cases.WIDTHS)
    [(batch, batched)] = agreement_tables.batches("hard_swish")
    assert batch.args[0].data.shape[0] == 3 and batched == {0}


@pytest.mark.parametrize("format", ["float32", "float16", "bfloat16", "fp8_e4m3"])
def test_a_map_has_bounds(hard_swish, format):
    """They hold for a port in the format, and not for one that is off by 16 roundings."""
    x = np.concatenate([normal((500,), 1, 3), np.float32([-3, -1.5, 0, 3, 1e-40])])
    truth = hard_swish.definition(x.astype("f8"))
    allowed = bound("hard_swish", (x,), {}, truth, format=format)
    y = round_to(hard_swish.definition(round_to(x, format)), format)
    assert (abs(y - truth) <= allowed.likely).all() and (allowed.likely <= allowed.worst).all()
    assert (abs(y * (1 + 16 * FORMATS[format].unit) - truth) > allowed.worst).any()


def test_an_op_of_no_kind_has_them_by_its_letters_options_and_examples(own_ops):
    @registry.op("x (... K), weight (K) -> (... K)", flops="2 * size", gain=Number(above=0),
                 exact=Flag(), examples=[call((2, 3, 8), (8,), gain=0.5, exact=True)])
    def scale(x, weight, *, gain, exact):
        """gain x weight.   (..., K), (K) -> (..., K)"""
        return x * (weight * gain)

    op = registry.ops()["scale"]
    assert rows(op) == [("example_0", {"x": ((2, 3, 8), "plain"), "weight": ((8,), "plain")},
                         {"gain": 0.5, "exact": True})]
    widths = [call.args[1].data.size for call in agreement_cases.calls("scale")]
    assert widths == [*agreement_cases.WIDTHS, 8]
    [(batch, batched)] = agreement_tables.batches("scale")
    assert batch.args[0].data.ndim == 3 and batched == {0}
    drawn = set()

    @given(op_table.declared(op))
    @settings(max_examples=20)
    def draw(call):
        drawn.add((call.args[0].data.ndim, call.options["exact"]))

    draw()
    assert {exact for _, exact in drawn} == {True, False} and len(drawn) > 4
