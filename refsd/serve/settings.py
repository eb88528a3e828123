"""Who may ask, as the options of `refsd serve` say it: one rule for hosts, origins and the token.

Without a web framework, so that what is wrong is said before one is needed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from refsd.arguments import shown
from refsd.errors import UsageError

_HOST = r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])"
HOST = re.compile(rf"(?P<name>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?")
ORIGIN = re.compile(rf"https?://(?P<host>{_HOST}(?::[0-9]{{1,5}})?)")
TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,200}")


@dataclass(frozen=True)
class Settings:
    """Who may ask: names beside loopback's in a Host header, other sites' origins, a token.

    A host is NAME, for any port, or NAME:PORT. A body has at most `body` bytes, all that are held
    at the same time `bodies`. It comes within `whole` seconds; no client may neither send of it
    nor take of its answer for `stall` seconds. Raises UsageError.
    """

    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    token: str | None = None
    body: int = 32 << 20
    bodies: int = 256 << 20
    stall: float = 30.0
    whole: float = 300.0

    def __post_init__(self):
        for host in self.hosts:
            if parse_host(host) is None:
                raise UsageError(f"--allow-host is {shown(host)}; give a name such as example.org, "
                                 "with :PORT where the port is another")
        for origin in self.origins:
            if ORIGIN.fullmatch(origin) is None:
                raise UsageError(f"--allow-origin is {shown(origin)}; give what comes before the "
                                 "path, in small letters, such as https://example.org")
        if self.token is not None and TOKEN.fullmatch(self.token) is None:
            raise UsageError("the token is not one: give 16 to 200 of the letters A-Z, a-z, 0-9 "
                             "and ._~-, such as those of: python -c 'import secrets; "
                             "print(secrets.token_urlsafe())'")


def parse_host(text: str) -> tuple[str, int | None] | None:
    """The name in small letters and the port of NAME or NAME:PORT; None for what is neither."""
    found = HOST.fullmatch(text.lower())
    if found is None:
        return None
    return found["name"], None if found["port"] is None else int(found["port"])
