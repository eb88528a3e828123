"""refsd's ops as PyTorch says them, the way diffusers calls them. Also what OpenVINO converts."""

import torch
from torch.nn import functional as F


def conv2d(x, weight, bias, *, stride, padding, dilation, groups, algorithm):
    if isinstance(padding, (list, tuple)) and isinstance(padding[0], (list, tuple)):
        (top, bottom), (left, right) = padding
        x, padding = F.pad(x, (left, right, top, bottom)), 0
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def linear(x, weight, bias):
    return F.linear(x, weight, bias)


def attention(q, k, v, *, heads, mask, causal):
    N, L, C = q.shape

    def split(t):
        return t.view(N, t.shape[1], heads, t.shape[2] // heads).transpose(1, 2)

    y = F.scaled_dot_product_attention(split(q), split(k), split(v), is_causal=causal)
    return y.transpose(1, 2).reshape(N, L, v.shape[2])


def group_norm(x, weight, bias, *, groups, eps):
    return F.group_norm(x, groups, weight, bias, eps)


def layer_norm(x, weight=None, bias=None, *, eps):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def silu(x):
    return F.silu(x)


def geglu(x):
    hidden, gate = x.chunk(2, dim=-1)
    return hidden * F.gelu(gate)


class Op(torch.nn.Module):
    """One op with its weights inside, as a model has them; called with its activations.

    With `nhwc` pictures come and go as (N, H, W, C).
    """

    def __init__(self, op, arrays, options, nhwc=False):
        super().__init__()
        self.function, self.options, self.nhwc = globals()[op], options, nhwc
        tensors = {k: None if a is None else torch.from_numpy(a) for k, a in arrays.items()}
        self.names = list(tensors)
        self.activations = tuple(tensors[k] for k in self.names if k not in ("weight", "bias"))
        for name in set(self.names) & {"weight", "bias"}:
            self.register_buffer(name, tensors[name])

    def forward(self, *activations):
        given = iter(activations)
        inputs = [getattr(self, k) if k in ("weight", "bias") else next(given) for k in self.names]
        if self.nhwc:
            inputs[0] = inputs[0].permute(0, 3, 1, 2)
        y = self.function(*inputs, **self.options)
        return y.permute(0, 2, 3, 1) if self.nhwc else y
