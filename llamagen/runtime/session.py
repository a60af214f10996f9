"""An exported folder in ONNX Runtime: logits with a key/value cache, of text and of text with images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llamagen.diagnostics import LlamagenError
from llamagen.emit.onnx.session import as_input, as_past, empty_cache, open_session
from llamagen.emit.onnx.write import MODEL_FILE
from llamagen.images.prompt import Values

if TYPE_CHECKING:
    from onnxruntime import OrtValue

    from llamagen.emit.images_record import HandOver, ImagesRecord

NOTHING: Values = {}


class Graph:
    """One graph for one sequence. The cache stays in ONNX Runtime's memory between calls: nothing is copied."""

    def __init__(self, file: Path, threads: int = 0) -> None:
        """Raises LG760 if there is no such file, LG711 to LG713 if ONNX Runtime refuses it."""
        import onnxruntime as ort

        if not file.is_file():
            message = f"{str(file.parent)!r} has no {file.name}"
            help = "`llamagen export ID --checkpoint DIR --out DIR` writes such a folder"
            raise LlamagenError.of("LG760", message, help=help)
        self.value = ort.OrtValue.ortvalue_from_numpy
        self.session = open_session(file, threads)
        self.inputs = {i.name: i.type for i in self.session.get_inputs()}
        self.outputs = {o.name: o for o in self.session.get_outputs()}
        self.past: dict[str, OrtValue] = {}
        self.reset()

    def reset(self) -> None:
        """Forget every token."""
        empty = empty_cache(self.session, batch=1)
        self.past = {name: self.value(array) for name, array in empty.items()}

    def run(self, values: Mapping[str, OrtValue]) -> dict[str, OrtValue]:
        """Outputs by name, the cache aside; ``values`` may hold more than the graph reads."""
        feeds = {name: values[name] for name in self.inputs if name in values}
        names = list(self.outputs)
        results = self.session.run_with_ort_values(names, {**feeds, **self.past})
        made = dict(zip(names, results, strict=True))
        self.past = as_past(made)
        return {name: value for name, value in made.items() if not name.startswith("present.")}

    def values(self, arrays: Values) -> dict[str, OrtValue]:
        """Arrays that the graph reads, in the types it wants."""
        return {
            name: self.value(as_input(array, self.inputs[name]))
            for name, array in arrays.items()
            if name in self.inputs
        }


class Session:
    """One sequence (batch 1). With ``record`` it reads images, by graphs of their own; without, text."""

    def __init__(self, folder: Path, threads: int = 0, record: ImagesRecord | None = None) -> None:
        """Open ``folder``. Raises LG760 if it was not exported, LG711 to LG713 if ONNX Runtime refuses it."""
        self.folder = folder
        self.threads = threads
        self.record = record
        files = [MODEL_FILE] if record is None else [f"{name}.onnx" for name in record.steps]
        self.steps = [Graph(folder / file, threads) for file in files]
        self.vocab_size = int(self.steps[-1].outputs["logits"].shape[-1])
        self.length = 0
        self.seen: dict[str, OrtValue] = {}
        self.rows: dict[str, npt.NDArray[np.generic]] = {}
        self.beside: dict[str, npt.NDArray[np.generic]] = {}

    @property
    def placeholders(self) -> dict[str, HandOver]:
        """Hand-overs whose rows tokens stand for."""
        found = self.record.hand_overs if self.record is not None else {}
        return {name: one for name, one in found.items() if one.placeholder is not None}

    @property
    def never(self) -> frozenset[int]:
        """Tokens that stand for a part of an image: there is none that could be generated."""
        return frozenset(
            one.placeholder for one in self.placeholders.values() if one.placeholder is not None
        )

    def reset(self) -> None:
        """Forget every token and image."""
        self.length = 0
        self.seen, self.rows, self.beside = {}, {}, {}
        for graph in self.steps:
            graph.reset()

    def see(self, images: Values) -> None:
        """Read the images of the prompt that comes next; the graphs for it are closed afterwards."""
        assert self.record is not None, "a session of text sees no images"
        made: dict[str, OrtValue] = {}
        for name in self.record.once:
            graph = Graph(self.folder / f"{name}.onnx", self.threads)
            made.update(graph.run({**graph.values(images), **made}))
        self.rows = {name: made.pop(name).numpy() for name in self.placeholders if name in made}
        self.seen = made

    def step(self, ids: Sequence[int], beside: Values = NOTHING) -> npt.NDArray[np.floating]:
        """Append tokens; the logits [V] after the last one.

        ``beside`` holds what is read beside the tokens, [1, S, ...]; without it each token is as the one before.
        Raises LG763 for ids outside the vocabulary.
        """
        self.require(ids, beside)
        end = self.length + len(ids)
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self.length, end, dtype=np.int64)[None],
            **self.by_token(len(ids), beside),
            **self.stood_for(ids),
        }
        values = dict(self.seen)
        for graph in self.steps:
            values.update(graph.run({**values, **graph.values(arrays)}))
        self.length = end
        logits: npt.NDArray[np.floating] = values["logits"].numpy()[0, -1]
        return logits

    def require(self, ids: Sequence[int], beside: Values) -> None:
        """Tokens that are only read, as ``<|image|>`` of Llama 3.2 Vision, come with a prompt of images."""
        recipe = self.record.preprocessing if self.record is not None else None
        read = {recipe.image_token} if recipe is not None and beside else set()
        wrong = [i for i in ids if not 0 <= i < self.vocab_size and i not in read]
        if wrong or not ids:
            reason = (
                f"token {wrong[0]} is not in the vocabulary" if wrong else "there are no tokens"
            )
            help = f"ids are from 0 to {self.vocab_size - 1}"
            raise LlamagenError.of("LG763", reason, help=help)

    def by_token(self, count: int, given: Values) -> Values:
        """What is read beside ``count`` tokens; the last of it is kept for the next."""
        found = given or {n: np.repeat(last, count, axis=1) for n, last in self.beside.items()}
        self.beside = {name: value[:, -1:] for name, value in found.items()}
        return found

    def stood_for(self, ids: Sequence[int]) -> Values:
        """The rows that placeholders among ``ids`` stand for; they are used up."""
        found: dict[str, npt.NDArray[np.generic]] = {}
        for name, one in self.placeholders.items():
            count = sum(token == one.placeholder for token in ids) // (one.rows or 1)
            found[name], self.rows[name] = np.split(self.rows[name], [count])
        return found
