"""A checkpoint of one architecture as a checkpoint of another, where rows of its tensors are all that it takes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamagen.analysis.ask import Model, built
from llamagen.analysis.diff.conversion import conversion
from llamagen.analysis.diff.judge import diff
from llamagen.analysis.diff.render import arrow, where
from llamagen.analysis.diff.surfaces import Surface, Verdict
from llamagen.analysis.diff.transforms import ZERO_ROWS, Plan
from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.emit.supply import COMPANIONS, CONFIGS, companions_of, place_companion
from llamagen.emit.written import Progress, Written, sizes_of, write_text
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import all_parameters
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.weights.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    require_unchanged,
    write_json,
    write_tensors,
)
from llamagen.weights.names import Binding, bind, explained
from llamagen.weights.pieces import in_turn
from llamagen.weights.safetensors import NewTensor, TargetDType
from llamagen.weights.tensors import Tensor, concat, cut, take_rows, zeros
from llamagen.weights.values import tensor_pieces

RECORD = "conversion.json"
"""What was made of what, and how."""

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written, how many tensors each transform made, and how many stayed as they were."""

    written: Written
    transforms: tuple[tuple[str, int], ...]
    unchanged: int


def convert(
    checkpoint: Path,
    before: ResolvedSpec,
    after: ResolvedSpec,
    out: Path,
    *,
    registry: Registry,
    reads: tuple[Path, ...],
    shard_bytes: int | None,
    overwrite: bool,
    ignore_config: bool,
    other_logits: bool,
    progress: Progress,
) -> Converted:
    """Write a checkpoint of ``before`` as one of ``after``: Hub names, tensors in their stored type, streamed.

    Raises LG902 with the tensors that no exact conversion gives, LG903 where ``after`` computes other logits, LG60x,
    LG61x and LG607 for a checkpoint that does not fit ``before``, LG620 and LG622 for its values, LG63x for ``out``.
    """
    started = time.monotonic()
    plans, parameters = _planned(built(before), built(after), other_logits=other_logits)
    bound, stored = _bound(before, checkpoint, registry, ignore_config=ignore_config)
    made = {p.target: _made(p, bound, parameters[p.target]) for p in plans}
    tensors = {path: made.get(path) or bound[path] for path in parameters}
    counts = Counter(plan.transform.value for plan in plans)
    record = {
        "version": 1,
        "from": {"id": before.spec.id, "digest": before.digest},
        "to": {"id": after.spec.id, "digest": after.digest},
        "transforms": dict(sorted(counts.items())),
    }
    reads = (*reads, checkpoint)
    _write(tensors, after, stored, out, record, shard_bytes, overwrite, progress, reads)
    written = Written(out, sizes_of(out), time.monotonic() - started)
    return Converted(written, tuple(sorted(counts.items())), len(tensors) - len(plans))


def _planned(
    before: Model, after: Model, *, other_logits: bool
) -> tuple[tuple[Plan, ...], Mapping[str, tuple[int, ...]]]:
    """Plans, and the shape of every tensor to be written."""
    for model in (before, after):
        if not model.graphs:
            build_all(model.resolved)  # raises LG401: a record without wiring
    plans = conversion(before, after)
    if before.resolved.digest != after.resolved.digest and not other_logits:
        broken = [
            change
            for change in diff(before, after).on(Surface.NUMERICS)
            if change.kind != "value" and change.verdict(Surface.NUMERICS) is Verdict.BREAKING
        ]
        if broken:
            shown = "; ".join(f"{where(change)}: {arrow(change)}" for change in broken[:_SHOWN])
            more = f", and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
            message = f"`{after.id}` computes other logits than `{before.id}`: {shown}{more}"
            help = "pass --other-logits if only the shapes matter"
            raise LlamagenError.of("LG903", message, help=help)
    return plans, {path: p.shape for path, p in all_parameters(after.graphs).items()}


def _bound(
    resolved: ResolvedSpec, checkpoint: Path, registry: Registry, *, ignore_config: bool
) -> tuple[dict[str, Binding], Checkpoint]:
    """Role path -> stored tensor of A, and the checkpoint."""
    from llamagen.emit.config.agree import disagreements

    stored = Checkpoint.open(checkpoint)
    graph = built(resolved).graph
    assert graph is not None
    found = bind(resolved, graph, stored)
    if any(one.severity == "error" for one in found.diagnostics):
        raise LlamagenError(explained(found, resolved, graph, stored, registry))
    if not ignore_config:
        clashes = disagreements(resolved, stored.config_file, registry)
        if any(one.severity == "error" for one in clashes):
            raise LlamagenError(clashes)
    return {binding.name: binding for binding in found.bindings}, stored


def _made(plan: Plan, bound: Mapping[str, Binding], shape: tuple[int, ...]) -> Binding:
    sources = [bound[piece.source] for piece in plan.pieces if piece.source != ZERO_ROWS]
    dtypes = {source.dtype for source in sources}
    if len(dtypes) > 1:
        message = f"the parts of `{plan.target}` are stored in {' and '.join(sorted(dtypes))}"
        raise LlamagenError.of("LG902", message, help="store them in one type first")
    dtype = sources[0].dtype
    parts = [
        zeros((len(piece.rows), *shape[1:]), dtype)
        if piece.source == ZERO_ROWS
        else _rows(bound[piece.source].tensor, piece.rows)
        for piece in plan.pieces
    ]
    tensor = parts[0] if len(parts) == 1 else concat(parts, 0)
    assert tensor.shape == shape, (plan.target, tensor.shape, shape)
    names = tuple(name for source in sources for name in source.sources)
    return Binding(plan.target, dtype, tensor, names)


def _rows(source: Tensor, rows: Sequence[int]) -> Tensor:
    start, stop = rows[0], rows[0] + len(rows)
    if tuple(rows) != tuple(range(start, stop)):
        return take_rows(source, rows)
    return source if (start, stop) == (0, source.shape[0]) else cut(source, 0, start, stop)


def _write(
    tensors: Mapping[str, Binding],
    after: ResolvedSpec,
    stored: Checkpoint,
    out: Path,
    record: Mapping[str, object],
    shard_bytes: int | None,
    overwrite: bool,
    progress: Progress,
    reads: tuple[Path, ...],
) -> None:
    from llamagen.emit.config import config_files

    folder = stored.path if stored.path.is_dir() else stored.path.parent
    types = {path: _writable(binding) for path, binding in tensors.items()}
    new = [NewTensor(path, types[path], binding.tensor.shape) for path, binding in tensors.items()]
    total, done = sum(tensor.nbytes for tensor in new), 0

    def counted(path: str) -> Iterator[memoryview]:
        nonlocal done
        for block in in_turn(tensor_pieces(tensors[path], types[path], 0)):
            yield block
            done += block.nbytes
            progress(done, total)

    companions = companions_of(folder, [name for name in COMPANIONS if name not in CONFIGS])
    reads = (*reads, *stored.stamps, *companions)
    with checkpoint_folder(out, overwrite, reads) as staging:
        write_tensors(staging, [(one, counted(one.name)) for one in new], shard_bytes)
        for name, text in config_files(after).items():
            write_text(staging / name, _with_dtype(text, types))
        for companion in companions:
            place_companion(companion, staging)
        require_unchanged(stored.stamps)
        write_json(staging / RECORD, dict(record))


def _writable(binding: Binding) -> TargetDType:
    if binding.dtype == "F32" or binding.dtype == "F16" or binding.dtype == "BF16":
        return binding.dtype
    message = f"`{binding.name}` is stored in {binding.dtype}; its scales do not follow its rows"
    raise LlamagenError(Diagnostic("LG902", "error", message, help="convert the 16-bit checkpoint"))


_NAMES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _with_dtype(text: str, types: Mapping[str, TargetDType]) -> str:
    """config.json with the type that most tensors are stored in."""
    config: dict[str, object] = json.loads(text)
    if "torch_dtype" not in config:
        return text
    (most, _), *_ = Counter(types.values()).most_common(1)
    return json.dumps({**config, "torch_dtype": _NAMES[most]}, indent=2, ensure_ascii=False) + "\n"
