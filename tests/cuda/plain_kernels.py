"""Plain kernels where fast ones would be taken: a picture by them takes lockstep seconds.

Fast ones work in tiles, whatever there is to compute: of a tiny picture almost all is padding.
Their own tests have ragged tiles; full_picture.py draws with what is chosen.
"""

from refsd.numba_ops.cuda import attention, conv, linear
from refsd.numba_ops.cuda.plan import Choice


def choose(monkeypatch):
    """Until the test ends."""
    for module, name, plain in ((conv, "choose_conv2d", conv.conv2d_plain),
                                (linear, "choose_linear", linear.plain),
                                (linear, "choose_matmul", linear.plain),
                                (attention, "choose_attention", attention.attention_plain)):
        monkeypatch.setattr(module, name, _always(plain))


def _always(plain):
    """The only word among what decides is the dtype, the only constant of a plain kernel."""
    return lambda *call: Choice(plain, (next(a for a in call if isinstance(a, str)),), "for a test")
