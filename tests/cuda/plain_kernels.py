"""Plain kernels where fast ones would be taken: a picture by them takes lockstep seconds.

Fast ones work in tiles, whatever there is to compute: of a tiny picture almost all is padding. Their
own tests have ragged tiles; full_picture.py draws with what is chosen.
"""

from refsd.numba_ops.cuda import conv, linear
from refsd.numba_ops.cuda.plan import Choice


def choose(monkeypatch):
    """Until the test ends."""
    monkeypatch.setattr(conv, "choose_conv2d", lambda weight, groups, dtype, capability: Choice(
        conv.conv2d_plain, (dtype,), "for a test"))
    monkeypatch.setattr(linear, "_choose", lambda rows, M, N, K, dtype, capability: Choice(
        linear.plain, (dtype,), "for a test"))
