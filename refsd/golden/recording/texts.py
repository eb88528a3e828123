"""What a pipeline makes of its texts, recorded: ids, what is read of the encoders, and the rest.

A text encoder's ops stand under its part's stage (names.stage_of) and the number of its call, what
the pipeline then makes of several encoders under text/.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from refsd.golden.recording.names import stage_of
from refsd.golden.recording.record import BLOCK, TEXTS, Recorder
from refsd.places import on_host
from refsd.registry import watch


class Wrapped:
    """Something that is asked in the place of another, which it has all else from."""

    def __init__(self, wrapped: Any):
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


class RecordedTexts:
    """The tokenizers and text encoders of a pipeline, by part, and its `embed`, recorded.

    `positive` is what the denoiser reads of the prompt.
    """

    def __init__(self, pipe: Any, recorder: Recorder):
        self._recorder = recorder
        self._read: list[Any] = []  # of encoders, by the pipeline
        self._made: list[Any] = []  # of ops outside of them
        self._inside, self.positive = False, None
        kinds = {"tokenizer": RecordedTokenizer, "text_encoder": RecordedEncoder}
        self.parts = {part: kind(part, getattr(pipe, part), self)
                      for name, kind in kinds.items() for part in pipe.parts
                      if part.startswith(name) and getattr(pipe, part) is not None}

    def embedding(self, embed: Callable) -> Callable:
        """A pipeline's embed, whose result is recorded too.

        A text that is what one encoder gives is recorded as that alone.
        """
        def recorded(*texts: Any, **options: Any) -> Any:
            self._recorder.enter(*TEXTS)
            with watch(self._listen):
                prompts = embed(*texts, **options)
            found = [None if states is None else self._text(number, states)
                     for number, states in enumerate((prompts.positive, prompts.negative))]
            added = {name: self._record("denoise", None, name, array)
                     for name, array in prompts.added.items()}
            self.positive = found[0]
            return prompts._replace(positive=found[0], negative=found[1], added=added)

        return recorded

    def ids(self, part: str, number: int, ids: np.ndarray, pieces: str) -> None:
        """A tokenizer has been called."""
        self._recorder.tensor(stage_of(part), number, "ids", ids, level=0, note=pieces)

    def encoding(self, part: str, number: int, encode: Callable) -> Any:
        """What a call of an encoder gives: each of its arrays is recorded when it is read."""
        self._inside = True
        with self._recorder.stage(stage_of(part), number):
            output = encode()
        self._inside = False

        def read(path: str, array: Any) -> None:
            self._read.append(array)
            self._recorder.tensor(stage_of(part), number, path, array, level=0, op=BLOCK,
                                  inputs={"output": array})

        return ReadOutput(output, read)

    def _listen(self, op: str, inputs: dict, options: dict, output: Any) -> None:
        if not self._inside:
            self._made.append(output)

    def _text(self, number, states):
        found = _same(states, self._read)
        if found is not None:
            return found
        return self._record("text", number, "prompt_embeds", states)

    def _record(self, stage, number, path, array):
        """The array that an op made, if one did: a pipeline gives a copy for each picture."""
        found = _same(array, self._made + self._read)
        made = {} if found is None else {"op": BLOCK, "inputs": {"output": found}}
        array = array if found is None else found
        self._recorder.tensor(stage, number, path, array, level=0, **made)
        return array


def _same(array, others):
    """That of others which has the array's own numbers; None where none has."""
    return next((one for one in others if one.shape == array.shape
                 and np.array_equal(on_host(one), on_host(array))), None)


class RecordedTokenizer(Wrapped):
    """A tokenizer whose ids are recorded, with the pieces of the text as a note."""

    def __init__(self, part: str, tokenizer: Any, texts: RecordedTexts):
        super().__init__(tokenizer)
        self._part, self._texts, self._calls = part, texts, 0

    def __call__(self, prompts: list[str], **options: Any) -> np.ndarray:
        """The ids of the prompts, the tokenizer's own."""
        ids = self._wrapped(prompts, **options)
        pieces = " ".join(piece.token for piece in self._wrapped.pieces(prompts[0]))
        self._texts.ids(self._part, self._calls, ids, pieces[:2000])
        self._calls += 1
        return ids

    def truncated(self, prompt: str, **options: Any) -> str:
        """Nothing: a recording is made of many runs, and the notes have all pieces."""
        return ""


class RecordedEncoder(Wrapped):
    """A text encoder whose ops are recorded, and what is read of what it gives."""

    def __init__(self, part: str, encoder: Any, texts: RecordedTexts):
        super().__init__(encoder)
        self._part, self._texts, self._calls = part, texts, 0

    def __call__(self, ids: np.ndarray, **options: Any) -> Any:
        """The encoder's own output."""
        number, self._calls = self._calls, self._calls + 1
        return self._texts.encoding(self._part, number, lambda: self._wrapped(ids, **options))


class ReadOutput:
    """An encoder's output; read(path, array) hears of each array once, when it is asked for."""

    def __init__(self, output: Any, read: Callable):
        self._output, self._read, self._heard = output, read, set()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._output, name)
        if isinstance(value, (list, tuple)):
            return ReadLayers(value, lambda index: self._hear(f"{name}.{index}", value[index]))
        return value if value is None else self._hear(name, value)

    def _hear(self, path, array):
        if path not in self._heard:
            self._heard.add(path)
            self._read(path, array)
        return array


class ReadLayers:
    """A list of an output's; layers are numbered from the first, however they are asked for."""

    def __init__(self, layers: Any, hear: Callable):
        self._layers, self._hear = layers, hear

    def __getitem__(self, index: int) -> Any:
        return self._hear(range(len(self._layers))[index])
