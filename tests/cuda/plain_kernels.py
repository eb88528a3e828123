"""Plain kernels where fast ones would be taken: a picture by them takes lockstep seconds.

Fast ones work in tiles, whatever there is to compute: of a tiny picture almost all is padding.
Their own tests have ragged tiles; full_picture.py draws with what is chosen.
"""

from refsd.numba_ops.cuda import attention, conv, linear
from refsd.numba_ops.cuda.plan import Choice


def choose(monkeypatch):
    """Until the test ends."""
    for module, name, plain in ((conv, "choose_conv2d", conv.conv2d_plain),
                                (linear, "_choose", linear.plain),
                                (attention, "choose_attention", attention.attention_plain)):
        monkeypatch.setattr(module, name, _always(plain))
    monkeypatch.setattr(attention, "choose_attention", lambda d, e, dtype, *_: Choice(
        attention.attention_plain, (dtype,), "for a test"))


def _always(plain):
    return lambda *call: Choice(plain, (next(a for a in call if isinstance(a, str)),), "for a test")
