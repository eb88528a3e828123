"""Files that appear whole or not at all, whoever writes them."""

import hashlib

import pytest

from refsd import atomic
from refsd.errors import ResourceError


def test_a_file_is_replaced_whole_or_stays_and_no_draft_is_left(tmp_path):
    path = tmp_path / ("ü" * 127)  # the longest name that a file may have: 254 bytes
    assert atomic.write_file(path, [b"o", b"ld"]) == {
        "sha256": hashlib.sha256(b"old").hexdigest(), "bytes": 3}
    with pytest.raises(ZeroDivisionError), atomic.replacing(path) as draft:
        assert draft.parent == tmp_path and draft in atomic.drafts
        draft.write_bytes(b"ne")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    assert not atomic.drafts
    with pytest.raises(ResourceError, match="none/x: cannot be written: No such file"):
        atomic.write_file(tmp_path / "none" / "x", [b"new"])


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    atomic.write_file(tmp_path / "link", [b"new"])
    assert (tmp_path / "mine").read_bytes() == b"mine" and not (tmp_path / "link").is_symlink()
