"""What adds a ControlNet's residuals up, and a table with more rows, on arrays of the device."""

from types import SimpleNamespace

import numpy as np

from refsd.backends import find_backend
from refsd.leaf import Weight
from refsd.models.layers import Text
from refsd.numba_ops.cuda.array import to_device
from refsd.pipelines import textual_inversion
from refsd.pipelines.control import Active, Control
from refsd.pipelines.controlnet import Hint
from refsd.registry import use


def array(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def test_residuals_of_two_in_guess_mode_leave_the_first_half_alone():
    texts, asked = array(1, 2, 3, 4), []

    def net(x, timestep, text, hint, scale, guess_mode):
        asked.append((x.numpy(), text.states.numpy(), hint.states.shape))
        return [x], x

    hints = [Hint(to_device(array(seed, count, 3, 2, 2))) for seed, count in ((2, 1), (3, 1))]
    x = array(4, 2, 3, 2, 2)
    with use("cuda"):
        control = Control([Active(net, hint, 1.0, 0.0, 1.0) for hint in hints], batch=1, steps=1,
                          guess_mode=True)
        found = control(to_device(x), 7, Text(to_device(texts)), 0)
    for y in (found["mid_block_additional_residual"], *found["down_block_additional_residuals"]):
        assert np.array_equal(y.numpy(), np.concatenate([0 * x[:1], 2 * x[1:]]))
    assert len(asked) == 2
    for one, text, _ in asked:
        assert np.array_equal(one, x[1:]) and np.array_equal(text, texts[1:])


def test_a_table_on_the_device_grows_and_is_given_back():
    placed = {"embeddings": Weight(array(1, 5, 4), "text_encoder.embeddings")}
    find_backend("cuda").place(placed)
    before = placed["embeddings"]
    encoder = SimpleNamespace(tree={"embeddings": {"token_embedding": {"weight": before}}})
    tokenizer = SimpleNamespace(learn=lambda counts: {word: [5, 6] for word in counts})
    pipe = SimpleNamespace(text_encoder=encoder, tokenizer=tokenizer, backend="cuda",
                           require=lambda what: None)
    textual_inversion.load(pipe, {"<new>": array(2, 2, 4)})
    table = encoder.tree["embeddings"]["token_embedding"]["weight"]
    assert np.array_equal(table.numpy(), np.concatenate([array(1, 5, 4), array(2, 2, 4)]))
    textual_inversion.unload(pipe)
    assert encoder.tree["embeddings"]["token_embedding"]["weight"] is before
