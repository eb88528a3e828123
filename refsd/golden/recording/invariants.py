"""What must hold inside a run whatever the weights are: softmax rows, norms, the schedule."""

from typing import Any

import numpy as np

from refsd.dense import to_dense
from refsd.ops.attention import attention
from refsd.places import on_host

U = 2.0**-53  # half the distance from 1 to the next float64


def _arrays(event):
    """A norm's input, weight and bias (1 and 0 if it has none), of whatever leaf and wherever."""
    given = {key: value for key, value in event.inputs.items() if value is not None}
    return (on_host(to_dense(given.get(key, usual))) for key, usual in
            (("x", None), ("weight", np.ones(1)), ("bias", np.zeros(1))))


class Worst:
    """The case nearest to (or beyond) its limit of each invariant that was looked at."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, float, str | None]] = {}

    def look(self, event: Any, name: str | None, *, deep: bool) -> None:
        """Check an op's result in float64; `deep` also what costs as much as the op itself."""
        if event.op == "group_norm":
            self._group_norm(event, name)
        elif event.op == "layer_norm":
            x, weight, bias = _arrays(event)
            self._norm("layer_norm", x, event.output, weight, bias, event.options["eps"], name)
        elif event.op == "attention" and deep:
            self._attention(event, name)

    def schedule(self, alphas_cumprod: np.ndarray, name: str | None) -> None:
        """alpha_bar falls from each training step to the next."""
        rise = float(np.diff(alphas_cumprod.astype(np.float64)).max())
        self._note("schedule: the largest rise of alpha_bar", rise, 0.0, name)

    def softmax(self, shares: np.ndarray, name: str | None) -> None:
        """Rows of probabilities add up to 1: a sum of V numbers in the op, and another here."""
        sums = np.abs(shares.astype(np.float64).sum(axis=-1) - 1)
        limit = (shares.shape[-1] + 4) * float(np.finfo(shares.dtype).eps)
        self._worst("softmax: |sum of a row - 1|", sums, np.full(sums.shape, limit), name)

    def write(self, writer: Any) -> None:
        """Add all of it to a pack."""
        for name, (value, limit, tensor) in sorted(self.found.items()):
            writer.invariant(name, value, limit=limit, tensor=tensor)

    def _group_norm(self, event, name):
        x, weight, bias = _arrays(event)
        groups, channels = event.options["groups"], x.shape[1]
        shape = (len(x), groups, -1)
        wide = (1, channels) + (1,) * (x.ndim - 2)
        spread = [np.broadcast_to(v.reshape(wide), x.shape).reshape(shape) for v in (weight, bias)]
        self._norm("group_norm", x.reshape(shape), event.output.reshape(shape), *spread,
                   event.options["eps"], name)

    def _norm(self, op, x, y, weight, bias, eps, name):
        """Before weight and bias: mean 0, mean square var / (var + eps).   (..., K), rows of K

        n = (y - bias) / weight has an error of up to 3 u (|y| + |bias|) / |weight| from undoing
        what the op did last, and a row's sum of K numbers adds K roundings. A row with a weight of
        0 says nothing.
        """
        if y.dtype != np.float64 or not y.size:
            return
        weight, bias = np.broadcast_to(weight, y.shape), np.broadcast_to(bias, y.shape)
        rows = (weight != 0).all(axis=-1)
        if not rows.any():
            return
        x, y, weight, bias = x[rows], y[rows], weight[rows], bias[rows]
        normal = (y - bias) / weight
        lost = 3 * U * ((np.abs(y) + np.abs(bias)) / np.abs(weight)).max(axis=-1)
        K, largest = y.shape[-1], np.abs(normal).max(axis=-1)
        # 4: the op's own subtraction of the mean, twice, its quotient and its root
        mean_limit = lost + (K + 4) * U * largest
        variance = x.var(axis=-1)
        square = np.abs((normal * normal).mean(axis=-1) - variance / (variance + eps))
        self._worst(f"{op}: |mean| of a row before weight and bias",
                    np.abs(normal.mean(axis=-1)), mean_limit, name)
        self._worst(f"{op}: |mean square - var / (var + eps)| of a row", square,
                    2 * largest * mean_limit + (2 * K + 8) * U, name)

    def _attention(self, event, name):
        """softmax(...) ones = 1 in every row that sees a key; K products and a softmax's K sums."""
        v = event.inputs["v"]
        ones = np.ones((*v.shape[:2], event.options["heads"]), v.dtype)
        sums = attention(event.inputs["q"], event.inputs["k"], ones, **event.options)
        limit = (3 * v.shape[1] + 8) * float(np.finfo(v.dtype).eps) / 2
        self._worst("attention: |sum of a row of probabilities - 1|", np.abs(sums - 1),
                    np.full(sums.shape, limit), name)

    def _worst(self, what, values, limits, name):
        limits = np.maximum(limits, np.finfo(np.float64).tiny)
        index = np.argmax(values / limits)
        self._note(what, float(values.flat[index]), float(limits.flat[index]), name)

    def _note(self, what, value, limit, name):
        old = self.found.get(what)
        if old is None or value * old[1] > old[0] * limit:
            self.found[what] = value, limit, name
