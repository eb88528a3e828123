"""The page as it is sent, and what a browser lets it do: run its own script, ask this server."""

import base64
import hashlib
import re
from functools import cache
from importlib import resources

INLINE = re.compile(r"<(script|style)\b[^>]*>(.*?)</\1>", re.DOTALL)
# For answers that are no page: a picture that is opened by itself has a style of the browser's.
NOTHING = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


@cache
def page() -> str:
    """The file of the page."""
    return resources.files("refsd.serve").joinpath("page/index.html").read_text("utf-8")


@cache
def policy(html: str) -> str:
    """The Content-Security-Policy of a page, its inline scripts and styles by their hashes."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    allowed = {"default-src": "'none'", "connect-src": "'self'",
               "img-src": "'self' data: blob:", "base-uri": "'none'", "form-action": "'none'",
               "frame-ancestors": "'none'",
               **{f"{kind}-src": " ".join(found) or "'none'" for kind, found in hashes.items()}}
    return "; ".join(f"{name} {sources}" for name, sources in allowed.items())
