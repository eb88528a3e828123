"""Where the time of a generation goes: stages, steps, layers, ops, and what lies outside of ops."""

from refsd.profiling.record import Call, Profile, Recorder, Span, profile

__all__ = ["Call", "Profile", "Recorder", "Span", "profile"]
