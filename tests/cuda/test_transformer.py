"""The transformer by the kernels: near the definition, replayed to the bit, without a copy."""

import numpy as np
import plain_kernels
from mmdit_truth import tensors
from op_table import normal

from refsd.leaf import Weight
from refsd.models.layers import Text
from refsd.models.mmdit import MMDiTConfig
from refsd.numba_ops.cuda.array import copies, to_device
from refsd.numba_ops.cuda.weights import place_all
from refsd.pipelines.transformer import Transformer
from refsd.weights import to_tree

CONFIG = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "qk_norm": "rms_norm",
          "caption_projection_dim": 8, "joint_attention_dim": 6, "pooled_projection_dim": 5,
          "in_channels": 3, "out_channels": 3, "pos_embed_max_size": 3,
          "dual_attention_layers": [0]}
TIMES = (999.5, 500.0, 3.25)


def transformer(backend, dtype="float32"):
    leaves = {name: Weight(array.astype(dtype), name) for name, array in tensors(CONFIG).items()}
    if backend == "cuda":
        place_all(leaves)
    return Transformer(to_tree(leaves), MMDiTConfig(2, 4), backend)


def test_steps(monkeypatch):
    """The error beside float64 is at most three times NumPy's: sums in another order."""
    plain_kernels.choose(monkeypatch)
    text, pooled = normal((1, 2, 6), 1), normal((1, 5), 2)
    here, there = transformer("numpy"), transformer("cuda")
    wide = transformer("numpy", "float64")
    states, vector = to_device(text), to_device(pooled)
    kept, moved = Text(states), []
    samples = [to_device(normal((1, 3, 4, 2), i)) for i in range(len(TIMES))]
    for t, sample in zip(TIMES, samples):  # as it is, captured, replayed
        y = there(sample, t, kept, vector)
        moved.append(dict(copies))
    assert moved[0] == moved[1] == moved[2]
    np.testing.assert_array_equal(y.numpy(), there(sample, t, states, vector).numpy())

    truth = wide(sample.numpy(), t, text, pooled)
    error = here(sample.numpy(), t, text, pooled) - truth
    assert np.square(y.numpy() - truth).mean() <= 9 * np.square(error).mean()
