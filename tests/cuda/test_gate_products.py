"""The gate for products of matrices, convolutions and attention: test_gate.py has the others."""

import gate
import pytest
from test_gate import pytestmark, require_what_is_held  # noqa: F401


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", gate.PRODUCTS)
def test_a_factory(name):
    require_what_is_held(name)
