"""The ops of the stand-in port: bare NumPy, sums one term after the other, mistakes on request.

Nothing here comes from refsd, so that two equal answers are not the same code twice. `Ops` works in
a number format as an accelerator would: weights and results are rounded to it, sums are float32
(float64 in float64) and run in an order that the seed draws. `formats` has others for the stages
whose names begin so.
`mistake` names the one mistake that is made, in the stages whose names begin with `where` (see
golden_mistakes). An `eager` attention stores its scores and its weights on the way.
"""

import math

import numpy as np


def to_bfloat16(x):
    """The nearest numbers of 8 significant bits, halves to even."""
    bits = np.ascontiguousarray(x, "f4").view("u4").astype("u8")
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return (kept << 16).astype("u4").view("f4").reshape(np.shape(x))


ROUND = {
    "float32": lambda x: np.asarray(x, "f4"),
    "float16": lambda x: np.asarray(x).astype("f2").astype("f4"),
    "bfloat16": to_bfloat16,
    "float64": lambda x: np.asarray(x, "f8"),
}


def schedule(config, steps):
    """For each step: t, alpha_bar at t and where it goes to; leading spacing as DDIM has it."""
    train = config.get("num_train_timesteps", 1000)
    start, end = (math.sqrt(config[key]) for key in ("beta_start", "beta_end"))
    beta = ((np.linspace(start, end, train).astype("f4")) ** 2).astype("f4")
    alpha_bar = np.cumprod((1 - beta).astype("f8")).astype("f4")
    ratio = train // steps
    times = [ratio * i + config["steps_offset"] for i in range(steps)][::-1]
    return [(t, alpha_bar[t], alpha_bar[max(t - ratio, 0)]) for t in times]


class Ops:
    """Ops on float32 arrays that hold numbers of the format, on float64 arrays in float64."""

    def __init__(self, *, format="float32", formats=(), seed=0, mistake=None, where="",
                 eager=False):
        self.format, self.mistake, self.where, self.wrong = format, mistake, where, None
        self.formats, self.eager = {**dict(formats), "": format}, eager
        self.random = np.random.default_rng(seed)

    def enter(self, stage):
        """What follows belongs to this stage."""
        self.wrong = self.mistake if stage.startswith(self.where) else None
        self.format = next(f for start, f in self.formats.items() if stage.startswith(start))

    @property
    def kind(self):
        """What sums, constants and arrays are in."""
        return np.float64 if self.format == "float64" else np.float32

    def round(self, x):
        return ROUND[self.format](x)

    def _sum(self, x):
        """Along the last axis, one after the other, in a drawn order."""
        order = self.random.permutation(x.shape[-1])
        return np.cumsum(x[..., order], axis=-1, dtype=self.kind)[..., -1]

    def _product(self, a, b):
        """(..., M, K) times (..., K, N), the K products added in a drawn order."""
        y = np.zeros(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + (a.shape[-2], b.shape[-1]),
                     self.kind)
        for k in self.random.permutation(a.shape[-1]):
            y += a[..., :, k, None] * b[..., k, None, :]
        return y

    def linear(self, x, weight, bias=None):
        if self.wrong == "linear_transposed" and weight.shape[0] == weight.shape[1]:
            weight = weight.T
        y = self._product(x, self.round(weight).T)
        if bias is not None and self.wrong != "linear_bias":
            y += self.round(bias)
        return self.round(y)

    def conv(self, x, weight, bias, *, stride=1, padding=0):
        weight = self.round(weight)
        if weight.ndim == 2:  # a projection of each pixel that is stored as a matrix
            weight = weight[:, :, None, None]
        before = after = padding
        if self.wrong == "padding" and stride == 2:
            before, after = 0, 1
        if self.wrong == "flipped_kernel":
            weight = weight[:, :, ::-1, ::-1]
        x = np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)))
        (N, C, H, W), (O, _, kh, kw) = x.shape, weight.shape
        h, w = (H - kh) // stride + 1, (W - kw) // stride + 1
        y = np.zeros((N, O, h, w), self.kind)
        for k in self.random.permutation(C * kh * kw):
            c, u, v = k // (kh * kw), k // kw % kh, k % kw
            seen = x[:, c, u:u + stride * h:stride, v:v + stride * w:stride]
            y += seen[:, None] * weight[:, c, u, v][:, None, None]
        if self.wrong != "conv_bias":
            y += self.round(bias)[:, None, None]
        return self.round(y)

    def group_norm(self, x, weight, bias, *, groups, eps):
        if self.wrong == "group_norm_eps":
            eps = 1e-6 if eps == 1e-5 else 1e-5
        if self.wrong == "groups":
            groups //= 2
        y = self._standard(x.reshape(len(x), groups, -1), eps).reshape(x.shape)
        weight, bias = self.round(weight)[:, None, None], self.round(bias)[:, None, None]
        return self.round(y * weight + bias)

    def layer_norm(self, x, weight, bias, *, eps):
        if self.wrong == "layer_norm_eps":
            eps = 1e-6
        return self.round(self._standard(x, eps) * self.round(weight) + self.round(bias))

    def _standard(self, x, eps):
        count = self.kind(x.shape[-1])
        centred = x - (self._sum(x) / count)[..., None]
        if self.wrong == "unbiased_variance":
            count -= 1
        variance = (self._sum(centred * centred) / count)[..., None]
        return centred / np.sqrt(variance + self.kind(eps))

    def silu(self, x):
        if self.wrong == "no_silu":
            return x
        y = self._sigmoid(x)
        return self.round(y if self.wrong == "sigmoid" else x * y)

    def quick_gelu(self, x):
        if self.wrong == "erf_for_quick":
            return self.round(self._gelu(x))
        return self.round(x * self._sigmoid(self.kind(1.702) * x))

    def gelu(self, x):
        return self.round(self._gelu(x))

    def _sigmoid(self, x):
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-x))

    def _gelu(self, x):
        if self.wrong == "tanh_for_erf":
            inner = self.kind(math.sqrt(2 / math.pi)) * (x + self.kind(0.044715) * x * x * x)
            return self.kind(0.5) * x * (1 + np.tanh(inner))
        erf = np.array([math.erf(v) for v in (x * self.kind(math.sqrt(0.5))).ravel().tolist()])
        return self.kind(0.5) * x * (1 + erf.astype(self.kind).reshape(x.shape))

    def geglu(self, x):
        half = x.shape[-1] // 2
        hidden, gate = x[..., :half], x[..., half:]
        if self.wrong == "geglu_halves":
            hidden, gate = gate, hidden
        return self.round(hidden * self._gelu(gate))

    def attention(self, q, k, v, *, heads, causal=False):
        (N, L, C), S = q.shape, k.shape[1]

        def split(x):
            if self.wrong == "head_order":
                return x.reshape(N, x.shape[1], C // heads, heads).transpose(0, 3, 1, 2)
            return x.reshape(N, x.shape[1], heads, C // heads).transpose(0, 2, 1, 3)

        q, k, v = split(q), split(k), split(v)
        scores = self._product(q, k.swapaxes(-1, -2))
        if self.wrong != "attention_scale":
            scores *= self.kind(1 / math.sqrt(C // heads))
        if self.eager:
            scores = self.round(scores)
        if causal and self.wrong != "no_causal_mask":
            scores = np.where(np.arange(S) > np.arange(L)[:, None], self.kind(-np.inf), scores)
        shares = self._softmax(scores)
        shares = self.round(shares) if self.eager else shares
        return self.round(self._product(shares, v).transpose(0, 2, 1, 3).reshape(N, L, C))

    def _softmax(self, x):
        if self.wrong == "softmax_axis" and x.shape[-1] == x.shape[-2]:
            return self._softmax_last(x.swapaxes(-1, -2)).swapaxes(-1, -2)
        return self._softmax_last(x)

    def _softmax_last(self, x):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / self._sum(e)[..., None]

    def embedding(self, ids, weight):
        if self.wrong == "token_off_by_one":
            ids = (ids + 1) % len(weight)
        return self.round(weight)[ids]

    def timestep_embedding(self, timesteps, dim, *, cosines_first=True, shift=0):
        """Frequencies and angles are float32, as the checkpoints were trained."""
        half = dim // 2
        exponents = np.arange(half, dtype="f4") * np.float32(-math.log(10000))
        frequencies = np.exp((exponents / np.float32(half - shift)).astype("f8")).astype("f4")
        angles = (timesteps.astype("f4")[:, None] * frequencies).astype(self.kind)
        parts = [np.cos(angles), np.sin(angles)]
        if cosines_first == (self.wrong == "sin_cos_order"):
            parts.reverse()
        return self.round(np.concatenate([*parts, np.zeros((len(angles), dim % 2))], axis=1))

    def upsample(self, x, height, width):
        """Each pixel becomes two by two, the last ones less where the size is odd."""
        late = self.wrong == "half_pixel"
        rows, columns = (np.minimum((np.arange(n) + late) // 2, before - 1)
                         for n, before in zip((height, width), x.shape[2:]))
        return x[:, :, rows[:, None], columns]

    def add(self, a, b):
        return self.round(a + b)

    def residual(self, h, x):
        """h + x, where the mistake is to leave out the x that went around the block."""
        return h if self.wrong == "no_residual" else self.add(h, x)

    def concat(self, arrays, axis):
        if self.wrong == "concat_order" and axis == 1:
            arrays = arrays[::-1]
        return np.concatenate(arrays, axis=axis)

    def to_tokens(self, x):
        return x.reshape(*x.shape[:2], -1).swapaxes(1, 2)

    def to_image(self, x, height, width):
        return x.swapaxes(1, 2).reshape(len(x), x.shape[2], height, width)

    def guide(self, away, towards, scale):
        if self.wrong == "guidance_swapped":
            away, towards = towards, away
        if self.wrong == "guidance_scale":
            scale += 1
        return self.round(away + self.kind(scale) * (towards - away))

    def ddim(self, x, eps, alpha_bar, alpha_bar_next):
        """x_t -> x_s by way of x_0."""
        a, b = float(alpha_bar), float(alpha_bar_next)
        x0 = (x - self.kind(math.sqrt(1 - a)) * eps) / self.kind(math.sqrt(a))
        return self.round(self.kind(math.sqrt(b)) * x0 + self.kind(math.sqrt(1 - b)) * eps)

    def unscale(self, x, factor):
        return x if self.wrong == "no_scaling_factor" else self.round(x / self.kind(factor))

    def first(self, x):
        return x[:1]

    def to_picture(self, x):
        """(N, 3, H, W) in [-1, 1] -> (N, H, W, 3) in [0, 1]"""
        y = np.clip(x * self.kind(0.5) + self.kind(0.5), 0, 1)
        return self.round(y.transpose(0, 2, 3, 1))

    def to_bytes(self, x):
        y = x * self.kind(255)
        with np.errstate(invalid="ignore"):  # a NaN becomes some byte
            return (y if self.wrong == "truncated_bytes" else np.rint(y)).astype("u1")
