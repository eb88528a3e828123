"""The ops of the stand-in port in torch: the same mistakes, another library's arithmetic.

Half formats are torch's own half tensors. The seed draws the order of the input features, which is
the order of sums.
"""

import numpy as np
import torch
from golden_port_ops import Ops
from torch.nn import functional as T

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TorchOps(Ops):
    """Arrays in and out are NumPy's float32, which holds every number of the half formats."""

    def _tensor(self, x):
        return torch.from_numpy(np.ascontiguousarray(x, "f4")).to(DTYPES[self.format])

    def _order(self, count):
        return torch.from_numpy(self.random.permutation(count))

    @staticmethod
    def _array(x):
        return x.float().numpy()

    def linear(self, x, weight, bias=None):
        if self.wrong == "linear_transposed" and weight.shape[0] == weight.shape[1]:
            weight = weight.T
        order = self._order(x.shape[-1])
        bias = None if bias is None or self.wrong == "linear_bias" else self._tensor(bias)
        return self._array(T.linear(self._tensor(x)[..., order], self._tensor(weight)[:, order],
                                    bias))

    def conv(self, x, weight, bias, *, stride=1, padding=0):
        order, x, weight = self._order(x.shape[1]), self._tensor(x), self._tensor(weight)
        if self.wrong == "flipped_kernel":
            weight = weight.flip(2, 3)
        if self.wrong == "padding" and stride == 2:
            x, padding = T.pad(x, (0, 1, 0, 1)), 0
        bias = None if self.wrong == "conv_bias" else self._tensor(bias)
        return self._array(T.conv2d(x[:, order], weight[:, order], bias, stride, padding))

    def group_norm(self, x, weight, bias, *, groups, eps):
        if self.wrong == "group_norm_eps":
            eps = 1e-6 if eps == 1e-5 else 1e-5
        if self.wrong == "groups":
            groups //= 2
        return self._array(T.group_norm(self._tensor(x), groups, self._tensor(weight),
                                        self._tensor(bias), eps))

    def layer_norm(self, x, weight, bias, *, eps):
        if self.wrong == "layer_norm_eps":
            eps = 1e-6
        x, weight, bias = (self._tensor(t) for t in (x, weight, bias))
        if self.wrong == "unbiased_variance":
            spread = torch.sqrt(x.var(-1, keepdim=True, correction=1) + eps)
            return self._array((x - x.mean(-1, keepdim=True)) / spread * weight + bias)
        return self._array(T.layer_norm(x, x.shape[-1:], weight, bias, eps))

    def silu(self, x):
        if self.wrong == "no_silu":
            return x
        function = torch.sigmoid if self.wrong == "sigmoid" else T.silu
        return self._array(function(self._tensor(x)))

    def quick_gelu(self, x):
        if self.wrong == "erf_for_quick":
            return self._array(T.gelu(self._tensor(x)))
        wide = self._tensor(x).float()
        return self._array((wide * torch.sigmoid(1.702 * wide)).to(DTYPES[self.format]))

    def geglu(self, x):
        hidden, gate = self._tensor(x).float().chunk(2, dim=-1)
        if self.wrong == "geglu_halves":
            hidden, gate = gate, hidden
        gate = T.gelu(gate, approximate="tanh" if self.wrong == "tanh_for_erf" else "none")
        return self._array((hidden * gate).to(DTYPES[self.format]))

    def attention(self, q, k, v, *, heads, causal=False):
        (N, L, C), d = q.shape, q.shape[-1] // heads

        def split(x):
            x = self._tensor(x).float()
            if self.wrong == "head_order":
                return x.unflatten(-1, (d, heads)).permute(0, 3, 1, 2)
            return x.unflatten(-1, (heads, d)).transpose(1, 2)

        q, k, v = split(q), split(k), split(v)
        order, scale = self._order(d), 1.0 if self.wrong == "attention_scale" else d**-0.5
        if self.wrong == "softmax_axis" and k.shape[2] == L:
            scores = q @ k.transpose(-1, -2) * scale
            if causal:
                scores = scores.masked_fill(torch.ones(L, L).triu(1).bool(), -torch.inf)
            y = torch.softmax(scores, dim=-2) @ v
        else:
            causal = causal and self.wrong != "no_causal_mask"
            y = T.scaled_dot_product_attention(q[..., order], k[..., order], v, is_causal=causal,
                                               scale=scale)
        return self._array(y.transpose(1, 2).reshape(N, L, C).to(DTYPES[self.format]))
