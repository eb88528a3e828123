"""GPT-2: a transformer that reads from left to right and says what comes next.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; names as in
transformers' GPT2LMHeadModel, without its "transformer.". Its Conv1D holds weights as (in, out);
here they are (out, in), as everywhere: refsd.weights.gpt2 turns them at loading.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refsd import functional as F
from refsd.contracts import need

ACTIVATIONS = {"gelu_new": F.gelu_tanh, "gelu_pytorch_tanh": F.gelu_tanh, "gelu": F.gelu}


@dataclass(frozen=True)
class GPT2Config:
    """A GPT-2 (transformers' GPT2Config)."""

    heads: int
    activation: str
    eps: float
    max_length: int

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "GPT2Config":
        return cls(
            heads=config["n_head"],
            activation=config["activation_function"],
            eps=config["layer_norm_epsilon"],
            max_length=config["n_positions"],
        )


def gpt2(input_ids, past=None, mask=None, *, wte, wpe, h, ln_f, config):
    """The text as vectors, and what later tokens ask of it.   ids (N, L) -> (N, L, D), present

    past: the present of the P tokens before these, a pair of keys and values (N, P, D) for each
    layer; P + L <= max_length. Where L > 1 tokens have a past, mask (L, P + L) is 0 where a token
    sees another, the past and the tokens up to itself, else -infinity. present is of P + L tokens.
    """
    count, before = input_ids.shape[1], past[0][0].shape[1] if past else 0
    need(before + count <= config.max_length, "gpt2", f"{before} + {count} tokens, wanted at most "
         f"{config.max_length}")
    need((mask is None) == (count == 1 or not past), "gpt2",
         f"a mask is wanted for several tokens with a past, and only there: {count} tokens, "
         f"{before} before them")
    positions = np.arange(before, before + count)
    hidden = F.add(F.embedding(input_ids, **wte), F.embedding(positions, **wpe))

    present = []
    for block, kept in zip(h, past or [None] * len(h)):
        hidden, kept = layer(hidden, kept, mask, **block, config=config)
        present.append(kept)
    return F.layer_norm(hidden, **ln_f, eps=config.eps), present


def layer(x, past, mask, *, ln_1, attn, ln_2, mlp, config):
    """Pre-norm attention and perceptron, each a residual.   (N, L, D) -> (N, L, D), (k, v)"""
    h, present = attention(F.layer_norm(x, **ln_1, eps=config.eps), past, mask, **attn,
                           heads=config.heads)
    x = F.add(x, h)

    h = F.linear(F.layer_norm(x, **ln_2, eps=config.eps), **mlp["c_fc"])
    return F.add(x, F.linear(ACTIVATIONS[config.activation](h), **mlp["c_proj"])), present


def attention(x, past, mask, *, c_attn, c_proj, heads):
    """Each token asks those before it and itself.   (N, L, D) -> (N, L, D), (k, v) (N, P + L, D)"""
    qkv, width = F.linear(x, **c_attn), x.shape[-1]
    q, k, v = (F.slice(qkv, axis=2, start=i * width, stop=(i + 1) * width) for i in range(3))
    if past:
        k, v = (F.concat([kept, new], axis=1) for kept, new in zip(past, (k, v)))
    y = F.attention(q, k, v, mask=mask, heads=heads, causal=not past)
    return F.linear(y, **c_proj), (k, v)


def logits(hidden, *, wte, lm_head=None):
    """How likely each word of the vocabulary is next, as a logarithm.   (N, L, D) -> (N, L, V)

    By the embeddings themselves, unless the checkpoint has a head of its own.
    """
    return F.linear(hidden, **(lm_head or wte))
