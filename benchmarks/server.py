"""What `refsd serve` takes and gives: the figures of docs/server.md.

    python -m benchmarks.server [--pictures N] [PART ...]

starts a server with the bundled model on this machine, asks it over sockets, and prints a row for
each figure. PARTs: start, routes, progress, memory, end; all by default. The client is Python on
the same processors, so that the rates are of both together.
"""

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager

PARTS = ("start", "routes", "progress", "memory", "end")
ROUTES = ("/health", "/api/v1/about", "/api/v1/jobs", "/sdapi/v1/progress?skip_current_image=true",
          "/")
SECONDS = 2.0  # for each rate
TOGETHER = 8  # clients of a rate
PICTURE = {"prompt": "a glossy red sphere", "width": 128, "height": 128, "steps": 20, "preview": 1}
SMALL = {**PICTURE, "width": 64, "height": 64, "steps": 1, "preview": 0}


class Client:
    """A connection that is kept."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.host, self.file = f"localhost:{port}", self.socket.makefile("rb")

    def ask(self, path, body=None, method=None):
        """The answer's body; its head and the time until then are checked by nobody but here."""
        data = b"" if body is None else json.dumps(body).encode()
        kind = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if data else ""
        self.socket.sendall(f"{method or ('POST' if data else 'GET')} {path} HTTP/1.1\r\n"
                            f"Host: {self.host}\r\n{kind}\r\n".encode() + data)
        status, length = self.file.readline(), None
        if status.split()[1] not in (b"200", b"201"):
            raise SystemExit(f"{path}: {status.decode()}")
        while (line := self.file.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return self.file if length is None else self.file.read(length)

    def job(self, said):
        """The id of a new one."""
        return json.loads(self.ask("/api/v1/jobs", said))["id"]

    def cancel(self, id):
        """End a job."""
        self.ask(f"/api/v1/jobs/{id}", method="DELETE")

    def wait(self, id):
        """All events of a job until its end: when each came, and its name."""
        other = Client(int(self.host.rpartition(":")[2]))
        stream, found = other.ask(f"/api/v1/jobs/{id}/events"), []
        while not found or found[-1][1] not in ("done", "failed", "cancelled"):
            if line := re.match(rb"event: (\w+)", stream.readline()):
                found.append((time.perf_counter(), line[1].decode()))
        if found[-1][1] == "failed":
            raise SystemExit(f"job {id} failed")
        return found


@contextmanager
def serving():
    """A server that is ready: its process, its port, and the seconds until then."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "refsd", "serve", "--port", "0", "-o",
                                    os.path.join(folder, "pictures")], stdout=subprocess.PIPE)
        try:
            port = int(re.search(rb":(\d+)/", process.stdout.readline())[1])
            yield process, port, time.perf_counter() - begun
        finally:
            process.kill()
            process.wait()


@contextmanager
def drawing(client):
    """Within the block pictures are drawn without a pause."""
    id = client.job({**PICTURE, "count": 8, "steps": 150})
    while json.loads(client.ask(f"/api/v1/jobs/{id}"))["step"] < 1:
        time.sleep(0.01)
    yield id
    client.cancel(id)
    client.wait(id)


def latencies(port, path, seconds):
    """Those of one client that asks again and again."""
    client, found, end = Client(port), [], time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        client.ask(path)
        found.append(time.perf_counter() - begun)
    return found


def rate(port, path):
    """Requests a second of several clients together."""
    found = []
    threads = [threading.Thread(target=lambda: found.append(len(latencies(port, path, SECONDS))))
               for _ in range(TOGETHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(found) / SECONDS


def percentiles(found):
    """The median and the 99th percentile as milliseconds."""
    cuts = statistics.quantiles(found, n=100)
    return f"{1000 * cuts[49]:.1f} ms, {1000 * cuts[98]:.1f} ms"


def memory(process):
    """Resident bytes."""
    with open(f"/proc/{process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def row(what, *values):
    """A line of the table."""
    print("|", " | ".join((what, *values)), "|", flush=True)


def show_start(process, port, seconds, options):
    """From the command to the first picture."""
    row("from the command to its ready line", f"{seconds:.1f} s")
    client = Client(port)
    for what in ("the first picture", "a later one"):
        begun = time.perf_counter()
        events = client.wait(client.job(PICTURE))
        first = next((at for at, name in events if name == "preview"), events[-1][0])
        row(f"{what}, 128 x 128, 20 steps: its first preview, itself",
            f"{first - begun:.2f} s, {events[-1][0] - begun:.2f} s")


def show_routes(process, port, seconds, options):
    """Rates and latencies, idle and while a picture is drawn."""
    client = Client(port)
    for path in ROUTES:
        idle = rate(port, path), percentiles(latencies(port, path, SECONDS))
        with drawing(client):
            busy = rate(port, path), percentiles(latencies(port, path, SECONDS))
        for state, (count, found) in (("idle", idle), ("drawing", busy)):
            row(f"`GET {path.partition('?')[0]}`, {state}", f"{count:,.0f} a second; {found}")


def show_progress(process, port, seconds, options):
    """How soon a client sees what is new, and what that costs the picture."""
    client = Client(port)
    alone = [timed(client) for _ in range(5)]
    events = client.wait(client.job(PICTURE))
    steps = sum(name == "step" for _, name in events)
    previews = sum(name == "preview" for _, name in events)
    row("events of 20 steps that one reader sees", f"{steps} steps, {previews} previews")
    done, watched = threading.Event(), []
    watchers = [threading.Thread(target=poll, args=(port, done, watched)) for _ in range(TOGETHER)]
    for thread in watchers:
        thread.start()
    busy = [timed(client) for _ in range(5)]
    done.set()
    for thread in watchers:
        thread.join()
    row("a picture alone; with 8 clients that ask 10 times a second for its progress with previews",
        f"{statistics.median(alone):.2f} s; {statistics.median(busy):.2f} s")
    row("these clients' answers", percentiles(watched))


def timed(client):
    """Seconds of a picture without previews."""
    begun = time.perf_counter()
    client.wait(client.job({**PICTURE, "preview": 1}))
    return time.perf_counter() - begun


def poll(port, done, found):
    """As A1111's clients do."""
    client = Client(port)
    while not done.is_set():
        begun = time.perf_counter()
        client.ask("/sdapi/v1/progress")
        found.append(time.perf_counter() - begun)
        time.sleep(0.1)


def show_memory(process, port, seconds, options):
    """What the process holds after so many pictures."""
    client, drawn, begun = Client(port), 0, time.perf_counter()
    for wanted in sorted({20, 100, options.pictures}):
        while drawn < wanted:
            count = min(8, wanted - drawn)
            client.wait(client.job({**SMALL, "count": count}))
            drawn += count
        row(f"memory after {wanted} pictures of 64 x 64, 1 step",
            f"{memory(process) / 2**20:.1f} MiB")
    row("pictures a second", f"{drawn / (time.perf_counter() - begun):.1f}")


def show_end(process, port, seconds, options):
    """SIGTERM in the middle of a picture, with a reader of events."""
    client = Client(port)
    id = client.job({**PICTURE, "count": 8, "steps": 150})
    reader = threading.Thread(target=client.wait, args=(id,))
    reader.start()
    time.sleep(1)
    begun = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    code = process.wait()
    reader.join()
    row("from SIGTERM in the middle of a picture to the end of the process",
        f"{time.perf_counter() - begun:.2f} s, exit code {code}")


def main():
    """Show the parts asked for; the end comes last, each of the others has a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--pictures", type=int, default=500)
    options = parser.parse_args()
    if unknown := set(options.parts) - {*PARTS}:
        parser.error(f"{', '.join(unknown)}: give some of {', '.join(PARTS)}")
    for part in options.parts or PARTS:
        with serving() as found:
            globals()[f"show_{part}"](*found, options)


if __name__ == "__main__":
    main()
