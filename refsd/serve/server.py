"""uvicorn with an end that loses nothing, and with connections that nobody holds by being slow."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from refsd.cli.report import note
from refsd.serve.studio import Studio

HEAD_SECONDS = 15.0  # for the head of a request, from its first byte or from connecting
READING_SECONDS = 30.0  # without a byte read by who is being answered
KEPT_SECONDS = 30  # between two requests of a connection
CUT_SECONDS = 1  # at the end, for answers that are being sent
HEAD_BYTES = 16_384
CONNECTIONS = 512  # beyond which requests are answered with 503,
SENT = 1 << 18  # bytes that the system takes ahead of a client: few, so that its reading is seen
MORE = 64  # and so many further on nobody is answered: files need descriptors too


class Connection(H11Protocol):
    """A connection that is closed when its client stalls, in a head or in reading an answer."""

    _head = _reading = None  # timers

    def connection_made(self, transport: Any) -> None:
        """Wait for the first head."""
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENT)
        if len(self.connections) > CONNECTIONS + MORE:
            transport.abort()
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Of a head or of a body, which has a clock of its own (refsd.serve.guard)."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, problem: Exception | None) -> None:
        """Nothing is waited for any more."""
        super().connection_lost(problem)
        self._head, self._reading = _stopped(self._head), _stopped(self._reading)

    def pause_writing(self) -> None:
        """There is more to be sent than the client reads."""
        super().pause_writing()
        self._watch_reading(self.transport.get_write_buffer_size() + 1)

    def resume_writing(self) -> None:
        """It has been read."""
        super().resume_writing()
        self._reading = _stopped(self._reading)

    def _watch_head(self):
        if self.conn.their_state is not h11.IDLE:
            self._head = _stopped(self._head)
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _watch_reading(self, before):
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self._reading = self.loop.call_later(READING_SECONDS, self._watch_reading, left)


def _stopped(timer):
    if timer is not None:
        timer.cancel()


class Server(uvicorn.Server):
    """Serves until SIGINT or SIGTERM, which `signum` then is; `ready` is told when it answers.

    Then no connection is taken any more, the step at hand and what is finished are brought to
    their end, and streams with them. A second signal ends the process (refsd.cli.interrupt).
    """

    def __init__(self, app: Any, studio: Studio, ready: Callable[[], Any], *, verbose: bool):
        super().__init__(uvicorn.Config(
            app, http=Connection, ws="none", loop="asyncio", lifespan="on", workers=1,
            log_config=None, access_log=verbose, server_header=False, proxy_headers=False,
            timeout_keep_alive=KEPT_SECONDS, timeout_graceful_shutdown=CUT_SECONDS,
            limit_concurrency=CONNECTIONS, h11_max_incomplete_event_size=HEAD_BYTES))
        self.studio, self.ready, self.verbose = studio, ready, verbose
        self.signum: int | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Within the block a signal is a wish to end, not an error."""
        before = {signum: signal.signal(signum, self.handle_exit)
                  for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def handle_exit(self, signum: int, frame: Any) -> None:
        """Seen within a tenth of a second."""
        self.signum, self.should_exit = signum, True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer requests, and say so."""
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the studio while all can still be told of it; then cut off who does not read."""
        for server in self.servers:
            server.close()
        if self.studio.current is not None:
            note("refsd: stopping at the end of this step; once more to stop at once")
        await asyncio.to_thread(self.studio.close)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
