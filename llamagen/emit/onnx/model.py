"""An emitted model: the graph, and the table of the weights that it wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from llamagen.analysis.rewrites.rewrite import Logits
from llamagen.emit.onnx.profile import OnnxDType, Profile


@dataclass(frozen=True, slots=True)
class Source:
    """A parameter of the checkpoint: its role path and shape."""

    path: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Initializer:
    """A weight of the model: its name, its shape and its element type in the file.

    ``sources`` are the parameters it holds, by role path, joined along the first axis: one, under its own name, or
    the projections that a profile computes as one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: OnnxDType
    sources: tuple[Source, ...]

    @staticmethod
    def of(path: str, shape: tuple[int, ...], dtype: OnnxDType) -> Initializer:
        """The parameter ``path`` as it is."""
        return Initializer(path, shape, dtype, (Source(path, shape),))

    @staticmethod
    def joined(name: str, sources: Sequence[Source], dtype: OnnxDType) -> Initializer:
        """``sources``, alike but for their first sizes, as one tensor."""
        rows = sum(source.shape[0] for source in sources)
        return Initializer(name, (rows, *sources[0].shape[1:]), dtype, tuple(sources))


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

    @property
    def opsets(self) -> Mapping[str, int]:
        """Versions of the operator sets in use, by domain; the standard one is ``""``."""
        return self.model.graph.opset_imports

    @property
    def values(self) -> Mapping[str, ir.Value]:
        """The initializers' values by name."""
        found = self.model.graph.initializers
        return {i.name: found[i.name] for i in self.initializers}
