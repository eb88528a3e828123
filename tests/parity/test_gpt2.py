"""GPT-2 against transformers: logits, greedy texts, processed scores, sampled texts, token ids.

Logits are judged as the networks in test_models.py: the root mean square error against torch's
float64 in units of torch's own float32's, and float64 by what float32 is seen to err.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bounds import rms
from safetensors.torch import save_file
from test_models import WAYS, compare, randomised
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from refsd import threads
from refsd.models import gpt2
from refsd.pipelines.gpt2 import GPT2
from refsd.pipelines.sampling import Sampling
from refsd.random import TorchGenerator
from refsd.registry import use
from refsd.text.gpt2 import GPT2Tokenizer
from refsd.weights import to_tree

CONFIGS = {
    "small": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 96},
    "odd widths, own inner": {"n_embd": 75, "n_layer": 2, "n_head": 5, "n_inner": 111,
                              "n_positions": 70, "layer_norm_epsilon": 1e-3,
                              "activation_function": "gelu"},
    "one head, one layer, a head of its own": {"n_embd": 33, "n_layer": 1, "n_head": 1,
                                               "n_positions": 64, "tie_word_embeddings": False},
}
VOCABULARY, END = 301, "<|endoftext|>"


@pytest.fixture(params=WAYS)
def way(request):
    """backend, exact, and how many times torch's own error is allowed"""
    return WAYS[request.param]


def model_of(name):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0,
                        initializer_range=0.3, **CONFIGS[name])
    return randomised(GPT2LMHeadModel(config))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A folder with a byte-level BPE of VOCABULARY tokens, the last one ends a text."""
    folder = tmp_path_factory.mktemp("words")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train([str(Path(__file__).parents[2] / "README.md")], trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    made.add_special_tokens([END])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread(torch_threads):
    """These models are too small for two."""
    torch.set_num_threads(1)
    with threads(1):
        yield


@pytest.fixture(scope="module")
def pairs(words, tmp_path_factory):
    """name -> a model of transformers', and refsd's of its folder on each backend"""
    found = {}
    for name in CONFIGS:
        model, folder = model_of(name), tmp_path_factory.mktemp("model")
        model.save_pretrained(folder)
        for file in words.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        found[name] = model, {backend: GPT2.from_pretrained(folder, backend=backend)
                              for backend in ("numpy", "numba")}
    return found


def continued(model, ids, **options):
    """What transformers continues, as the ids after those of the prompt"""
    with torch.no_grad():
        found = model.generate(torch.tensor([ids]), pad_token_id=0, **options)
    return found[0, len(ids):].tolist()


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


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("name", CONFIGS)
def test_fifty_greedy_tokens(pairs, name, penalty):
    model, ours = pairs[name]
    for prompt in ("A", " of 3 \u00e9"):
        ids = ours["numpy"].tokenizer(prompt)
        wanted = continued(model, ids, max_new_tokens=50, do_sample=False,
                           repetition_penalty=penalty)
        for one in ours.values():
            found = one.generate(prompt, max_new_tokens=50, repetition_penalty=penalty,
                                 stop_ids=[0])
            assert found.ids == wanted, prompt
            assert found.stopped == ("end" if wanted[-1] == 0 else "length")


CUTS = [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 5}, {"temperature": 1.5, "top_p": 0.9},
        {"temperature": 2.0, "top_k": 40, "top_p": 0.5, "repetition_penalty": 1.2},
        {"temperature": 0.3, "top_k": 1}, {"temperature": 5.0, "top_p": 0.0},
        {"temperature": 3.0, "top_k": 1000, "top_p": 1.0, "repetition_penalty": 0.8}]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_scores_are_processed_to_the_bit(cut):
    """transformers' own processors of a call of generate, on logits with ties and a -infinity."""
    model = model_of("small")
    wanted = {"top_k": 0, **cut, "do_sample": True}
    config, _ = model._prepare_generation_config(None, **wanted, max_new_tokens=5)
    processors = model._get_logits_processor(config, input_ids_seq_length=9)
    sampling = Sampling.of(**{"top_k": None, "top_p": None, "repetition_penalty": 1.0, **cut})
    rng = np.random.default_rng(0)
    for scale in (0.1, 1, 20):
        logits = (scale * rng.standard_normal(VOCABULARY)).astype("float32")
        logits[3:9], logits[20] = logits[2], -np.inf
        ids = rng.integers(0, VOCABULARY, 9)
        theirs = processors(torch.from_numpy(ids)[None], torch.from_numpy(logits)[None])[0].numpy()
        ours = sampling.scores(logits, ids)
        assert ours.dtype == "float32" and ours.tobytes() == theirs.tobytes()
        assert np.isinf(ours).any()


def test_tokens_are_drawn_as_torch_draws_them():
    for seed in range(40):
        size = (1, 5, 300, 50257)[seed % 4]
        logits = 3 * np.random.default_rng(seed).standard_normal(size).astype("float32")
        logits[::7] = -np.inf if size > 1 else 0
        theirs, ours = torch.Generator().manual_seed(seed), TorchGenerator(seed)
        share = torch.softmax(torch.from_numpy(logits), -1)
        for _ in range(5):
            wanted = torch.multinomial(share, 1, generator=theirs).item()
            assert Sampling(temperature=1.0).choose(logits, ours) == wanted
        assert np.array_equal(ours.get_state(), theirs.get_state().numpy())


@pytest.mark.parametrize("seed, cut", [*enumerate(CUTS)], ids=str)
def test_sampled_texts(pairs, seed, cut):
    """A seed's tokens are those of generate after torch.manual_seed."""
    model, ours = pairs[[*CONFIGS][seed % 3]]
    ids = ours["numpy"].tokenizer("the")
    torch.manual_seed(seed)
    wanted = continued(model, ids, max_new_tokens=30, do_sample=True, **{"top_k": 0, **cut})
    for one in ours.values():
        found = one.generate("the", max_new_tokens=30, stop_ids=[0], generator=seed, **cut)
        assert found.ids == wanted and found.seed == seed


def test_a_generator_of_torchs_is_drawn_from(pairs):
    one, theirs = pairs["small"][1]["numpy"], torch.Generator().manual_seed(3)
    found = one.generate("the", max_new_tokens=5, stop_ids=[], generator=theirs, temperature=2.0)
    expected = TorchGenerator(3)
    assert found.ids == one.generate("the", max_new_tokens=5, stop_ids=[], generator=expected,
                                     temperature=2.0).ids
    assert np.array_equal(theirs.get_state().numpy(), expected.get_state())


TEXTS = ["", "a", " a", "Hello, world!", "  two  spaces\n\ttab\r\n", "\u00e9\u4f60\U0001f600 x",
         f"one{END}two", f"{END} ", "it's we'll I'd 12345 x_y\x00\x7f", "A" * 300, "\ufffd"]


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json", "vocab.json, framed",
                                  "prefix space", "framed", "post-processor", "added",
                                  "another class"])
def test_token_ids(words, tmp_path, form):
    found = json.loads((words / "tokenizer.json").read_text())
    config = {"tokenizer_class": "GPT2Tokenizer"}
    if form.startswith("vocab.json"):
        tokens = found["model"]["vocab"] | {END: VOCABULARY - 1}
        (tmp_path / "vocab.json").write_text(json.dumps(tokens))
        lines = ["#version: 0.2", *map(" ".join, found["model"]["merges"]), ""]
        (tmp_path / "merges.txt").write_text("\n".join(lines))
    if form == "prefix space":
        config["add_prefix_space"] = True
    if form.endswith("framed"):
        config |= {"add_bos_token": True, "add_eos_token": True}
    if form == "post-processor":
        bos = {"id": END, "ids": [VOCABULARY - 1], "tokens": [END]}
        first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        begin = {"SpecialToken": {"id": END, "type_id": 0}}
        found["post_processor"] = {"type": "TemplateProcessing", "single": [begin, first],
                                   "pair": [first, second], "special_tokens": {END: bos}}
    if form == "added":
        new = {"content": "<new>", "special": False, "lstrip": False, "rstrip": False,
               "single_word": False, "normalized": True}
        config["added_tokens_decoder"] = {
            str(VOCABULARY - 1): {**new, "content": END, "special": True, "normalized": False},
            str(VOCABULARY): new}
    if form == "another class":
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
        found["normalizer"] = {"type": "Lowercase"}
    if not form.startswith("vocab.json"):
        (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), GPT2Tokenizer.from_folder(tmp_path)
    assert ours.eos_token_id == theirs.eos_token_id == VOCABULARY - 1
    for text in [*TEXTS, "x<new>y"]:
        ids = theirs(text)["input_ids"]
        assert ours(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True,
                                                 clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("form", ["bare", "masks", "head alone", "head beside", "shards"])
def test_files_as_they_are_in_the_wild(words, tmp_path, form):
    """Names without "transformer.", old buffers, a head that is saved for the table or beside it"""
    model = model_of("small")
    state = {name: x.clone() for name, x in model.state_dict().items()
             if name != "lm_head.weight"}
    if form == "bare":
        state = {name.removeprefix("transformer."): x for name, x in state.items()}
    if form == "masks":
        for i in range(4):
            state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 96, 96).tril()
            state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    if form == "head alone":
        state["lm_head.weight"] = state.pop("transformer.wte.weight")
    if form == "head beside":
        state["lm_head.weight"] = 2 * state["transformer.wte.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(tmp_path)
    if form == "shards":
        (tmp_path / "model.safetensors").unlink()
        model.save_pretrained(tmp_path, max_shard_size="200KB")
        assert len([*tmp_path.glob("*.safetensors")]) > 1
    for file in words.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, 20))
    ours = GPT2.from_pretrained(tmp_path, backend="numpy")(ids).logits
    torch32, torch64 = theirs(model, ids), theirs(model.double(), ids)
    assert rms(ours - torch64) <= 1.5 * rms(torch32 - torch64)
