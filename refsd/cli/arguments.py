"""Arguments: argparse that answers like the rest of refsd, and the types of its values."""

import argparse
import difflib
import re
from typing import Any, NoReturn

from refsd.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError with a suggestion, and never guesses a prefix."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=Help, **options)
        self.add_argument("--help", "-h", action="help", help="show this help and stop")

    def error(self, message: str) -> NoReturn:
        name = self.prog.partition(" ")[2]
        end = "" if message.endswith("?") else "."
        raise UsageError(f"{_reworded(message)}{end} See refsd {name and name + ' '}--help")

    def parse_args(self, args: list[str]) -> argparse.Namespace:
        """The options; UsageError names the first argument that is not one."""
        found, rest = self.parse_known_args(args)
        unknown = next((word for word in rest if word.startswith("-") and len(word) > 1), None)
        if unknown is not None:
            name = unknown.partition("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, 1)
            self.error(f"{name}: there is no such option"
                       + (f"; did you mean {near[0]}?" if near else ""))
        if rest:
            self.error(f"{rest[0]!r}: one argument too many; put text with spaces in quotes")
        return found


class Help(argparse.RawDescriptionHelpFormatter):
    """Help in 80 columns on any terminal, with room for the longest option."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26, width=80)


def _reworded(message: str) -> str:
    """argparse's "argument -s/--seed: expected one argument" in our order."""
    found = re.fullmatch(r"argument (.*?): (.*)", message, re.DOTALL)
    if found is None:
        return message
    option, why = found.groups()
    name = option.rpartition("/")[2]
    if why == "expected one argument":
        why = f"a value is missing; one that begins with - is given as {name}=-value"
    return f"{name}: {why}"


def integer(text: str) -> int:
    """A whole number; argparse says the rest."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}; give an integer") from None


def number(text: str) -> float:
    """A number; the range is checked where the option is."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}; give a number") from None


def choice(*allowed: str):
    """One of the words, else a message that suggests the nearest."""

    def chosen(text: str) -> str:
        if text in allowed:
            return text
        near = difflib.get_close_matches(text, allowed, 1)
        hint = f"did you mean {near[0]}? Give" if near else "give"
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}; {hint} one of {', '.join(allowed)}")

    return chosen
