"""What the callback at the end of a step is given, and what may come back from it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from refsd import functional as F
from refsd.arguments import refuse_unknown, shown
from refsd.errors import UsageError
from refsd.pipelines.request import check_number
from refsd.pipelines.tensors import given
from refsd.registry import use

TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")
LOOKED_AT = ("denoised",)  # x0 as seen from here; what comes back under its name is refused


class StepCallback:
    """callback_on_step_end of one drawing, and the texts, which it may replace.

    `names` are the tensors that it is given. A function's own `tensor_inputs` come before them, as
    in diffusers. `added` are the network's further inputs, of which the pipeline's `further` says
    by what names the rows of the texts and those of the negative ones are called. Raises UsageError
    for names that there are not.
    """

    def __init__(self, pipe: Any, function: Callable | None, names: Any):
        if function is not None and not callable(function):
            raise UsageError(f"callback_on_step_end is a {type(function).__name__}; give a "
                             "function (pipe, step, timestep, tensors)")
        names = getattr(function, "tensor_inputs", names)
        self.tensors = (*TENSORS, *pipe.further)
        known = (*self.tensors, *LOOKED_AT)
        if isinstance(names, str):
            names = [names]
        if names is not None and not isinstance(names, Iterable):
            raise UsageError(f"callback_on_step_end_tensor_inputs is {shown(names)}; give a list "
                             f"of {', '.join(known)}")
        refuse_unknown("callback_on_step_end_tensor_inputs", names or (), known)
        self.pipe, self.function, self.names = pipe, function, tuple(names or ())
        self.positive, self.negative, self.scale = None, None, None
        self.added: Mapping[str, Any] = {}

    def texts(self) -> tuple[Any, Any]:
        """The texts that the steps read: the positive and, or None, the negative ones."""
        return self.positive, self.negative

    def __call__(self, step: Any) -> dict[str, Any]:
        """Call the function with a step; what it replaced, as stages.denoise takes it."""
        if self.function is None:
            return {}
        current = {"latents": step.latents, "prompt_embeds": self.positive,
                   "negative_prompt_embeds": self.negative,
                   **{name: self._rows(*which) for name, which in self.pipe.further.items()}}
        if "denoised" in self.names:
            current["denoised"] = step.denoised()
        scale = self.pipe._guidance_scale
        returned = self.function(self.pipe, step.index, step.timestep,
                             {name: current[name] for name in self.names})
        changed = self._replaced(returned, current)
        self.positive = changed.get("prompt_embeds", self.positive)
        self.negative = changed.get("negative_prompt_embeds", self.negative)
        if further := changed.keys() & self.pipe.further.keys():
            changed["added"] = self.added = self._exchanged({name: changed.pop(name)
                                                             for name in further})
        if self.pipe._guidance_scale is not scale:
            changed |= self._rescaled()
        elif scale <= 1:
            changed.pop("negative_prompt_embeds", None)  # kept for when guidance comes back
        return changed

    def _rows(self, key: str, negative: bool) -> Any:
        """Of a further input the rows of the texts, or of the negative ones, if there are any."""
        rows = self.added[key]
        count = rows.shape[0] - self.positive.shape[0]
        return (rows[:count] if count else None) if negative else rows[count:]

    def _exchanged(self, replaced: dict[str, Any]) -> dict[str, Any]:
        """The further inputs with rows replaced by name."""
        found = {}
        for key in self.added:
            rows = [replaced.get(name, self._rows(key, negative)) for name, (own, negative) in
                    sorted(self.pipe.further.items(), key=lambda item: not item[1][1])
                    if own == key]
            rows = [array for array in rows if array is not None]
            with use(self.pipe.backend):
                found[key] = F.concat(rows, axis=0)
        return found

    def _replaced(self, returned: Any, current: dict[str, Any]) -> dict[str, Any]:
        """What came back, under known names, in the shapes and the dtype of what it replaces."""
        if returned is None:
            return {}
        if not isinstance(returned, Mapping):
            raise UsageError(f"callback_on_step_end returned a {type(returned).__name__}; return a "
                             "dict of replaced tensors, or None")
        replaced = {name: value for name, value in returned.items()
                    if name not in current or value is not current[name]}
        refuse_unknown("what callback_on_step_end returned", replaced, self.tensors, "tensor")
        changed = {}
        for name, value in replaced.items():
            old = current[name]
            if old is None:
                self.pipe.remark(f"{name} from callback_on_step_end changes nothing: there is no "
                                 "guidance")
                continue
            changed[name] = given(self.pipe, f"{name} from callback_on_step_end", value,
                                  tuple(old.shape))
        return changed

    def _rescaled(self) -> dict[str, Any]:
        """Another guidance scale from here on, set as diffusers' callbacks do.

        At 1 and below the model predicts once, without the negative texts.
        """
        scale = check_number("_guidance_scale", self.pipe._guidance_scale, -1000, 1000)
        if self.negative is None:
            self.pipe.remark("_guidance_scale changes nothing: the model is asked once, from the "
                             "first step on")
            return {}
        return {"guidance_scale": scale,
                "negative_prompt_embeds": self.negative if scale > 1 else None}
