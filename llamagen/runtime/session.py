"""An exported folder in ONNX Runtime: logits with a key/value cache, and generation token by token."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llamagen.diagnostics import LlamagenError
from llamagen.emit.onnx.session import open_session
from llamagen.emit.onnx.write import MODEL_FILE
from llamagen.runtime.cache import Cache, cache_of
from llamagen.runtime.sampling import Sampler, Sampling
from llamagen.runtime.text import TOKENIZER_FILE, Text


class Session:
    """One sequence (batch 1). The cache stays in ONNX Runtime's memory between calls."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        """Open ``folder``. Raises LG760 if it was not exported, LG711 to LG713 if ONNX Runtime refuses it."""
        import onnxruntime as ort

        if not (folder / MODEL_FILE).is_file():
            message = f"{str(folder)!r} has no {MODEL_FILE}"
            help = "`llamagen export ID --checkpoint DIR --out DIR` writes such a folder"
            raise LlamagenError.of("LG760", message, help=help)
        self.ort = ort
        self.session = open_session(folder / MODEL_FILE, threads)
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.vocab_size = int(self.session.get_outputs()[0].shape[-1])
        said = self.session.get_modelmeta().custom_metadata_map.get("llamagen.max_context")
        self.max_context: int | None = int(said) if said is not None else None
        self.cache: Cache = cache_of(self.session)
        self.length = 0

    def reset(self) -> None:
        """Forget every token."""
        self.length = 0
        self.cache.reset()

    def step(self, ids: Sequence[int]) -> npt.NDArray[np.floating]:
        """Append tokens; the logits [V] after the last one.

        Raises LG763 for ids outside the vocabulary, LG764 beyond the tables of positions that the model has.
        """
        wrong = [i for i in ids if not 0 <= i < self.vocab_size]
        if wrong or not ids:
            reason = f"token {wrong[0]} is not" if wrong else "there are no tokens"
            help = f"ids are from 0 to {self.vocab_size - 1}"
            raise LlamagenError.of(
                "LG763", f"{reason} in the vocabulary" if wrong else reason, help=help
            )
        end = self.length + len(ids)
        if self.max_context is not None and end > self.max_context:
            message = (
                f"{end:,} tokens are more than the model was exported for, {self.max_context:,}"
            )
            help = "export it with a larger --max-context"
            raise LlamagenError.of("LG764", message, help=help)
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self.length, end, dtype=np.int64)[None],
        }
        values = {
            name: self.ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in feeds.items()
            if name in self.inputs
        }
        logits = self.cache.run(values, end)
        self.length = end
        # The next call writes its logits into the same memory.
        last: npt.NDArray[np.floating] = logits[0, -1].copy()
        return last


@dataclass(frozen=True, slots=True)
class Piece:
    """One new token and what it adds to the text (the id itself, without a tokenizer)."""

    token: int
    text: str


@dataclass
class Generation:
    """Iterate it once to get the pieces; the times are complete afterwards."""

    session: Session
    prompt: tuple[int, ...]
    text: Text | None
    sampling: Sampling
    max_new_tokens: int
    stop: frozenset[int]
    context: int | None
    load_seconds: float
    tokens: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def __iter__(self) -> Iterator[Piece]:
        sampler = Sampler(self.sampling)
        started = time.perf_counter()
        logits = self.session.step(self.prompt)
        self.prefill_seconds = time.perf_counter() - started
        room = self.max_new_tokens
        if self.context is not None:
            room = min(room, self.context - len(self.prompt))
        while len(self.tokens) < room:
            token = sampler.next(logits)
            if token in self.stop:
                return
            self.tokens.append(token)
            yield Piece(token, self._text(token))
            if len(self.tokens) < room:
                started = time.perf_counter()
                logits = self.session.step((token,))
                self.decode_seconds += time.perf_counter() - started

    def _text(self, token: int) -> str:
        if self.text is not None:
            return self.text.push(token)
        return f"{token}" if len(self.tokens) == 1 else f" {token}"

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first, which comes from the prefill."""
        steps = max(len(self.tokens) - 1, 0)
        return steps / self.decode_seconds if self.decode_seconds else 0.0

    def summary(self) -> str:
        """One line with the times."""
        from llamagen.units import rate_text

        prefill = len(self.prompt) / self.prefill_seconds if self.prefill_seconds else 0.0
        return (
            f"{len(self.prompt)} tokens read at {rate_text(prefill, 'tokens')}, "
            f"{len(self.tokens)} written at {rate_text(self.decode_rate, 'tokens')}, "
            f"opened in {self.load_seconds:.2f} s"
        )


def generate(
    folder: Path,
    prompt: str | Sequence[int],
    sampling: Sampling,
    max_new_tokens: int = 64,
    threads: int = 0,
) -> Generation:
    """Open ``folder`` and prepare a generation; nothing is computed before it is iterated.

    Raises LG760 (not an exported folder), LG761 (text without a tokenizer), LG762 (a broken tokenizer), LG764 (a
    prompt longer than the context).
    """
    started = time.perf_counter()
    session = Session(folder, threads)
    opened = time.perf_counter() - started
    text = Text.of_folder(folder)
    if isinstance(prompt, str):
        if text is None:
            message = f"{str(folder)!r} has no {TOKENIZER_FILE}, so it cannot read text"
            help = "give token ids with --ids, or copy the model's tokenizer.json there"
            raise LlamagenError.of("LG761", message, help=help)
        ids = text.encode(prompt)
    else:
        ids = tuple(prompt)
    known = [c for c in (_context(folder), session.max_context) if c is not None]
    context = min(known, default=None)
    if context is not None and len(ids) >= context:
        message = f"the prompt has {len(ids):,} tokens, the model's context is {context:,}"
        raise LlamagenError.of("LG764", message, help="shorten the prompt")
    session.cache.reserve(min(len(ids) + max_new_tokens, context or sys.maxsize))
    return Generation(
        session, ids, text, sampling, max_new_tokens, _stop_tokens(folder), context, opened
    )


def _context(folder: Path) -> int | None:
    found = _config(folder / "config.json").get("max_position_embeddings")
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _stop_tokens(folder: Path) -> frozenset[int]:
    """``eos_token_id`` of generation_config.json, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        found = _config(folder / name).get("eos_token_id")
        several = found if isinstance(found, list) else [found]
        ids = frozenset(i for i in several if isinstance(i, int) and not isinstance(i, bool))
        if ids:
            return ids
    return frozenset()


def _config(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        loaded: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LlamagenError.of("LG765", f"{path} is not JSON: {error}") from error
    return {str(k): v for k, v in loaded.items()} if isinstance(loaded, dict) else {}
