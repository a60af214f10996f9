"""The key/value cache of a session, in ONNX Runtime's memory between calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from llamagen.emit.onnx.session import array_of, as_past, device_of, empty_cache, value_of

if TYPE_CHECKING:
    import onnxruntime as ort
    from onnxruntime import OrtValue


class Cache(Protocol):
    """What a model remembers of the tokens so far."""

    def reset(self) -> None:
        """Forget every token."""

    def reserve(self, total: int) -> None:
        """Make room for ``total`` tokens, so that no call has to."""

    def run(self, feeds: Mapping[str, OrtValue], total: int) -> npt.NDArray[np.floating]:
        """One call; ``total`` counts all tokens with the new ones. The logits, [1, S, V] or [1, 1, V]."""


def cache_of(session: ort.InferenceSession) -> Cache:
    """In place where the model can append to a buffer that numpy can hold, else one that grows."""
    in_place = session.get_modelmeta().custom_metadata_map.get("llamagen.in_place") == "true"
    held = all("bfloat16" not in i.type for i in session.get_inputs())
    return BufferCache(session) if in_place and held else GrowingCache(session)


class GrowingCache:
    """Every call reads the past and returns past and new tokens as a new tensor; no copy is made here."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session
        self.device = device_of(session)
        self.outputs = [o.name for o in session.get_outputs()]
        self.past: dict[str, OrtValue] = {}
        self.reset()

    def reset(self) -> None:
        empty = empty_cache(self.session, batch=1)
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

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session
        self.device = device_of(session)
        self.capacity = 0
        self.binding = session.io_binding()
        self.buffers: dict[str, OrtValue] = {}
        self.length = 0
        self.binding.bind_output("logits")

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
        self.session.run_with_iobinding(self.binding)
        self.length = total
        # In the order of binding: logits were bound first.
        logits: npt.NDArray[np.floating] = self.binding.get_outputs()[0].numpy()
        return logits

    def _empty(self) -> dict[str, npt.NDArray[np.generic]]:
        return {
            name: np.zeros((*array.shape[:2], self.capacity, array.shape[3]), array.dtype)
            for name, array in empty_cache(self.session, batch=1).items()
        }

    def _bind(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        for name, array in arrays.items():
            buffer = value_of(array, self.device)
            self.buffers[name] = buffer
            self.binding.bind_ortvalue_input(name, buffer)
            present = name.replace("past_key_values.", "present.", 1)
            self.binding.bind_ortvalue_output(present, buffer)
