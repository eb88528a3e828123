"""How dialects read a prompt: published examples, rules by hand, chunks, and the command.

Examples of A1111 are the doctests of modules/prompt_parser.py (stable-diffusion-webui 1.10); rules
of ComfyUI are those of comfy/sd1_clip.py.
"""

import contextlib
import json

import pytest

from refsd import dialects
from refsd.__main__ import main
from refsd.dialects.chunks import MAX_CHUNKS, of_fragments, of_words
from refsd.dialects.editing import compose, versions
from refsd.dialects.emphasis import Fragment, fragments
from refsd.dialects.names import find, spelled
from refsd.dialects.reading import read
from refsd.dialects.words import words
from refsd.errors import UsageError
from refsd.text import CLIPTokenizer

BOS, EOS = 49406, 49407


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.clip()


@pytest.mark.parametrize("text, wanted", [
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
     [("a ", 1.0), ("house", 1.5730000000000004), (" ", 1.1), ("on", 1.0), (" a ", 1.1),
      ("hill", 0.55), (", sun, ", 1.1), ("sky", 1.4641000000000006), (".", 1.1)]),
    ("", [("", 1.0)]),
    ("a : b) c]", [("a : b) c]", 1.0)]),
    ("[a", [("a", 1 / 1.1)]),
    ("(a: +1.5 )", [("a", 1.5)]),
    ("a BREAK b", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
    ("(a BREAK b:2)", [("a", 2.0), ("BREAK", -2.0), ("b", 2.0)]),  # a word, then
    ("aBREAK", [("aBREAK", 1.0)]),
])  # fmt: skip
def test_weights_of_a1111(text, wanted):
    assert [tuple(fragment) for fragment in fragments(text)] == wanted


@pytest.mark.parametrize("text, wanted", [
    ("test", [(10, "test")]),
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [b: 3]", [(3, "a "), (10, "a b")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [unbalanced", [(10, "a [unbalanced")]),
    ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
    ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("[a|(b:1.1)]", [(i, ("(b:1.1)", "a")[i % 2]) for i in range(1, 11)]),
    ("[fe|]male", [(i, ("male", "female")[i % 2]) for i in range(1, 11)]),
    ("[fe|||]male", [(i, "female" if i % 4 == 1 else "male") for i in range(1, 11)]),
    # by the grammar: a number with a point is a share, and no step is beyond the last
    ("[a:b:1.0]", [(10, "a")]),
    ("[a:b:25]", [(10, "a")]),
    ("[a::3]", [(3, "a"), (10, "")]),
    ("[a:b:0]", [(10, "b")]),
    ("[a:b:-1e999]", [(10, "b")]),
    ("a | [b:3]", [(10, "a | [b:3]")]),  # a bar outside spoils it all
    ("[b:3] \\", [(10, "[b:3] \\")]),
    (r"[\[a\|:b:3]", [(3, r"\[a\|"), (10, "b")]),
])  # fmt: skip
def test_prompt_editing_of_a1111(text, wanted):
    assert [tuple(version) for version in versions(text, 10)] == wanted


def test_the_first_rule_of_prompt_editing():
    assert versions("[a:b:0.5]", 10, old=True) == versions("[a:b:0.5]", 10)
    assert [v.end for v in versions("[a:b:1.5]", 10, old=True)] == [1, 10]
    assert [v.end for v in versions("[a:b:0]", 10, old=True)] == [10]


@pytest.mark.parametrize("text, wanted", [
    ("a cat", [("a cat", 1)]),
    ("a cat AND a dog", [("a cat", 1), (" a dog", 1)]),
    ("a :1.2 AND b:-.5 AND\nc : 2.", [("a", 1.2), (" b", -0.5), ("\nc", 2)]),
    ("a BRAND new SANDAL", [("a BRAND new SANDAL", 1)]),
    ("the train of 12:30 ", [("the train of 12", 30)]),  # so A1111 reads it
    ("", [("", 1)]),
])
def test_prompts_joined_by_and(text, wanted):
    assert [tuple(part) for part in compose(text)] == wanted


@pytest.mark.parametrize("text, wanted", [
    ("a cat", [("a cat", 1)]),
    ("", []),
    ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
    ("(a ((b)) (c:2):0.5)", [("a ", 0.5), ("b", 0.5 * 1.1 * 1.1), (" ", 0.5), ("c", 2)]),
    ("(:1.2)", [(":1.2", 1.1)]),  # nothing before the colon
    ("(a:b:1.2)", [("a:b", 1.2)]),
    ("(a:b)", [("a:b", 1.1)]),
    ("(a", [("(a", 1)]),
    ("a) (b)", [("a) (b)", 1)]),  # a bracket that closes nothing shifts the next
    ("[a] {b|c}", [("[a] {b|c}", 1)]),
    (r"\(a\) (b\):1.2)", [("(a) ", 1), ("b)", 1.2)]),
    ("a embedding:foo, b", [("a", 1), (", b", 1)]),  # none of that name: it is left out
])
def test_weights_of_comfyui(text, wanted):
    assert [tuple(fragment) for fragment in words(text, lambda name: "")] == wanted


def test_an_embedding_of_comfyui_stands_where_its_name_does():
    def known(name):
        return {"foo": "<foo> <foo>_1"}.get(name, "")

    assert words("a\nembedding:foo, b", known) == [
        Fragment("a", 1), Fragment("<foo>", 1), Fragment(", b", 1)]


def test_what_is_no_weight_is_refused():
    with pytest.raises(UsageError, match=r"'1\.2\.3' is no weight"):
        fragments("(a:1.2.3)")


@pytest.mark.parametrize("read_it, deep", [
    (lambda text: versions(text, 10), "[" * 60 + "a" + ":3]" * 60),
    (lambda text: words(text, str), "(" * 200 + ")" * 200), (fragments, "(" * 200)])
def test_nesting_has_a_limit(read_it, deep):
    with pytest.raises(UsageError, match="give"):
        read_it(deep)


@pytest.mark.parametrize("text", ["[" * 50_000, "(" * 50_000, "\\" * 50_000, ":" * 50_000,
                                  " " * 50_000 + "x", "a:" + " " * 50_000 + "x", "[a|" * 50_000])
def test_long_prompts_take_linear_time(text):
    """Minutes, if any of them were quadratic."""
    versions(text, 10), compose(text), words(text, str)
    with contextlib.suppress(UsageError):
        fragments(text)


def texts(found):
    return [" ".join(chunk.texts) for chunk in found]


def test_a1111_ends_a_chunk_at_a_comma_near_its_end(tokenizer):
    """A comma in the last 20 of 75 tokens, but no earlier one."""
    near = of_fragments(tokenizer, [Fragment("red " * 55 + ", " + "cat " * 20, 1.2)])
    assert texts(near) == [" ".join(["red"] * 55 + [","]), " ".join(["cat"] * 20)]
    assert near[0].ids == [BOS, *[736] * 55, 267, *[EOS] * 20]
    assert near[0].weights == [1.0, *[1.2] * 56, *[1.0] * 20]
    far = of_fragments(tokenizer, [Fragment("red " * 54 + ", " + "cat " * 21, 1.0)])
    assert [len(chunk.texts) for chunk in far] == [75, 1]
    full = of_fragments(tokenizer, [Fragment("red " * 75 + ", cat", 1.0)])
    assert texts(full)[1] == ", cat"


def test_a1111_break_fills_a_chunk_up(tokenizer):
    found = of_fragments(tokenizer, fragments("a cat BREAK a dog"))
    assert texts(found) == ["a cat", "a dog"] and {len(chunk.ids) for chunk in found} == {77}


def test_fragments_are_tokenized_alone(tokenizer):
    """BPE merges nothing across a weight's border: "astro" + "naut" is not "astronaut"."""
    assert texts(of_fragments(tokenizer, fragments("astro(naut)"))) == ["astro nau t"]
    assert texts(of_fragments(tokenizer, fragments("astronaut"))) == ["astronaut"]


def test_comfyui_keeps_short_runs_of_text_whole(tokenizer):
    """7 tokens that do not fit go on in the next chunk, 8 are parted."""
    first = Fragment("red " * 70, 1.0)
    whole = of_words(tokenizer, [first, Fragment("cat " * 7, 1.5)])
    assert [len(chunk.texts) for chunk in whole] == [70, 7]
    parted = of_words(tokenizer, [first, Fragment("cat " * 8, 1.5)])
    assert [len(chunk.texts) for chunk in parted] == [75, 3]
    assert parted[1].weights[:5] == [1.0, 1.5, 1.5, 1.5, 1.0]


def test_the_padding_is_the_tokenizers():
    two = CLIPTokenizer.clip(pad="!")
    assert of_fragments(two, fragments("a"))[0].ids == [BOS, 320, EOS, *[0] * 74]


def test_too_many_chunks_are_refused(tokenizer):
    with pytest.raises(UsageError, match=f"give at most {MAX_CHUNKS}"):
        of_fragments(tokenizer, fragments("a BREAK " * MAX_CHUNKS + "b"))


def test_a_reading_says_how_long_a_text_lasts(tokenizer):
    """A1111 compares steps counted from 1 with calls counted from 0."""
    a1111 = dialects.A1111
    (part,) = read(a1111, tokenizer, "[a:b:3]:2", 10)
    assert (part.weight, [spell.end for spell in part.spells]) == (2, [3, 10])
    assert [p.weight for p in read(a1111, tokenizer, "a AND b:3", 10)] == [1, 3]
    (part,) = read(a1111, tokenizer, "a AND b:3", 10, negative=True)
    assert part.spells[0].chunks[0].texts == ["a", "AND", "b", ":", "3"]
    (part,) = read(find("a1111,emphasis=none"), tokenizer, "(a)", 10)
    assert part.spells[0].chunks[0].texts == ["(", "a", ")"]


def test_a1111_takes_tags_out_of_prompts(tokenizer):
    for text, negative, wanted in (("a <lora:x:0.5>cat", False, ["a", "cat"]),
                                   ("<red:x>", True, ["<", "red", ":", "x", ">"]),
                                   ("a <b> c", False, ["a", "<", "b", ">", "c"])):
        (part,) = read(dialects.A1111, tokenizer, text, 10, negative=negative)
        assert part.spells[0].chunks[0].texts == wanted


def test_names_of_dialects():
    assert spelled(find("a1111,ensd=31337,pad=yes")) == "a1111,ensd=31337,pad=yes"
    assert find("comfy,step-noise=cuda").step_rng == "cuda"
    assert [spelled(d) for d in dialects.DIALECTS.values()] == ["diffusers", "a1111", "comfy"]


@pytest.mark.parametrize("name, told", [
    ("a111", "did you mean a1111"), ("", "give one of diffusers, a1111, comfy"),
    ("a1111,endc=3", "did you mean ensd"), ("a1111,ensd=x", "ensd is 'x'"),
    ("a1111,pad=maybe", "give one of yes, no"), ("diffusers,pad=yes", "it has none")])
def test_other_names_are_refused(name, told):
    with pytest.raises(UsageError, match=told):
        find(name)


def test_the_command_shows_every_dialect(capsys):
    assert main(["dialects", "--clip", "a [red:(blue:1.2):0.2] hat AND dog :0.5",
                 "--steps", "10"]) == 0
    out = capsys.readouterr().out
    for line in ("  prompt 2 of 2, weight 0.5", "  steps 1 to 3: 'a red hat'",
                 "  steps 4 to 10: 'a (blue:1.2) hat'", "      1746  1.2      'blue'"):
        assert line in out.split("\n")


def test_the_command_as_json(capsys):
    assert main(["dialects", "--clip", "red " * 80, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    chunks = {d["name"]: len(d["parts"][0]["versions"][0]["chunks"]) for d in told["dialects"]}
    assert chunks == {"diffusers": 1, "a1111": 2, "comfy": 2}
    assert told["dialects"][0]["dropped"].split() == ["red"] * 5


def test_the_command_refuses_in_one_line(capsys):
    assert main(["dialects", "a", "--steps", "0"]) == 2
    assert main(["dialects", "a", "--compat", "a111"]) == 2
    assert "did you mean a1111" in capsys.readouterr().err
