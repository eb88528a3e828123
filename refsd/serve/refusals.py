"""What the server refuses and what fails: errors by their HTTP status, without a web framework."""

import errno

from refsd.cli import report
from refsd.errors import RefsdError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
STATUS = {"usage": 422, "disk-full": 507}  # of codes of errors; all others are 500


def describe(error: Exception) -> tuple[str, str]:
    """The short name and the message of an error, as the command line has them.

    But a disk, a quota or a file's limit that was full, for the error or its cause, is "disk-full".
    """
    code, _, message = report.describe(error)
    return ("disk-full" if code != "internal" and _is_full(error) else code), message


def _is_full(error):
    while error is not None:
        if getattr(error, "errno", None) in FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


class Refused(RefsdError):
    """A request that is answered with `status`, the short name `code`, and `headers`."""

    def __init__(self, status: int, code: str, message: str, **headers: str):
        super().__init__(message)
        self.status, self.code = status, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class QueueFull(Refused):
    """As many jobs wait as may; `retry_after` in seconds is a guess of when one will be gone."""

    def __init__(self, waiting: int, retry_after: int = 5):
        super().__init__(429, "queue.full", f"{waiting} jobs wait already. Try again in "
                         f"{retry_after} seconds", retry_after=str(retry_after))
