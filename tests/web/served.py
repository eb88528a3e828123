"""A server as a user starts it: `python -m refsd serve`, in a process of its own, real sockets."""

import os
import re
import select
import signal
import socket
import tempfile
import time
from contextlib import contextmanager

import chaos
import httpx

READY = re.compile(rb"refsd serves at (http://\S+)")
PATIENCE = 60  # seconds for what takes one


class Served:
    """The process, where it is, and a client of it."""

    def __init__(self, process, url, said):
        self.process, self.url, self._said = process, url, said
        self.host, self.port = httpx.URL(url).host, httpx.URL(url).port
        self.client = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)

    def connect(self, data=b""):
        """A socket to it, over which these bytes went."""
        found = socket.create_connection((self.host, self.port), timeout=PATIENCE)
        found.sendall(data)
        return found

    def newest(self):
        """The job that came last; nothing where there is none."""
        return (self.client.get("/api/v1/jobs").json()["jobs"] or [{}])[-1]

    def memory(self):
        """Resident bytes."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def end(self, *signals, pause=0.05):
        """Send the signals, SIGTERM if none; (exit code, the rest of stdout, stderr, seconds)."""
        begun = time.monotonic()
        for number in signals or (signal.SIGTERM,):
            self.process.send_signal(number)
            time.sleep(pause)
        out, _ = self.process.communicate(timeout=PATIENCE)
        seconds = time.monotonic() - begun
        self.client.close()
        self._said.seek(0)
        return self.process.returncode, out, self._said.read().decode(), seconds


@contextmanager
def serving(*args, **options):
    """A server that is ready, on a port of its own; killed at the end if it still runs.

    What it says on stderr goes to a file: into a pipe that nobody reads it could not go for long.
    """
    with tempfile.TemporaryFile() as said:
        process = chaos.start("serve", "--port", "0", *args, stderr=said, **options)
        try:
            yield Served(process, wait_ready(process), said)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()


def wait_ready(process):
    """The address, once it is said on stdout."""
    said, until = b"", time.monotonic() + PATIENCE
    while not (found := READY.search(said)) or not said.endswith(b"\n"):
        left = until - time.monotonic()
        assert left > 0 and select.select([process.stdout], [], [], left)[0], said
        read = os.read(process.stdout.fileno(), 4096)
        assert read, (said, process.wait())
        said += read
    return found[1].decode()
