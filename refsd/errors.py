"""The errors a user can meet, each with the exit code that the command line answers with."""


class RefsdError(Exception):
    """Any error whose one-line message is meant for the user."""

    exit_code = 1


class UsageError(RefsdError, ValueError):
    """A request that cannot be met as it was put: a bad option, size, seed, shape or dtype."""

    exit_code = 2


class ModelError(RefsdError, ValueError):
    """A model file that is damaged, unsafe, of the wrong family, or holds the wrong tensors."""

    exit_code = 3


class ResourceError(RefsdError, OSError):
    """The machine said no: a path that cannot be written, too little memory, a missing device."""

    exit_code = 4


def damaged(what: str) -> ModelError:
    """The error of a file that is not as its kind is written: cut off, altered, or made wrongly."""
    return ModelError(f"{what}. Fetch the file again, or have it written anew")
