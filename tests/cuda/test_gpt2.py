"""GPT-2 on the device, in lockstep: the cache, the mask of several tokens with a past, the head."""

import numpy as np
import tiny_gpt2

import refsd


def test_texts_and_pieces_are_numpys(tmp_path):
    """Logits as near to float64 as NumPy's; the same tokens."""
    folder = tiny_gpt2.write(tmp_path, {**tiny_gpt2.CONFIG, "n_layer": 1},
                             weights={name: x for name, x in tiny_gpt2.tensors().items()
                                      if not name.startswith("h.1.")})
    truth = refsd.GPT2.from_pretrained(folder, backend="numpy", dtype="float64")
    host = refsd.GPT2.from_pretrained(folder, backend="numpy")
    device = refsd.GPT2.from_pretrained(folder, backend="cuda")
    ids = np.array([[5, 80, 200, 7, 99]])
    wanted = truth(ids).logits

    past, found = None, []
    for piece in (ids[:, :2], ids[:, 2:4], ids[:, 4:]):
        logits, past = device(piece, past)
        found.append(logits.numpy())
    error = abs(np.concatenate(found, axis=1) - wanted).max()
    assert error < 4 * abs(host(ids).logits - wanted).max()

    found = [model.generate("red", max_new_tokens=2).ids for model in (host, device)]
    assert found[0] == found[1]
