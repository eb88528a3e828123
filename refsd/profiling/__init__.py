"""Where the time of a generation goes, and how large its numbers become."""

from refsd.profiling.audit import Audit
from refsd.profiling.record import Call, Profile, Recorder, Span, profile

__all__ = ["Audit", "Call", "Profile", "Recorder", "Span", "profile"]
