"""What goes wrong around a program: signals, full disks, closed pipes, little memory.

Each function runs or starts `python -m refsd` as a process of its own.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment(**changes):
    """Ours, with refsd to be found and the program's streams as a user has them."""
    found = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **changes}
    found.pop("PYTHONUNBUFFERED", None)
    return found


def start(*args, limit=None, env=None, python=(), **streams):
    """A process of refsd; `limit` runs in it first."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen([sys.executable, *python, "-m", "refsd", *map(str, args)],
                            env=env or environment(), preexec_fn=limit, **streams)


def run(*args, **options):
    """The process's (exit code, stdout, stderr) once it has ended."""
    process = start(*args, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def limit_file_size(size):
    """No file larger than `size` bytes: what writing to a full disk looks like."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def grow_at_most(size):
    """From now on this process can have `size` more bytes of memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def unwritable(folder):
    """A folder in which no file can be made: made so, or /proc for root, whom nothing stops."""
    if os.geteuid() == 0:
        return Path("/proc")
    os.chmod(folder, 0o555)
    return folder


def stop_when(process, text, *signals, pause=0.05):
    """Send the signals, `pause` seconds apart, when stderr has said `text`.

    Gives (exit code, stdout, the rest of stderr, seconds until the end).
    """
    said = b""
    while text not in said:
        read = os.read(process.stderr.fileno(), 4096)
        assert read, f"the process ended after {said!r}"
        said += read
    begun = time.monotonic()
    for number in signals:
        time.sleep(pause)
        process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, said + err, time.monotonic() - begun
