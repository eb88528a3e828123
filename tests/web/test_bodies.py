"""Bodies of JSON: what is read, and what is refused with the reason."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refsd.serve.bodies import DEPTH, VALUES, parse_object
from refsd.serve.refusals import Refused


def refusal(content):
    with pytest.raises(Refused) as caught:
        parse_object(content)
    assert (caught.value.status, caught.value.code) == (400, "json")
    assert str(caught.value).endswith("; give one object of JSON")
    return str(caught.value)


@pytest.mark.parametrize("content, value", [
    (b"{}", {}), (b' {"a" : [1, -2.5e3, true, null, "\\u00e4\\ud83d\\ude00"]}\n',
                  {"a": [1, -2500.0, True, None, "ä\U0001f600"]}),
    ('{"ä": "ö"}'.encode(), {"ä": "ö"}), (b'{"a": {"a": 1}, "b": [{"a": 2}]}',
                                          {"a": {"a": 1}, "b": [{"a": 2}]}),
    (b'{"seed": 18446744073709551615}', {"seed": 2**64 - 1}), (b'{"a": 1e308}', {"a": 1e308})])
def test_an_object_is_read(content, value):
    assert parse_object(content) == value


def test_whole_numbers_stay_whole():
    assert type(parse_object(b'{"a": 9007199254740993}')["a"]) is int


@pytest.mark.parametrize("content, words", [
    (b"", "is empty"), (b" ", "is no JSON"), (b"a", "is no JSON"), (b'{"a": 1', "is no JSON"),
    (b'{"a": 1} {}', "is no JSON"), (b"{'a': 1}", "is no JSON"), (b'{"a": 01}', "is no JSON"),
    (b'{"a": 1,}', "is no JSON"), (b'{"a": "\n"}', "is no JSON"),
    (b"[1]", "is [1]"), (b"1", "is 1"), (b'"a"', "is 'a'"), (b"null", "is None"),
    (b'{"a": "\xff"}', "is not UTF-8"), ('{"a": 1}'.encode("utf-16"), "is not UTF-8"),
    (b'{"a": "\xed\xa0\x80"}', "is not UTF-8"),
    (b'{"steps": 1, "steps": 2}', "has 'steps' twice"), (b'{"b": {"a": 1, "\\u0061": 2}}',
                                                         "has 'a' twice"),
    (b'{"a": NaN}', "holds NaN"), (b'{"a": Infinity}', "holds Infinity"),
    (b'{"a": [-Infinity]}', "holds -Infinity"), (b'{"a": 1e309}', "holds 1e309"),
    (b'{"a": -1e999999999}', "holds -1e999999999"), (b'{"a": ' + b"1" * 5000 + b"}",
                                                     "5,000 digits"),
    (b'{"a": ' + b"1" * 31 + b"}", "31 digits"),
    (b'{"a": "\\ud800"}', "half a character, '\\ud800'"), (b'{"\\udc00": 1}', "half a character"),
    (b'{"a": [{"b": "\\ud83d"}]}', "half a character"),
    (b"\xef\xbb\xbf{}", "is no JSON"),
])
def test_what_is_no_object_is_refused_with_the_reason(content, words):
    assert words in refusal(content)


def nested(depth):
    return b'{"a": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_depth_is_limited():
    assert parse_object(nested(DEPTH))
    for depth in (DEPTH + 1, 1000, 40_000):
        assert f"more than {DEPTH} levels deep" in refusal(nested(depth))
    objects = b'{"a": ' * (DEPTH + 1) + b"1" + b"}" * (DEPTH + 1)
    assert "levels deep" in refusal(objects)


def test_values_are_counted_before_they_are_made():
    assert len(parse_object(b'{"a": [' + b"1," * (VALUES - 10) + b"1]}")["a"]) == VALUES - 9
    for value in (b"[],", b"{},", b"1,"):
        start = time.monotonic()
        content = b'{"a": [' + value * (10 << 20) + b"1]}"
        start = time.monotonic()
        assert f"more than {VALUES:,} values" in refusal(content)
        assert time.monotonic() - start < 2


def test_a_large_picture_is_quickly_read():
    text = "QUJD" * (7 << 20)
    content = json.dumps({"init_image": text}).encode()
    start = time.monotonic()
    assert parse_object(content) == {"init_image": text}
    assert time.monotonic() - start < 2


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | texts | st.integers(-10**28, 10**28)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20)


@given(st.dictionaries(texts, values, max_size=5), st.booleans())
def test_every_object_comes_back(value, ascii):
    assert parse_object(json.dumps(value, ensure_ascii=ascii).encode()) == value


pieces = st.lists(st.sampled_from(
    ["{", "}", "[", "]", '"', ":", ",", "\\", "\\u", "d800", "1", "-", "e9", ".", "NaN", "null",
     '"a":', " ", "\x00", "ä", "Infinity", "true"])).map("".join)


@given(st.binary(max_size=60) | pieces.map(str.encode) | pieces.map(
    lambda text: f'{{"a":{text}}}'.encode()))
def test_all_else_is_refused_and_nothing_worse(content):
    try:
        found = parse_object(content)
    except Refused as refused:
        assert refused.status == 400
    else:
        assert found == json.loads(content)
        json.dumps(found, allow_nan=False).encode()
        assert repr(found).encode()
