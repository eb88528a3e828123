"""The published models' parameters as diffusers and transformers count them, without memory."""

import diffusers
import pytest
import torch
import transformers
from torch import nn

from refsd.families import published, short_names
from refsd.networks import shapes_of


def theirs(config) -> nn.Module:
    """The class that a config names, of tensors without memory."""
    config = dict(config)
    name = config.pop("_class_name", None)
    with torch.device("meta"):
        if name is not None:
            return getattr(diffusers, name)(**config)
        made = getattr(transformers, config.pop("architectures")[0])
        config.pop("model_type")
        return made(made.config_class(**config))


@pytest.mark.parametrize("name", short_names())
def test_parameters(name):
    """With the table of positions of a transformer, which is a buffer there."""
    _, configs = published(name)
    for part, config in configs.items():
        module = theirs(config)
        known = sum(parameter.numel() for parameter in module.parameters())
        known += sum(buffer.numel() for name, buffer in module.named_buffers()
                     if name.endswith("pos_embed"))
        assert known == sum(torch.Size(shape).numel() for shape in shapes_of(part, config).values())
