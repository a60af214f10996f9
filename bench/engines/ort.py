"""Any decoder in ONNX Runtime whose cache inputs stand in the order of its cache outputs; the cache grows."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from bench.engines.protocol import Engine, serve

KNOWN = ("input_ids", "attention_mask", "position_ids")
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Ort(Engine):
    def __init__(self, model: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(str(model), options, ["CPUExecutionProvider"])
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.caches = [name for name in self.inputs if name not in KNOWN]
        self.outputs = [o.name for o in self.session.get_outputs()]
        settings = model.parent / "genai_config.json"
        if settings.is_file():
            self.head_size = json.loads(settings.read_text())["model"]["decoder"]["head_size"]

    def reset(self, rows: int, total: int) -> None:
        self.rows, self.length = rows, 0
        self.past = {
            name: ort.OrtValue.ortvalue_from_numpy(np.zeros(self._empty(name), self._type(name)))
            for name in self.caches
        }

    def _empty(self, name: str) -> tuple[int, ...]:
        _, heads, _, size = self.inputs[name].shape
        # transformers' exporter writes digits as names, genai's builder no head size at all
        return (self.rows, int(heads), 0, int(size) if str(size).isdigit() else self.head_size)

    def _type(self, name: str) -> type:
        return TYPES[self.inputs[name].type]

    def step(self, ids: Sequence[Sequence[int]]) -> list[int]:
        end = self.length + len(ids[0])
        positions = np.arange(self.length, end, dtype=np.int64)
        feeds = {
            "input_ids": np.array(ids, np.int64),
            "attention_mask": np.ones((self.rows, end), np.int64),
            "position_ids": np.tile(positions, (self.rows, 1)),
        }
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in feeds.items()
            if name in self.inputs
        }
        results = self.session.run_with_ort_values(self.outputs, {**values, **self.past})
        named = dict(zip(self.outputs, results, strict=True))
        logits = named.pop("logits").numpy()
        self.past = dict(zip(self.caches, named.values(), strict=True))
        self.length = end
        return [int(token) for token in logits[:, -1].argmax(axis=1)]


if __name__ == "__main__":
    serve(lambda: Ort(Path(sys.argv[1]) / "model.onnx", int(sys.argv[2])))
