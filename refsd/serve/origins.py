"""Whether a request is for this server, and not another site's doing in somebody's browser."""

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import Response

from refsd.arguments import shown
from refsd.serve.refusals import Refused
from refsd.serve.settings import ORIGIN, parse_host

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
METHODS = "GET, POST, DELETE"


def check_host(headers: Headers, server: Sequence | None, hosts: Sequence[str]) -> None:
    """Raise Refused (421) unless the Host header is one of this server's.

    These are, with the server's port, loopback's names and the address where the request came
    in; and `hosts`. A name that somebody else had lead here is none of them (DNS rebinding).
    """
    given = headers.getlist("host")
    found = parse_host(given[0]) if len(given) == 1 else None
    if found is not None:
        listed, (name, port) = [parse_host(host) for host in hosts], found
        if (name, None) in listed or found in listed:
            return
        if name in _own(server) and (80 if port is None else port) == server[1]:
            return
    raise Refused(421, "host", f"the Host header is {shown(', '.join(given))}, which is none of "
                  "this server's names; start it with --allow-host to give it one")


def _own(server):
    """Names of the server itself; an address cannot be somebody else's name."""
    if not server:
        return ()
    try:
        address = ipaddress.ip_address(server[0])
    except ValueError:
        return LOOPBACK
    address = getattr(address, "ipv4_mapped", None) or address
    return (*LOOPBACK, f"[{address}]" if address.version == 6 else str(address))


def allowed(headers: Headers, origins: Sequence[str]) -> str | None:
    """The origin of another site that may ask, if it is one of these."""
    origin = headers.get("origin")
    return origin if origin in origins else None


def of_answer(origin: str | None, origins: Sequence[str]) -> dict[str, str]:
    """The headers by which a browser lets the page of an allowed origin read an answer."""
    found = {"Vary": "Origin"} if origins else {}
    return found | {"Access-Control-Allow-Origin": origin} if origin else found


def check_site(method: str, path: str, headers: Headers, allowed: str | None) -> None:
    """Raise Refused (403) for what a page of another origin has a browser ask.

    allowed: its origin, where it may. Whoever follows a link to the page opens it himself.
    """
    site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
    if allowed or (method == "GET" and path == "/" and origin is None
                   and headers.get("sec-fetch-mode") == "navigate"
                   and headers.get("sec-fetch-dest") == "document"):
        return
    if site not in ("same-origin", "none"):
        raise Refused(403, "site", "a page of another site asked for this; start the server with "
                      "--allow-origin to let it")
    if origin is not None and not _is_own(origin, headers["host"]):
        raise Refused(403, "origin", f"the Origin header is {shown(origin)}, another site's; start "
                      "the server with --allow-origin to let it ask")


def _is_own(origin, host):
    """Whether the origin is this host's; of its scheme only the browser knows before a proxy."""
    found = ORIGIN.fullmatch(origin.lower())
    return found is not None and found["host"] == host.lower()


def preflight() -> Response:
    """What a page of an allowed origin may ask: all but with cookies."""
    return Response(status_code=204, headers={
        "Access-Control-Allow-Methods": METHODS, "Access-Control-Max-Age": "600",
        "Access-Control-Allow-Headers": "*, Authorization, Content-Type"})
