"""What a golden run is made of: the request with every choice spelled out, and its model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from refsd.arguments import as_integer, as_number
from refsd.errors import UsageError
from refsd.families import DEFAULT
from refsd.pipelines import identity, stages
from refsd.pipelines.auto import AutoPipelineForText2Image, family_of_model
from refsd.pipelines.loading import bundled_model
from refsd.pipelines.pipeline import Pipeline
from refsd.pipelines.request import check_numbers
from refsd.random.by_name import GENERATORS
from refsd.schedulers import from_config
from refsd.weights import load_checkpoint, resolve
from refsd.weights.plan import plan_whole

TRUTH = {"backend": "numpy", "dtype": "float64"}


@dataclass(frozen=True)
class Request:
    """One picture: sizes in pixels, `clip_skip` as in diffusers, `scheduler` the full options."""

    prompt: str
    width: int
    height: int
    steps: int
    cfg_scale: float
    scheduler: dict[str, Any]
    negative_prompt: str = ""
    seed: int = 0
    rng: str = "torch-cpu"
    guidance_rescale: float = 0.0
    eta: float = 0.0
    clip_skip: int | None = None

    bundled: ClassVar[str] = identity.BUNDLED

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            whole = name in ("width", "height", "steps", "seed", "clip_skip")
            number = (as_integer if whole else as_number)(value)
            if number is not None:  # NumPy's scalars are no JSON
                object.__setattr__(self, name, number)

    def plain(self) -> dict[str, Any]:
        """As JSON has it, with how the truth is computed."""
        return {**asdict(self), **TRUTH}

    def load(self, model: str | Path | None = None, *, variant: str | None = None) -> Any:
        """The model as all truth is computed: see load_truth."""
        return load_truth(model, variant=variant, scheduler=from_config(self.scheduler))

    def settled(self, pipe: Any) -> "Request":
        """Itself: nothing of a picture is chosen on the way."""
        return self

    def record(self, pipe: Any, recorder: Any, on_step: Any = None) -> None:
        """Draw, and record every tensor."""
        from refsd.golden.recording.run import run

        run(pipe, self, recorder, on_step)

    @staticmethod
    def model_of(pipe: Any, model: str | Path | None, *,
                 variant: str | None = None) -> dict[str, Any]:
        """What a manifest says of a model."""
        return model_of(pipe, model, variant=variant)

    @staticmethod
    def files(model: str | None, variant: str | None) -> dict[str, str]:
        """The SHA-256 of each file of weights."""
        return identity.of(model, variant=variant)["files"]

    @staticmethod
    def weights(model: str | None, variant: str | None) -> dict[str, Mapping[str, Any]]:
        """The tensors that a pack's references name, by the network."""
        path = bundled_model() if model is None else resolve(model, variant=variant)
        return {part: component.tensors
                for part, component in load_checkpoint(path, variant=variant).items()}

    def check(self, pipe: Any) -> int:
        """How often the UNet is called; raises UsageError for what this model cannot be asked."""
        pipe.side("width", self.width, None)
        pipe.side("height", self.height, None)
        check_numbers(vars(self))
        if self.rng not in GENERATORS:
            raise UsageError(f"rng is {self.rng!r}; give one of {', '.join(GENERATORS)}")
        scheduler = from_config(self.scheduler)
        # How many steps there are does not hang on the shift that a picture's size asks for.
        shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
        return len(stages.make_schedule(scheduler, self.steps, **shift))


def load_truth(model: str | Path | None = None, *, variant: str | None = None,
               download: bool = False, scheduler: Any = None) -> Pipeline:
    """The model in float64 on the definitions, as all truth is computed; None is the bundled one.

    Convolutions only add up the products of their formula. `scheduler` as in from_pretrained.
    """
    return AutoPipelineForText2Image.from_pretrained(model, variant=variant, download=download,
                                                     exact=True, scheduler=scheduler, **TRUTH)


def model_of(pipe: Any, model: str | Path | None, *, variant: str | None = None) -> dict[str, Any]:
    """What a manifest says of a model: its files' SHA-256, the configs of all parts in full.

    Of other families than the bundled model's also which it is, and its parts.
    """
    argument = None if model is None else str(model)
    path = bundled_model() if model is None else resolve(model, variant=variant)
    plans = plan_whole(path, variant=variant)
    lengths = {part: getattr(pipe, part).model_max_length for part in pipe.parts
               if part.startswith("tokenizer") and getattr(pipe, part) is not None}
    family = family_of_model(model, variant=variant)
    parts = [part for part in pipe.parts if getattr(pipe, part) is not None]
    further = {"family": family.name, "parts": parts, "max_lengths": lengths}
    return {**identity.of(argument, variant=variant),
            "configs": {part: _plain(plan.config) for part, plan in plans.items()},
            "scheduler": pipe.scheduler.config.plain(),
            "scaling_factor": pipe.vae.config.scaling_factor,
            "max_length": next(iter(lengths.values())),
            **({} if family is DEFAULT else further)}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value
            for key, value in sorted(config.items())}
