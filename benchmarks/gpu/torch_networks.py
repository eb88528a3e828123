"""The UNet of refsd/models with torch's functions in the place of refsd's ops.

The same composition runs, less what Python does between ops there: so torch is measured without
diffusers, and by the very network that it is compared with.
"""

import importlib.util
import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import torch_ops
from refsd.models import layers as our_layers
from refsd.models import unet as our_unet


def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, algorithm="auto"):
    return torch_ops.conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation,
                            groups=groups, algorithm=algorithm)


def linear(x, weight, bias=None):
    return F.linear(x, weight, bias)


def attention(q, k, v, *, heads, mask=None, causal=False):
    return torch_ops.attention(q, k, v, heads=heads, mask=mask, causal=causal)


def timestep_embedding(timesteps, *, dim, flip_sin_to_cos, freq_shift, dtype):
    half = dim // 2
    steps = torch.arange(half, device=timesteps.device, dtype=torch.float32)
    angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * steps / (half - freq_shift))
    parts = [torch.cos(angles), torch.sin(angles)]
    return torch.cat(parts if flip_sin_to_cos else parts[::-1], 1).to(getattr(torch, dtype))


def to_image(x, *, height, width):
    x = x[:, None] if x.dim() == 2 else x
    return x.transpose(1, 2).unflatten(2, (height, width))


OPS = SimpleNamespace(
    conv2d=conv2d, linear=linear, attention=attention, timestep_embedding=timestep_embedding,
    group_norm=torch_ops.group_norm, layer_norm=torch_ops.layer_norm, silu=F.silu,
    geglu=torch_ops.geglu, add=torch.add, sub=torch.sub, mul=torch.mul,
    concat=lambda arrays, axis: torch.cat(arrays, axis),
    upsample_nearest=lambda x, height, width: F.interpolate(x, (height, width)),
    to_tokens=lambda x: x.flatten(2).transpose(1, 2),
    to_image=to_image)


def _plain_attention(x, context, *, to_q, to_k, to_v, to_out, heads):
    q, k, v = linear(x, **to_q), linear(context, **to_k), linear(context, **to_v)
    return linear(attention(q, k, v, heads=heads), **to_out[0])


def _embed_time(timesteps, condition, *, linear_1, linear_2, dim, config, dtype):
    h = timestep_embedding(timesteps, dim=dim, flip_sin_to_cos=config.flip_sin_to_cos,
                           freq_shift=config.freq_shift, dtype=dtype.removeprefix("torch."))
    return linear(F.silu(linear(h, **linear_1)), **linear_2)


def _copy_of(module: ModuleType, **replaced: Any) -> ModuleType:
    """The module executed anew, some of its names replaced."""
    spec = importlib.util.spec_from_file_location(f"{__name__}.{module.__name__.split('.')[-1]}",
                                                  module.__file__)
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    for name, value in replaced.items():
        setattr(made, name, value)
    return made


_layers = _copy_of(our_layers, F=OPS, attention=_plain_attention)
unet = _copy_of(our_unet, F=OPS, need=lambda *_: None, embed_time=_embed_time, **{
    name: getattr(_layers, name) for name in ("downsample", "resnet", "transformer", "upsample")})


class Step(torch.nn.Module):
    """sample, timesteps, text -> predicted output; the weights are the module's, by their names."""

    def __init__(self, tree: Any, config: Any):
        super().__init__()
        self.config, self.tree = config, self._registered(tree, "w")

    def _registered(self, node, name):
        if isinstance(node, dict):
            return {key: self._registered(item, f"{name}_{key}") for key, item in node.items()}
        if isinstance(node, (list, tuple)):
            return [self._registered(item, f"{name}_{i}") for i, item in enumerate(node)]
        self.register_buffer(name, node)
        return node

    def channels_last(self):
        """All kernels of convolutions in another order, and their places in the tree."""
        self.to(memory_format=torch.channels_last)
        self.tree = self._placed(self.tree, "w")

    def _placed(self, node, name):
        if isinstance(node, dict):
            return {key: self._placed(item, f"{name}_{key}") for key, item in node.items()}
        if isinstance(node, (list, tuple)):
            return [self._placed(item, f"{name}_{i}") for i, item in enumerate(node)]
        return getattr(self, name)

    def forward(self, sample, timesteps, text):
        return unet.unet(sample, timesteps, text, **self.tree, config=self.config)
