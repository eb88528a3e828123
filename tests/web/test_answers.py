"""Answers: JSON that every client reads, and errors as each API writes them."""

import errno
import json
import logging

import pytest
from starlette.exceptions import HTTPException

from refsd import atomic
from refsd.errors import ModelError, ResourceError, UsageError
from refsd.serve.answers import answer, failure, problem
from refsd.serve.refusals import QueueFull, Refused
from refsd.serve.studio import FAULT

NATIVE, OPENAI, A1111 = "/api/v1/jobs", "/v1/images/generations", "/sdapi/v1/txt2img"


def said(response):
    return response.status_code, json.loads(response.body)


def test_an_answer_is_one_line_of_ascii():
    found = answer({"prompt": "ä\ud800\n", "seed": 2**64 - 1}, 201, retry_after="5")
    assert found.body == b'{"prompt":"\\u00e4\\ud800\\n","seed":18446744073709551615}'
    assert (found.status_code, found.headers["retry-after"]) == (201, "5")
    assert found.headers["content-type"] == "application/json"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_say_is_not_said(value):
    with pytest.raises(ValueError):
        answer({"seconds": value})


def test_the_shapes_of_errors():
    error = UsageError("steps is 0; give 1 to 150")
    assert said(problem(error, NATIVE)) == (422, {"error": {"code": "usage",
                                                            "message": str(error)}})
    assert said(problem(error, OPENAI)) == (400, {"error": {
        "message": str(error), "type": "invalid_request_error", "param": None, "code": "usage"}})
    assert said(problem(error, A1111)) == (422, {
        "error": "usage", "detail": str(error), "body": "", "errors": str(error)})


@pytest.mark.parametrize("error, status, type", [
    (Refused(401, "token", "a"), 401, "authentication_error"),
    (QueueFull(3), 429, "rate_limit_error"), (Refused(404, "job", "a"), 404,
                                             "invalid_request_error"),
    (ModelError("a"), 500, "server_error"), (Refused(503, "closing", "a"), 503, "server_error")])
def test_openai_has_types_of_errors(error, status, type):
    found, body = said(problem(error, OPENAI))
    assert (found, body["error"]["type"]) == (status, type)


def test_headers_of_refusals_are_sent():
    found = problem(QueueFull(3, 7), NATIVE)
    assert found.status_code == 429 and found.headers["retry-after"] == "7"


def full(place):
    with atomic.writing(place):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("number, status", [
    (errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EFBIG, 507), (errno.EACCES, 500)])
def test_a_full_disk_has_a_status_of_its_own(number, status):
    assert problem(OSError(number, "words", "a.png"), NATIVE).status_code == status


def test_a_full_disk_is_known_behind_the_error_that_tells_of_it():
    with pytest.raises(ResourceError) as caught:
        full("a.png")
    status, body = said(problem(caught.value, NATIVE))
    assert status == 507 and "a.png: cannot be written" in body["error"]["message"]
    try:
        raise ModelError("a") from OSError(errno.ENOSPC, "words")
    except ModelError as error:
        assert problem(error, NATIVE).status_code == 507
    try:
        raise ZeroDivisionError from OSError(errno.ENOSPC, "words")
    except ZeroDivisionError as error:  # a fault of refsd's all the same
        assert problem(error, NATIVE).status_code == 500


@pytest.mark.parametrize("path", [NATIVE, OPENAI, A1111])
def test_a_fault_is_told_to_the_log_alone(path, caplog):
    caplog.set_level(logging.INFO)
    try:
        raise KeyError("/home/somebody/secret")
    except KeyError as error:
        found = problem(error, path)
    assert found.status_code == 500 and FAULT in found.body.decode()
    assert b"secret" not in found.body and b"KeyError" not in found.body
    record, = caplog.records
    assert record.exc_info and "secret" in record.getMessage() and path in record.getMessage()


@pytest.mark.parametrize("error, logged", [
    (UsageError("a"), 0), (Refused(404, "job", "a"), 0), (ResourceError("no memory"), 1)])
def test_the_log_has_what_the_user_cannot_mend(error, logged, caplog):
    caplog.set_level(logging.INFO)
    problem(error, NATIVE)
    assert len(caplog.records) == logged and not any(each.exc_info for each in caplog.records)


def test_a_message_is_one_line(caplog):
    _, body = said(problem(UsageError("a\nb\x1b[31m" + "x" * 3000), NATIVE))
    assert body["error"]["message"].startswith("a\\nb\\x1b[31m") and len(caplog.records) == 0
    assert len(body["error"]["message"]) < 2100
    problem(ResourceError("a\nb"), "/x\ny")
    assert "\n" not in caplog.records[0].getMessage()


@pytest.mark.parametrize("status, code, words", [
    (404, "not-found", "docs/server.md lists"), (405, "method-not-allowed", "takes GET; see"),
    (400, "bad-request", "no boundary")])
def test_what_starlette_says(status, code, words):
    error = HTTPException(status, "no boundary", {"Allow": "GET"} if status == 405 else None)
    found = problem(error, "/api/v1/a")
    assert found.status_code == status and found.headers.get("allow") == (
        "GET" if status == 405 else None)
    body = json.loads(found.body)["error"]
    assert body["code"] == code and words in body["message"]


@pytest.mark.parametrize("code, status", [("usage", 422), ("model", 500), ("resource", 500),
                                          ("disk-full", 507), ("internal", 500)])
def test_the_error_of_a_job_is_an_answer(code, status):
    error = {"code": code, "message": "words"}
    assert said(failure(error, NATIVE)) == (status, {"error": error})
    assert failure(error, OPENAI).status_code == (400 if status == 422 else status)
    assert failure(error, A1111).status_code == status
