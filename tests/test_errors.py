"""All messages of refusals, read from the sources: one line each, which says what to do next."""

import ast
import re
from pathlib import Path

import pytest

import refsd
from refsd.errors import ModelError, damaged

PACKAGE = Path(refsd.__file__).parent
KINDS = {"UsageError", "ModelError", "ResourceError", "error"}  # the last: one given to a reader
# What to do: an imperative, or, of a value that stands somewhere, what is expected there.
DO = re.compile(
    r"\b(add|ask|call|choose|convert|copy|download|fetch|free|give|have (it|the)|install|leave|"
    r"load|make|mend|name (a|an|another|it|one)|pass|put|raise|record it|redirect|remove|rename|"
    r"resume|return|run|save|say|see|set|take|try|unpack|use|write|did you mean|expected|at most|"
    r"is to end in|is kept as|needs|wants)\b", re.I)
# Or it is in words that come from elsewhere: a hint, or what to write instead.
HINTS = {"hint", "instead", "nearest"}
# Whose words are others': sentences of faults that were found, each of which says it.
SENTENCES = {"bad[0].sentence", "first_of"}


def raised():
    """(place, file's tree, the call) of every raise of such an error."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and (
                    getattr(node.exc.func, "id", "") in KINDS):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", tree, node.exc


def words(node, tree):
    """All texts of a message: its own, and those of constants and functions of the file in it."""
    there = {target.id: each for each in tree.body if isinstance(each, ast.Assign)
             for target in each.targets if isinstance(target, ast.Name)}
    there |= {each.name: each for each in tree.body if isinstance(each, ast.FunctionDef)}
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value
        elif isinstance(each, ast.Name) and each.id in there:
            yield from (one.value for one in ast.walk(there[each.id])
                        if isinstance(one, ast.Constant) and isinstance(one.value, str))


def handed_on(call):
    """Whether it is another error's message, a hint, or a found fault's sentence."""
    text = " ".join(map(ast.unparse, call.args))
    names = {each.id for arg in call.args for each in ast.walk(arg) if isinstance(each, ast.Name)}
    other = names & {"error", "problem"} and "strerror" not in text
    return bool(other or names & HINTS) or any(sentence in text for sentence in SENTENCES)


RAISED = list(raised())


def test_there_are_messages():
    assert len(RAISED) > 300


@pytest.mark.parametrize("place, tree, call", RAISED, ids=[place for place, *_ in RAISED])
def test_a_message_says_what_to_do(place, tree, call):
    said = " ".join(words(call, tree))
    assert DO.search(said) or handed_on(call), f"{place}: say what to do: {ast.unparse(call)}"
    own = [each.value for each in ast.walk(call) if isinstance(each, ast.Constant)
           and isinstance(each.value, str)]
    assert not any("\n" in text for text in own), f"{place}: a message is one line"


def test_what_a_damaged_file_asks_for():
    error = damaged("x: not UTF-8 text")
    assert type(error) is ModelError
    assert str(error) == "x: not UTF-8 text. Fetch the file again, or have it written anew"
