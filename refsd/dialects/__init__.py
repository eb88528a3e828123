"""Dialects: what diffusers, A1111 and ComfyUI make of the same prompt, seed and numbers.

A dialect is a record of choices that the stages are given. docs/dialects.md has the table of them
with its sources, names.py finds one by its name.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """How a tool reads and draws.

    syntax: whose prompts: "plain", "a1111" or "comfy". emphasis: what weights do ("lerp" is
    ComfyUI's). old_editing: A1111's first rule of when words change. pad: the shorter of the prompt
    and the negative prompt is filled up with empty chunks. skip_both: clip skip is for the negative
    prompt too. guide: at which scales the model is asked for the negative prompt, "above-one",
    "not-one" or "always". rng: whose noise a seed makes. own_seed: picture i of a batch has a
    generator of its own, of seed + i. step_seed: what is added to the seed for the noise that
    samplers add in their steps, from new generators; None goes on with the first. step_rng: whose
    noise that is instead, with the seed itself. nearest: bytes are rounded, not cut. posterior:
    what a picture's latents are, a "sample" from the generator or the "mean". strength: how many of
    n steps are made from a picture: "share" is int(n s), "one-more", or "longer", n of int(n / s).
    """

    name: str
    syntax: str
    emphasis: str = "none"
    old_editing: bool = False
    pad: bool = False
    skip_both: bool = True
    guide: str = "always"
    rng: str = "torch-cpu"
    own_seed: bool = False
    step_seed: int | None = None
    step_rng: str | None = None
    nearest: bool = False
    posterior: str = "mean"
    strength: str = "share"

    @property
    def reseeds(self) -> bool:
        """Whether the steps' noise has generators of its own."""
        return self.step_seed is not None or self.step_rng is not None

    def guides(self, scale: float) -> bool:
        """Whether the model is asked for the negative prompt too."""
        return self.guide == "always" or scale > 1 or self.guide == "not-one" and scale != 1


DIFFUSERS = Dialect("diffusers", "plain", skip_both=False, guide="above-one", nearest=True,
                    posterior="sample")
A1111 = Dialect("a1111", "a1111", emphasis="original", rng="cuda", own_seed=True,
                strength="one-more")
COMFY = Dialect("comfy", "comfy", emphasis="lerp", guide="not-one", step_seed=1,
                strength="longer")
DIALECTS = {dialect.name: dialect for dialect in (DIFFUSERS, A1111, COMFY)}
