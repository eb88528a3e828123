"""refsd serve, as far as it needs no web framework: what is refused, and where it listens."""

import errno
import logging
import os
import socket

import pytest

from refsd.__main__ import main
from refsd.cli.report import Warnings
from refsd.errors import ResourceError, UsageError
from refsd.serve import command, listening, log

IPV6 = pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="no IPv6 here")
TOKEN = "abcdefgh_-.~0123"


def checked(*words):
    return command.check(command.parser().parse_args([*words, "--backend", "numpy"]))


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("REFSD_TOKEN", raising=False)


@pytest.mark.parametrize("words, said", [
    (["--host", "0.0.0.0"], "--host 0.0.0.0: whoever reaches this machine could draw; give "),
    (["--host", "::"], "--token"), (["--host", "192.0.2.1"], "--token"),
    (["--host", ""], "--host is '': it is empty. Give an address"),
    (["--host", "no such host"], "--host is 'no such host': "),
    (["--port", "65536"], "--port"), (["--port", "-1"], "--port"), (["--queue", "0"], "--queue"),
    (["--token", "short"], "the token is not one: give 16 to 200"),
    (["--token", TOKEN + "\n"], "the token is not one"),
    (["--token", ""], "the token is not one"), (["--token", "a" * 201], "the token is not one"),
    (["--allow-host", "http://x"], "--allow-host is 'http://x'; give a name"),
    (["--allow-origin", "*"], "--allow-origin is '*'; give what comes before the path"),
    (["--allow-origin", "https://example.org/"], "--allow-origin"),
    (["--allow-origin", "null"], "--allow-origin"),
    (["--allow-origin", "https://Example.org"], "in small letters"),
    (["--backend", "cudaa"], "cudaa"), (["--budget", "much"], "--budget is 'much'"),
    (["--embd-dir", "no/such"], "--embd-dir no/such: no such folder"),
    (["--exact", "--tuned"], "--tuned"),
])
def test_what_is_wrong_is_said_before_anything_is_read(words, said):
    with pytest.raises(UsageError) as caught:
        command.check(command.parser().parse_args(words))
    assert said in str(caught.value) and TOKEN not in str(caught.value)


@pytest.mark.parametrize("words", [
    ["--host", "127.0.0.1"], ["--host", "localhost"], ["--host", "127.9.9.9"], ["--host", "::1"],
    ["--host", "0.0.0.0", "--token", TOKEN], ["--allow-host", "draw.example.org"],
    ["--allow-host", "[::1]:80"], ["--allow-origin", "https://example.org:8443"],
    ["--allow-host", "Draw.example.org:80"], ["--token", "a" * 16], ["--token", "a" * 200],
])
def test_what_is_served(words):
    checked(*words)


def test_the_token_of_the_environment(monkeypatch):
    monkeypatch.setenv("REFSD_TOKEN", TOKEN)
    assert checked("--host", "0.0.0.0").settings.token == TOKEN
    assert checked("--token", TOKEN[::-1]).settings.token == TOKEN[::-1]
    monkeypatch.setenv("REFSD_TOKEN", "")
    assert checked().settings.token is None


def test_what_holds_for_all_jobs_is_as_refsd_draw_has_it():
    base = checked("--dtype", "bfloat16", "-t", "1", "--vae", "x", "-m", "a", "-m", "b", "-o", "x",
                   "--lora-dir", "y", "--json").base
    assert (base.dtype, base.threads, base.vae, base.steps) == ("bfloat16", 1, "x", 20)
    assert (base.model, base.output, base.lora_dir, base.json) == (None, None, None, False)


def test_without_the_extra_it_says_how_to_have_it(monkeypatch, capfd):
    monkeypatch.setattr(command.importlib.util, "find_spec",
                        lambda name: name != "uvicorn" or None)
    assert main(["serve"]) == 2
    assert capfd.readouterr().err == (
        "refsd: error: serve needs uvicorn, which a plain refsd is installed without: pip install "
        '"refsd[web]"\n')


def test_a_port_that_is_taken():
    with listening.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ResourceError) as caught:
            listening.listen("127.0.0.1", port)
    assert str(caught.value) == (f"127.0.0.1:{port}: another program listens there. Give another "
                                 "--port, 0 for any that is free, or another --host")
    assert caught.value.exit_code == 4
    listening.listen("127.0.0.1", port).close()  # at once, whatever was connected


@pytest.mark.parametrize("number, said", [
    (errno.EACCES, "below 1024"), (errno.EADDRNOTAVAIL, "no such address"),
    (errno.ENOBUFS, "Give another --port"),
])
def test_why_nothing_is_listened_to(monkeypatch, number, said):
    class Refusing(socket.socket):
        def bind(self, address):
            raise OSError(number, "No")

    monkeypatch.setattr(listening.socket, "socket", Refusing)
    with pytest.raises(ResourceError, match=said):
        listening.listen("127.0.0.1", 80)


def test_clients_can_connect_at_once():
    with listening.listen("127.0.0.1", 0) as found, \
            socket.create_connection(found.getsockname(), timeout=5) as client:
        assert client.getpeername() == found.getsockname()


@pytest.mark.parametrize("host, name", [
    ("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("0.0.0.0", socket.gethostname()),
    pytest.param("::1", "[::1]", marks=IPV6), pytest.param("::", socket.gethostname(), marks=IPV6),
])
def test_what_is_to_be_opened(host, name):
    with listening.listen(host, 0) as found:
        assert listening.url(host, found) == f"http://{name}:{found.getsockname()[1]}/"


def test_faults_are_shown_whole_whatever_is_drawn(capfd):
    """By the terminal, and not in the warnings of the job that is drawn meanwhile."""
    with log.logged(verbose=False), Warnings(show=False) as warnings:
        try:
            raise ZeroDivisionError("a\nb")
        except ZeroDivisionError as error:
            logging.getLogger("refsd.serve.studio").error("job 1:\n%s", error, exc_info=error)
        logging.getLogger("refsd.serve.answers").warning("%s", "full")
        logging.getLogger("refsd.serve.answers").info("%s", "nothing")
    said = capfd.readouterr().err
    assert said.startswith("refsd: error: job 1:\\na\\nb\nTraceback (most recent call last):\n")
    assert said.endswith("ZeroDivisionError: a\nb\nrefsd: warning: full\n") and not warnings.said
    logging.getLogger("refsd.serve.studio").error("not any more")
    assert "refsd: " not in capfd.readouterr().err


@pytest.mark.parametrize("verbose", [True, False])
def test_a_line_for_each_request_if_wanted_without_what_is_secret(capfd, verbose):
    with log.logged(verbose=verbose):
        logging.getLogger("uvicorn.access").info(
            '%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", f"/?token={TOKEN}", "1.1", 303)
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert capfd.readouterr().err == verbose * (
        "refsd: 127.0.0.1:5 GET / 303\nrefsd: warning: Invalid HTTP request received.\n")


def test_a_log_that_cannot_be_written_stops_nobody(monkeypatch):
    def full(text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log, "note", full)
    with log.logged(verbose=True):
        logging.getLogger("refsd.serve.studio").error("x")
