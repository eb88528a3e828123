"""Arguments: argparse that answers like the rest of refsd, and the types of its values."""

import argparse
import re
from typing import Any, NoReturn

from refsd.arguments import nearest
from refsd.errors import UsageError

# What other programs call an option; only those whose names suggest another one, or none.
ELSEWHERE = {
    "--guidance-scale": "--cfg-scale", "--guidance": "--cfg-scale", "--scale": "--cfg-scale",
    "-g": "--cfg-scale", "-c": "--cfg-scale", "--num-inference-steps": "--steps",
    "--n-iter": "--batch-count", "--n-samples": "--batch-count", "-N": "--batch-count",
    "--num-images": "--batch-count", "--batch-size": "--batch-count", "--neg": "--negative-prompt",
    "--plms": "--sampler pndm", "--scheduler": "--sampler and --schedule",
    "--size": "--width and --height",
    "--ckpt": "--model", "--outdir": "--output", "--precision": "--dtype", "--device": "--backend",
    "-V": "--version", "--preview-interval": "--preview", "--preview-every": "--preview",
    "--preview-method": "--preview-vae",
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError with a suggestion, and never guesses a prefix.

    The command's name is what the usage begins with: "refsd golden info PACK".
    """

    def __init__(self, usage: str, about: str, *, epilog: str | None = None):
        name = re.match(r"[a-z ]+(?![a-z])", usage)[0].rstrip()
        super().__init__(prog=name, usage=usage, description=about, epilog=epilog,
                         allow_abbrev=False, add_help=False, formatter_class=Help)
        self.add_argument("--help", "-h", action="help", help="show this help and stop")

    def answering(self, json: str = "the answer (and any error) as JSON on stdout",
                  quiet: str | None = None, group: Any = None) -> "Parser":
        """Itself, with the options that all commands have, which come last (in a group)."""
        add = (group or self).add_argument
        add("--json", action="store_true", help=json)
        if quiet is not None:
            add("-q", "--quiet", action="store_true", help=quiet)
        add("-v", "--verbose", action="store_true", help="tracebacks of errors")
        return self

    def error(self, message: str) -> NoReturn:
        name = self.prog.partition(" ")[2]
        end = "" if message.endswith("?") else "."
        raise UsageError(f"{_reworded(message)}{end} See refsd {name and name + ' '}--help")

    def parse_args(self, args: list[str]) -> argparse.Namespace:
        """The options; UsageError names the first argument that is not one."""
        options, leftover = self.parse_known_args(args)
        unknown = next((word for word in leftover if word.startswith("-") and len(word) > 1), None)
        if unknown is not None:
            name = unknown.partition("=")[0]
            if name in self._option_string_actions and "--" in args:
                self.error(f"{name}: options are to come before --, after it stands text")
            self.error(f"{name}: there is no such option{self._suggestion(name)}")
        if leftover:
            self.error(f"{leftover[0]!r}: one argument too many; put text with spaces in quotes")
        return options

    def _suggestion(self, name: str) -> str:
        elsewhere = ELSEWHERE.get(name if name[1:2] != "-" else name.replace("_", "-"))
        if elsewhere is not None and elsewhere.partition(" ")[0] in self._option_string_actions:
            return f"; did you mean {elsewhere}?"
        hint = nearest(name, self._option_string_actions)
        return hint and f"; {hint}"

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """As argparse, but --option=-- has the value "--"; there it would be an empty list."""
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)


class Help(argparse.RawDescriptionHelpFormatter):
    """Help in 80 columns on any terminal, with room for the longest option."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26, width=80)


def _reworded(message: str) -> str:
    """argparse's "argument -s/--seed: expected one argument" in our order."""
    matched = re.fullmatch(r"argument (.*?): (.*)", message, re.DOTALL)
    if matched is None:
        return message
    option, why = matched.groups()
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


def fraction(text: str) -> tuple[int, int]:
    """I/N, as the I-th of N parts."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts) <= 10**6):
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}; give I/N, such as 2/4")
    return int(part), int(parts)


def choice(*allowed: str):
    """One of the words, else a message that suggests the nearest."""

    def chosen(text: str) -> str:
        if text in allowed:
            return text
        hint = nearest(text, allowed)
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}; {hint + ' Give' if hint else 'give'} "
                                         f"one of {', '.join(allowed)}")

    return chosen
