"""What is verified: an exported folder, the graphs that its spec says, and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llamagen import files
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import SPEC_FILE, read_manifest
from llamagen.emit.onnx.data import MODEL_FILE
from llamagen.emit.onnx.session import OpenOptions, table_context
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import Graph, all_parameters, parameters
from llamagen.ir.pipeline import Pipeline, pipeline_of
from llamagen.spec.registry import Registry
from llamagen.verify.stored import StoredWeights, stored_weights

MAX_REFERENCE_PARAMETERS = 300_000_000
"""Beyond, the float64 reference would run for hours: it reads and widens every weight at every step."""


@dataclass(frozen=True)
class Subject:
    """The folder, the graphs its spec says, and its weights."""

    folder: Path
    graphs: Mapping[str, Graph]
    pipeline: Pipeline | None
    stored: StoredWeights
    options: OpenOptions
    """Of sessions, as the folder asks for."""

    @property
    def too_large(self) -> bool:
        """For the float64 reference."""
        return self.size > MAX_REFERENCE_PARAMETERS

    @property
    def max_context(self) -> int | None:
        """Tokens that the tables of positions in the model cover, where it has such tables."""
        return table_context(self.stored.metadata, self.folder / MODEL_FILE)

    @property
    def size(self) -> int:
        """Parameters of all graphs."""
        return sum(p.count for p in all_parameters(self.graphs).values())


def spec_text(folder: Path) -> str:
    """What an export wrote of its spec. Raises LG770."""
    file = folder / SPEC_FILE
    if not files.exists(file):
        raise LlamagenError.of("LG770", f"{str(folder)!r} has no {SPEC_FILE}")
    return files.read_text(file, files.EXPORTED, within=folder)


def subject_of(folder: Path, provider: str) -> Subject:
    stored = stored_weights(folder)
    graphs = build_all(Registry().load_text(spec_text(folder), f"{folder / SPEC_FILE}"))
    for name, graph in graphs.items():
        file = f"{name}.onnx"
        found = stored if file == MODEL_FILE else stored_weights(folder, file)
        if graph.digest != found.metadata.get("llamagen.spec_digest"):
            message = f"{SPEC_FILE} is not the spec that {file} was made from"
            raise LlamagenError.of("LG772", message, help="export the model again")
        found.require(parameters(graph), file)
        stored = stored.joined(found)
    manifest = read_manifest(folder)
    options = OpenOptions(provider=provider, settings=manifest.session, made_for=manifest.made_for)
    return Subject(folder, graphs, pipeline_of(graphs), stored, options)
