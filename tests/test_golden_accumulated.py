"""What all errors of a tensor say together: the two tests by themselves."""

import itertools
import math

import numpy as np
import pytest

from refsd.golden.comparing import accumulated
from refsd.golden.comparing.accumulated import Accumulated
from refsd.golden.comparing.port_formats import Formats
from refsd.golden.comparing.variants_chain import Link, again, instead
from refsd.golden.packs.manifest import Entry
from refsd.golden.recording.replay import replay
from refsd.golden.tolerances.formats import FORMATS, round_to

ALARM = 1e-9
SHAPE = (2, 32, 16, 16)


def entry(name, op, inputs, options, index):
    return Entry(name, op, "unet", 0, SHAPE, "float32", options, inputs, index, "", name, {})


def chain(x, eps=1e-5):
    """A norm and silu behind it: the last link, and those before it by name."""
    rng = np.random.default_rng(1)
    values = {"x": x, "weight": 1 + rng.normal(size=32) / 10, "bias": rng.normal(size=32) / 10}
    norm = entry("norm", "group_norm", dict.fromkeys(values, ""), {"groups": 4, "eps": eps}, 0)
    normal = Link(norm, values, {}, replay(norm, values))
    silu = entry("silu", "silu", {"x": "tensor:norm"}, {}, 1)
    given = {"x": normal.truth}
    return Link(silu, given, {"x": "norm"}, replay(silu, given)), {"norm": normal}


def draw(seed=0, *, twice=False, size=1.0):
    x = np.random.default_rng(seed).normal(size=SHAPE) * size
    return np.concatenate([x[:1], x[:1]]) if twice else x


def asked(x, got, format="bfloat16"):
    last, links = chain(x)
    allowed = 2 * (np.abs(last.truth) + 0.1) * FORMATS[format].unit
    formats = Formats(format, {link.entry.name: link.entry for link in (last, *links.values())})
    return Accumulated(formats, ALARM)(last, links, got.astype("float32"), allowed)


def stored(x, eps, format="bfloat16", noise=0.0):
    """What a port has that rounds once; noise: of so many steps before that."""
    y = chain(x, eps)[0].truth
    y = y + np.random.default_rng(5).normal(size=SHAPE) * noise * FORMATS[format].unit * np.abs(y)
    return round_to(y, format)


def test_an_eps_below_the_rounding_shows_in_which_neighbour_each_number_is():
    x = draw(size=0.1)
    found = asked(x, stored(x, 1e-6))
    assert found.finding.reason == "wrong_eps" and found.chance < 1e-30 and found.times > 1
    assert "in norm (group_norm), before it: eps is 1e-06, not 1e-05" in found.finding.sentence
    assert asked(x, stored(x, 1e-5)) is None


def test_beside_noise_that_hides_the_neighbours_the_projection_shows_it():
    x = draw(size=0.1)
    found = asked(x, stored(x, 1e-4, noise=1))
    assert found.finding.reason == "wrong_eps" and found.chance < 1e-12
    assert asked(x, stored(x, 1e-5, noise=1)) is None


@pytest.mark.parametrize("limit", ["LONGEST", "LARGE", "LARGE_DRAWS"])
def test_what_would_take_long_is_not_asked(monkeypatch, limit):
    x = draw(size=0.1)
    got = stored(x, 1e-4, noise=1)
    assert asked(x, got) is not None
    monkeypatch.setattr(accumulated, limit, 1)
    assert asked(x, got) is None


@pytest.mark.parametrize("scale", [1 + 1e-3, 1 - 1e-3])
def test_errors_of_another_size_than_any_version_makes_are_none_of_them(scale):
    x = draw(size=0.1)
    assert asked(x, round_to(chain(x)[0].truth * scale, "bfloat16")) is None


def test_what_float32_may_be_off_by_all_in_one_direction_is_no_evidence():
    """eps 1e-6 for 1e-5 beside a variance of 100 is a relative 5e-8."""
    x = draw(size=10)
    y = chain(x)[0].truth
    assert asked(x, (y + (chain(x, 1e-6)[0].truth - y)).astype("float32"), "float32") is None


def test_the_same_numbers_twice_are_no_second_evidence(monkeypatch):
    seen, old = [], accumulated._hypergeometric

    def watched(*args):
        seen.append(args)
        return old(*args)

    monkeypatch.setattr(accumulated, "_hypergeometric", watched)
    last, links = chain(draw(twice=True, size=0.1))
    got = stored(draw(twice=True, size=0.1), 1e-6)
    case = accumulated._Case(last, links, got, np.full(SHAPE, 0.01), Formats("bfloat16", {
        "norm": links["norm"].entry, "silu": last.entry}))
    case.judged(links["norm"], "wrong_eps", "", chain(draw(twice=True, size=0.1), 1e-6)[1][
        "norm"].truth)
    assert case.once.sum() == case.once.size // 2 and seen
    for went, n, *_ in seen:
        assert went == n < np.count_nonzero(got[0] != round_to(last.truth[0], "bfloat16"))


def test_a_port_that_rounds_often_is_not_judged_by_neighbours():
    x = draw(size=0.1)
    last, links = chain(x)
    case = accumulated._Case(last, links, stored(x, 1e-5, noise=1), np.full(SHAPE, 0.01), Formats(
        "bfloat16", {"norm": links["norm"].entry, "silu": last.entry}))
    assert case._by_roundings(chain(x, 1e-4)[0].truth - last.truth) == 1.0


def test_the_chance_of_flips_is_that_of_drawing_them():
    """Against every way to draw 4 of 3 + 4."""
    ways = list(itertools.combinations(range(7), 4))
    for k in range(4):
        share = sum(sum(i < 3 for i in way) >= k for way in ways) / len(ways)
        assert math.isclose(accumulated._hypergeometric(k, 3, 4, 4), share)


def test_ties_are_half_a_step_away_and_unknown_below_a_power_of_two():
    centre = np.array([1.0, 1.01, 1.5])
    got = round_to(np.array([1.0, 1.03, 1.49]), "bfloat16")
    ties = accumulated._Ties.of(centre, got, FORMATS["bfloat16"])
    step = 2.0**-7
    right = round_to(centre, "bfloat16")
    assert np.isinf(ties.above[0]) and np.isinf(ties.below[0])
    assert np.allclose(ties.above[1:], (right + step / 2 - centre)[1:])
    assert np.allclose((ties.above + ties.below)[1:], step)
    assert list(ties.side) == [0, 1, -1]


def test_only_what_follows_a_changed_link_is_computed_again():
    """What does not is taken as it is: here it is not even what its op gives."""
    _, links = chain(draw())
    given = {"x": links["norm"].values["x"]}
    links["other"] = Link(entry("other", "silu", {"x": ""}, {}, 1), given, {}, np.full(SHAPE, 7.0))
    links["between"] = Link(entry("between", "silu", {"x": ""}, {}, 2), {"x": None}, {"x": "norm"},
                            None)
    last = Link(entry("add", "add", {"a": "", "b": ""}, {}, 3), {"a": None, "b": None},
                {"a": "between", "b": "other"}, None)
    array = links["norm"].truth + 1
    expected = replay(links["between"].entry, {"x": array})
    assert np.array_equal(instead(last, links, "norm", array), expected + 7)
    assert np.array_equal(again(last, links, {"norm": array}), expected + replay(
        links["other"].entry, given))
