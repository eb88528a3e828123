"""GPT-2 without torch: the network by its formula, files, texts, refusals. parity/ has the rest."""

import copy
import json
import math

import numpy as np
import pytest
import tiny_gpt2
from bounds import assert_within, rms
from tiny_gpt2 import CONFIG, END

import refsd
from refsd.contracts import Refusal, Spec
from refsd.errors import ModelError, UsageError
from refsd.models import gpt2
from refsd.models.gpt2 import GPT2Config
from refsd.networks import shapes_of, validate
from refsd.planning import planning
from refsd.random import PhiloxGenerator, TorchGenerator
from refsd.weights import to_tree
from refsd.weights.gpt2 import plan_gpt2

IDS = np.random.default_rng(1).integers(0, END, (2, 11))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_gpt2.write(tmp_path_factory.mktemp("gpt2") / "model")


@pytest.fixture(scope="module", params=["numpy", "numba"])
def model(request, folder):
    if request.param == "numba":
        pytest.importorskip("numba")
    return refsd.GPT2.from_pretrained(folder, backend=request.param)


def by_the_formula(ids, weights, heads, eps):
    """Logits of one text, token by token and head by head, in float64"""
    w = {name: x.astype("f8") for name, x in weights.items()}

    def norm(x, name):
        x = x - x.mean()
        return x / np.sqrt((x * x).mean() + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def affine(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    stream = [w["wte.weight"][i] + w["wpe.weight"][at] for at, i in enumerate(ids)]
    for n in range(CONFIG["n_layer"]):
        here, keys, values = f"h.{n}", [], []
        for at, x in enumerate(stream):
            q, k, v = np.split(affine(norm(x, f"{here}.ln_1"), f"{here}.attn.c_attn"), 3)
            keys.append(k)
            values.append(v)
            found = []
            for part in np.split(np.arange(len(q)), heads):
                scores = [q[part] @ key[part] / math.sqrt(len(part)) for key in keys]
                shares = np.exp(np.array(scores) - max(scores))
                found.append(sum(s * value[part] for s, value in zip(shares, values))
                             / shares.sum())
            x = x + affine(np.concatenate(found), f"{here}.attn.c_proj")
            h = affine(norm(x, f"{here}.ln_2"), f"{here}.mlp.c_fc")
            h = h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))) / 2
            stream[at] = x + affine(h, f"{here}.mlp.c_proj")
    return np.stack([norm(x, "ln_f") @ w["wte.weight"].T for x in stream])


TRUTH = np.stack([by_the_formula(ids, tiny_gpt2.tensors(), CONFIG["n_head"], 1e-5) for ids in IDS])


def test_logits_are_the_formulas(folder):
    """float64: what float32 is seen to err times 2^-29, 16 times, as tests/test_models.py."""
    narrow, wide = (refsd.GPT2.from_pretrained(folder, backend="numpy", dtype=dtype)(IDS).logits
                    for dtype in ("float32", "float64"))
    assert narrow.dtype == "float32" and wide.dtype == "float64"
    error = abs(narrow - wide).max()
    assert 0 < error < 1e-4 * abs(wide).max()
    assert_within(wide, TRUTH, 16 * 2.0**-29 * error)


def test_a_past_changes_nothing(model):
    """In pieces as in one: the errors of the two, and no more.

    Sums of other lengths are added up in another order, so bits may differ.
    """
    whole = rms(model(IDS).logits - TRUTH)
    for pieces in ([1] * 11, [4, 1, 6], [10, 1]):
        past, found, start = None, [], 0
        for count in pieces:
            logits, past = model(IDS[:, start:start + count], past)
            found.append(logits)
            start += count
        assert past[0][0].shape == (2, 11, 24)
        assert rms(np.concatenate(found, axis=1) - TRUTH) < 1.5 * whole


def test_no_token_sees_a_later_one(model):
    changed = IDS.copy()
    changed[:, 7] = 5
    one, other = model(IDS).logits, model(changed).logits
    assert np.array_equal(one[:, :7], other[:, :7])
    assert (one[:, 7:] != other[:, 7:]).any(axis=-1).all()


@pytest.mark.parametrize("dtype, weights, most", [
    ("bfloat16", None, 0.05), ("float16", None, 0.006), ("float32", "int8", 0.03),
    ("int8", None, 0.05), ("float32", "bfloat16", 0.01)])
def test_smaller_weights_and_arithmetic(folder, dtype, weights, most):
    """About the roundings' share of the whole, as docs/weights.md has them of a UNet; run alike."""
    found = refsd.GPT2.from_pretrained(folder, backend="numpy", dtype=dtype, weights=weights)
    error = rms(np.float64(np.asarray(found(IDS).logits, "f4")) - TRUTH) / rms(TRUTH)
    assert 1e-5 < error < most
    assert found.generate("a cat", max_new_tokens=4).ids


# transformers' GPT2LMHeadModel of these published configs; 124,439,808 is the first's known count.
@pytest.mark.parametrize("changes, count", [
    ({}, 124_439_808), ({"n_embd": 1024, "n_layer": 24, "n_head": 16}, 354_823_168),
    ({"n_embd": 1280, "n_layer": 36, "n_head": 20}, 774_030_080),
    ({"n_embd": 1600, "n_layer": 48, "n_head": 25}, 1_557_611_200),
    ({"n_layer": 6}, 81_912_576)])
def test_published_parameter_counts(changes, count):
    assert sum(math.prod(shape) for shape in shapes_of("gpt2", changes).values()) == count


def test_the_ops_of_gpt2_small():
    specs = {name: Spec(shape, "float32") for name, shape in shapes_of("gpt2", {}).items()}
    config = GPT2Config.from_json(validate("gpt2", {}))
    with planning() as plan:
        tree = to_tree(specs)
        hidden, past = gpt2.gpt2(Spec((1, 9), "int64"), **tree, config=config)
        assert gpt2.logits(hidden, wte=tree["wte"]) == Spec((1, 9, 50257), "float32")
        one, past = gpt2.gpt2(Spec((1, 1), "int64"), past, **tree, config=config)
    ops = [planned.op for planned in plan]
    for op, count in {"linear": 2 * 48 + 1, "attention": 24, "layer_norm": 50, "gelu_tanh": 24,
                      "embedding": 4, "concat": 24}.items():
        assert ops.count(op) == count, op
    assert past[11][0] == Spec((1, 10, 768), "float32")
    names = {id(x): name for name, x in specs.items()}
    read = {names.get(id(x)) for planned in plan for x in planned.inputs.values()}
    assert read >= set(names.values())


@pytest.mark.parametrize("ids, past, mask, words", [
    (Spec((1, 33), "int64"), None, None, "0 + 33 tokens, wanted at most 32"),
    (Spec((1, 1), "int64"), 32, None, "32 + 1 tokens, wanted at most 32"),
    (Spec((1, 2), "int64"), 3, None, "a mask is wanted"),
    (Spec((1, 1), "int64"), 3, Spec((1, 4), "float32"), "a mask is wanted"),
    (Spec((1, 2), "int64"), None, Spec((2, 2), "float32"), "a mask is wanted")])
def test_the_network_refuses(ids, past, mask, words):
    tree = to_tree({name: Spec(shape, "float32") for name, shape in shapes_of("gpt2", CONFIG)
                    .items()})
    kept = past and [(Spec((1, past, 24), "float32"),) * 2] * 2
    with planning(), pytest.raises(Refusal, match=words.replace("+", r"\+")):
        gpt2.gpt2(ids, kept, mask, **tree, config=GPT2Config.from_json(validate("gpt2", CONFIG)))


def test_a_leaf_lies_as_the_formula_has_it(folder):
    """Conv1D's weights are turned once: the leaf is what an op reads, and it never changes."""
    found = refsd.GPT2.from_pretrained(folder, backend="numpy").tree["h"][1]["mlp"]["c_fc"]
    assert found["weight"].shape == (40, 24)
    file = tiny_gpt2.tensors()["h.1.mlp.c_fc.weight"]
    assert np.array_equal(found["weight"].dense(), file.T)
    assert found["weight"].dense().flags.c_contiguous


def test_a_table_that_is_the_head_too_is_not_copied(folder):
    """Packed for the head's product its rows do not lie together; a few of them are looked up."""
    pytest.importorskip("numba")
    from refsd.numba_ops.memory import layout_copies

    table = refsd.GPT2.from_pretrained(folder, backend="numba").tree["wte"]["weight"]
    plain = refsd.GPT2.from_pretrained(folder, backend="numpy").tree["wte"]["weight"].dense()
    assert table.dense().strides[1] != table.dtype.itemsize
    before = layout_copies()
    with refsd.use("numba"):
        found = refsd.F.embedding(IDS, table)
    assert layout_copies() == before and np.array_equal(found, plain[IDS])


def altered(**changes):
    weights = tiny_gpt2.tensors()
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del weights[name]
        else:
            weights[name] = value
    return weights


@pytest.mark.parametrize("options, words", [
    ({"config": {**CONFIG, "n_head": 5}}, "n_head is 5, expected a divisor of the width 24"),
    ({"config": {**CONFIG, "add_cross_attention": True}}, "add_cross_attention is True"),
    ({"config": {**CONFIG, "scale_attn_by_inverse_layer_idx": True}}, "inverse_layer_idx is True"),
    ({"config": {**CONFIG, "scale_attn_weights": False}}, "scale_attn_weights is False"),
    ({"config": {**CONFIG, "activation_function": "relu"}}, "activation_function is 'relu'"),
    ({"config": {**CONFIG, "model_type": "gpt_neo"}}, "model_type is 'gpt_neo'"),
    ({"config": {**CONFIG, "architectures": ["BertModel"]}}, "the class is 'BertModel'"),
    ({"config": {**CONFIG, "eos_token_id": -1}}, "eos_token_id is -1, expected an integer"),
    ({"config": {**CONFIG, "n_layer": 3}, "weights": tiny_gpt2.tensors()}, "12 tensors missing"),
    ({"weights": altered(h__0__ln_1__bias=None)}, "1 tensor missing: h.0.ln_1.bias"),
    ({"weights": altered(wte__weight=np.zeros((9, 24), "f4"))}, "wte.weight is (9, 24), expected"),
    ({"weights": altered(h__0__mlp__c_fc__weight=np.zeros((40, 24), "f4"))},
     "c_fc.weight is (24, 40), expected (40, 24)"),
    ({"config": {**CONFIG, "tie_word_embeddings": False}, "weights": tiny_gpt2.tensors()},
     "1 tensor missing: lm_head.weight"),
    ({"files": {"generation_config.json": {"eos_token_id": "x"}}}, "eos_token_id is 'x'"),
    ({"files": {"tokenizer.json": {"model": {"type": "Unigram"}}}}, "expected BPE with ''"),
    ({"files": {"tokenizer.json": {"model": {"vocab": {}, "merges": []}}}}, "the vocabulary"),
    ({"files": {"tokenizer.json": {"model": {"vocab": {"a": 999}, "merges": []}}}},
     "ids go up to 999, the model has 261"),
    ({"files": {"tokenizer.json": {"model": {"vocab": {"a": 0}, "merges": [["b", "c"]]}}}},
     "not a usable vocabulary"),
    ({"files": {"tokenizer.json": "{", "tokenizer_config.json": {"tokenizer_class": "T"}}},
     "not a usable tokenizer"),
])
def test_a_folder_that_is_refused(tmp_path, options, words):
    tiny_gpt2.write(tmp_path / "x", **options)
    with pytest.raises(ModelError) as caught:
        refsd.GPT2.from_pretrained(tmp_path / "x", backend="numpy")
    assert words in str(caught.value) and str(caught.value).isprintable()


def test_paths_that_are_refused(tmp_path, folder):
    for path in (tmp_path / "none", folder / "none.safetensors"):
        with pytest.raises(UsageError):
            refsd.GPT2.from_pretrained(path)
    with pytest.raises(UsageError, match="no such file or folder"):
        plan_gpt2(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        refsd.GPT2.from_pretrained(tmp_path / "empty")
    with pytest.raises(ModelError, match="no part has weights of the variant 'fp16'"):
        refsd.GPT2.from_pretrained(folder, variant="fp16")
    with pytest.raises(UsageError, match="force is 1"):
        refsd.GPT2.from_pretrained(folder, force=1)
    with pytest.raises(UsageError, match="did you mean backend"):
        refsd.GPT2.from_pretrained(folder, backen="numpy")


def test_a_file_is_read_with_what_lies_beside_it(folder):
    one = refsd.GPT2.from_pretrained(folder / "model.safetensors", backend="numpy")
    assert np.array_equal(one(IDS).logits,
                          refsd.GPT2.from_pretrained(folder, backend="numpy")(IDS).logits)


@pytest.mark.parametrize("said, ends", [
    ({"eos_token_id": [7, 9]}, (7, 9)), ({"eos_token_id": 3}, (3,)), ({}, ()), (None, (END,))])
def test_what_ends_a_text(tmp_path, said, ends):
    """generation_config.json decides where there is one, as in transformers."""
    files = {} if said is None else {"generation_config.json": said}
    tiny_gpt2.write(tmp_path, files=files)
    assert refsd.GPT2.from_pretrained(tmp_path, backend="numpy").stop_ids == ends


@pytest.mark.parametrize("ids, words", [
    ([1, 2], "int64 (2,)"), ([[0.5]], "float"), ([[]], "(1, 0)"), ([[END + 1]], "0 to 260"),
    ([[-1]], "-1"), ([[0] * 33], "0 + 33 tokens, the model has 32 positions")])
def test_ids_that_are_refused(model, ids, words):
    with pytest.raises(UsageError) as caught:
        model(ids)
    assert words in str(caught.value)


# Of generate and of stream, which refuses before its first token is asked for.
@pytest.mark.parametrize("options, words", [
    ({"prompt": 3}, "prompt: got int"), ({"prompt": "\ud800"}, "lone surrogate"),
    ({"prompt": "x" * 32}, "prompt has 32 tokens, the model has 32 positions; give one of at most "
                           "31"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"max_new_tokens": 32}, "after the prompt's 1 tokens the model has room for 31"),
    ({"temperature": -1}, "temperature is -1"), ({"temperature": math.nan}, "temperature is nan"),
    ({"temperature": 1, "top_k": 0}, "top_k is 0"), ({"temperature": 1, "top_p": 2}, "top_p is 2"),
    ({"top_k": 3}, "top_k is given, and temperature is 0"),
    ({"top_p": 0.5}, "top_p is given, and temperature is 0"),
    ({"generator": 3}, "generator is given, and temperature is 0"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ({"stop": ""}, "stop has ''"), ({"stop": ["a", 3]}, "stop has 3"),
    ({"stop_ids": [END + 1]}, f"stop_ids is {END + 1}"), ({"stop_ids": "a"}, "stop_ids is 'a'"),
    ({"temperature": 1, "generator": "x"}, "generator is 'x'"),
    ({"temperature": 1, "generator": PhiloxGenerator(1)}, "draws no tokens"),
])
def test_requests_that_are_refused(model, options, words):
    for method in (model.generate, model.stream):
        with pytest.raises(UsageError) as caught:
            method(**{"prompt": "a", **options})
        assert words in str(caught.value)


def test_a_text_is_its_tokens(model):
    """The stream is what generate gives; greedy by the logits; as long as there is room."""
    found = model.generate("red cat")
    ids, expected = model.tokenizer("red cat"), []
    assert len(ids) == 3
    while len(ids) < 32 and END not in ids:
        ids.append(int(model([ids]).logits[0, -1].argmax()))
        expected.append(ids[-1])
    assert found.ids == expected and found.seed is None
    assert found.text == "red cat" + found.continuation
    assert found.continuation == model.tokenizer.decode(expected)
    tokens = [*model.stream("red cat")]
    assert [token.id for token in tokens] == expected
    assert "".join(token.text for token in tokens) == found.continuation
    assert [token.stopped for token in tokens] == [""] * (len(tokens) - 1) + [found.stopped]
    assert all(token.scores.argmax() == token.id for token in tokens)
    assert model.generate("red cat", max_new_tokens=3).ids == expected[:3]
    for stop in ([expected[4]], expected[4]):
        assert model.generate("red cat", stop_ids=stop).ids == (
            expected[:expected.index(expected[4]) + 1])


def test_an_empty_prompt_is_the_beginning_of_a_text(model):
    assert model.generate("", max_new_tokens=2).ids == model.generate(
        "<|endoftext|>", max_new_tokens=2).ids
    without = copy.copy(model)
    without.tokenizer = copy.copy(model.tokenizer)
    without.tokenizer.bos_token_id = None
    with pytest.raises(UsageError, match="prompt is empty"):
        without.generate("")


def test_a_seed_decides(model):
    drawn = {"max_new_tokens": 20, "temperature": 1.5, "stop_ids": ()}
    one = model.generate("a", generator=5, **drawn)
    assert one.seed == 5 and one.ids == model.generate("a", generator=5, **drawn).ids
    assert one.ids != model.generate("a", generator=6, **drawn).ids
    assert one.ids == model.generate("a", generator=TorchGenerator(5), **drawn).ids
    new = model.generate("a", **drawn)
    assert 0 <= new.seed < 2**32
    assert new.ids == model.generate("a", generator=new.seed, **drawn).ids != one.ids


def test_scores_that_are_not_finite_stop_it(tmp_path):
    weights = altered(ln_f__bias=np.full(24, np.nan, "f4"))
    tiny_gpt2.write(tmp_path, weights=weights)
    with pytest.raises(ModelError, match="the scores of the next token are not finite"):
        refsd.GPT2.from_pretrained(tmp_path, backend="numpy").generate("a")


def test_no_room_in_memory(folder, monkeypatch):
    monkeypatch.setattr("refsd.weights.memory.available_bytes", lambda: 1000)
    with pytest.raises(OSError, match="the weights need"):
        refsd.GPT2.from_pretrained(folder, backend="numpy")
    assert refsd.GPT2.from_pretrained(folder, backend="numpy", force=True)


def test_json_of_a_tokenizer_may_have_bookkeeping(tmp_path):
    """added_tokens with ids that are theirs; one at another place is refused."""
    content = json.loads((tiny_gpt2.write(tmp_path / "a") / "tokenizer.json").read_text())
    token = {"id": END, "content": "<|endoftext|>", "special": True}
    for at, words in ((END, None), (END + 5, "claims id 265, its place is 260")):
        files = {"tokenizer.json": {**content, "added_tokens": [{**token, "id": at}]}}
        place = tiny_gpt2.write(tmp_path / str(at), files=files)
        if words is None:
            assert refsd.GPT2.from_pretrained(place, backend="numpy").tokenizer("a") == [
                refsd.GPT2.from_pretrained(tmp_path / "a", backend="numpy").tokenizer("a")[0]]
        else:
            with pytest.raises(ModelError, match=words):
                refsd.GPT2.from_pretrained(place, backend="numpy")
