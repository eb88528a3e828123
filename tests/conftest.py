"""Hypothesis profiles, and what several files of tests are given: a model, golden packs.

Choose another profile than `ci` with `pytest --hypothesis-profile=nightly`.
"""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# deadline: a first call may import, compile or wait for a busy machine. Not what is tested.
_ALWAYS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("ci", derandomize=True, max_examples=50, **_ALWAYS)
settings.register_profile("dev", max_examples=20, print_blob=True, **_ALWAYS)
settings.register_profile("nightly", max_examples=2000, print_blob=True, **_ALWAYS)
settings.load_profile("ci")


@pytest.fixture
def own_ops(monkeypatch):
    """Declarations that go with the test."""
    from refsd import registry

    for name in ("_ops", "_kernels", "_inferred"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of tests/tiny.py's model; nobody changes it."""
    import tiny

    return tiny.write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def model(tiny_model):
    """The same as a word of a command line."""
    return str(tiny_model)


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """The folder of a pack of some tensors of all kinds; nobody changes it."""
    import golden_format_samples

    folder = tmp_path_factory.mktemp("golden") / "pack"
    golden_format_samples.write(folder)
    return folder


@pytest.fixture
def sample(original, tmp_path):
    """A copy of it, which the test may damage."""
    return Path(shutil.copytree(original, tmp_path / "pack"))


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """The folder of a pack of golden_compare_samples.NETWORK."""
    import golden_compare_samples

    return golden_compare_samples.write_pack(tmp_path_factory.mktemp("network") / "p")


@pytest.fixture
def pack(network):
    """The same, open."""
    from refsd.golden.packs.pack import Pack

    with Pack.open(network) as opened:
        yield opened


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with packs of the run that the stand-in port makes too, level2 and level3."""
    import golden_runs

    folder = tmp_path_factory.mktemp("runs")
    for level in (2, 3):
        golden_runs.write_pack(folder, level)
    return folder
