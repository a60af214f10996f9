"""Text with images through the graphs of a Llama 4: encoder, fused embedding, decoder, each by three backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llamagen.ir.flatten import flatten
from llamagen.ir.reference import ReferenceResult, Rounding, evaluate_graph
from llamagen.verify.numerics import FloatArray
from llamagen.verify.witnesses import OnnxWitness, TorchWitness
from tests.parity.models import RandomModel
from tests.parity.peers import everything_float64

Values = Mapping[str, NDArray[np.generic]]


class Run(Protocol):
    """One graph at a time; the decoder keeps its cache."""

    def piece(self, name: str, values: Values) -> NDArray[np.generic]: ...

    def decode(self, values: Values) -> NDArray[np.generic]: ...


@dataclass
class ReferenceRun:
    model: RandomModel
    rounding: Rounding = None
    past: tuple[tuple[FloatArray, FloatArray], ...] | None = None

    def evaluate(self, name: str, values: Values) -> ReferenceResult:
        named = {"positions" if k == "position_ids" else k: v for k, v in values.items()}
        flat = flatten(self.model.graphs[name])
        past = self.past if flat.slots else None
        return evaluate_graph(flat, self.model.weight, named, past, rounding=self.rounding)

    def piece(self, name: str, values: Values) -> NDArray[np.generic]:
        return self.evaluate(name, values).outputs[0]

    def decode(self, values: Values) -> NDArray[np.generic]:
        result = self.evaluate("decoder", values)
        self.past = result.present
        return result.outputs[0]


@dataclass
class OnnxRun:
    model: RandomModel
    past: dict[str, NDArray[np.generic]] | None = None

    @cached_property
    def sessions(self) -> dict[str, OnnxWitness]:
        weight = self.model.weight
        return {n: OnnxWitness.of_graph(g, weight) for n, g in self.model.graphs.items()}

    def results(self, name: str, values: Values) -> dict[str, NDArray[np.generic]]:
        session = self.sessions[name].session
        outputs = [o.name for o in session.get_outputs()]
        feeds = {
            k: np.ascontiguousarray(v if v.dtype == np.int64 else v.astype(np.float32))
            for k, v in values.items()
        }
        return dict(zip(outputs, session.run(outputs, feeds), strict=True))

    def piece(self, name: str, values: Values) -> NDArray[np.generic]:
        return next(iter(self.results(name, values).values()))

    def decode(self, values: Values) -> NDArray[np.generic]:
        if self.past is None:
            self.past = {
                i.name: np.zeros(
                    (len(values["inputs_embeds"]), i.shape[1], 0, i.shape[3]), np.float32
                )
                for i in self.sessions["decoder"].session.get_inputs()
                if i.name.startswith("past_key_values.")
            }
        found = self.results("decoder", {**values, **self.past})
        self.past = {
            n.replace("present", "past_key_values", 1): v
            for n, v in found.items()
            if "present" in n
        }
        return found["logits"]


@dataclass
class TorchRun:
    model: RandomModel
    past: object = None

    @cached_property
    def modules(self) -> dict[str, torch.nn.Module]:
        weight = self.model.weight
        return {n: TorchWitness.of_graph(g, weight).model for n, g in self.model.graphs.items()}

    def tensors(self, values: Values) -> dict[str, torch.Tensor]:
        return {
            k: torch.from_numpy(np.array(v if v.dtype == np.int64 else v.astype(np.float32)))
            for k, v in values.items()
        }

    def piece(self, name: str, values: Values) -> NDArray[np.generic]:
        with torch.no_grad():
            found: torch.Tensor = self.modules[name](**self.tensors(values))
        return found.numpy()

    def decode(self, values: Values) -> NDArray[np.generic]:
        with torch.no_grad():
            found, self.past = self.modules["decoder"](**self.tensors(values), past=self.past)
        return np.asarray(found.numpy())


@dataclass(frozen=True)
class Picture:
    """Ids [B, T] with left padding in ``mask``, tiles for their patch tokens, and lengths of the calls."""

    input_ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    pixel_values: NDArray[np.float64]
    splits: tuple[int, ...]

    def calls(self) -> list[dict[str, NDArray[np.int64]]]:
        positions = np.maximum(np.cumsum(self.mask, axis=1) - 1, 0)
        found, start = [], 0
        for length in self.splits:
            stop = start + length
            found.append(
                {
                    "input_ids": self.input_ids[:, start:stop],
                    "attention_mask": self.mask[:, :stop],
                    "position_ids": positions[:, start:stop],
                }
            )
            start = stop
        return found

    def logits(self, run: Run) -> FloatArray:
        """Of every real token, [tokens, V]: features once, then call by call; later calls have no image."""
        features = run.piece("vision_encoder", {"pixel_values": self.pixel_values})
        pieces = []
        for call in self.calls():
            given = {"input_ids": call["input_ids"], "image_features": features}
            embeds = run.piece("embedding", given)
            features = features[:0]
            rest = {k: v for k, v in call.items() if k != "input_ids"}
            pieces.append(run.decode({"inputs_embeds": embeds, **rest}))
        return np.concatenate(pieces, axis=1)[self.mask > 0].astype(np.float64)

    def peer_logits(self, peer: torch.nn.Module) -> FloatArray:
        """The same by transformers, in float64."""
        pieces, past, pixels = [], None, torch.from_numpy(self.pixel_values)
        for call in self.calls():
            with torch.no_grad(), everything_float64():
                result = peer(
                    **{k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in call.items()},
                    pixel_values=pixels if past is None else None,
                    past_key_values=past,
                    use_cache=True,
                )
            past = result.past_key_values
            pieces.append(result.logits.numpy())
        return np.concatenate(pieces, axis=1)[self.mask > 0]


def picture(token: int, tokens: int, side: int, *, padded: bool, seed: int = 3) -> Picture:
    """Two rows: one tile and two tiles (each ``tokens`` patch tokens) between words, then four decoded tokens."""
    generator = np.random.default_rng(seed)
    total = 2 * tokens + 9
    ids = generator.integers(0, token, (2, total), dtype=np.int64)
    mask = np.ones_like(ids)
    ids[0, 4 : 4 + tokens] = token
    ids[1, 1 : 1 + tokens] = token
    ids[1, 3 + tokens : 3 + 2 * tokens] = token
    if padded:
        mask[0, :3] = 0
    pixels = generator.standard_normal((3, 3, side, side))
    return Picture(ids, mask, pixels.astype(np.float32).astype(np.float64), (total - 4, 1, 1, 1, 1))


RUNS: Mapping[str, Callable[[RandomModel], Run]] = {"onnx": OnnxRun, "torch": TorchRun}
