"""The token of a server that others can reach: in a header, or in a cookie for the page."""

import base64
import binascii
import hmac
from secrets import compare_digest
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response

from refsd.serve.refusals import Refused


def check(scope: Any, token: str) -> None:
    """Raise Refused (401) unless the request has the token, as Bearer, password or cookie."""
    headers = Headers(scope=scope)
    scheme, _, value = headers.get("authorization", "").partition(" ")
    given = {"bearer": lambda: value, "basic": lambda: _password(value)}.get(
        scheme.lower(), lambda: "")()
    cookie = cookie_parser(headers.get("cookie", "")).get(_name(scope), "")
    if not (_same(given, token) | _same(cookie, _baked(token))):
        raise Refused(401, "token", "this server wants its token; give it as Authorization: "
                      "Bearer TOKEN, as the password of any user, or open the page with ?token=",
                      WWW_Authenticate='Basic realm="refsd", charset="UTF-8"')


def by_link(scope: Any, token: str) -> Response | None:
    """The page's address without the token that it has, and the cookie; None for all others."""
    if scope["method"] != "GET" or scope["path"] != "/":
        return None
    asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    if not any(name == "token" and _same(value, token) for name, value in asked):
        return None
    rest = urlencode([pair for pair in asked if pair[0] != "token"])
    response = RedirectResponse(f"/?{rest}" if rest else "/", 303)
    response.set_cookie(_name(scope), _baked(token), httponly=True, samesite="strict",
                        secure=scope["scheme"] == "https")
    return response


def _name(scope):
    """The cookie's: browsers send those of all ports of a host to each."""
    return f"refsd-{(scope.get('server') or (None, 0))[1]}"


def _baked(token):
    """What the cookie holds: other servers of this host see it, and not the token."""
    return hmac.digest(token.encode(), b"refsd cookie", "sha256").hex()


def _password(value):
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def _same(given, token):
    return compare_digest(given.encode("utf-8", "surrogatepass"), token.encode())
