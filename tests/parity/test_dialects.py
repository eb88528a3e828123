"""Dialects against their rules written out with torch, transformers and diffusers' parts.

What A1111 and ComfyUI compute is typed here from their sources (see docs/dialects.md) for prompts
that are taken apart by hand; the models, samplers and decoding are diffusers'.
"""

import diffusers
import numpy as np
import pytest
import torch
from test_pipelines import SD1, SIZE, folder  # noqa: F401  a fixture

import refsd
from refsd import schedulers
from refsd.random import TorchGenerator

STEPS, SCALE = 4, 7.5


@pytest.fixture(scope="module")
def loaded(folder, tmp_path_factory):  # noqa: F811
    """Both pipelines. The text encoder's last norm is not that of a fresh model, whose vectors have
    a mean of 0, which nothing can restore."""
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    numbers, norm = torch.Generator().manual_seed(1), theirs.text_encoder.final_layer_norm
    for weight in (norm.weight, norm.bias):
        weight.data = 0.5 + torch.rand(weight.shape, generator=numbers)
    place = tmp_path_factory.mktemp("dialects")
    theirs.save_pretrained(place)
    return theirs, refsd.StableDiffusionPipeline.from_pretrained(place, backend="numpy")


@pytest.fixture
def pair(loaded):
    """With DDIM; ours speaks diffusers again afterwards."""
    theirs, ours = loaded
    for pipe, package in ((theirs, diffusers), (ours, schedulers)):
        pipe.scheduler = package.DDIMScheduler(**SD1, clip_sample=False)
    yield theirs, ours
    ours.dialect = "diffusers"


def chunk(pipe, fragments):
    """bos, the tokens of each fragment alone, eos to the end; ids and weights of 77."""
    ids, weights = [49406], [1.0]
    for text, weight in fragments:
        found = pipe.tokenizer(text, add_special_tokens=False).input_ids
        ids, weights = ids + found, weights + [weight] * len(found)
    missing = 77 - len(ids)
    assert missing >= 1
    return torch.tensor([ids + [49407] * missing]), torch.tensor([weights + [1.0] * missing])


def encode(pipe, ids, skip=0):
    """The last hidden state, or an earlier one, under the final norm.   (N, 77) -> (N, 77, D)"""
    hidden = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-1 - skip]
    return pipe.text_encoder.final_layer_norm(hidden)


@torch.no_grad()
def original(pipe, *chunks, norm=True, skip=0):
    """A1111: each chunk's vectors times their weights, and its mean restored."""
    found = []
    for fragments in chunks:
        ids, weights = chunk(pipe, fragments)
        z = encode(pipe, ids, skip)
        weighed = z * weights[..., None]
        found.append(weighed * (z.mean() / weighed.mean()) if norm else weighed)
    return torch.cat(found, dim=1)


@torch.no_grad()
def lerped(pipe, *chunks):
    """ComfyUI: from the empty prompt's vectors to the text's, as far as the weights say."""
    empty = encode(pipe, chunk(pipe, [])[0])
    found = []
    for fragments in chunks:
        ids, weights = chunk(pipe, fragments)
        found.append((encode(pipe, ids) - empty) * weights[..., None] + empty)
    return torch.cat(found, dim=1)


def ask(pipe, x, t, text):
    return pipe.unet(x, t, encoder_hidden_states=text).sample


@torch.no_grad()
def drawn(pipe, predict, seed=7, noise=None):
    """A picture (H, W, 3) in [0, 1] by the pipeline's sampler and VAE; predict(x, t, i)."""
    generator = torch.Generator().manual_seed(seed)
    pipe.scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=generator) * \
        pipe.scheduler.init_noise_sigma
    noise = {} if noise is None else {"generator": noise}
    for i, t in enumerate(pipe.scheduler.timesteps):
        predicted = predict(pipe.scheduler.scale_model_input(x, t), t, i)
        x = pipe.scheduler.step(predicted, t, x, **noise).prev_sample
    decoded = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    return (decoded / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy()


def guided(pipe, texts, negative):
    """eps(negative) + sum of w s (eps(text) - eps(negative)); texts(i) gives (text, w)s of call i.
    """
    def predict(x, t, i):
        away = ask(pipe, x, t, negative)
        total = away
        for text, weight in texts(i):
            total = total + weight * SCALE * (ask(pipe, x, t, text) - away)
        return total
    return predict


def same(pipe, dialect, wanted, prompt, negative="", **options):
    """Every grey level within one, 99.9 % of them identical, both rounded alike."""
    pipe.dialect, pipe.make_generator = dialect, TorchGenerator
    got = pipe(prompt, negative_prompt=negative, num_inference_steps=STEPS, guidance_scale=SCALE,
               height=SIZE, width=SIZE, generator=7, output_type="np", **options).images[0]
    apart = np.abs(np.round(got * 255) - np.round(wanted * 255))
    assert apart.max() <= 1 and (apart == 0).mean() >= 0.999, (apart.max(), (apart == 0).mean())


@pytest.mark.parametrize("dialect, options", [
    ("a1111", {}), ("a1111,emphasis=no-norm", {"norm": False}), ("comfy", None)])
def test_weights(pair, dialect, options):
    theirs, ours = pair
    prompt = r"an ((astro)naut:1.3), (blue \(sky\)) , snow"
    if options is None:
        parts = [("an ", 1.0), ("astro", 1.3 * 1.1), ("naut", 1.3), (", ", 1.0),
                 ("blue (sky)", 1.1), (" , snow", 1.0)]
        positive, negative = lerped(theirs, parts), lerped(theirs, [("bad", 0.5)])
    else:
        parts = [("an ", 1.0), ("astro", 1.1 * 1.3), ("naut", 1.3), (", ", 1.0),
                 ("blue (sky)", 1.1), (" , snow", 1.0)]
        positive = original(theirs, parts, **options)
        negative = original(theirs, [("bad", 0.5)], **options)
    wanted = drawn(theirs, guided(theirs, lambda i: [(positive, 1)], negative))
    same(ours, dialect, wanted, prompt, "(bad:0.5)")


def test_chunks_and_lengths(pair):
    """75 tokens of which a comma is near the end, BREAK, and a shorter negative prompt."""
    theirs, ours = pair
    prompt = "red " * 60 + ", " + "big " * 20 + "BREAK (hat:1.2)"
    positive = original(theirs, [("red " * 60 + ",", 1.0)], [("big " * 20, 1.0)], [("hat", 1.2)])
    negative = original(theirs, [("bad", 1.0)])
    assert positive.shape[1] == 3 * 77
    wanted = drawn(theirs, guided(theirs, lambda i: [(positive, 1)], negative))
    same(ours, "a1111", wanted, prompt, "bad")
    padded = torch.cat([negative, *[original(theirs, [])] * 2], dim=1)
    wanted = drawn(theirs, guided(theirs, lambda i: [(positive, 1)], padded))
    same(ours, "a1111,pad=yes", wanted, prompt, "bad")


def test_comfyui_parts_long_runs_only(pair):
    theirs, ours = pair
    prompt = "red " * 72 + "(big red hat house:1.2) " + "cat " * 9
    positive = lerped(theirs, [("red " * 72, 1.0)], [("big red hat house", 1.2), ("cat " * 9, 1.0)])
    wanted = drawn(theirs, guided(theirs, lambda i: [(positive, 1)], lerped(theirs, [])))
    same(ours, "comfy", wanted, prompt)


def test_editing_and_prompts_joined_by_and(pair):
    theirs, ours = pair
    red, blue, dog = (original(theirs, [(text, 1.0)])
                      for text in ("a red hat", "a blue hat", "dog"))
    turns = [original(theirs, [(text, 1.0)]) for text in ("bad", "ugly")]

    def predict(x, t, i):
        # [red:blue:0.5] of 4 steps changes after step 2, which is the third call
        first = red if i <= 2 else blue
        negative = turns[0 if i <= 1 else (i - 1) % 2]
        return guided(theirs, lambda _: [(first, 1), (dog, 0.6)], negative)(x, t, i)

    wanted = drawn(theirs, predict)
    same(ours, "a1111", wanted, "a [red:blue:0.5] hat AND dog :0.6", "[bad|ugly]")


def test_the_mean_is_over_all_that_editing_makes(pair):
    theirs, ours = pair
    with torch.no_grad():
        ids, weights = zip(*(chunk(theirs, [(text, 1.0), *more]) for text, more in (
            ("a hat", []), ("a hat ", [("house", 1.5)]))))
        z, w = encode(theirs, torch.cat(ids)), torch.cat(weights)[..., None]
        texts = z * w * (z.mean() / (z * w).mean())
    wanted = drawn(theirs, guided(
        theirs, lambda i: [(texts[int(i > 2)][None], 1)], original(theirs, [])))
    same(ours, "a1111", wanted, "a hat [(house:1.5):2]")


def test_clip_skip_is_for_both(pair):
    theirs, ours = pair
    positive, negative = (original(theirs, [(text, 1.0)], skip=1) for text in ("a hat", "bad"))
    wanted = drawn(theirs, guided(theirs, lambda i: [(positive, 1)], negative))
    same(ours, "a1111", wanted, "a hat", "bad", clip_skip=1)
    same(ours, "comfy", wanted, "a hat", "bad", clip_skip=1)


@pytest.mark.parametrize("dialect, later", [("a1111,ensd=31337", 31344), ("comfy", 8)])
def test_noise_of_ancestral_steps(pair, dialect, later):
    theirs, ours = pair
    for pipe, package in ((theirs, diffusers), (ours, schedulers)):
        pipe.scheduler = package.EulerAncestralDiscreteScheduler(**SD1)
    text = original(theirs, [("a hat", 1.0)])
    wanted = drawn(theirs, guided(theirs, lambda i: [(text, 1)], original(theirs, [])),
                   noise=torch.Generator().manual_seed(later))
    same(ours, dialect, wanted, "a hat")
