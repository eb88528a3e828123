"""A text that a GPT-2 continues, as a golden run: what is asked, its model, every tensor of it."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from refsd.golden.recording.pipeline_ops import next_token
from refsd.golden.recording.record import BLOCK, Recorder
from refsd.golden.recording.request import TRUTH
from refsd.ops.activation import softmax
from refsd.pipelines import identity
from refsd.pipelines.gpt2 import GPT2
from refsd.pipelines.gpt2_loading import bundled_gpt2
from refsd.pipelines.request import check_integer
from refsd.pipelines.sampling import Sampling
from refsd.places import on_host
from refsd.random import TorchGenerator
from refsd.registry import watch
from refsd.weights import resolve
from refsd.weights.checkpoint import load
from refsd.weights.gpt2 import NAME, plan_gpt2


@dataclass(frozen=True)
class TextRequest:
    """A prompt and so many tokens more, chosen as refsd.GPT2.generate has it, without an end.

    ids: the tokens that the truth chooses. Every run of the request goes on with these, whatever it
    would choose itself, so that a port's tensors can be compared to the last one.
    """

    prompt: str
    tokens: int = 8
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    ids: tuple[int, ...] | None = None

    bundled: ClassVar[str] = "refsd bundled GPT-2"

    @property
    def steps(self) -> int:
        """How often the network is called."""
        return self.tokens

    @property
    def choice(self) -> dict[str, Any]:
        """How tokens are chosen: the options of a Sampling."""
        return {key: getattr(self, key)
                for key in ("temperature", "top_k", "top_p", "repetition_penalty")}

    def plain(self) -> dict[str, Any]:
        """As JSON has it, with how the truth is computed."""
        found = {**asdict(self), **TRUTH}
        return found if self.ids is None else found | {"ids": list(self.ids)}

    def check(self, model: GPT2) -> int:
        """How often the network is called; raises UsageError for what it cannot be asked."""
        Sampling.of(**self.choice)
        room = model.config.max_length - len(model.tokenizer(self.prompt))
        return check_integer("tokens", self.tokens, 1, max(room, 1))

    def settled(self, model: GPT2) -> "TextRequest":
        """With the tokens that this model, the truth, chooses."""
        if self.ids is not None:
            return self
        found = model.generate(self.prompt, max_new_tokens=self.tokens, stop_ids=(), **self.choice,
                               generator=self.seed if self.temperature else None)
        return replace(self, ids=tuple(found.ids))

    @staticmethod
    def load(model: str | Path | None = None, *, variant: str | None = None,
             download: bool = False) -> GPT2:
        """The model in float64 on the definitions; None is the bundled one."""
        return GPT2.from_pretrained(model, variant=variant, download=download, exact=True, **TRUTH)

    @staticmethod
    def model_of(pipe: GPT2, model: str | Path | None, *,
                 variant: str | None = None) -> dict[str, Any]:
        """What a manifest says of a model: its files' SHA-256, its config in full."""
        place, files = _place(model, variant), TextRequest.files(model, variant)
        listing = "".join(f"{digest}  {file}\n" for file, digest in files.items())
        name = TextRequest.bundled if model is None else (
            place.resolve().name if Path(model).exists() else str(model))
        return {"name": name, "variant": variant, "files": files,
                "hash": hashlib.sha256(listing.encode()).hexdigest(),
                "configs": {NAME: dict(sorted(plan_gpt2(place, variant=variant).config.items()))},
                "max_length": pipe.config.max_length}

    @staticmethod
    def files(model: str | Path | None, variant: str | None) -> dict[str, str]:
        """The SHA-256 of each file of weights."""
        return {path.name: identity.sha256(path)
                for path in identity.part_files(_place(model, variant), NAME, variant)}

    @staticmethod
    def weights(model: str | Path | None, variant: str | None) -> dict[str, Mapping[str, Any]]:
        """The tensors that a pack's references name, by the network."""
        plan = plan_gpt2(_place(model, variant), variant=variant)
        return {NAME: load({NAME: plan}, dtype="float32", force=False)[NAME].tensors}

    def record(self, model: GPT2, recorder: Recorder, on_step: Callable | None = None) -> None:
        """Read the prompt and the tokens, one by one, and record every tensor."""
        with watch(recorder):
            ids = model.tokenizer(self.prompt) or [model.tokenizer.bos_token_id]
            new, past, generator = np.array([ids]), None, TorchGenerator(self.seed)
            recorder.tensor("tokens", 0, "ids", new, level=0)
            for index, token in enumerate(self.ids):
                with recorder.stage(NAME, index):
                    hidden, past = model.read(new, past)
                    logits = on_host(model.logits(hidden, last=True))
                self._choose(recorder, index, logits, np.array(ids), generator)
                ids, new = [*ids, token], np.array([[token]])
                if on_step is not None:
                    on_step(index)
            recorder.tensor("next", None, "ids", np.array([self.ids]), level=0)

    def _choose(self, recorder, index, logits, ids, generator):
        """What becomes of the scores of the next token.   (1, 1, V) -> (1,)"""
        recorder.tensor("next", index, "logits", logits, level=1, op=BLOCK,
                        inputs={"output": logits})
        shares = softmax(logits, axis=-1)
        recorder.tensor("next", index, "probabilities", shares, level=1, op="softmax",
                        inputs={"x": logits}, options={"axis": -1})
        recorder.worst.softmax(shares, recorder.held(shares))
        inputs = {"logits": logits, "ids": ids}
        if self.temperature:
            inputs["noise"] = generator.exponential((logits.size,)).astype(logits.dtype)
            recorder.tensor("next", index, "noise", inputs["noise"], level=1)
        recorder.tensor("next", index, "token", next_token(**inputs, **self.choice), level=1,
                        op="next_token", inputs=inputs, options=self.choice)


def _place(model: str | Path | None, variant: str | None) -> Path:
    return bundled_gpt2() if model is None else resolve(model, variant=variant, parts=(NAME,))

