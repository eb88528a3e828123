"""Folders that this user alone can write to: whoever can write compiled kernels, runs them.

They lie in $REFSD_CACHE or ~/.cache/refsd. Without one a run works too, and compiles.
"""

import os
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def own_folder(*names: str) -> Path | None:
    """A folder of the cache, made if it is not there; None, with a warning, if it is not safe."""
    try:
        root = Path(os.environ.get("REFSD_CACHE") or Path("~", ".cache", "refsd")).expanduser()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        folders = [root]
        for name in names:
            folders.append(folders[-1] / name)
            folders[-1].mkdir(exist_ok=True, mode=0o700)
        for path in folders:
            status = path.stat()
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError(0, "it belongs to another user or others may write there",
                                      str(path))
        (folders[-1] / ".used").write_bytes(b"")
    except (OSError, RuntimeError) as problem:  # RuntimeError: there is no home
        why = f"{getattr(problem, 'filename', None)}: {getattr(problem, 'strerror', None)}"
        why = str(problem) if "None" in why else why
        warnings.warn(f"compiled kernels are not kept ({why}): name a folder of your own in "
                      "REFSD_CACHE. Kernels are compiled in every process", stacklevel=3)
        return None
    return folders[-1]


def not_kept(folder: Path, problem: OSError) -> str:
    """The warning where a compiled kernel cannot be written."""
    return (f"a compiled kernel could not be kept ({folder}: {problem.strerror}): make room there, "
            "or name another folder in REFSD_CACHE. Kernels are compiled in every process")


@contextmanager
def locked(folder: Path | None, name: str, on_wait: Callable[[], None] | None = None, *,
           after: float = 0) -> Iterator[None]:
    """Within the block no other process is in a block of this folder and name.

    on_wait() where that takes longer than `after` seconds. Without a folder, or a system that can
    lock files, nothing happens. A process that dies lets go.
    """
    try:
        import fcntl

        lock = None if folder is None else os.open(folder / f".{name}", os.O_RDWR | os.O_CREAT)
    except (ImportError, OSError):
        lock = None
    try:
        if lock is not None:
            _take(fcntl, lock, on_wait, after)
        yield
    finally:
        if lock is not None:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)  # a forked child may hold the file open
            os.close(lock)


def _take(fcntl: Any, lock: int, on_wait: Callable[[], None] | None, after: float) -> None:
    until = time.monotonic() + after
    with suppress(OSError):  # some network file systems cannot; files are still replaced at once
        while on_wait is not None:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    on_wait()
                    break
                time.sleep(0.02)
        fcntl.flock(lock, fcntl.LOCK_EX)
