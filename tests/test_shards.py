"""Units of work: their keys and results; dealing them to shards."""

import random
from itertools import product

import pytest

from refsd.errors import ResourceError, UsageError
from refsd.farm import units
from refsd.farm.shards import deal
from refsd.farm.units import Unit

UNIT = Unit("0" * 32, "fox", {"seed": 7}, 5, ("fox.png",))


def sums(costs, parts):
    return [sum(costs[index] for index in part) for part in deal(costs, parts)]


@pytest.mark.parametrize("seed", range(20))
def test_every_unit_is_in_one_shard_and_shards_are_even(seed):
    draw = random.Random(seed)
    costs = [draw.choice([1, draw.randint(1, 10**12)]) for _ in range(draw.randint(1, 200))]
    parts = draw.randint(1, 40)
    dealt = deal(costs, parts)
    assert len(dealt) == parts
    assert sorted(index for part in dealt for index in part) == list(range(len(costs)))
    assert all(part == sorted(part) for part in dealt)
    assert max(sums(costs, parts)) - min(sums(costs, parts)) <= max(costs)
    assert dealt == deal(list(costs), parts)


def test_the_longest_shard_is_near_the_best_there_is():
    """Against every way to deal a few units to three, and the worst case of Graham's proof."""
    draw = random.Random(3)
    for costs in [[5, 5, 4, 4, 3, 3, 3], *([draw.randint(1, 50) for _ in range(7)]
                                          for _ in range(5))]:
        best = min(max(sum(cost for cost, part in zip(costs, parts) if part == one)
                       for one in range(3)) for parts in product(range(3), repeat=len(costs)))
        assert 9 * max(sums(costs, 3)) <= 11 * best
    assert sums([5, 5, 4, 4, 3, 3, 3], 3) == [11, 8, 8]


def test_equal_units_are_dealt_in_turn():
    assert deal([1] * 7, 3) == [[0, 3, 6], [1, 4], [2, 5]]
    assert deal([2, 1], 4) == [[0], [1], [], []] and deal([], 2) == [[], []]


def test_keys_are_of_what_is_in_a_recipe_not_of_its_order():
    key = units.key_of({"a": 1, "b": [2.0]})
    assert key == units.key_of({"b": [2.0], "a": 1}) and len(key) == 32
    assert key != units.key_of({"a": 1, "b": [2]})


def test_a_worker_that_differs_is_named_by_what_differs():
    here = {"refsd": "1.0", "model": "ab"}
    assert units.differences(here, dict(here)) == []
    assert units.differences(here, {"refsd": "0.9", "exact": "yes"}) == [
        "exact is yes, not known here", "model is not said, not ab", "refsd is 0.9, not 1.0"]


def test_kinds_are_modules_that_do_units():
    with pytest.raises(UsageError, match="no units of the kind 'songs'; give one of pictures"):
        units.kind_of("songs")


def test_results_are_settled_whole(tmp_path):
    made, folder = tmp_path / "made", tmp_path / "folder"
    unit = Unit("0" * 32, "fox", {}, 1, ("fox.png", "pack"))
    (made / "pack").mkdir(parents=True)
    folder.mkdir()
    (made / "fox.png").write_bytes(b"new")
    (made / "pack" / "manifest.json").write_bytes(b"new")
    (folder / "fox.png").write_bytes(b"old")
    (folder / "pack").mkdir()  # an empty one is no result
    units.settle(unit, made, folder)
    assert (folder / "fox.png").read_bytes() == b"new" and not list(made.iterdir())
    assert (folder / "pack" / "manifest.json").read_bytes() == b"new"

    (made / "pack").mkdir()
    (made / "fox.png").write_bytes(b"newer")
    (made / "pack" / "manifest.json").write_bytes(b"newer")
    units.settle(unit, made, folder)  # as the other one of two that did it
    assert (folder / "fox.png").read_bytes() == b"newer"
    assert (folder / "pack" / "manifest.json").read_bytes() == b"new"


def test_a_result_that_is_missing_or_has_no_place_is_said(tmp_path):
    (tmp_path / "made").mkdir()
    with pytest.raises(ResourceError, match="fox: .*fox.png was not made"):
        units.settle(UNIT, tmp_path / "made", tmp_path)
    (tmp_path / "made" / "fox.png").touch()
    with pytest.raises(ResourceError, match="cannot be written: No such file"):
        units.settle(UNIT, tmp_path / "made", tmp_path / "nowhere")
