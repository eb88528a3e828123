"""T5's encoder against transformers: buckets of distances, hidden states, parameters.

Hidden states are judged as the networks in test_models.py: the root mean square error against
torch's float64 in units of torch's own float32's, and float64 by what float32 is seen to err.
"""

import math

import numpy as np
import pytest
import torch
from bounds import rms
from test_halves import BACKENDS, judge, narrowed
from test_models import WAYS, compare, randomised, tree
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm

from refsd.families import sd3
from refsd.half import HALVES, to_float32
from refsd.models import t5
from refsd.networks import shapes_of
from refsd.networks.t5 import OPTIONS
from refsd.registry import use

VOCABULARY = 301
CONFIGS = {
    "as published, small": {"d_model": 96, "d_ff": 160, "num_layers": 3, "num_heads": 4},
    "odd head count and widths": {"d_model": 45, "d_kv": 12, "d_ff": 77, "num_layers": 2,
                                  "num_heads": 3, "layer_norm_epsilon": 1e-3},
    "one head, one layer, other buckets": {
        "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 1,
        "relative_attention_num_buckets": 10, "relative_attention_max_distance": 20},
    "five heads wider than the model": {"d_model": 40, "d_kv": 24, "d_ff": 50, "num_layers": 2,
                                        "num_heads": 5},
}


def model_of(name, seed=0):
    torch.manual_seed(seed)
    config = T5Config(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu",
                      tie_word_embeddings=False, **CONFIGS[name])
    model = randomised(T5EncoderModel(config))
    with torch.no_grad():  # of the initial size they hardly move a score
        table = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        table.weight *= 2 / table.weight.std()
    return model


def ask(model, ids, dtype):
    found = tree(model, dtype)
    found["encoder"].pop("embed_tokens")  # the same as shared
    return t5.t5_encoder(ids, **found, config=t5.T5Config.from_json(model.config.to_dict()))


def theirs(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(ids)).last_hidden_state.numpy()


def in_double(model):
    """The model in float64, with norms in it too: theirs are computed in float32 whatever it is."""
    for norm in model.double().modules():
        if isinstance(norm, T5LayerNorm):
            norm.forward = lambda x, norm=norm: norm.weight * x * torch.rsqrt(
                x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return model


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states(name, way):
    backend, exact, allowed = WAYS[way]
    model, ids = model_of(name), np.random.default_rng(0).integers(0, VOCABULARY, (2, 77))
    with use(backend, exact=exact):
        narrow, wide = (ask(model, ids, dtype) for dtype in ("float32", "float64"))
    torch32, torch64 = theirs(model, ids), theirs(in_double(model), ids)
    compare(name, allowed, narrow, torch32, torch64, wide, torch64)


@pytest.mark.parametrize("count, most", [(32, 128), (10, 20), (4, 5), (33, 100), (64, 512)])
def test_buckets_are_theirs(count, most):
    """At every distance of texts of up to 512 tokens."""
    place = torch.arange(512)
    expected = T5Attention._relative_position_bucket(
        place[None, :] - place[:, None], num_buckets=count, max_distance=most).numpy()
    found = t5.buckets(512, count=count, max_distance=most)
    assert np.array_equal(found, expected)
    for length in (1, 2, 77, 256):
        assert np.array_equal(t5.buckets(length, count=count, max_distance=most),
                              expected[:length, :length])


SMALL = {"vocab_size": 30, "d_model": 12, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 3,
         "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8}


def test_tensors_and_options_are_theirs():
    """Of the published encoder, made without memory, and of a small one; every option's default."""
    for config in (sd3.TEXT_ENCODER_3, SMALL):
        with torch.device("meta"):
            model = T5EncoderModel(T5Config(**config))
        theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
                  if name != "encoder.embed_tokens.weight"}  # the same as shared
        assert shapes_of("text_encoder_3", config) == theirs
        assert sum(parameter.numel() for parameter in model.parameters()) == sum(
            map(math.prod, theirs.values()))
    defaults = {name: T5Config.__dataclass_fields__[name].default
                for name in vars(T5Config)["__annotations__"] if name != "use_cache"}
    assert len(defaults) > 15 and defaults == {name: OPTIONS[name][0] for name in defaults}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALVES)
def test_hidden_states_in_halves(dtype, backend):
    """Eight nets; theirs with all tensors in the half, also those they would keep in float32."""
    errors, ids = [], np.random.default_rng(0).integers(0, VOCABULARY, (2, 40))
    for seed, name in enumerate(2 * list(CONFIGS)):
        model, found = narrowed(model_of(name, seed), dtype)
        found["encoder"].pop("embed_tokens")
        config = t5.T5Config.from_json(model.config.to_dict())
        with use(backend):
            ours = to_float32(t5.t5_encoder(ids, **found, config=config))
        with torch.no_grad():
            halves = model(torch.from_numpy(ids)).last_hidden_state.double().numpy()
        truth = theirs(in_double(model), ids)
        errors.append((rms(ours - truth), rms(halves - truth)))
    judge(f"T5, {dtype}, {backend}", errors)
