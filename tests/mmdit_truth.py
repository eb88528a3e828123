"""SD 3's transformer once more, plainly: NumPy in float64 on the flat names, head by head.

As in Esser et al. 2024, figure 2, and appendix; which third of which linear layer is what, and the
order of the two streams, is that of the checkpoints. Sinusoids are the op's, which has a truth.
"""

import math

import numpy as np

from refsd.families import sd3
from refsd.networks import shapes_of
from refsd.ops.embedding import timestep_embedding

# The published configs.
MEDIUM_3 = sd3.TRANSFORMER
MEDIUM_35 = {**MEDIUM_3, "qk_norm": "rms_norm", "pos_embed_max_size": 384,
             "dual_attention_layers": list(range(13))}
LARGE_35 = {**MEDIUM_3, "qk_norm": "rms_norm", "num_layers": 38, "num_attention_heads": 38,
            "caption_projection_dim": 2432}


def tensors(config, seed=0):
    """Random weights; norms near 1, and biases, so that gates and shifts are not small."""
    random = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes_of("transformer", config).items():
        array = random.standard_normal(shape) / math.sqrt(shape[-1] if len(shape) > 1 else 4)
        norm = len(shape) == 1 and name.endswith("weight")
        found[name] = (array + norm).astype("float32")
    return found


def mmdit(w, x, t, text, pooled, *, heads, patch, layers, skipped=()):
    """w: name -> array. x (N, C, H, W), t (N,), text (N, S, E), pooled (N, P)"""
    w = {name: np.asarray(array, "f8") for name, array in w.items()}
    return np.stack([_one(w, *each, heads, patch, layers, skipped)
                     for each in zip(*(np.asarray(a, "f8") for a in (x, t, text, pooled)))])


def _linear(w, name, x):
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def _silu(x):
    return x / (1 + np.exp(-x))


def _gelu(x):
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def _one(w, x, t, text, pooled, heads, p, layers, skipped):
    C, H, W = x.shape
    rows, columns = H // p, W // p
    kernel = w["pos_embed.proj.weight"].reshape(-1, C * p * p)
    table = w["pos_embed.pos_embed"][0]
    most = math.isqrt(len(table))
    top, left = (most - rows) // 2, (most - columns) // 2
    tokens = [kernel @ x[:, i * p:i * p + p, j * p:j * p + p].ravel() + w["pos_embed.proj.bias"]
              + table[(top + i) * most + left + j] for i in range(rows) for j in range(columns)]
    tokens = np.array(tokens)

    time = timestep_embedding(np.array([t]), dim=256, flip_sin_to_cos=True, freq_shift=0,
                              dtype="float64")[0]
    told = sum(_linear(w, f"time_text_embed.{part}.linear_2", _silu(_linear(
        w, f"time_text_embed.{part}.linear_1", vector)))
        for part, vector in (("timestep_embedder", time), ("text_embedder", pooled)))
    told, text = _silu(told), _linear(w, "context_embedder", text)

    for i in range(layers):
        if i not in skipped:
            tokens, text = _block(w, f"transformer_blocks.{i}.", tokens, text, told, heads)
    scale, shift = np.split(_linear(w, "norm_out.linear", told), 2)
    patches = _linear(w, "proj_out", _norm(tokens) * (1 + scale) + shift)
    y = np.empty((patches.shape[1] // p**2, H, W))
    for i in range(rows):
        for j in range(columns):
            pixels = patches[i * columns + j].reshape(p, p, -1)
            y[:, i * p:i * p + p, j * p:j * p + p] = np.moveaxis(pixels, -1, 0)
    return y


def _block(w, at, x, text, told, heads):
    vectors = np.split(_linear(w, at + "norm1.linear", told),
                       9 if at + "attn2.to_q.weight" in w else 6)
    last = at + "attn.to_add_out.weight" not in w
    of_text = np.split(_linear(w, at + "norm1_context.linear", told), 2 if last else 6)
    scale, shift = of_text[:2] if last else of_text[1::-1]
    normal, width = _norm(x), len(x)

    both = [np.concatenate(pair) for pair in zip(
        _qkv(w, at + "attn.", normal * (1 + vectors[1]) + vectors[0], heads, "to_{}", "norm_{}"),
        _qkv(w, at + "attn.", _norm(text) * (1 + scale) + shift, heads, "add_{}_proj",
             "norm_added_{}"))]
    joint = _attend(*both, heads)
    h = x + vectors[2] * _linear(w, at + "attn.to_out.0", joint[:width])
    if len(vectors) == 9:
        own = _qkv(w, at + "attn2.", normal * (1 + vectors[7]) + vectors[6], heads, "to_{}",
                   "norm_{}")
        h = h + vectors[8] * _linear(w, at + "attn2.to_out.0", _attend(*own, heads))
    x = _feed(w, at + "ff.net.", h, *vectors[3:6])
    if last:
        return x, None
    text = text + of_text[2] * _linear(w, at + "attn.to_add_out", joint[width:])
    return x, _feed(w, at + "ff_context.net.", text, *of_text[3:])


def _feed(w, at, x, shift, scale, gate):
    inner = _gelu(_linear(w, at + "0.proj", _norm(x) * (1 + scale) + shift))
    return x + gate * _linear(w, at + "2", inner)


def _qkv(w, at, x, heads, layer, norm):
    found = []
    for part in "qkv":
        y = _linear(w, at + layer.format(part), x)
        name = at + norm.format(part) + ".weight"
        if name in w:
            y = np.concatenate([h / np.sqrt((h * h).mean(-1, keepdims=True) + 1e-6) * w[name]
                                for h in np.split(y, heads, axis=1)], axis=1)
        found.append(y)
    return found


def _attend(q, k, v, heads):
    parts = []
    for one, two, three in zip(*(np.split(a, heads, axis=1) for a in (q, k, v))):
        shares = np.exp(one @ two.T / math.sqrt(one.shape[1]))
        parts.append(shares / shares.sum(axis=1, keepdims=True) @ three)
    return np.concatenate(parts, axis=1)
