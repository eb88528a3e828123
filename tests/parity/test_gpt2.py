"""GPT-2 against transformers: logits, greedy texts, processed scores, sampled texts, token ids.

Logits are judged as the networks in test_models.py: the root mean square error against torch's
float64 in units of torch's own float32's, and float64 by what float32 is seen to err.
"""

import numpy as np
import pytest
import torch
from test_models import WAYS, compare, randomised
from transformers import GPT2Config, GPT2LMHeadModel

from refsd.models import gpt2
from refsd.registry import use
from refsd.weights import to_tree

CONFIGS = {
    "small": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 96},
    "odd widths, own inner": {"n_embd": 75, "n_layer": 2, "n_head": 5, "n_inner": 111,
                              "n_positions": 70, "layer_norm_epsilon": 1e-3,
                              "activation_function": "gelu"},
    "one head, one layer, a head of its own": {"n_embd": 33, "n_layer": 1, "n_head": 1,
                                               "n_positions": 64, "tie_word_embeddings": False},
}
VOCABULARY = 301


@pytest.fixture(params=WAYS)
def way(request):
    """backend, exact, and how many times torch's own error is allowed"""
    return WAYS[request.param]


def model_of(name):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0,
                        initializer_range=0.3, **CONFIGS[name])
    return randomised(GPT2LMHeadModel(config))


def tree(model, dtype):
    """The checkpoint's tree as refsd.networks.gpt2 gives it: Conv1D's weights turned."""
    state = {name.removeprefix("transformer."): tensor.detach().numpy().astype(dtype)
             for name, tensor in model.state_dict().items()}
    return to_tree({name: x.T.copy() if ".c_" in name and x.ndim == 2 else x
                    for name, x in state.items()})


def ask(model, ids, dtype, past=None, mask=None):
    found, config = tree(model, dtype), gpt2.GPT2Config.from_json(model.config.to_dict())
    head = found.pop("lm_head", None)
    if model.config.tie_word_embeddings:
        head = None
    hidden, present = gpt2.gpt2(ids, past, mask, **found, config=config)
    return gpt2.logits(hidden, wte=found["wte"], lm_head=head), present


def theirs(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name, way):
    backend, exact, allowed = way
    model, ids = model_of(name), np.random.default_rng(0).integers(0, VOCABULARY, (2, 50))
    with use(backend, exact=exact):
        narrow, wide = (ask(model, ids, dtype)[0] for dtype in ("float32", "float64"))
    torch32, torch64 = theirs(model, ids), theirs(model.double(), ids)
    compare(name, allowed, narrow, torch32, torch64, wide, torch64)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_with_a_past(name, way):
    """Ids in pieces of 1, 20, 1 and 28: as exact as in one piece, and as torch."""
    backend, exact, allowed = way
    model, ids = model_of(name), np.random.default_rng(0).integers(0, VOCABULARY, (2, 50))

    def ours(dtype):
        found, past, start = [], None, 0
        for count in (1, 20, 1, 28):
            mask = np.where(np.tri(count, start + count, start), 0, -np.inf).astype(dtype)
            part = ids[:, start:start + count]
            one, past = ask(model, part, dtype, past, mask if start and count > 1 else None)
            found.append(one)
            start += count
        return np.concatenate(found, axis=1)

    with use(backend, exact=exact):
        narrow, wide = ours("float32"), ours("float64")
    torch32, torch64 = theirs(model, ids), theirs(model.double(), ids)
    compare(name, allowed, narrow, torch32, torch64, wide, torch64)
