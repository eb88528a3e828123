"""What the bundled model was trained on, what it says of other words, and `refsd words`."""

import json
import logging

import pytest

from refsd import StableDiffusionPipeline
from refsd.__main__ import main
from refsd.text import words

pytest.importorskip("numba")  # the ray-tracer beside the grammar

import training.words


def test_the_words_are_those_of_the_grammar():
    """Made anew they are the same; and captions of other scenes have no further ones."""
    assert training.words.content() == words.known()
    others = training.words.told(range(20_000_000, 20_001_000))
    assert [text for _, text in others if words.unseen(text)] == []
    assert [text for text in words.known()["examples"] if words.unseen(text)] == []
    for group in words.known()["groups"].values():
        for first, rest in group.items():
            assert [word for word in (first, *rest) if words.unseen(word)] == [], first


def test_a_word_is_seen_whatever_its_case_and_punctuation():
    assert words.unseen("A RED sphere,left of a  Blue cube!") == []
    assert words.unseen("two red foxes, foxes don't") == ["two", "foxes", "don't"]
    assert words.remark("red") == "" and words.remark("") == ""


def test_the_line_names_words_and_what_is_known():
    assert words.remark("a fox on a " + "x" * 40) == (
        f"the model that comes with refsd never saw 'fox', '{'x' * 30}...'; it knows sphere, cube, "
        "cylinder, cone, torus in red, orange, yellow, green, cyan, blue, purple, pink, small, "
        "large, glossy, matte, and where they stand (refsd words)")
    assert "'h' and 2 more; it knows" in words.remark("b c d e f g i h j k")


def test_only_the_bundled_model_says_so_and_once(model, caplog, tmp_path, capfd):
    with caplog.at_level(logging.WARNING, "refsd"):
        draw = {"num_inference_steps": 1, "output_type": "latent", "height": 32, "width": 32}
        pipe = StableDiffusionPipeline.from_pretrained(backend="numpy")
        pipe("a red cube", negative_prompt="a cone", **draw)
        assert caplog.messages == []
        pipe("a red fox", **draw)
        pipe("a red fox", **draw)
        assert len(caplog.messages) == 1 and "never saw 'fox'" in caplog.messages[0]
        other = StableDiffusionPipeline.from_pretrained(model, backend="numpy")
        other("a red fox", num_inference_steps=1)
        assert len(caplog.messages) == 1
    small = ["--steps", "1", "-W", "32", "-H", "32", "-b", "2", "--backend", "numpy"]
    args = ["a red fox", "-n", "a wolf\x1b", *small, "-o", str(tmp_path / "x.png"), "--json"]
    assert main(args) == 0
    said = json.loads(capfd.readouterr().out)["warnings"]
    assert [line[:48] for line in said] == ["the model that comes with refsd never saw 'fox';",
                                            "the model that comes with refsd never saw 'wolf'"]


def test_the_command_shows_every_word(capfd):
    assert main(["words"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 96 and len(lines) <= 40
    shown = set(words.WORD.findall("\n".join(lines)))
    assert set(words.known()["words"]) <= shown
    assert main(["words", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == words.known()
