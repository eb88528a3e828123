"""What the server refuses: errors that carry their HTTP status, without a web framework."""

from refsd.errors import RefsdError


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
