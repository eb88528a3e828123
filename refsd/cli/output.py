"""Where pictures go: decided and tried before the first step, written whole or not at all."""

import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from refsd import atomic
from refsd.errors import ResourceError, UsageError

STDOUT = "-"


class Target(NamedTuple):
    """A file to be written. One that was not named by the user (`fresh`) replaces no other."""

    path: str
    fresh: bool = False


def plan(argument: str | None, seeds: list[int]) -> list[Target]:
    """A place for the picture of each seed, tried out: nothing else can be known to fail later.

    None: refsd-SEED.png here. A folder: the same there. `-`: stdout. A file: that one, with -2, -3
    and so on for the further pictures, or with {seed} and {index} filled in. Raises UsageError for
    a name that cannot be meant, ResourceError for a place that cannot be written to.
    """
    if argument == STDOUT:
        return [_plan_stdout(seeds)]
    if argument == "":
        raise UsageError("--output: the name is empty; give a file or a folder")
    folder = argument if argument is not None and _means_folder(argument) else None
    if argument is None or folder is not None:
        names = [os.path.join(folder or "", f"refsd-{seed}.png") for seed in seeds]
        targets = [Target(name, fresh=True) for name in names]
    else:
        targets = [Target(name) for name in _fill_in(argument, seeds)]
    for target in targets:
        try_out(target.path, (".png",))
    return targets


def _plan_stdout(seeds: list[int]) -> Target:
    if len(seeds) > 1:
        raise UsageError(f"--output -: stdout takes one picture, not {len(seeds)}; name a file")
    if sys.stdout is None:
        raise ResourceError("--output -: stdout is closed; name a file with -o")
    if sys.stdout.isatty():
        raise UsageError("--output -: stdout is a terminal; redirect it to a file or a program")
    return Target(STDOUT)


def _means_folder(argument: str) -> bool:
    return os.path.isdir(argument) or argument.endswith(("/", os.sep))


def _fill_in(pattern: str, seeds: list[int]) -> list[str]:
    """The pattern's names, the second and later of one name made different."""
    names: list[str] = []
    for index, seed in enumerate(seeds):
        name = pattern.replace("{seed}", str(seed)).replace("{index}", str(index))
        stem, suffix = os.path.splitext(name)
        names.append(name if name not in names else f"{stem}-{index + 1}{suffix}")
    return names


def try_out(path: str, suffixes: tuple[str, ...]) -> None:
    """Raise unless a file of this name and kind can be written: makes one beside it and removes it.

    Devices and pipes are only checked for permission, and are written to in place.
    """
    if "\0" in path:
        raise UsageError(f"{path!r}: not a file name; give one")
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except OSError as error:  # a name too long, a file where a folder should be
        raise ResourceError(f"{path}: cannot be written: {error.strerror}. Give another "
                            "name") from None
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        raise ResourceError(f"{path}: is a folder; name a file in it")
    if not os.path.isdir(folder):
        raise ResourceError(f"{path}: the folder {folder} does not exist. Make it first")
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise ResourceError(f"{path}: exists and is read-only. Give another name")
    if in_place(path):
        return
    if os.path.splitext(path)[1].lower() not in suffixes:
        raise UsageError(f"{path}: the name of a file is to end in {' or '.join(suffixes)}; a "
                         "folder has to exist")
    try:
        with atomic.draft(os.path.realpath(path)) as draft:
            draft.touch(exist_ok=False)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}. Give another place with "
                            "-o") from None


def in_place(path: str) -> bool:
    """Whether the path is something like /dev/null, which must not be replaced by a file."""
    return os.path.exists(path) and not os.path.isfile(path)


def save(data: bytes, target: Target, what: str) -> str:
    """Write the bytes to their target; gives the path, a new one where `target.fresh`.

    When that fails they are kept in the temporary folder, and the ResourceError says where.
    """
    try:
        return _write(data, target)
    except BrokenPipeError:
        raise
    except OSError as error:
        failed, why = error, f"{target.path}: cannot be written: {error.strerror}"
    folder = "a temporary folder"
    try:
        suffix = os.path.splitext(target.path)[1] or ".png"
        folder = tempfile.gettempdir()  # may itself find none
        kept = _write(data, Target(os.path.join(folder, f"refsd-kept{suffix}"), True))
    except OSError as error:
        raise ResourceError(f"{why}. {what} is lost: {folder} cannot be written to either "
                            f"({error.strerror}). Free some place and draw again") from failed
    raise ResourceError(f"{why}. {what} is kept as {kept}") from failed


def _write(data: bytes, target: Target) -> str:
    if target.path == STDOUT:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return STDOUT
    if in_place(target.path):
        with open(target.path, "wb", buffering=0) as file:
            _write_all(file, data)
        return target.path

    path = os.path.realpath(target.path)  # the file that a link names, not the link
    with atomic.draft(path) as draft:
        with open(draft, "xb", 0) as file:
            _write_all(file, data)
            os.fsync(file.fileno())
        if not target.fresh:
            os.replace(draft, path)
            return target.path
        return _publish_fresh(draft, target.path)


def _write_all(file, data: bytes) -> None:
    unwritten = memoryview(data)
    while unwritten:
        unwritten = unwritten[file.write(unwritten):]


def _publish_fresh(draft: Path, path: str) -> str:
    """Give the draft the name, or NAME-2, NAME-3 ... : the first that no file has."""
    stem, suffix = os.path.splitext(path)
    count = 1
    while True:
        name = path if count == 1 else f"{stem}-{count}{suffix}"
        try:
            os.link(draft, name)  # unlike a rename, it fails where the name is taken
            return name
        except FileExistsError:
            count += 1
        except OSError:  # a file system without links
            if not os.path.lexists(name):
                os.replace(draft, name)
                return name
            count += 1
