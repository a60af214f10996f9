"""An emitted model: the graph, and the table of the weights that it wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from llamagen.analysis.rewrites import Logits
from llamagen.emit.onnx.initializer import Initializer
from llamagen.emit.onnx.profile import OnnxDType, Profile
from llamagen.emit.onnx.versions import Version


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """``model`` lacks the data of ``initializers``; write.py or data.py attach it."""

    model: ir.Model
    initializers: tuple[Initializer, ...]
    profile: Profile
    dtype: OnnxDType
    logits: Logits
    max_context: int | None
    """Tokens that tables of positions cover; None without such tables."""
    runtime: Version
    """Of ONNX Runtime: it and later ones have every operator of the model."""

    @property
    def opsets(self) -> Mapping[str, int]:
        """Versions of the operator sets in use, by domain; the standard one is ``""``."""
        return self.model.graph.opset_imports

    @property
    def fused_attention(self) -> bool:
        """Some attention is GroupQueryAttention."""
        return any(node.op_type == "GroupQueryAttention" for node in self.model.graph)

    @property
    def batched_chunks(self) -> bool:
        """Whether a call with a past may have several rows of several tokens."""
        return self.model.metadata_props.get("llamagen.chunks") != "one row"

    @property
    def in_place(self) -> bool:
        """Whether past and present caches may be one buffer, which the model appends to."""
        return self.model.metadata_props.get("llamagen.in_place") == "true"

    @property
    def session_settings(self) -> Mapping[str, str]:
        """Configuration entries of ONNX Runtime's session that suit the model.

        On a CPU float32 products read weights as they are stored at nearly the speed of weights that were packed at
        load (bench/README.md: prefill 0.94, decode 0.98): without packing such a model opens at once, and its weights
        stay pages of the file that processes share. Kernels of quantised weights need their packing.
        """
        as_stored = all(i.dtype == "float32" and i.part is None for i in self.initializers)
        on_cpu = self.profile.provider == "CPUExecutionProvider"
        return {"session.disable_prepacking": "1"} if on_cpu and as_stored else {}

    @property
    def values(self) -> Mapping[str, ir.Value]:
        """The initializers' values by name."""
        found = self.model.graph.initializers
        return {i.name: found[i.name] for i in self.initializers}
