"""llamagen from a program: ``load`` a model, read it, write its backends.

Importing this module is cheap: PyTorch, ONNX and ONNX Runtime are imported by the functions that need them.
Every function raises ``LlamagenError`` for input that cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llamagen.diagnostics import LlamagenError
from llamagen.emit.options import DEFAULTS, TARGETS, ExportOptions, Target

if TYPE_CHECKING:
    from llamagen.analysis.check import CheckReport
    from llamagen.emit.checkpoints import Converted
    from llamagen.emit.generate import Generated
    from llamagen.emit.written import Progress, Written
    from llamagen.ir.bounded import CacheKind
    from llamagen.ir.graph import Graph
    from llamagen.ops.op import Parameter
    from llamagen.runtime.generation import Generation
    from llamagen.spec.fmt import FormatReport, OriginRow
    from llamagen.spec.registry import Registry
    from llamagen.spec.resolve import ResolvedSpec
    from llamagen.spec.schema import Spec


def _silent(done: int, total: int) -> None:
    """Reports nothing."""


def _ids(tokenizer: str, text: str) -> Sequence[int]:
    """The ids of ``text`` by a tokenizer.json."""
    from llamagen.runtime.text import Text

    return Text.of(tokenizer, "tokenizer.json").encode(text)


@dataclass(frozen=True)
class Model:
    """One resolved spec and what is derived from it, each part computed when first asked for."""

    resolved: ResolvedSpec
    registry: Registry = field(repr=False, compare=False)

    @property
    def id(self) -> str:
        return self.resolved.spec.id

    @property
    def spec(self) -> Spec:
        """The typed spec."""
        return self.resolved.spec

    @cached_property
    def origins(self) -> tuple[OriginRow, ...]:
        """Every leaf with the places that wrote it."""
        from llamagen.spec.fmt import origin_rows

        return origin_rows(self.resolved)

    @cached_property
    def graph(self) -> Graph:
        """The verified graph. Raises LG401 for a record whose wiring is not published."""
        from llamagen.ir.elaborate import build

        return build(self.resolved)

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """Role path (the checkpoint's name) -> parameter of all graphs; a tied head has none of its own."""
        from llamagen.ir.elaborate import build_all
        from llamagen.ir.graph import all_parameters

        return all_parameters(build_all(self.resolved))

    @property
    def parameter_count(self) -> int:
        return sum(p.count for p in self.parameters.values())

    def resolved_text(self) -> str:
        """The spec as one YAML file without ``extends``."""
        from llamagen.spec.fmt import resolved_text

        return resolved_text(self.resolved)

    def graph_text(self) -> str:
        """The canonical text of the graph; it parses back to an equal graph."""
        from llamagen.ir.text import render

        return render(self.graph)

    def mermaid(self) -> str:
        """The graph as a Mermaid flowchart."""
        from llamagen.analysis.pictures import mermaid

        return mermaid(self.graph)

    def files(self, *targets: Target, cache: CacheKind = "full") -> dict[str, str]:
        """What ``generate`` writes, file name -> text; every target by default."""
        from llamagen.emit.generate import files_of

        return files_of(self.resolved, targets or TARGETS, cache)

    def torch_source(self, cache: CacheKind = "full") -> str:
        """A standalone PyTorch module, source text."""
        return self.files(Target.TORCH, cache=cache)["modeling.py"]

    def onnx_text(self, cache: CacheKind = "full") -> str:
        """The ONNX graph of the portable profile without weights, as text."""
        return self.files(Target.ONNX, cache=cache)["model.onnx.txt"]

    def export(
        self,
        out: str | Path,
        options: ExportOptions = DEFAULTS,
        *,
        checkpoint: str | Path | None = None,
        random_weights: int | None = None,
        overwrite: bool = False,
        ignore_config: bool = False,
        progress: Progress = _silent,
    ) -> Written:
        """Write an ONNX folder with the weights of a checkpoint, or random ones of a seed; whole or not at all.

        A checkpoint's own config.json must make the spec's graph, unless ``ignore_config``: then the spec counts, and
        the folder gets its config.json.
        """
        from llamagen.emit.export import ExportJob, export_checkpoint, export_random

        reads = self.registry.files
        job = ExportJob(self.resolved, options, Path(out), overwrite, progress, reads, _ids)
        if checkpoint is not None and random_weights is None:
            return export_checkpoint(job, Path(checkpoint), self.registry, ignore_config)
        if random_weights is not None and checkpoint is None:
            return export_random(job, random_weights)
        raise LlamagenError.of("LG901", "give either checkpoint or random_weights")


def load(target: str | Path, roots: Sequence[Path] = ()) -> Model:
    """The model of an id (``llama/3.2/1b``), of a YAML file or of ``REVISION:PATH`` in git.

    ``roots`` are searched before the shipped specs.
    """
    from llamagen.analysis.targets import resolved_of
    from llamagen.spec.registry import Registry

    registry = Registry(roots)
    return Model(resolved_of(target, registry), registry)


def imported(checkpoint: str | Path) -> Model:
    """The model that a checkpoint says it is: a Hub or Meta folder, or a GGUF file; see ``import_config``."""
    from llamagen.emit.config.checkpoint import import_path
    from llamagen.spec.registry import Registry

    return Model(import_path(Path(checkpoint)).resolved, Registry())


def check(
    targets: Sequence[str] = (), roots: Sequence[Path] = (), *, notes: bool = False
) -> CheckReport:
    """Every finding about ids, YAML files and folders; about all shipped specs without targets."""
    from llamagen.analysis.check import check_specs
    from llamagen.spec.registry import Registry

    return check_specs(Registry(roots), targets, notes=notes)


def check_checkpoint(folder: str | Path, target: str | Path) -> CheckReport:
    """Compare a checkpoint's headers with a spec; no weights are read."""
    from llamagen.emit.config.checkpoint import check_checkpoint

    model = load(target)
    return check_checkpoint(model.resolved, Path(folder), model.registry)


def fmt(files: Sequence[Path], *, write: bool = True) -> FormatReport:
    """Bring YAML files, and those below folders, into canonical form; without ``write`` only compare."""
    from llamagen.spec.fmt import format_files
    from llamagen.spec.schema import Spec

    return format_files(files, tuple(Spec.model_fields), write=write)


def schema_text() -> str:
    """The JSON schema of spec files."""
    from llamagen.spec.json_schema import schema_text

    return schema_text()


def schema_is_fresh() -> bool:
    """Whether the shipped spec/schema.json is what ``schema_text`` gives."""
    from llamagen.resources import data_text

    return data_text("spec", "schema.json") == schema_text()


def write_schema(path: Path) -> bool:
    """Write the schema unless the file has it already; whether it was written. Raises LG634 over another file."""
    from llamagen.writing import require_kin, write_changed

    require_kin(path, lambda text: '"title": "llamagen spec"' in text, "a schema of specs")
    written, _ = write_changed(path.parent, {path.name: schema_text()})
    return bool(written)


def generate(
    ids: Sequence[str] = (),
    targets: Sequence[Target] = (),
    to: Path = Path("generated"),
    *,
    cache: CacheKind = "full",
) -> Iterator[Generated]:
    """Write what differs from the files below ``to``, model by model; every model without ``ids``."""
    from llamagen.emit.generate import generate
    from llamagen.spec.registry import Registry

    yield from generate(Registry(), ids, targets or TARGETS, to, cache)


def generate_check(
    ids: Sequence[str] = (),
    targets: Sequence[Target] = (),
    to: Path = Path("generated"),
    *,
    cache: CacheKind = "full",
) -> list[str]:
    """A unified diff for each file below ``to`` that ``generate`` would write or that nothing generates."""
    from llamagen.emit.generate import stale
    from llamagen.spec.registry import Registry

    return list(stale(Registry(), ids, targets or TARGETS, to, cache))


def convert(
    checkpoint: str | Path,
    before: str | Path,
    after: str | Path,
    out: str | Path,
    *,
    shard_bytes: int | None = None,
    overwrite: bool = False,
    ignore_config: bool = False,
    other_logits: bool = False,
    progress: Progress = _silent,
) -> Converted:
    """Write a checkpoint of ``before`` as one of ``after``, in the Hub's format; tensors keep their stored type.

    Raises LG902 where no exact conversion exists, LG903 where ``after`` computes other logits, unless
    ``other_logits``; LG6xx for a checkpoint that does not fit ``before``, and for the output.
    """
    from llamagen.emit.checkpoints import convert

    sides = (load(before), load(after))
    return convert(
        Path(checkpoint),
        sides[0].resolved,
        sides[1].resolved,
        Path(out),
        registry=sides[0].registry,
        reads=(*sides[0].registry.files, *sides[1].registry.files),
        shard_bytes=shard_bytes,
        overwrite=overwrite,
        ignore_config=ignore_config,
        other_logits=other_logits,
        progress=progress,
    )


def random_checkpoint(
    target: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    shard_bytes: int | None = None,
    overwrite: bool = False,
    progress: Progress = _silent,
) -> Written:
    """Write a Hub checkpoint of a model's shape, unit-scale random weights; ``progress`` gets (bytes done, in all)."""
    from llamagen.emit.checkpoints import random_checkpoint

    model = load(target)
    return random_checkpoint(
        model.resolved,
        Path(out),
        seed=seed,
        dtype=dtype,
        shard_bytes=shard_bytes,
        overwrite=overwrite,
        progress=progress,
        reads=model.registry.files,
    )


def run(
    folder: str | Path,
    prompt: str | Sequence[int],
    *,
    images: Sequence[str | Path] = (),
    chat: bool = False,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    threads: int = 0,
    provider: str = "cpu",
) -> Generation:
    """Generate from an exported folder: iterate the result for tokens and text as they come.

    ``images`` are files, one for each ``<|image|>`` of the prompt; without any there, all stand in front.
    With ``chat`` a text is what a user says in a conversation, written as the folder's chat template wants it.
    ``provider`` is ``cpu``, or ``cuda`` where onnxruntime has it.
    """
    from llamagen.runtime.generation import Sampling, generate

    sampling = Sampling(temperature, top_k, top_p, seed)
    pictures = [Path(image) for image in images]
    return generate(
        Path(folder), prompt, sampling, max_new_tokens, threads, pictures, chat, provider
    )
