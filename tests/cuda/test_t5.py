"""T5's encoder by the kernels: near the definition, ids and buckets from the host."""

import numpy as np
import plain_kernels
from op_table import normal

from refsd.leaf import Weight
from refsd.models.t5 import T5Config
from refsd.networks import shapes_of, validate
from refsd.numba_ops.cuda.weights import place_all
from refsd.pipelines.t5 import T5Encoder
from refsd.weights import to_tree

CONFIG = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2,
          "feed_forward_proj": "gated-gelu"}


def encoder(backend, dtype="float32"):
    leaves = {name: Weight(normal(shape, i).astype(dtype), name)
              for i, (name, shape) in enumerate(shapes_of("text_encoder_3", CONFIG).items())}
    if backend == "cuda":
        place_all(leaves)
    return T5Encoder(to_tree(leaves), T5Config.from_json(validate("text_encoder_3", CONFIG)),
                     backend)


def test_states(monkeypatch):
    """The error beside float64 is at most three times NumPy's: sums in another order."""
    plain_kernels.choose(monkeypatch)
    ids = np.array([[3, 1, 4, 1, 5], [19, 0, 1, 0, 0]])
    found = encoder("cuda")(ids).last_hidden_state.numpy()
    truth = encoder("numpy", "float64")(ids).last_hidden_state
    error = encoder("numpy")(ids).last_hidden_state - truth
    assert found.dtype == np.float32
    assert np.square(found - truth).mean() <= 9 * np.square(error).mean()
