"""A GPT-2 of our captions: it completes a prompt to one that the picture model can draw.

transformers' own class, small, with a byte-level tokenizer of its own in which every word of a
caption is a token. The result is an ordinary folder: config.json, tokenizer.json, and the weights.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel

from training.checkpoints import learning_rate, load, save
from training.grammar import caption

END = "<|endoftext|>"
LENGTH = 64
CAPTIONS = 120_000
WIDTH, LAYERS, HEADS = 96, 4, 4
IGNORED = -100  # what transformers' loss leaves out


def make_tokenizer(texts):
    """Byte-level BPE as GPT-2's: 256 bytes, merges until each word is one token, then the end."""
    found = _byte_level(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=2_000, initial_alphabet=alphabet, show_progress=False))
    learned = json.loads(found.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    names = [*sorted(alphabet), *dict.fromkeys(a + b for a, b in merges), END]
    made = _byte_level(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges))
    made.add_special_tokens([END])
    return made


def _byte_level(model):
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.decoder = decoders.ByteLevel()
    return made


def encode(tokenizer, texts):
    """END, a caption, END, and END as padding.   -> (len(texts), LENGTH + 1) int64"""
    end = tokenizer.token_to_id(END)
    out = np.full((len(texts), LENGTH + 1), end, np.int64)
    for row, encoding in zip(out, tokenizer.encode_batch(texts), strict=True):
        row[1 : 1 + len(encoding.ids)] = encoding.ids
    return out


def build(tokenizer):
    """The model with new weights."""
    torch.manual_seed(0)
    end = tokenizer.token_to_id(END)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS,
        n_head=HEADS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=end,
        eos_token_id=end)
    return GPT2LMHeadModel(config)


def train(folder, *, steps, batch=64, peak=3e-3, report=100):
    """Write prompts.pt; half of the captions begin without END, as prompts do."""
    path = Path(folder) / "prompts.pt"
    texts = [caption(seed) for seed in range(CAPTIONS)]
    tokenizer = make_tokenizer(texts)
    ids, model = encode(tokenizer, texts), build(tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
    clock = time.time()
    for step in range(steps):
        rng = np.random.default_rng([577, step])
        rows = ids[rng.integers(0, len(ids), batch)]
        rows = np.where(rng.random((batch, 1)) < 0.5, rows[:, :-1], rows[:, 1:])
        rows = torch.from_numpy(rows[:, : 1 + (rows != rows[0, -1]).nonzero()[1].max() + 1])
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, peak=peak, warmup=50)
        loss = model(rows, labels=_targets(rows, tokenizer.token_to_id(END))).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % report == 0:
            pace = (time.time() - clock) / report
            print(f"prompts {step + 1}/{steps} loss {loss.item():.4f} {pace:.3f} s/step",
                  flush=True)
            clock = time.time()
    save(path, {"tokenizer": tokenizer.to_str(), "model": model.state_dict()})


def _targets(rows, end):
    """What follows each token; of the padding the first END alone."""
    last = (rows != end).long() * torch.arange(rows.shape[1])
    after = torch.arange(rows.shape[1]) > last.max(dim=1, keepdim=True).values + 1
    return rows.masked_fill(after, IGNORED)


def export(folder, target):
    """Write the bfloat16 model folder `target`."""
    state, target = load(Path(folder) / "prompts.pt"), Path(target)
    tokenizer = Tokenizer.from_str(state["tokenizer"])
    model = build(tokenizer)
    model.load_state_dict(state["model"])
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save(str(target / "tokenizer.json"))
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": LENGTH,
              "add_prefix_space": False, "bos_token": END, "eos_token": END, "unk_token": END}
    text = json.dumps(config, indent=2) + "\n"
    (target / "tokenizer_config.json").write_text(text, encoding="utf-8")
    for path in target.iterdir():
        path.chmod(0o644)
    print(f"{target}: {sum(path.stat().st_size for path in target.iterdir()) / 1e6:.2f} MB")
