"""How the next token is chosen, by hand; and what of a text is certain while it is written.

tests/parity/test_gpt2.py has the same scores as transformers, and the same draws as torch.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from refsd.errors import UsageError
from refsd.pipelines.sampling import Sampling, probabilities
from refsd.pipelines.writing import Writing
from refsd.random import TorchGenerator

INF = math.inf
LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], "f4"))


def scores(logits=LOGITS, ids=(), **options):
    found = Sampling(**options).scores(np.array(logits, "f4"), np.array(ids, int))
    assert found.dtype == "float32"
    return found


def test_the_likeliest_token_is_taken_where_nothing_is_drawn():
    assert Sampling().choose(scores(), None) == 1
    assert Sampling().choose(np.array([2, 5, 5], "f4"), None) == 1  # the first of equals
    assert np.array_equal(scores(top_k=1, top_p=0.1), LOGITS)  # cuts are of what is drawn


def test_a_penalty_counts_each_token_once_and_keeps_signs():
    found = scores([4, -4, 1, 0], [0, 0, 1, 3], repetition_penalty=2.0)
    assert found.tolist() == [2, -8, 1, 0]


def test_temperature_divides():
    assert np.array_equal(scores(temperature=2.0), LOGITS / np.float32(2))


@pytest.mark.parametrize("k, kept", [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3]),
                                     (9, [0, 1, 2, 3])])
def test_top_k(k, kept):
    assert np.flatnonzero(np.isfinite(scores(temperature=1.0, top_k=k))).tolist() == kept
    tied = scores([1, 0, 1, 1], temperature=1.0, top_k=2)
    assert np.isfinite(tied).tolist() == [True, False, True, True]  # none of equals is preferred


# Of 0.4, 0.3, 0.2, 0.1 as many as reach p, rounding aside.
@pytest.mark.parametrize("p, kept", [(0.0, [1]), (0.35, [1]), (0.45, [1, 3]), (0.65, [1, 3]),
                                     (0.75, [1, 2, 3]), (0.95, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])])
def test_top_p(p, kept):
    assert np.flatnonzero(np.isfinite(scores(temperature=1.0, top_p=p))).tolist() == kept


def test_top_p_is_of_what_top_k_left():
    """Of the two that are left the first has 4/7, which is enough for 0.5 alone."""
    assert np.flatnonzero(np.isfinite(scores(temperature=1.0, top_k=2, top_p=0.5))).tolist() == [1]
    assert np.isfinite(scores(temperature=1.0, top_k=2, top_p=0.6)).sum() == 2
    # and temperature comes before it: 0.4^2 of 0.3 is more than half
    assert np.isfinite(scores(temperature=0.5, top_p=0.53)).sum() == 1


def test_what_was_given_is_not_written_to():
    logits, before = LOGITS.copy(), LOGITS.copy()
    Sampling(1.0, 2, 0.5, 2.0).scores(logits, np.array([1]))
    assert np.array_equal(logits, before)


def test_probabilities():
    # ten roundings of float32: logarithm (worth 2.3), difference, exponential, sum, quotient
    assert np.allclose(probabilities(LOGITS), [0.1, 0.4, 0.2, 0.3], rtol=10 * 2.0**-24, atol=0)
    assert probabilities(np.array([0, -INF], "f4")).tolist() == [1, 0]


def test_tokens_are_drawn_by_their_probability():
    """4,000 draws: a share's standard deviation is below 0.008, and 5 of them are never seen."""
    generator, sampling = TorchGenerator(1), Sampling(temperature=1.0)
    drawn = np.bincount([sampling.choose(LOGITS, generator) for _ in range(4000)], minlength=4)
    assert abs(drawn / 4000 - np.exp(LOGITS)).max() < 0.04
    generator = TorchGenerator(2)
    assert {sampling.choose(np.array([0, -INF, 0], "f4"), generator) for _ in range(50)} == {0, 2}


def test_exponential_numbers_are_minus_log_of_uniform_ones():
    numbers = TorchGenerator(3).exponential((2, 5), dtype="float64")
    uniform = TorchGenerator(3).rand(10, dtype="float64")
    assert numbers.shape == (2, 5)
    # 1 - u of 53 bits is exact; the two logarithms are within a unit of the last place
    assert np.allclose(numbers.ravel(), -np.log(1 - uniform), rtol=2.0**-51, atol=0)
    assert np.array_equal(TorchGenerator(3).exponential(10), numbers.ravel().astype("f4"))
    assert TorchGenerator(3).exponential(3, dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(UsageError, match="exponential: got the shape"):
        TorchGenerator(3).exponential(-1)


def writing(stop=()):
    """One that writes bytes: a token is a byte of UTF-8."""
    return Writing(SimpleNamespace(decode=lambda ids: bytes(ids).decode("utf-8", "replace")), stop)


def pieces(text, stop=()):
    """(the pieces that bytes give, what waits at their end, the byte that stopped it)"""
    made, found = writing(stop), []
    for at, byte in enumerate(text if isinstance(text, bytes) else text.encode()):
        piece, stopped = made.add(byte)
        found.append(piece)
        if stopped:
            return found, made.rest(), at
    return found, made.rest(), None


def test_a_character_comes_when_it_is_whole():
    assert pieces("a\u00e9\U0001f600b") == (["a", "", "\u00e9", "", "", "", "\U0001f600", "b"], "",
                                            None)


def test_bytes_that_are_no_text_are_shown_in_the_end():
    assert pieces(b"a\xffb") == (["a", "", "\ufffdb"], "", None)
    assert pieces(b"a\xe2\x82") == (["a", "", ""], "\ufffd", None)


def test_a_stop_text_is_cut_off_and_what_may_become_one_waits():
    assert pieces("ab--c", ["--"]) == (["a", "b", "", ""], "", 3)
    assert pieces("a-b-", "--") == (["a", "", "-b", ""], "-", None)
    assert pieces("aab", ["aab"]) == (["", "", ""], "", 2)
    assert pieces("aaab", ["aab"]) == (["", "", "a", ""], "", 3)  # a a a: the first is certain
    assert pieces("xyz", ["z", "yz"]) == (["x", "", ""], "", 2)  # the earliest of those that end
    assert pieces("a\u00e9", ["a\u00e9"]) == (["", "", ""], "", 2)
    assert pieces("\u00e9x", ["\u00e9y"]) == (["", "", "\u00e9x"], "", None)


@pytest.mark.parametrize("stop", ["", ["a", ""], [3], 3])
def test_stop_texts_are_texts(stop):
    with pytest.raises(UsageError, match="stop"):
        writing(stop)
