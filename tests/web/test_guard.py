"""The guard: which requests pass, what the others are told, and what every answer says."""

import asyncio
import base64
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.testclient import TestClient
from web_samples import HOME

from refsd.errors import UsageError
from refsd.serve import guard, origins, tokens, wire
from refsd.serve.answers import answer
from refsd.serve.app import make_app
from refsd.serve.refusals import Refused
from refsd.serve.settings import Settings

TOKEN = "abcdefgh-12345678"
EVIL = "https://evil.example"
ALLY = "https://ally.example:8443"


async def size(request):
    return answer({"size": len(await request.body())})


def own(request):
    return answer({}, cache_control="immutable")


ROUTES = [Route(path, size, methods=["GET", "POST"]) for path in
          ("/api/v1/jobs", "/api/v1/read", "/v1/images/edits")] + [Route("/api/v1/own", own)]


def client(base_url=HOME, **settings):
    return TestClient(make_app(ROUTES, Settings(**settings)), base_url, follow_redirects=False)


@pytest.fixture(scope="module")
def open_():
    return client(hosts=("Box.local", "proxy.example:8443"))


@pytest.fixture(scope="module")
def closed():
    return client(token=TOKEN, origins=(ALLY,))


def status(client, method="GET", path="/api/v1/jobs", content=None, **headers):
    """The status, and the short name of what is refused."""
    found = client.request(method, path, content=content, headers={
        name.replace("_", "-"): value for name, value in headers.items()})
    code = found.json()["error"]["code"] if found.status_code >= 400 and "/v1/i" not in path else ""
    return found.status_code, code


# --- Host

@pytest.mark.parametrize("host", [
    "localhost:7860", "LOCALHOST:7860", "127.0.0.1:7860", "[::1]:7860", "box.local",
    "BOX.local:1234", "proxy.example:8443"])
def test_its_own_names_are_served(open_, host):
    assert status(open_, host=host) == (200, "")


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:7860", "localhost", "localhost:7861", "127.0.0.1",
    "127.0.0.2:7860", "localhost.:7860", "localhost:7860.evil.example", "user@localhost:7860",
    "localhost:7860/", "proxy.example", "proxy.example:8444", "localhost:07860 ", "", "[::1:7860",
    "::1", "localhost:7860,evil.example", "evil.example#localhost:7860", "192.168.1.5:7860",
    "local\xe4", "0.0.0.0:7860", "testserver"])
def test_other_names_are_led_astray(open_, host):
    assert status(open_, host=host.encode("latin-1")) == (421, "host")


def test_one_host_is_said(open_):
    found = open_.get("/api/v1/jobs", headers=[("host", "localhost:7860"),
                                               ("host", "evil.example")])
    assert found.status_code == 421
    with pytest.raises(Refused):
        origins.check_host(Headers({}), ("127.0.0.1", 80), ())


@pytest.mark.parametrize("server, host, known", [
    (("192.168.1.5", 7860), "192.168.1.5:7860", True), (("192.168.1.5", 7860), "192.168.1.6:7860",
                                                        False),
    (("192.168.1.5", 80), "192.168.1.5", True), (("::ffff:10.0.0.1", 80), "10.0.0.1", True),
    (("fd00::1", 7860), "[fd00::1]:7860", True), (("fd00::1", 7860), "fd00::1:7860", False),
    # a name that was looked up somewhere is none that may be trusted
    (("evil.example", 80), "evil.example", False), (("/run/socket", None), "localhost", False),
    (None, "localhost", False)])
def test_the_address_of_a_connection_is_a_name(server, host, known):
    try:
        origins.check_host(Headers({"host": host}), server, ())
    except Refused:
        assert not known
    else:
        assert known


hosts = st.text(st.sampled_from("localhost127.0:[]@/#? \t\x00\xe9evil,678"), max_size=24)


@given(hosts | st.text(max_size=20))
def test_whatever_passes_is_a_name_of_the_list(host):
    try:
        origins.check_host(Headers(raw=[(b"host", host.encode("utf-8", "replace"))]),
                           ("127.0.0.1", 80), ("box.local:81",))
    except Refused as refused:
        assert refused.status == 421 and refused.code == "host"
    else:
        name = host.lower().removesuffix(":80")
        assert name in (*origins.LOOPBACK, "box.local:81") or \
            urlsplit(f"//{host}").port == 80 and urlsplit(f"//{host}").hostname in (
                "localhost", "127.0.0.1", "::1")


# --- Other sites

PAGE = {"sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}


@pytest.mark.parametrize("method, path, headers", [
    ("POST", "/api/v1/jobs", {}),  # no browser
    ("POST", "/api/v1/jobs", {"origin": "http://127.0.0.1:7860", "sec_fetch_site": "same-origin"}),
    ("POST", "/api/v1/jobs", {"origin": "https://127.0.0.1:7860"}),  # behind a proxy with TLS
    ("GET", "/api/v1/jobs", {"sec_fetch_site": "none"}),
    ("GET", "/", {"sec_fetch_site": "cross-site", **PAGE}),
    ("GET", "/", {"sec_fetch_site": "same-site", **PAGE}),
])
def test_the_page_and_programs_may_ask(open_, method, path, headers):
    assert status(open_, method, path, **headers)[0] == 200


@pytest.mark.parametrize("method, path, headers, code", [
    ("POST", "/api/v1/jobs", {"origin": EVIL}, "origin"),
    ("GET", "/api/v1/jobs", {"origin": EVIL}, "origin"),
    ("POST", "/api/v1/jobs", {"origin": "null"}, "origin"),
    ("POST", "/api/v1/jobs", {"origin": ""}, "origin"),
    ("POST", "/api/v1/jobs", {"origin": EVIL, "sec_fetch_site": "same-origin"}, "origin"),
    ("POST", "/api/v1/jobs", {"origin": "http://127.0.0.1:7861"}, "origin"),
    ("POST", "/api/v1/jobs", {"origin": "http://127.0.0.1"}, "origin"),
    ("POST", "/api/v1/jobs", {"origin": "http://localhost:7860"}, "origin"),
    ("POST", "/api/v1/jobs", {"origin": "http://127.0.0.1:7860.evil.example"}, "origin"),
    ("POST", "/api/v1/jobs", {"origin": "http://evil.example/127.0.0.1:7860"}, "origin"),
    ("POST", "/api/v1/jobs", {"origin": "ftp://127.0.0.1:7860"}, "origin"),
    ("POST", "/api/v1/jobs", {"sec_fetch_site": "cross-site"}, "site"),
    ("POST", "/api/v1/jobs", {"sec_fetch_site": "same-site"}, "site"),
    ("POST", "/api/v1/jobs", {"sec_fetch_site": "nonsense"}, "site"),
    ("GET", "/api/v1/jobs", {"sec_fetch_site": "cross-site", **PAGE}, "site"),
    ("POST", "/", {"sec_fetch_site": "cross-site", **PAGE}, "site"),
    ("GET", "/", {"sec_fetch_site": "cross-site", **PAGE, "sec_fetch_dest": "iframe"}, "site"),
    ("GET", "/", {"sec_fetch_site": "cross-site", **PAGE, "sec_fetch_mode": "cors"}, "site"),
    ("GET", "/", {"sec_fetch_site": "cross-site", **PAGE, "origin": EVIL}, "site"),
    ("OPTIONS", "/api/v1/jobs", {"origin": EVIL, "access_control_request_method": "POST"},
     "origin"),
])
def test_other_sites_may_not(open_, method, path, headers, code):
    found = open_.request(method, path, headers={name.replace("_", "-"): value
                                                 for name, value in headers.items()})
    assert (found.status_code, found.json()["error"]["code"]) == (403, code)
    assert not [name for name in found.headers if name.startswith("access-control")]
    assert "vary" not in found.headers


origin_texts = st.text(st.sampled_from("htps:/127.0@?#evil \t\\\x00678[]"), max_size=32)


@given(origin_texts | st.text(max_size=20) | hosts.map("http://{}".format))
def test_whatever_origin_passes_is_the_hosts(origin):
    headers = Headers(raw=[(b"host", b"127.0.0.1:7860"),
                           (b"origin", origin.encode("utf-8", "replace"))])
    try:
        origins.check_site("POST", "/api/v1/jobs", headers, None)
    except Refused as refused:
        assert (refused.status, refused.code) == (403, "origin")
    else:
        assert urlsplit(origin).netloc == "127.0.0.1:7860"


@pytest.mark.parametrize("origin", ["http://127.0.0.1:7860", "https://127.0.0.1:7860"])
def test_the_own_origin_passes_in_both_schemes(origin):
    origins.check_site("POST", "/", Headers({"host": "127.0.0.1:7860", "origin": origin}), None)


BEARER = {"authorization": f"Bearer {TOKEN}"}


def test_an_allowed_site_may_ask_and_read(closed):
    found = closed.post("/api/v1/jobs", headers={"origin": ALLY, "sec-fetch-site": "cross-site",
                                                 **BEARER})
    assert found.status_code == 200
    assert found.headers["access-control-allow-origin"] == ALLY
    assert found.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in found.headers
    assert closed.post("/api/v1/jobs", headers={"origin": ALLY}).status_code == 401


def test_what_an_allowed_site_may_send_is_said_before(closed):
    found = closed.options("/api/v1/jobs", headers={
        "origin": ALLY, "sec-fetch-site": "cross-site", "access-control-request-method": "POST"})
    assert found.status_code == 204 and found.headers["access-control-allow-origin"] == ALLY
    assert found.headers["access-control-allow-methods"] == "GET, POST, DELETE"
    assert "Authorization" in found.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in found.headers
    assert closed.options("/api/v1/jobs", headers=BEARER).status_code == 405


@pytest.mark.parametrize("origin", [EVIL, "https://ally.example", "http://ally.example:8443",
                                    "https://ALLY.example:8443", "https://sub.ally.example:8443",
                                    "https://ally.example:8443.evil.example", "*", "null"])
def test_no_other_origin_is_ever_repeated(closed, origin):
    for method in ("GET", "OPTIONS"):
        found = closed.request(method, "/api/v1/jobs", headers={"origin": origin, **BEARER})
        assert found.status_code == 403 and found.headers["vary"] == "Origin"
        assert "access-control-allow-origin" not in found.headers


# --- Token

def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("given", [
    f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(f"anybody:{TOKEN}"), basic(f":{TOKEN}")])
def test_who_has_the_token_may_ask(closed, given):
    assert status(closed, authorization=given) == (200, "")


@pytest.mark.parametrize("given", [
    "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN.upper()}",
    TOKEN, f"Token {TOKEN}", f"Basic {TOKEN}", basic(TOKEN), basic(f"{TOKEN}:"),
    basic(f"a:{TOKEN}:"), "Basic ?", "Basic 4", "Basic /w==", "Bearer \xe4"])
def test_who_has_not_may_not(closed, given):
    found = closed.get("/api/v1/jobs", headers={"authorization": given.encode("latin-1")})
    assert found.status_code == 401 and found.json()["error"]["code"] == "token"
    assert found.headers["www-authenticate"].startswith('Basic realm="refsd"')
    assert TOKEN not in found.text


@pytest.mark.parametrize("path", ["/", "/?token=", f"/?token={TOKEN}x", f"/?tokens={TOKEN}",
                                  "/metrics", "/nowhere", f"/api/v1/jobs?token={TOKEN}"])
def test_nothing_is_seen_without_it(closed, path):
    found = closed.get(path)
    assert found.status_code == 401 and "set-cookie" not in found.headers


def test_health_is_open(closed):
    assert closed.get("/health").status_code == 200


def test_without_a_token_none_is_looked_at(open_):
    assert status(open_, authorization="Bearer something") == (200, "")


def test_the_pages_link_leaves_a_cookie_and_no_token():
    here = client(token=TOKEN)
    found = here.get(f"/?a=1&token={TOKEN}&b=%26", headers={"sec-fetch-site": "none", **{
        name.replace("_", "-"): value for name, value in PAGE.items()}})
    assert (found.status_code, found.headers["location"]) == (303, "/?a=1&b=%26")
    parts = found.headers["set-cookie"].lower().split("; ")
    assert {"httponly", "samesite=strict", "path=/"} <= {*parts} and "secure" not in parts
    assert parts[0].startswith("refsd-7860=") and TOKEN not in found.headers["set-cookie"]
    assert found.headers["referrer-policy"] == "no-referrer"
    assert here.get(f"/?token={TOKEN}").headers["location"] == "/"
    assert here.get("/").status_code == here.post("/api/v1/jobs").status_code == 200
    here.cookies.clear()
    here.cookies.set("refsd-7860", "0" * 64)
    assert here.get("/").status_code == 401


def test_only_the_page_is_opened_with_a_link(closed):
    for method, path in (("POST", "/"), ("GET", "/api/v1/jobs"), ("HEAD", "/")):
        found = closed.request(method, f"{path}?token={TOKEN}")
        assert found.status_code == 401 and "set-cookie" not in found.headers


def test_the_cookie_is_of_this_port_and_of_https_alone():
    other = client("https://127.0.0.1:7861", token=TOKEN)
    cookie = other.get(f"/?token={TOKEN}").headers["set-cookie"]
    assert cookie.startswith("refsd-7861=") and "Secure" in cookie


def test_a_token_is_compared_in_constant_time(closed, monkeypatch):
    seen = []
    monkeypatch.setattr(tokens, "compare_digest", lambda *pair: seen.append(pair) or True)
    assert status(closed, authorization="Bearer x") == (200, "")
    assert (b"x", TOKEN.encode()) in seen and len(seen) == 2  # and the cookie


# --- Bodies

def typed(client, path, content, kind):
    headers = {} if kind is None else {"content-type": kind}
    return client.post(path, content=content, headers=headers).status_code


@pytest.mark.parametrize("path, kind, passes", [
    ("/api/v1/jobs", "application/json", True), ("/api/v1/jobs", "Application/JSON ;charset=utf-8",
                                                 True),
    ("/api/v1/jobs", None, False), ("/api/v1/jobs", "", False),
    ("/api/v1/jobs", "text/plain", False), ("/api/v1/jobs", "text/plain; application/json", False),
    ("/api/v1/jobs", "application/json-seq", False), ("/api/v1/jobs", "image/png", False),
    ("/api/v1/jobs", "application/x-www-form-urlencoded", False),
    ("/api/v1/jobs", "multipart/form-data; boundary=x", False),
    ("/v1/images/edits", "multipart/form-data; boundary=x", True),
    ("/v1/images/edits", "application/json", False),
    *((("/api/v1/read", kind, True)) for kind in ("image/png", "image/jpeg", "image/webp")),
    ("/api/v1/read", "image/svg+xml", False), ("/api/v1/read", "application/json", False),
])
def test_a_body_has_the_type_that_its_path_takes(open_, path, kind, passes):
    assert typed(open_, path, b"{}", kind) == (200 if passes else 415)
    assert typed(open_, path, iter([b"{}"]), kind) == (200 if passes else 415)  # in chunks


def test_no_body_needs_no_type(open_):
    assert typed(open_, "/api/v1/jobs", None, None) == 200
    assert open_.post("/api/v1/jobs", headers={"content-length": "0"}).status_code == 200
    assert open_.post("/api/v1/jobs", headers={"content-length": "00"}).status_code == 200


def test_a_type_that_is_refused_is_said_with_those_that_are_not(open_):
    found = open_.post("/api/v1/read", content=b"a", headers={"content-type": "text/plain"})
    assert found.json()["error"] == {
        "code": "content-type", "message": "the body is 'text/plain'; send it with Content-Type: "
        "image/png or image/jpeg or image/webp"}


def parts_of(*sizes):
    return iter([b"x" * size for size in sizes])


@pytest.mark.parametrize("content, passes", [
    (b"x" * 100, True), (b"x" * 101, False), (parts_of(60, 40), True), (parts_of(60, 41), False),
    (parts_of(101), False)])
def test_bodies_are_limited_with_and_without_their_length(content, passes):
    found = client(body=100).post("/api/v1/jobs", content=content,
                                  headers={"content-type": "application/json"})
    assert found.status_code == (200 if passes else 413)
    assert found.json() == {"size": 100} if passes else "100 bytes" in found.text
    assert found.headers.get("connection") == (None if passes else "close")


@pytest.mark.parametrize("length, expected", [("1e3", 400), ("-1", 400), ("\xb2", 400), ("", 400),
                                              ("9" * 20, 413), ("9" * 21, 400)])
def test_a_length_is_a_number(open_, length, expected):
    found = open_.post("/api/v1/jobs", headers={
        "content-length": length.encode("latin-1"), "content-type": "application/json"})
    assert found.status_code == expected


@pytest.mark.parametrize("text", ["\xb2", "1\n", " 1", "0x1", "+1", "1_0", "1" * 21])
def test_a_length_that_python_alone_reads_is_none(text):
    with pytest.raises(Refused) as caught:
        wire.length(Headers(raw=[(b"content-length", text.encode("latin-1"))]))
    assert caught.value.status == 400


# --- All answers

def test_every_answer_forbids_what_no_page_needs(open_):
    for found in (open_.get("/api/v1/jobs"), open_.get("/nowhere"), open_.get("/health"),
                  open_.get("/", headers={"host": "evil.example"}), open_.get("/api/v1/own")):
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["referrer-policy"] == "no-referrer"
        assert found.headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in found.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in found.headers["content-security-policy"]
        own = found.url.path == "/api/v1/own"
        assert found.headers["cache-control"] == ("immutable" if own else "no-store")


def test_others_have_their_turn_while_a_large_answer_is_sent():
    turns = []

    async def send(message):  # which does not wait for anything
        turns.append(len(message["body"]))

    async def other():
        turns.append("other")

    async def both():
        task = asyncio.ensure_future(other())
        await wire.Out(send, {}, 30)({"type": "http.response.body", "body": bytes(150_000)})
        await task

    asyncio.run(both())
    assert turns == [wire.PIECE, "other", wire.PIECE, 150_000 - 2 * wire.PIECE]


def test_no_socket_of_the_web_is_opened(open_):
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect) as caught, open_.websocket_connect("/"):
        pass
    assert caught.value.code == 1008


@pytest.mark.parametrize("wrong", [
    {"hosts": ["a b"]}, {"hosts": ["http://a"]}, {"origins": ["evil.example"]}, {"origins": ["*"]},
    {"origins": ["https://a/"]}, {"origins": ["https://A.example"]}, {"token": "short"},
    {"token": "ä" * 16}, {"token": " " * 16}, {"token": "a" * 201}, {"token": TOKEN + "\n"}])
def test_settings_that_cannot_hold_are_refused(wrong):
    with pytest.raises(UsageError, match="give"):
        Settings(**wrong)


def test_every_path_with_a_type_of_its_own_is_one_of_the_server():
    assert {*guard.TYPES} == {"/api/v1/read", "/v1/images/edits"}
