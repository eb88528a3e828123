"""What several files of tests are given: the page in a browser, and the server that it is of."""

import pytest


@pytest.fixture(scope="module")
def served(tiny_model, tmp_path_factory):
    """One for all tests of a file, which leave it without jobs."""
    from served import serving

    folder = tmp_path_factory.mktemp("page")
    with serving("-m", "bundled", "-m", tiny_model, "-o", folder / "pictures") as found:
        found.folder = folder / "pictures"
        yield found


@pytest.fixture(scope="module")
def browser():
    """Without a window."""
    from browsing import FLAGS, chromium
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def tab(browser, served):
    """A new page for each test, which may ask only refsd, and may complain of nothing."""
    from browsing import opened

    with opened(browser, served) as found:
        yield found
