"""Skip-layer guidance: away from what the model says of the text where some layers are left out.

    v = v(negative) + s (v(text) - v(negative)) + k (v(text) - v(text, without the layers))

Source: Stability AI 2024, Stable Diffusion 3.5 Medium (LayerDropCFGDenoiser of its repository);
the steps at which, and v(text) in the last term, are diffusers'.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from refsd import functional as F
from refsd.half import in_float32
from refsd.pipelines.guidance import Guidance, as_text, guided, rescale


class SkipLayerGuidance(Guidance):
    """Guidance that asks a third time at the steps between `start` and `stop`, both left out.

    layers: the numbers of the blocks to leave out, skip_scale is k.
    """

    def __init__(self, transformer: Any, positive: Any, negative: Any = None, *,
                 layers: Sequence[int], skip_scale: float, start: float, stop: float,
                 **options: Any):
        super().__init__(transformer, positive, negative, **options)
        self.layers, self.skip_scale = tuple(layers), skip_scale
        self.start, self.stop = start, stop
        self.alone = as_text(positive)

    def __call__(self, x: Any, timestep: Any, index: int) -> Any:
        """The prediction of a step.   (B, C, h, w) -> the same"""
        if self.negative is None or not self.start < index < self.stop:
            return super().__call__(x, timestep, index)
        both, count = self.ask(F.concat([x, x], axis=0), timestep, index), x.shape[0]
        away, towards = both[:count], both[count:]
        added = {name: rows[-count:] for name, rows in self.added.items()}
        less = self.unet(x, timestep, self.alone, skip_layers=self.layers, **added)
        predicted = pushed(guided(away, towards, self.scale), towards, less, self.skip_scale)
        return rescale(predicted, towards, self.rescale) if self.rescale > 0 else predicted

    def change(self, changed: Mapping[str, Any]) -> None:
        """Other texts or another scale from here on."""
        super().change(changed)
        if "prompt_embeds" in changed:
            self.alone = as_text(self.positive)


@in_float32
def pushed(predicted: Any, towards: Any, less: Any, scale: float) -> Any:
    """predicted + k (towards - less).   (B, C, h, w) three times -> the same"""
    return predicted + (towards - less) * scale
