"""CLIP's text encoder: a transformer that reads from left to right.

Source: Radford et al. 2021; names as in transformers' CLIPTextModel.
"""

import numpy as np

from refsd import functional as F
from refsd.contracts import need
from refsd.options import is_int

ACTIVATIONS = {"quick_gelu": F.quick_gelu, "gelu": F.gelu}


def clip_text(input_ids, *, embeddings, encoder, final_layer_norm, config, layers_skipped=0,
              states=None):
    """The text as vectors.   ids (N, L), L <= 77 -> (N, L, D)

    The last layer's output under the final norm; `layers_skipped` leaves that many layers out
    before the final norm (diffusers' clip_skip). To a list `states` is appended what each layer
    reads, and what the last one gives: some models take states[-2], which no norm has seen.
    """
    layers = encoder["layers"]
    need(is_int(layers_skipped) and 0 <= layers_skipped <= len(layers), "clip_text",
         f"layers_skipped is {layers_skipped!r}, wanted an integer from 0 to {len(layers)}")
    for hidden in hidden_states(input_ids, layers[:len(layers) - layers_skipped], **embeddings,
                                config=config):
        if states is not None:
            states.append(hidden)
    return F.layer_norm(hidden, **final_layer_norm, eps=config.eps)


def hidden_states(ids, layers, *, config, **embeddings):
    """What the first layer reads, and what each layer gives.   (N, L) -> (N, L, D) again and again
    """
    hidden = embed(ids, **embeddings)
    yield hidden
    for layer in layers:
        hidden = encoder_layer(hidden, **layer, config=config)
        yield hidden


def clip_text_pooled(input_ids, *, text_projection=None, config, **trunk):
    """The text as vectors, and as one.   ids (N, L) -> (N, L, D), (N, D) or (N, P) if projected

    trunk is what clip_text takes. The projection is to where CLIP has pictures too.
    """
    hidden = clip_text(input_ids, **trunk, config=config)
    pooled = pool(hidden, input_ids, config=config)
    return hidden, pooled if text_projection is None else F.linear(pooled, **text_projection)


def embed(ids, *, token_embedding, position_embedding):
    """What a token is plus where it stands.   (N, L) -> (N, L, D)"""
    positions = np.arange(ids.shape[1])
    return F.add(F.embedding(ids, **token_embedding), F.embedding(positions, **position_embedding))


def encoder_layer(x, *, layer_norm1, self_attn, layer_norm2, mlp, config):
    """Pre-norm attention and perceptron, each a residual.   (N, L, D) -> (N, L, D)"""
    h = F.layer_norm(x, **layer_norm1, eps=config.eps)
    x = F.add(x, self_attention(h, **self_attn, heads=config.heads))

    h = F.layer_norm(x, **layer_norm2, eps=config.eps)
    h = ACTIVATIONS[config.activation](F.linear(h, **mlp["fc1"]))
    return F.add(x, F.linear(h, **mlp["fc2"]))


def self_attention(x, *, q_proj, k_proj, v_proj, out_proj, heads):
    """Each token asks the tokens up to itself.   (N, L, D) -> (N, L, D)"""
    q, k, v = (F.linear(x, **proj) for proj in (q_proj, k_proj, v_proj))
    return F.linear(F.attention(q, k, v, heads=heads, causal=True), **out_proj)


def pool(last_hidden_state, input_ids, *, config):
    """The vector at the end-of-text token, which has seen the whole text.   (N, L, D) -> (N, D)

    Old configurations carry eos_token_id 2 whatever the vocabulary: there the end is at the largest
    id. Otherwise it is at the first eos_token_id (at 0 if there is none, as in transformers).
    """
    if config.eos_token_id == 2:
        ends = np.argmax(input_ids, axis=1)
    else:
        ends = np.argmax(input_ids == config.eos_token_id, axis=1)
    return F.gather(last_hidden_state, ends)
