"""An exported folder in ONNX Runtime: logits with a key/value cache, of text and of text with images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from llamagen import files
from llamagen.diagnostics import LlamagenError, quoted
from llamagen.emit.manifest import HandOver, ImagesRecord, graph_path
from llamagen.emit.onnx.profile import CPU, CUDA
from llamagen.emit.onnx.session import (
    AS_IT_IS,
    NO_ADAPTER,
    OpenOptions,
    array_of,
    as_input,
    as_past,
    computing,
    device_of,
    empty_cache,
    open_session,
    require_inputs,
    require_interface,
    table_context,
    value_of,
    vocabulary_of,
)
from llamagen.images.prepare import Values
from llamagen.ir.graph import MAIN

if TYPE_CHECKING:
    import onnxruntime as ort
    from onnxruntime import OrtValue

NOTHING: Values = {}

NOT_GENERATED = (
    "README.md of the folder shows a call in ONNX Runtime; `llamagen verify` compares what it gives"
)


class Cache(Protocol):
    """What a model remembers of the tokens so far."""

    def reset(self) -> None:
        """Forget every token."""

    def reserve(self, total: int) -> None:
        """Make room for ``total`` tokens, so that no call has to."""

    def run(self, feeds: Mapping[str, OrtValue], total: int) -> npt.NDArray[np.floating]:
        """One call; ``total`` counts all tokens with the new ones. The logits, [B, S, V] or [B, 1, V]."""


def cache_of(session: ort.InferenceSession, rows: int = 1) -> Cache:
    """In place where the model can append to a buffer that numpy can hold, else one that grows.

    A plugin computes on copies of what lies on the host: what its kernel appends to has none of the tokens before.
    """
    in_place = session.get_modelmeta().custom_metadata_map.get("llamagen.in_place") == "true"
    held = all("bfloat16" not in i.type for i in session.get_inputs())
    shared = session.get_providers()[0] in (CPU, CUDA)
    fits = in_place and held and shared
    return BufferCache(session, rows) if fits else GrowingCache(session, rows)


class GrowingCache:
    """Every call reads the past and returns past and new tokens as a new tensor; no copy is made here."""

    def __init__(self, session: ort.InferenceSession, rows: int = 1) -> None:
        self.session = session
        self.rows = rows
        self.device = device_of(session)
        self.outputs = [o.name for o in session.get_outputs()]
        self.past: dict[str, OrtValue] = {}
        self.reset()

    def reset(self) -> None:
        empty = empty_cache(self.session, batch=self.rows)
        self.past = {name: value_of(array, self.device) for name, array in empty.items()}

    def reserve(self, total: int) -> None:
        """Nothing: each call makes what it returns."""

    def run(self, feeds: Mapping[str, OrtValue], total: int) -> npt.NDArray[np.floating]:
        binding = self.session.io_binding()
        for name, value in {**feeds, **self.past}.items():
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, "cpu" if name == "logits" else self.device)
        self.session.run_with_iobinding(binding)
        named = dict(zip(self.outputs, binding.get_outputs(), strict=True))
        self.past = as_past(named)
        logits: npt.NDArray[np.floating] = array_of(named["logits"])  # type: ignore[assignment]
        return logits


class BufferCache:
    """One buffer for past and present: the model writes new tokens behind the old ones, and nothing is moved.

    A call for which it is too small moves everything once, to one of twice the size.
    """

    def __init__(self, session: ort.InferenceSession, rows: int = 1) -> None:
        self.session = session
        self.rows = rows
        self.device = device_of(session)
        self.capacity = 0
        self.binding = session.io_binding()
        self.buffers: dict[str, OrtValue] = {}
        self.length = 0

    def reset(self) -> None:
        """The buffers stay as they are: no token is read that was not written since."""
        self.length = 0

    def reserve(self, total: int) -> None:
        if total <= self.capacity:
            return
        old = {name: value.numpy() for name, value in self.buffers.items()}
        self.capacity = max(total, 2 * self.capacity)
        arrays = self._empty()
        for name, array in old.items():
            arrays[name][:, :, : self.length] = array[:, :, : self.length]
        self._bind(arrays)

    def run(self, feeds: Mapping[str, OrtValue], total: int) -> npt.NDArray[np.floating]:
        self.reserve(total)
        for name, value in feeds.items():
            self.binding.bind_ortvalue_input(name, value)
        # again: of another number of tokens they are other memory
        self.binding.bind_output("logits")
        self.session.run_with_iobinding(self.binding)
        self.length = total
        # in the order of the first binding: logits are the last
        logits: npt.NDArray[np.floating] = self.binding.get_outputs()[-1].numpy()
        return logits

    def _empty(self) -> dict[str, npt.NDArray[np.generic]]:
        return {
            name: np.zeros((*array.shape[:2], self.capacity, array.shape[3]), array.dtype)
            for name, array in empty_cache(self.session, batch=self.rows).items()
        }

    def _bind(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        for name, array in arrays.items():
            buffer = value_of(array, self.device)
            self.buffers[name] = buffer
            self.binding.bind_ortvalue_input(name, buffer)
            present = name.replace("past_key_values.", "present.", 1)
            self.binding.bind_ortvalue_output(present, buffer)


class Graph:
    """One graph in ONNX Runtime."""

    def __init__(self, file: Path, options: OpenOptions = AS_IT_IS) -> None:
        """Raises LG760 if there is no such file, LG711 to LG713 if ONNX Runtime refuses it."""
        if not files.exists(file):
            message = f"{str(file.parent)!r} has no {file.name}"
            help = "`llamagen export ID --checkpoint DIR --out DIR` writes such a folder"
            raise LlamagenError.of("LG760", message, help=help)
        self.file = file
        self.options = options
        self.session = open_session(file, options)
        self.inputs = {i.name: i.type for i in self.session.get_inputs()}
        self.adapter: Mapping[str, OrtValue] = NO_ADAPTER

    def feeds(self, arrays: Values, made: Mapping[str, OrtValue]) -> dict[str, OrtValue]:
        """What the graph reads of ``arrays``, in the types it wants, and of what other graphs made, and its adapter."""
        given = {
            name: value_of(as_input(array, self.inputs[name]))
            for name, array in arrays.items()
            if name in self.inputs
        }
        handed = {name: v for name, v in made.items() if name in self.inputs}
        return {**given, **handed, **self.adapter}

    def run(self, feeds: Mapping[str, OrtValue]) -> dict[str, OrtValue]:
        """Outputs by name, of a graph without a cache."""
        names = [o.name for o in self.session.get_outputs()]
        with computing(str(self.file), self.options):
            made = self.session.run_with_ort_values(names, dict(feeds))
        return dict(zip(names, made, strict=True))


class Session:
    """One sequence (batch 1). With ``record`` it reads images, by graphs of their own; without, text.

    The cache stays in ONNX Runtime's memory between calls.
    """

    def __init__(
        self,
        folder: Path,
        options: OpenOptions = AS_IT_IS,
        record: ImagesRecord | None = None,
        adapter: Mapping[str, OrtValue] = NO_ADAPTER,
    ) -> None:
        """Open ``folder``, with the values that an adapter gives.

        Raises LG760 if it was not exported, LG711 to LG713 if ONNX Runtime refuses it.
        """
        self.folder = folder
        self.options = options
        self.record = record
        names = (MAIN,) if record is None else record.steps
        *self.before, self.last = (Graph(graph_path(folder, name), options) for name in names)
        self.require_graphs()
        session = self.last.session
        require_inputs(session, self.last.file, adapter)
        self.last.adapter = adapter
        self.width: int = next(o.shape[-1] for o in session.get_outputs() if o.name == "logits")
        metadata = session.get_modelmeta().custom_metadata_map
        self.vocab_size = vocabulary_of(metadata, self.last.file) or self.width
        self.max_context = table_context(metadata, self.last.file)
        self.cache: Cache = cache_of(session)
        self.length = 0
        self.seen: dict[str, OrtValue] = {}
        self.rows: dict[str, npt.NDArray[np.generic]] = {}
        self.beside: dict[str, npt.NDArray[np.generic]] = {}

    def require_graphs(self) -> None:
        """Each reads what the tokens, the images or a graph before it give. Raises LG760."""
        known = {"input_ids", "attention_mask", "position_ids"}
        if self.record is not None:
            known.update(self.record.inputs, self.record.beside, self.record.hand_overs)
        for graph in self.before:
            outputs = {o.name for o in graph.session.get_outputs()} & known
            require_interface(graph.session, graph.file, known, outputs)
        self.require_next_token()
        require_interface(self.last.session, self.last.file, known, ("logits",))
        read = {name for graph in (*self.before, self.last) for name in graph.inputs}
        for name, one in (self.record.hand_overs if self.record is not None else {}).items():
            if self.record is not None and one.made_by in self.record.once and name not in read:
                message = f"no graph of {str(self.folder)!r} reads {quoted(name)} of the images"
                raise LlamagenError.of("LG760", message, help="export the model again")

    def require_next_token(self) -> None:
        """Raises LG786 for a model that says nothing of the next token."""
        session = self.last.session
        gives = [o.name for o in session.get_outputs() if not o.name.startswith("present.")]
        if gives and "logits" not in gives:
            named = ", ".join(map(quoted, gives))
            message = f"{self.last.file} gives {named}, and no logits: there is no next token"
            raise LlamagenError.of("LG786", message, help=NOT_GENERATED)

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
        self.cache.reset()

    def see(self, images: Values) -> None:
        """Read the images of the prompt that comes next; the graphs for it are closed afterwards."""
        assert self.record is not None, "a session of text sees no images"
        made: dict[str, OrtValue] = {}
        for name in self.record.once:
            graph = Graph(graph_path(self.folder, name), self.options)
            require_interface(graph.session, graph.file, {*images, *made}, ())
            made.update(graph.run(graph.feeds(images, made)))
        for name in self.placeholders:
            if name not in made or not made[name].shape():
                message = f"no graph of {str(self.folder)!r} gives the rows of {quoted(name)}"
                raise LlamagenError.of("LG760", message, help="export the model again")
        self.rows = {name: array_of(made.pop(name)) for name in self.placeholders}
        self.seen = made

    def step(self, ids: Sequence[int], beside: Values = NOTHING) -> npt.NDArray[np.floating]:
        """Append tokens; the logits after the last one, of ids of the vocabulary.

        ``beside`` holds what is read beside the tokens, [1, S, ...]; without it each token is as the one before.
        Raises LG763 for ids outside the vocabulary, LG764 beyond the tables of positions that the model has.
        """
        self.require(ids, beside)
        end = self.length + len(ids)
        if self.max_context is not None and end > self.max_context:
            message = (
                f"{end:,} tokens are more than the model was exported for, {self.max_context:,}"
            )
            help = "export it with a larger --max-context"
            raise LlamagenError.of("LG764", message, help=help)
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self.length, end, dtype=np.int64)[None],
            **self.by_token(len(ids), beside),
            **self.stood_for(ids),
        }
        made = dict(self.seen)
        for graph in self.before:
            made.update(graph.run(graph.feeds(arrays, made)))
        with computing(str(self.last.file), self.options):
            logits = self.cache.run(self.last.feeds(arrays, made), end)
            # The next call writes its logits into the same memory.
            last: npt.NDArray[np.floating] = logits[0, -1].copy()
        self.require_logits(last, (self.width,), end)
        self.length = end
        return last[: self.vocab_size]

    def require_logits(
        self, logits: npt.NDArray[np.floating], shape: tuple[int, ...], tokens: int
    ) -> None:
        """Raises LG760 for those of another shape, LG768 for what is no number."""
        if logits.shape != shape:
            message = f"{self.last.file} gives {logits.shape} logits, and says {self.width:,}"
            raise LlamagenError.of("LG760", message, help="export the model again")
        if not np.isfinite(logits).all():
            message = f"{self.last.file} gives logits that are not finite after {tokens:,} tokens"
            help = (
                "weights are damaged, or too large for the dtype; `llamagen verify DIR` tells more"
            )
            raise LlamagenError.of("LG768", message, help=help)

    def reserve(self, total: int) -> None:
        """Make room for ``total`` tokens. Raises LG714."""
        with computing(f"a cache of {total:,} tokens", self.options):
            self.cache.reserve(total)

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


class Batch:
    """Several texts side by side in ``session``, padded on the left, with a cache of their own."""

    def __init__(self, session: Session, rows: int, total: int) -> None:
        """With room for ``total`` tokens, padding included, in each. Raises LG714."""
        self.session = session
        self.mask = np.zeros((rows, 0), np.int64)
        self.cache = cache_of(session.last.session, rows)
        with computing(f"caches of {rows} x {total:,} tokens", session.options):
            self.cache.reserve(total)

    def step(self, rows: Sequence[Sequence[int]]) -> npt.NDArray[np.floating]:
        """Append tokens to every text; the logits after the last one of each, [B, V].

        Raises LG763 for ids outside the vocabulary, LG768 for logits that are no numbers.
        """
        session, length = self.session, max(map(len, rows))
        for ids in rows:
            session.require(ids, NOTHING)
        given = [[0] * (length - len(ids)) + [*ids] for ids in rows]
        real = [[0] * (length - len(ids)) + [1] * len(ids) for ids in rows]
        self.mask = np.concatenate([self.mask, np.array(real, np.int64)], axis=1)
        positions = np.maximum(self.mask.cumsum(axis=1) - 1, 0)[:, -length:]
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "input_ids": np.array(given, np.int64),
            "attention_mask": self.mask,
            "position_ids": positions,
        }
        end = self.mask.shape[1]
        with computing(str(session.last.file), session.options):
            logits = self.cache.run(session.last.feeds(arrays, {}), end)
            last: npt.NDArray[np.floating] = logits[:, -1].copy()
        session.require_logits(last, (len(rows), session.width), end)
        return last[:, : session.vocab_size]
