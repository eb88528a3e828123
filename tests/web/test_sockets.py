"""The guard on real sockets: what is slow, large, half or gone, of which a TestClient knows not."""

import httpx
import pytest
from web_samples import serving

from refsd.serve.app import make_app


@pytest.fixture(scope="module")
def url():
    with serving(make_app()) as found:
        yield found


def test_the_page_is_served(url):
    assert "<!DOCTYPE html>" in httpx.get(url).text
