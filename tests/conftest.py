"""Hypothesis profiles. Choose another than `ci` with `pytest --hypothesis-profile=nightly`."""

from hypothesis import HealthCheck, settings

# deadline: a first call may import, compile or wait for a busy machine. Not what is tested.
_ALWAYS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("ci", derandomize=True, max_examples=50, **_ALWAYS)
settings.register_profile("dev", max_examples=20, print_blob=True, **_ALWAYS)
settings.register_profile("nightly", max_examples=2000, print_blob=True, **_ALWAYS)
settings.load_profile("ci")
