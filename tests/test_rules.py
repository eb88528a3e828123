"""The rules that values of JSON are checked by: what fits, and what is said of what does not."""

import math
import re

import numpy as np
import pytest
from weights_samples import refused

from refsd import rules
from refsd.errors import UsageError

RULES = {
    "integer": (rules.integer(0, 9), [0, 9], [-1, 10, 1.0, True, "1", None],
                "an integer from 0 to 9"),
    "number": (rules.number(0, 1), [0, 0.5, 1], [-1, math.nan, math.inf, True, "0"],
               "a number from 0 to 1"),
    "text": (rules.text(3), ["", "abc"], ["abcd", 1, None], "a text of at most 3 characters"),
    "matching": (rules.matching(re.compile("a+"), "as"), ["a", "aa"], ["", "ab", "a\n", 1], "as"),
    "only": (rules.only(1, None, "x"), [1, 1.0, None, "x"], [True, 0, "X", []], "1 or None or 'x'"),
    "boolean": (rules.boolean, [True, False], [0, 1, None, "true"], "True or False"),
    "optional": (rules.optional(rules.text(1)), [None, "a"], ["ab", 0],
                 "a text of at most 1 characters"),
    "each": (rules.each(rules.integer(0, 1), 1, 2), [[0], [1, 0], (1,)], [[], [0] * 3, 0, {}],
             "a list of 1 to 2 values"),
    "each value": (rules.each(rules.integer(0, 1)), [[]], [[2], [0, "1"]],
                   "each of an integer from 0 to 1"),
    "table": (rules.table(rules.text(1), "texts", own=rules.integer(0, 1)),
              [{}, {"a": "b"}, {"own": 1}], [[], None, "a"], "texts"),
    "table value": (rules.table(rules.text(1), "texts", own=rules.integer(0, 1)), [],
                    [{"own": "a"}, {"a": "a", "own": 2}], "texts (wrong: 'own')"),
    "record": (rules.record({"a": rules.boolean}), [{"a": True}],
               [{}, {"a": 1}, {"a": True, "b": 1}, []], "an object of a"),
    "or empty": (rules.or_empty(rules.record({"a": rules.boolean})), [{}, {"a": True}],
                 [{"a": 1}, {"b": True}, [], None, ""], "an object of a, or an empty one"),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_what_fits_and_what_is_wanted(name):
    rule, good, bad, words = RULES[name]
    assert [rule(value) for value in good] == [""] * len(good)
    assert [rule(value) for value in bad] == [words] * len(bad)


def test_an_object_is_checked_key_by_key():
    table = {"a": rules.boolean, "b": rules.text(9)}
    rules.check({"a": True, "b": ""}, table, "x")
    rules.check({"a": True}, table, "x", optional=["b"])
    refused(lambda: rules.check({"b": ""}, table, "x", optional=["b"]), "x: missing key 'a'")
    refused(lambda: rules.check({"a": True, "b": "", "c\n": 1}, table, "x"),
            "x: unknown key 'c\\n', expected a, b")
    refused(lambda: rules.check({"a": 1, "b": ""}, table, "x", error=UsageError),
            "x: a is 1, expected True or False", error=UsageError)
    refused(lambda: rules.check([1], table, "x"), "x: got [1], expected an object")


@pytest.mark.parametrize("found, words", [
    (3, "schema is 3, this refsd reads 2. Use a newer refsd"), (1, "Make the pack anew"),
    (True, "schema is True"), ("2", "schema is '2'"), (2.0, "schema is 2.0"), (None, "None")])
def test_another_schema(found, words):
    rules.check_schema(2, 2, "x", "the pack")
    refused(lambda: rules.check_schema(found, 2, "x", "the pack"), words)


def test_values_are_read_as_json_could_have_said_them():
    read = [rules.as_kind(value, default) for value, default in (
        (None, False), (1, True), (0.0, True), ([1.0, 2], 1), (1000.0, 1), (1.0, 0.5),
        (np.float32(0.5), 1), (np.arange(2), None), (7, False), ("a", True))]
    assert read == [False, True, False, [1, 2], 1000, 1.0, 0.5, [0, 1], 7, "a"]
    assert [type(value) for value in read[:6]] == [bool, bool, bool, list, int, float]
