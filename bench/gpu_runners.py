"""What bench.gpu times: a model on a device with a cache there, fed token by token."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from llamagen.ir.elaborate import build
from llamagen.spec.registry import Registry
from llamagen.verify.stored import stored_weights
from llamagen.verify.witnesses import TorchWitness

BFLOAT16 = 16  # onnx.TensorProto; numpy has no such type
ELEMENTS: dict[str, tuple[torch.dtype, object]] = {
    "tensor(float)": (torch.float32, np.float32),
    "tensor(float16)": (torch.float16, np.float16),
    "tensor(bfloat16)": (torch.bfloat16, BFLOAT16),
    "tensor(int64)": (torch.int64, np.int64),
}


@dataclass
class Took:
    seconds: float = 0.0


@contextmanager
def synchronised(device: str) -> Iterator[Took]:
    """Seconds until the device has done what was asked of it."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    took = Took()
    wait()
    started = time.perf_counter()
    yield took
    wait()
    took.seconds = time.perf_counter() - started


class Runner(ABC):
    """``step`` takes ids [B, S] and a mask [B, past + S], and gives the last logits [B, V] in float32."""

    name: str
    device: str

    @abstractmethod
    def reset(self) -> None: ...

    @abstractmethod
    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray: ...


def _positions(mask: np.ndarray, new: int) -> np.ndarray:
    return np.maximum(mask.cumsum(1) - 1, 0)[:, -new:]


class Onnx(Runner):
    """ONNX Runtime; the cache is torch's memory, so that bfloat16 can be bound too."""

    name = "onnxruntime"

    def __init__(self, folder: Path, device: str) -> None:
        provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[device]
        self.device = device
        self.session = ort.InferenceSession(str(folder / "model.onnx"), providers=[provider])
        active = self.session.get_providers()[0]
        if active != provider:
            raise SystemExit(f"ONNX Runtime fell back to {active}")
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.caches = [n for n in self.inputs if n.startswith("past_key_values.")]
        self.logits = self.session.get_outputs()[0]
        said = self.session.get_modelmeta().custom_metadata_map
        self.in_place = said.get("llamagen.in_place") == "true"
        self.reset()

    def reset(self) -> None:
        self.past: dict[str, torch.Tensor] = {}
        self.capacity = 0

    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        batch, new = ids.shape
        total = mask.shape[1]
        binding = self.session.io_binding()
        fed = {"input_ids": ids, "attention_mask": mask, "position_ids": _positions(mask, new)}
        kept = []  # until the run is over
        for name, array in fed.items():
            if name in self.inputs:
                kept.append(torch.from_numpy(np.ascontiguousarray(array, np.int64)).to(self.device))
                self._bind(binding.bind_input, name, "tensor(int64)", kept[-1])
        if self.in_place:
            self._reserve(batch, total)
            present = self.past
        else:
            present = {name: self._cache(name, batch, total) for name in self.caches}
            if not self.past:
                self.past = {name: self._cache(name, batch, 0) for name in self.caches}
        for name in self.caches:
            kind = self.inputs[name].type
            self._bind(binding.bind_input, name, kind, self.past[name])
            output = name.replace("past_key_values.", "present.", 1)
            self._bind(binding.bind_output, output, kind, present[name])
        rows = 1 if self.logits.shape[1] == 1 else new
        made = torch.empty(
            (batch, rows, self.logits.shape[2]),
            dtype=ELEMENTS[self.logits.type][0],
            device=self.device,
        )
        self._bind(binding.bind_output, "logits", self.logits.type, made)
        self.session.run_with_iobinding(binding)
        self.past = present
        return made[:, -1].float().cpu().numpy()

    def _cache(self, name: str, batch: int, tokens: int) -> torch.Tensor:
        of = self.inputs[name]
        shape = (batch, of.shape[1], tokens, of.shape[3])
        return torch.zeros(shape, dtype=ELEMENTS[of.type][0], device=self.device)

    def _reserve(self, batch: int, total: int) -> None:
        if total <= self.capacity:
            return
        self.capacity = max(2 * self.capacity, -(-total // 256) * 256)
        for name in self.caches:
            larger = self._cache(name, batch, self.capacity)
            if name in self.past:
                larger[:, :, : self.past[name].shape[2]] = self.past[name]
            self.past[name] = larger

    def _bind(self, bind: object, name: str, kind: str, tensor: torch.Tensor) -> None:
        assert callable(bind)
        # an empty tensor has no address
        pointer = tensor.data_ptr() or torch.zeros(1, device=self.device).data_ptr()
        bind(name, self.device, 0, ELEMENTS[kind][1], tuple(tensor.shape), pointer)


class Module(Runner):
    """The generated PyTorch module with the folder's own weights."""

    name = "module"

    def __init__(self, model: torch.nn.Module, device: str) -> None:
        self.model, self.device = model, device
        self.empty_cache = sys.modules[type(model).__module__].KVCache
        self.reset()

    @classmethod
    def of_folder(cls, folder: Path, dtype: str, device: str) -> Module:
        stored = stored_weights(folder)
        graph = build(Registry().load_text((folder / "spec.yaml").read_text(), "spec.yaml"))
        assert dtype in ("float32", "float16", "bfloat16")
        witness = TorchWitness.of_graph(graph, stored.read, dtype)  # type: ignore[arg-type]
        return cls(witness.model.to(device), device)

    def reset(self) -> None:
        self.cache = self.empty_cache()

    @torch.inference_mode()
    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        padded = not mask.all()
        logits = self.model(
            torch.from_numpy(np.ascontiguousarray(ids)).to(self.device),
            position_ids=torch.from_numpy(_positions(mask, ids.shape[1])).to(self.device),
            attention_mask=torch.from_numpy(mask).to(self.device) if padded else None,
            cache=self.cache,
            logits_to_keep=1,
        )
        found: np.ndarray = logits[:, -1].float().cpu().numpy()
        return found


class Compiled(Module):
    """The same module through torch.compile, with dynamic sizes because the cache grows."""

    name = "torch.compile"

    def __init__(self, module: Module) -> None:
        super().__init__(module.model, module.device)
        self.model: Any = torch.compile(module.model, dynamic=True)


class Transformers(Runner):
    """transformers with its default attention."""

    name = "transformers"

    def __init__(self, checkpoint: Path, dtype: str, device: str) -> None:
        from transformers import AutoModelForCausalLM

        self.device = device
        self.model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype)
        ).to(device)
        self.model.eval()
        self.past: object = None

    def reset(self) -> None:
        self.past = None

    @torch.inference_mode()
    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        found = self.model(
            torch.from_numpy(np.ascontiguousarray(ids)).to(self.device),
            past_key_values=self.past,
            use_cache=True,
            logits_to_keep=1,
        )
        self.past = found.past_key_values
        logits: np.ndarray = found.logits[:, -1].float().cpu().numpy()
        return logits
