"""What tests of the server share: an application on a real socket."""

import socket
import threading
import time
from contextlib import contextmanager

import uvicorn

PATIENCE = 60  # seconds for what takes one
HOME = "http://127.0.0.1:7860"  # the base_url of a TestClient


@contextmanager
def serving(app, **options):
    """The address of an application, which uvicorn serves in a thread until the end of the block.

    Streams that have not ended by then are cut off.
    """
    place = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, **{
        "log_config": None, "http": "h11", "ws": "none", "timeout_graceful_shutdown": 1,
        "access_log": False, **options}))
    thread = threading.Thread(target=server.run, args=([place],), daemon=True)
    thread.start()
    try:
        await_true(lambda: server.started)
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        place.close()
    assert not thread.is_alive()


def await_true(question):
    """Wait until it is."""
    end = time.monotonic() + PATIENCE
    while not question():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.01)
