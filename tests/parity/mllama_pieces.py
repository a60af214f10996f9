"""Text with images through the graphs of Llama 3.2 Vision: encoder once, then the decoder call by call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llamagen.ir.flatten import flatten
from llamagen.ir.reference import Rounding, evaluate_graph
from llamagen.verify.numerics import FloatArray
from llamagen.verify.witnesses import OnnxWitness, TorchWitness
from tests.parity.models import RandomModel
from tests.parity.peers import everything_float64

Values = Mapping[str, NDArray[np.generic]]
Cache = tuple[tuple[FloatArray, FloatArray], ...]

VISION = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")


class Run(Protocol):
    """The encoder's keys and values are kept for every later step; so is the cache of the text."""

    def see(self, values: Values) -> None: ...

    def step(self, values: Values) -> NDArray[np.generic]: ...


@dataclass
class ReferenceRun:
    model: RandomModel
    rounding: Rounding = None
    past: Cache | None = None
    seen: Values = field(default_factory=dict)

    def see(self, values: Values) -> None:
        flat = flatten(self.model.graphs["vision_encoder"])
        self.seen = evaluate_graph(flat, self.model.weight, values, rounding=self.rounding).cross

    def step(self, values: Values) -> NDArray[np.generic]:
        named = {"positions" if k == "position_ids" else k: v for k, v in values.items()}
        flat = flatten(self.model.graphs["decoder" if self.seen else "model"])
        given = {**named, **self.seen}
        result = evaluate_graph(flat, self.model.weight, given, self.past, rounding=self.rounding)
        self.past = result.present
        return result.outputs[0]


def _real(value: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.ascontiguousarray(value if value.dtype == np.int64 else value.astype(np.float32))


@dataclass
class OnnxRun:
    model: RandomModel
    past: dict[str, NDArray[np.generic]] | None = None
    seen: Values = field(default_factory=dict)

    @cached_property
    def sessions(self) -> dict[str, OnnxWitness]:
        weight = self.model.weight
        return {n: OnnxWitness.of_graph(g, weight) for n, g in self.model.graphs.items()}

    def results(self, name: str, values: Values) -> dict[str, NDArray[np.generic]]:
        session = self.sessions[name].session
        outputs = [o.name for o in session.get_outputs()]
        feeds = {k: _real(v) for k, v in values.items()}
        return dict(zip(outputs, session.run(outputs, feeds), strict=True))

    def see(self, values: Values) -> None:
        self.seen = self.results("vision_encoder", values)

    def step(self, values: Values) -> NDArray[np.generic]:
        name = "decoder" if self.seen else "model"
        if self.past is None:
            self.past = {
                i.name: np.zeros((len(values["input_ids"]), i.shape[1], 0, i.shape[3]), np.float32)
                for i in self.sessions[name].session.get_inputs()
                if i.name.startswith("past_key_values.")
            }
        found = self.results(name, {**values, **self.seen, **self.past})
        self.past = {
            n.replace("present", "past_key_values", 1): v
            for n, v in found.items()
            if n.startswith("present")
        }
        return found["logits"]


@dataclass
class TorchRun:
    model: RandomModel
    attention: str = "sdpa"
    past: object = None
    seen: object = None

    @cached_property
    def modules(self) -> dict[str, torch.nn.Module]:
        weight = self.model.weight
        return {n: TorchWitness.of_graph(g, weight).model for n, g in self.model.graphs.items()}

    def see(self, values: Values) -> None:
        given = {k: torch.from_numpy(_real(v)) for k, v in values.items()}
        with torch.no_grad():
            self.seen = self.modules["vision_encoder"](**given)

    def step(self, values: Values) -> NDArray[np.generic]:
        given: dict[str, object] = {k: torch.from_numpy(_real(v)) for k, v in values.items()}
        if self.seen is not None:
            given["cross_key_values"] = self.seen
        name = "model" if self.seen is None else "decoder"
        with torch.no_grad():
            found, self.past = self.modules[name](**given, past=self.past)
        return np.asarray(found.numpy())


RUNS: Mapping[str, Callable[[RandomModel], Run]] = {"onnx": OnnxRun, "torch": TorchRun}


@dataclass(frozen=True)
class Story:
    """Ids [B, T] with left padding in ``mask``, images of each row, and lengths of the calls."""

    name: str
    input_ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    vision: Mapping[str, NDArray[np.generic]]
    """Inputs of the encoder; none for text alone."""
    cross_attention_mask: NDArray[np.int64]
    splits: tuple[int, ...]

    def calls(self) -> list[dict[str, NDArray[np.int64]]]:
        positions = np.maximum(np.cumsum(self.mask, axis=1) - 1, 0)
        found, start = [], 0
        for length in self.splits:
            stop = start + length
            call = {
                "input_ids": self.input_ids[:, start:stop],
                "attention_mask": self.mask[:, :stop],
                "position_ids": positions[:, start:stop],
            }
            if self.vision:
                call["cross_attention_mask"] = self.cross_attention_mask[:, start:stop]
            found.append(call)
            start = stop
        return found

    def logits(self, run: Run) -> FloatArray:
        """Of every real token, [tokens, V]: the images once, then call by call."""
        if self.vision:
            run.see(self.vision)
        pieces = [run.step(call) for call in self.calls()]
        return np.concatenate(pieces, axis=1)[self.mask > 0].astype(np.float64)

    def peer_logits(self, peer: torch.nn.Module) -> FloatArray:
        """The same by transformers, in float64."""
        pieces, past = [], None
        for call in self.calls():
            images = {k: torch.from_numpy(v) for k, v in self.vision.items()} if not pieces else {}
            with torch.no_grad(), everything_float64():
                result = peer(
                    **{k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in call.items()},
                    **images,
                    past_key_values=past,
                    use_cache=True,
                )
            past = result.past_key_values
            pieces.append(result.logits.numpy())
        return np.concatenate(pieces, axis=1)[self.mask > 0]


def seen_tiles(
    ids: Sequence[int], token: int, tiles: Sequence[int], most: int
) -> NDArray[np.int64]:
    """[S, images, most]: an image is seen from its token to the next one, neighbours together, the last to the end
    (facts 4.7, create_vision_mask)."""
    places = [i for i, id in enumerate(ids) if id == token]
    ends = [*places, len(ids)][1:]
    for i in reversed(range(len(places) - 1)):
        if ends[i] == places[i] + 1:  # the next image follows at once: both end together
            ends[i] = ends[i + 1]
    found = np.zeros((len(ids), len(tiles), most), np.int64)
    for image, (start, end, count) in enumerate(zip(places, ends, tiles, strict=True)):
        found[start:end, image, :count] = 1
    return found


def story(
    name: str,
    rows: Sequence[tuple[str, Sequence[tuple[int, int]]]],
    splits: Sequence[int],
    side: int,
    token: int = 61,
    seed: int = 3,
) -> Story:
    """Rows written as ``_`` padding, ``t`` text, ``i`` image; for each image its id of arrangement and its tiles."""
    generator = np.random.default_rng(seed)
    shape = (len(rows), len(rows[0][0]))
    ids = generator.integers(0, token, shape, dtype=np.int64)
    letters = np.array([list(text) for text, _ in rows])
    ids[letters == "i"] = token
    mask = (letters != "_").astype(np.int64)
    most = max(len(images) for _, images in rows)
    cross = np.zeros((*shape, most, 4), np.int64)
    aspect_ids = np.zeros((len(rows), most), np.int64)
    aspect_mask = np.zeros((len(rows), most, 4), np.int64)
    aspect_mask[..., 0] = 1  # as the processor of transformers marks images that are not there
    pixels = generator.standard_normal((len(rows), most, 4, 3, side, side))
    for b, (_, images) in enumerate(rows):
        counts = [count for _, count in images]
        cross[b, :, : len(images)] = seen_tiles(ids[b].tolist(), token, counts, 4)
        pixels[b, len(images) :] = 0
        for i, (arrangement, count) in enumerate(images):
            aspect_ids[b, i] = arrangement
            aspect_mask[b, i, :count] = 1
            pixels[b, i, count:] = 0
    vision = {
        "pixel_values": pixels.astype(np.float32).astype(np.float64),
        "aspect_ratio_ids": aspect_ids,
        "aspect_ratio_mask": aspect_mask,
    }
    return Story(name, ids, mask, vision if most else {}, cross, tuple(splits))


def stories(side: int) -> tuple[Story, ...]:
    """The ways in which text and images come together."""
    return (
        story("image first", [("itttttttt", [(6, 4)])], [9], side),
        story("text first", [("ttitttttt", [(2, 2)])], [5, 1, 1, 1, 1], side),
        story("several images", [("titttiittttt", [(1, 1), (5, 2), (8, 4)])], [9, 1, 2], side),
        story(
            "a batch",
            [("___itttttt", [(7, 3)]), ("titttitttt", [(2, 2), (4, 4)]), ("_ttttttttt", [])],
            [7, 1, 1, 1],
            side,
        ),
        story("no image", [("_tttttt", []), ("ttttttt", [])], [4, 1, 1, 1], side),
    )
