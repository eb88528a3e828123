"""`python -m refsd PROMPT` and `refsd COMMAND`: choose the command, and answer for its errors."""

import os
import signal
import sys
import traceback

from refsd.cli import actions, interrupt, report
from refsd.cli.commands import COMMANDS, find

HELP = ("--help", "-h")  # as the first word; after a command it is that command's own
BROKEN_PIPE = 128 + 13  # as a shell reports a program that SIGPIPE ended


def main(argv: list[str] | None = None) -> int:
    """Run one command; gives the exit code. docs/cli.md lists the codes."""
    argv = sys.argv[1:] if argv is None else list(argv)
    name = argv.pop(0) if argv and argv[0] in (*COMMANDS, *HELP) else "draw"
    name = "help" if name in HELP else name
    try:
        code = _answer(name, argv)
    except BrokenPipeError:  # whoever read our output has left
        code = BROKEN_PIPE
    _let_go(sys.stdout)
    _let_go(sys.stderr)
    return code


def _answer(name: str, argv: list[str]) -> int:
    """Run the command; every error but a broken pipe becomes one line and an exit code."""
    options = argv[:argv.index("--")] if "--" in argv else argv
    as_json, verbose = "--json" in options, "-v" in options or "--verbose" in options
    try:
        with interrupt.stoppable(), report.Warnings(show=True):  # of commands without their own
            return _run(name, argv)
    except interrupt.Stopped as stop:
        by = signal.Signals(stop.signum).name
        return report.fail("interrupted", 128 + stop.signum, f"stopped by {by}", as_json=as_json)
    except BrokenPipeError:
        raise
    except Exception as error:
        if verbose:
            traceback.print_exc()
        return report.fail(*report.describe(error), as_json=as_json)


def _run(name: str, argv: list[str]) -> int:
    if argv and argv[0] in actions.FAMILIES.get(name, ()):  # one file an action
        name = f"{name}_{argv.pop(0)}"
    command = find(name)
    try:
        code = command.run(command.parser().parse_args(argv))
    except SystemExit as done:  # argparse, after --help and --version
        code = done.code
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


def _let_go(stream) -> None:
    """Flush; a stream that cannot be is pointed to where Python's own flush at exit succeeds."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
