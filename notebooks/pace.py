"""How long a notebook takes: with REFSD_NOTEBOOKS=fast, for the tests, a few seconds."""

import os

FAST = os.environ.get("REFSD_NOTEBOOKS") == "fast"


def few(full, fast):
    """`full`, but `fast` where the tests run the notebooks."""
    return fast if FAST else full
