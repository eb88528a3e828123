"""T5's encoder without torch: buckets, the formula, options and tensors, the callable."""

import json
import math

import numpy as np
import pytest
from model_samples import values
from safetensors.numpy import save_file

import refsd
from refsd.errors import ModelError, UsageError
from refsd.families import sd3
from refsd.models import t5
from refsd.networks import NETWORKS, shapes_of, validate
from refsd.pipelines.t5 import T5Encoder
from refsd.registry import use
from refsd.weights import to_tree
from refsd.weights.checkpoint import load_folder
from refsd.weights.names import canonical_names

SMALL = {"vocab_size": 30, "d_model": 12, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 3,
         "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8,
         "relative_attention_max_distance": 16}
IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 29], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 0]])


def small(dtype="float32", **changes):
    """tree, config: norms around 1, biases large enough to count."""
    config, found = SMALL | changes, {}
    for i, (name, shape) in enumerate(shapes_of("text_encoder_3", config).items()):
        table = len(shape) == 2 and "bias" not in name and "shared" not in name
        array = values(i, *shape, dtype=dtype)
        found[name] = array / math.sqrt(shape[1]) if table else 1 + array / 4 if "norm" in name \
            else array
    return to_tree(found), t5.T5Config.from_json(validate("text_encoder_3", config))


def test_buckets_of_distances():
    """Eight of a distance each, then eight from 8 to 128, twice as far every two, each way."""
    with np.errstate(all="raise"):
        found = t5.buckets(300, count=32, max_distance=128)
    for query, key in [(0, n) for n in range(300)] + [(299, n) for n in range(300)]:
        n = abs(key - query)
        doubled = [k for k in range(8) if n**2 >= 64 * 2**k]  # n >= 8 sqrt(2)^k
        wanted = (8 + doubled[-1] if doubled else n) + (16 if key > query else 0)
        assert found[query, key] == wanted, (query, key)
    assert np.array_equal(t5.buckets(1, count=32, max_distance=128), [[0]])


def test_it_is_the_formula():
    """Scores are not divided by sqrt(d); the first block's biases are all blocks'; (N, L, D)."""
    tree, config = small("float64")

    def rms(x, weight):
        return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)

    def split(x):
        return x.reshape(*x.shape[:2], 3, 4).swapaxes(1, 2)

    x = tree["shared"]["weight"][IDS]
    table = tree["encoder"]["block"][0]["layer"][0]["SelfAttention"]["relative_attention_bias"]
    bias = table["weight"][t5.buckets(12, count=8, max_distance=16)].transpose(2, 0, 1)
    for block in tree["encoder"]["block"]:
        first, second = block["layer"]
        h, parts = rms(x, first["layer_norm"]["weight"]), first["SelfAttention"]
        q, k, v = (split(h @ parts[name]["weight"].T) for name in "qkv")
        scores = np.exp(q @ k.swapaxes(-1, -2) + bias)
        y = scores / scores.sum(-1, keepdims=True) @ v
        x = x + y.swapaxes(1, 2).reshape(2, 12, 12) @ parts["o"]["weight"].T
        h, parts = rms(x, second["layer_norm"]["weight"]), second["DenseReluDense"]
        gate, up = (h @ parts[name]["weight"].T for name in ("wi_0", "wi_1"))
        gelu = gate / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        x = x + (gelu * up) @ parts["wo"]["weight"].T
    wanted = rms(x, tree["encoder"]["final_layer_norm"]["weight"])
    for backend in ("numpy", "numba"):
        with use(backend, exact=True):
            found = t5.t5_encoder(IDS, **tree, config=config)
        # Some 2 x 50 roundings in a row, of 2^-53, of numbers of up to 30.
        assert np.abs(found - wanted).max() < 100 * 2.0**-53 * 30


def test_the_very_weights_arrive_and_every_one_is_used():
    tree, config = small()
    used = set()
    with refsd.watch(lambda op, inputs, *_: used.update(map(id, inputs.values()))):
        t5.t5_encoder(IDS, **tree, config=config)

    def leaves(node):
        for child in node.values() if isinstance(node, dict) else node:
            yield from [id(child)] if isinstance(child, np.ndarray) else leaves(child)

    assert set(leaves(tree)) <= used


def test_the_published_encoder():
    """google/t5-v1_1-xxl's: 32128 embeddings, 24 blocks, one table of biases."""
    shapes = shapes_of("text_encoder_3", sd3.TEXT_ENCODER_3)
    assert sum(map(math.prod, shapes.values())) == 4_762_310_656
    assert len(shapes) == 24 * 9 + 3
    assert [name for name in shapes if "relative" in name] == [
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]


@pytest.mark.parametrize("option, value", [
    ("feed_forward_proj", "relu"), ("feed_forward_proj", "gated-silu"), ("dense_act_fn", "gelu"),
    ("is_gated_act", False), ("is_decoder", True), ("model_type", "umt5"), ("d_model", 0),
    ("d_kv", 4096), ("num_layers", 0), ("num_heads", 1.5), ("layer_norm_epsilon", 0),
    ("relative_attention_num_buckets", 3), ("relative_attention_max_distance", 1),
    ("d_ff", 10**9), ("vocab_size", 0),
])
def test_options_that_are_refused(option, value):
    with pytest.raises(ModelError, match=f"{option} is "):
        validate("text_encoder_3", SMALL | {option: value})


def test_options_that_contradict_each_other():
    with pytest.raises(ModelError, match="max_distance is 8, expected more than 8, a quarter"):
        validate("text_encoder_3", SMALL | {"relative_attention_num_buckets": 32,
                                            "relative_attention_max_distance": 8})


def test_a_config_without_its_kind_of_perceptron_is_of_the_first_t5():
    config = {key: value for key, value in SMALL.items() if key != "feed_forward_proj"}
    with pytest.raises(ModelError, match="feed_forward_proj is 'relu', expected 'gated-gelu'"):
        validate("text_encoder_3", config)


def test_the_embeddings_second_name_is_left_out():
    names = ["shared.weight", "encoder.embed_tokens.weight", "encoder.final_layer_norm.weight"]
    assert list(canonical_names(NETWORKS["text_encoder_3"], names, "x")) == [names[0], names[2]]


def test_it_is_called_with_ids():
    tree, config = small()
    encoder = T5Encoder(tree, config, "numpy")
    assert encoder.rows == 30
    found = encoder(IDS.tolist(), return_dict=False)
    assert found[0] is found.last_hidden_state and found[0].shape == (2, 12, 12)
    assert encoder(np.zeros((0, 3), int)).last_hidden_state.shape == (0, 3, 12)
    assert encoder(np.zeros((1, 700), int)).last_hidden_state.shape == (1, 700, 12)
    for ids, message in (([[30]], r"ids run from 30 to 30; give some of 0 to 29"),
                         ([[-1, 2]], "ids run from -1 to 2"),
                         ([1, 2], r"ids are int64 \(2,\); give integers \(N, L\)"),
                         ([[1.5]], "ids are float"), (np.zeros((1, 0), int), r"\(1, 0\)")):
        with pytest.raises(UsageError, match=message):
            encoder(ids)
    with pytest.raises(UsageError, match="attention_mask"):
        encoder(IDS, attention_mask=np.ones_like(IDS))


def test_float16_is_for_its_tensors_alone(tmp_path):
    """A residual beyond 65504, as the published encoder's: infinite in float16, here a number."""
    folder = tmp_path / "text_encoder_3"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    arrays = {name: values(i, *shape, dtype="float16") * np.float16(1 if "norm" in name else 9)
              for i, (name, shape) in enumerate(shapes_of("text_encoder_3", SMALL).items())}
    save_file(arrays, folder / "model.safetensors")
    for dtype, reads in (("float16", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")):
        part = load_folder(tmp_path, "text_encoder_3", dtype=dtype)
        assert {str(leaf.dtype) for leaf in part.tensors.values()} == {reads}
        table = part.tensors["shared.weight"]
        assert table.nbytes == table.size * (4 if dtype == "float32" else 2)
    seen = []
    for backend in ("numpy", "numba"):
        part = load_folder(tmp_path, "text_encoder_3", dtype="float16")
        with refsd.watch(lambda *event: seen.append(np.abs(event[-1]).max())):
            found = T5Encoder.of(part, backend, True)(IDS).last_hidden_state
        assert found.dtype == np.float32 and np.isfinite(found).all()
    assert max(seen) > 65504
    int8 = load_folder(tmp_path, "text_encoder_3", dtype="float16", weights="int8")
    table = int8.tensors["shared.weight"]
    assert table.dtype == "float32" and table.values.dtype == "int8"
