"""How often the model draws what it was asked for: prompts and seeds never used in training."""

import numpy as np
import torch

import refsd
from training import grammar
from training.fidelity import judge
from training.pictures import PROMPTS_FROM, held_out, prompts
from training.raytrace import render
from training.scenes import sample_scene
from training.vae import psnr


def draw(pipe, texts, *, guidance, steps=20, first=0, batch=20):
    """(len(texts), 128, 128, 3) uint8 of a diffusers pipeline; picture i has seed first + i."""
    out = []
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        noise = [torch.Generator().manual_seed(first + start + i) for i in range(len(part))]
        images = pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=noise,
            output_type="np",
        ).images
        out.append((255.0 * images + 0.5).astype(np.uint8))
    return np.concatenate(out)


def share(verdicts):
    """[{name: bool}] -> {name: share of True}, each over the pictures where it was asked."""
    names = dict.fromkeys(name for verdict in verdicts for name in verdict)
    return {n: float(np.mean([v[n] for v in verdicts if n in v])) for n in names}


def check_of_the_check(count=200):
    """The same figures on ray-traced pictures of the prompts: what the check itself gets right."""
    out = {}
    for solids in (1, 2, 3):
        scenes = [sample_scene(PROMPTS_FROM + 100_000 * solids + i, count=solids)
                  for i in range(count)]
        captions = prompts(count, solids)
        out[solids] = share([judge(render(s), c) for s, c in zip(scenes, captions, strict=True)])
    return out


def measure(pipe, *, guidance, counts=None):
    """{number of solids: shares} over held-out prompts."""
    out = {}
    for solids, count in (counts or {1: 100, 2: 100, 3: 50}).items():
        captions = prompts(count, solids)
        pictures = draw(pipe, [caption.text for caption in captions], guidance=guidance)
        verdicts = [judge(p, c) for p, c in zip(pictures, captions, strict=True)]
        out[solids] = share(verdicts)
    return out


def coder(pipe):
    """The autoencoder's mean PSNR in dB over 64 held-out pictures."""
    return psnr(pipe.vae, held_out(64, first=PROMPTS_FROM))


def report(figures):
    """The figures as lines of text."""
    for solids, shares in figures.items():
        words = ", ".join(f"{name} {100 * part:.1f} %" for name, part in shares.items())
        print(f"{solids} solid(s): {words}", flush=True)


def completions(folder, count=1_000):
    """How many completions of held-out beginnings are captions, at several temperatures."""
    model = refsd.GPT2.from_pretrained(folder, backend="numpy")
    for temperature in (0.0, 0.7, 1.0):

        def complete(text, seed, temperature=temperature):
            generator = seed if temperature else None
            return model.generate(text, temperature=temperature, generator=generator).text

        accepted, different = grammar.measure(complete, count)
        print(f"temperature {temperature}: {100 * accepted:.1f} % of {count} completions are "
              f"captions, {100 * different:.1f} % different", flush=True)
