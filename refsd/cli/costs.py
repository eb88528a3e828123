"""What pictures cost beside one another: how they are dealt before the first is drawn."""

from dataclasses import replace
from functools import cache
from typing import Any

from refsd.cli import hires, pictures_in
from refsd.cli.recipe import Recipe


class Costs:
    """FLOPs of drawing with a pipeline, known from shapes: the same on every machine and backend.

    They are those of the definitions, as `refsd plan` counts them. Texts are left out, which take
    little and are the same for all, and so is what is on the way from a picture to latents.
    """

    def __init__(self, pipe: Any):
        self.pipe = pipe
        self._planned = cache(self._plan)

    def of(self, recipe: Recipe) -> int:
        """Of a picture: the denoiser's calls, with both passes of two, and decoding."""
        first = self.calling(recipe, pictures_in.calls(self.pipe, recipe.pictures, recipe.steps))
        if not recipe.hires:
            return first
        larger = replace(recipe, width=recipe.hires["width"], height=recipe.hires["height"])
        return first + self.calling(larger, hires.calls(self.pipe, recipe.hires))

    def calling(self, request: Any, calls: int) -> int:
        """Of so many calls of the denoiser in a request's or a recipe's size, and decoding."""
        step, decode = self.sized(request.width, request.height, request.cfg_scale)
        return calls * step + decode

    def sized(self, width: int, height: int, cfg_scale: float) -> tuple[int, int]:
        """Of one call of the denoiser, and of decoding."""
        guided = cfg_scale > 1 and self.pipe.denoiser.time_cond_dim is None
        return self._planned(width, height, self.pipe.copies if guided else 1)

    def _plan(self, width, height, copies):
        from refsd.pipelines.planned import denoiser_of, plan_networks, sized

        networks = self.pipe.networks
        plans = plan_networks(networks, sized(networks, copies=copies, width=width, height=height))
        return plans[denoiser_of(networks)[0]].flops, plans["decode"].flops
