"""Answers as JSON, and errors as the API that was asked writes them."""

import json
import logging
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from refsd.cli.report import one_line
from refsd.serve.refusals import STATUS, Refused, describe
from refsd.serve.studio import FAULT

logger = logging.getLogger(__name__)

DOCS = "docs/server.md"
OPENAI, A1111 = "/v1/", "/sdapi/"


def json_text(value: Any) -> str:
    """A value as JSON on one line of ASCII; ValueError for a number that is not finite."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def answer(value: Any, status: int = 200, **headers: str) -> Response:
    """A value as JSON; `_` in the name of a header stands for `-`."""
    return Response(json_text(value), status, _dashed(headers), "application/json")


def problem(error: Exception, path: str) -> Response:
    """An error as the API of `path` says it. What is no user's fault is told to the log alone."""
    if isinstance(error, HTTPException):
        error = _of_routes(error, path)
    if isinstance(error, Refused):
        return _refusal(path, error.status, error.code, str(error), error.headers)
    code, message = describe(error)
    if code == "internal":
        logger.error("%s: %s", one_line(path), message, exc_info=error)
    elif code != "usage":
        logger.warning("%s: %s", one_line(path), one_line(message))
    return failure({"code": code, "message": FAULT if code == "internal" else message}, path)


def failure(error: dict[str, str], path: str) -> Response:
    """The error of a job, such as `job.error`, as the API of `path` says it."""
    return _refusal(path, STATUS.get(error["code"], 500), error["code"], error["message"], {})


def _refusal(path, status, code, message, headers):
    message = one_line(message)
    if path.startswith(OPENAI):
        status = 400 if status == 422 else status
        body = {"error": {"message": message, "type": _type(status), "param": None, "code": code}}
    elif path.startswith(A1111):
        body = {"error": code, "detail": message, "body": "", "errors": message}
    else:
        body = {"error": {"code": code, "message": message}}
    return answer(body, status, **headers)


def _type(status):
    """OpenAI's name for a status."""
    if status >= 500:
        return "server_error"
    return {401: "authentication_error", 429: "rate_limit_error"}.get(status,
                                                                      "invalid_request_error")


def _of_routes(error, path):
    """What Starlette says of a path or method that is not there, or of a form."""
    code = HTTPStatus(error.status_code).name.lower().replace("_", "-")
    headers = error.headers or {}
    if error.status_code == 404:
        message = f"there is no {path} here; {DOCS} lists what there is"
    elif error.status_code == 405:
        message = f"{path} takes {headers.get('Allow', 'other methods')}; see {DOCS}"
    else:
        message = str(error.detail)
    return Refused(error.status_code, code, message, **headers)


def _dashed(headers):
    return {name.replace("_", "-"): value for name, value in headers.items()}
