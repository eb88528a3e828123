"""Whole pictures by the kernels, thread by thread, against golden packs of the same recipe."""

import full_picture
import pytest
import standing_in
import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("dtype", ["float32"])
def test_a_picture_is_what_the_reference_draws(dtype, folder, tmp_path, monkeypatch):
    standing_in.stand_in(monkeypatch, missing=True)
    found = full_picture.judge(tmp_path, folder, side=8, steps=2, dtype=dtype)
    assert found.ok, found.first
    assert found.compared > 500
