"""Where the server listens: the socket is there before a model is read, and what it is called."""

import errno
import ipaddress
import socket
from typing import Any

from refsd.errors import ResourceError, UsageError

BACKLOG = 256  # connections that wait to be accepted
SAID = {errno.EADDRINUSE: "another program listens there",
        errno.EACCES: "no user but root may listen below 1024",
        errno.EADDRNOTAVAIL: "this machine has no such address"}


def resolve(host: str, port: int) -> tuple[int, Any]:
    """Family and address of a name or an address, the first that is found. UsageError for none."""
    try:
        if not host:
            raise socket.gaierror("it is empty")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else None
        raise UsageError(f"--host is {host[:100]!r}: {why or problem}. Give an address of this "
                         "machine, such as 127.0.0.1") from None
    family, *_, address = found[0]
    return family, address


def is_loopback(address: Any) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(address[0]).is_loopback


def listen(host: str, port: int) -> socket.socket:
    """A socket to which clients can connect from now on. Raises ResourceError, UsageError."""
    family, address = resolve(host, port)
    # asyncio sends small answers at once (TCP_NODELAY) where the socket says that it is TCP
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and not ipaddress.ip_address(address[0]).is_unspecified:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as problem:
        found.close()
        why = SAID.get(problem.errno, problem.strerror)
        raise ResourceError(f"{in_url(address[0])}:{port}: {why}. Give another --port, 0 for any "
                            "that is free, or another --host") from None
    return found


def in_url(host: str) -> str:
    """A host as a URL has it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def url(host: str, listener: socket.socket) -> str:
    """What to open: the host, but for all addresses this machine's name; and the port it got."""
    address, port = listener.getsockname()[:2]
    name = socket.gethostname() if ipaddress.ip_address(address).is_unspecified else host
    return f"http://{in_url(name)}:{port}/"
