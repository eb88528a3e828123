"""Numba, imported after its settings were looked at: who imports Numba imports this before.

Numba reads its settings when it is imported; of one that it cannot read it says a traceback. Here
that is a warning of one line.
"""

import os
import re
import warnings

from refsd.errors import UsageError
from refsd.parallel import check_environment

_UNREADABLE = re.compile("Environment variable '(NUMBA_[A-Z_]+)' is defined but its .* value")


def _import_numba() -> None:
    """Its complaints in words of ours."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        import numba
    for warning in said:
        found = _UNREADABLE.match(str(warning.message))
        if found:
            warnings.warn(f"{found[1]} is {os.environ.get(found[1])!r}, which Numba cannot read: "
                          "it takes its default. Unset it", stacklevel=2)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename,
                                   warning.lineno)
    if numba.config.DISABLE_JIT:
        raise UsageError("NUMBA_DISABLE_JIT is set, but kernels are compiled or not there: unset "
                         "it, or take the backend numpy")


check_environment()
_import_numba()
