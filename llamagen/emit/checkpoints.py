"""Checkpoints that are written: that of one architecture as one of another, and random ones to try things with."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llamagen.analysis.diff.judge import Surface, Verdict, diff
from llamagen.analysis.diff.render import arrow, where
from llamagen.analysis.diff.weights import ZERO_ROWS, Plan, conversion
from llamagen.analysis.targets import Model, built, resolved_of
from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.emit.config.checkpoint import fit
from llamagen.emit.config.table import CONFIG_FILE, config_files
from llamagen.emit.onnx.profile import dtype_named
from llamagen.emit.supply import COMPANIONS, CONFIGS, STORED, companions_of, place_companion
from llamagen.emit.written import ByteCounter, Progress, Written, silent, sizes_of, write_text
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import all_parameters
from llamagen.recorded_folder import recorded_folder
from llamagen.spec.registry import Registry
from llamagen.weights.checkpoint import (
    require_unchanged,
    write_json,
    write_tensors,
)
from llamagen.weights.names import Binding
from llamagen.weights.pieces import in_turn
from llamagen.weights.random import RandomTensor, require_seed, write_random_checkpoint
from llamagen.weights.safetensors import NewTensor, TargetDType
from llamagen.weights.tensors import Tensor, concat, cut, take_rows, zeros
from llamagen.weights.values import tensor_pieces

FLOAT8_NAME = "float8"

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
    checkpoint: str | Path,
    before: str | Path,
    after: str | Path,
    out: str | Path,
    *,
    shard_bytes: int | None = None,
    overwrite: bool = False,
    ignore_config: bool = False,
    other_logits: bool = False,
    progress: Progress = silent,
) -> Converted:
    """Write a checkpoint of ``before`` as one of ``after``: Hub names, tensors in their stored type, streamed.

    Raises LG902 with the tensors that no exact conversion gives, LG903 where ``after`` computes other logits, unless
    ``other_logits``, LG60x, LG61x and LG607 for a checkpoint that does not fit ``before``, LG620 and LG622 for its
    values, LG63x for ``out``.
    """
    started = time.monotonic()
    checkpoint, out, registry = Path(checkpoint), Path(out), Registry()
    first, second = (resolved_of(target, registry) for target in (before, after))
    plans, parameters = _planned(built(first), built(second), other_logits=other_logits)
    fitted = fit(
        first, checkpoint, registry, compare_values=True, ignore_config=ignore_config, resize=False
    ).require()
    bound = {binding.name: binding for binding in fitted.resolution.bindings}
    planned = {plan.target: plan for plan in plans}
    tensors = {
        path: _transformed(planned[path], bound, shape) if path in planned else bound[path]
        for path, shape in parameters.items()
    }
    counts = Counter(plan.transform.value for plan in plans)
    record = {
        "version": 1,
        "from": {"id": first.spec.id, "digest": first.digest},
        "to": {"id": second.spec.id, "digest": second.digest},
        "transforms": dict(sorted(counts.items())),
    }
    stored = fitted.stored
    types = {path: _writable(binding) for path, binding in tensors.items()}
    new = [NewTensor(path, types[path], binding.tensor.shape) for path, binding in tensors.items()]
    counter = ByteCounter(progress, sum(tensor.nbytes for tensor in new))
    folder = stored.path if stored.path.is_dir() else stored.path.parent
    companions = companions_of(folder, [name for name in COMPANIONS if name not in CONFIGS])
    reads = (*registry.files, checkpoint, *stored.stamps, *companions)
    with recorded_folder(out, "llamagen checkpoint 1", overwrite, reads) as staging:
        blocks = {path: _bytes(tensors[path], types[path], counter.add) for path in tensors}
        write_tensors(staging, [(one, blocks[one.name]) for one in new], shard_bytes)
        for name, text in config_files(second).items():
            write_text(staging / name, _with_dtype(text, types))
        for companion in companions:
            place_companion(companion, staging)
        require_unchanged(stored.stamps)
        write_json(staging / RECORD, dict(record))
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


def _transformed(plan: Plan, bound: Mapping[str, Binding], shape: tuple[int, ...]) -> Binding:
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


def _writable(binding: Binding) -> TargetDType:
    if binding.dtype == "F32" or binding.dtype == "F16" or binding.dtype == "BF16":
        return binding.dtype
    message = f"`{binding.name}` is stored in {binding.dtype}; its scales do not follow its rows"
    raise LlamagenError(Diagnostic("LG902", "error", message, help="convert the 16-bit checkpoint"))


def _bytes(
    binding: Binding, dtype: TargetDType, report: Callable[[int], None]
) -> Iterator[memoryview]:
    for block in in_turn(tensor_pieces(binding, dtype, 0)):
        yield block
        report(block.nbytes)


_NAMES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _with_dtype(text: str, types: Mapping[str, TargetDType]) -> str:
    """config.json with the type that most tensors are stored in."""
    config: dict[str, object] = json.loads(text)
    if "torch_dtype" not in config:
        return text
    (most, _), *_ = Counter(types.values()).most_common(1)
    return json.dumps({**config, "torch_dtype": _NAMES[most]}, indent=2, ensure_ascii=False) + "\n"


def random_checkpoint(
    target: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    shard_bytes: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Written:
    """Write ``out`` in the Hub's format under the model's own names; equal seeds give equal bytes.

    ``progress`` is called with (bytes written, bytes in all).

    ``float8`` is what Meta's FP8 releases are: projections as float8 with a scale for each output, the rest bfloat16.

    Raises LG630 to LG634 for the output, LG702 for an unknown dtype, LG901 for a negative seed.
    """
    started = time.monotonic()
    require_seed(seed)
    out, registry = Path(out), Registry()
    resolved = resolved_of(target, registry)
    wanted = all_parameters(build_all(resolved))
    tensors = [RandomTensor(path, p.shape, p.kind) for path, p in wanted.items()]
    stored: TargetDType | Literal["F8_E4M3"] = (
        "F8_E4M3" if dtype == FLOAT8_NAME else STORED[dtype_named(dtype)]
    )
    config: dict[str, object] | None = None
    if (text := config_files(resolved).get(CONFIG_FILE)) is not None:
        config = {**json.loads(text), "torch_dtype": dtype}
        if dtype == FLOAT8_NAME:
            how = {
                "quant_method": "fbgemm_fp8",
                "activation_scale_ub": 1200.0,
                "modules_to_not_convert": ["lm_head"],
            }
            config |= {"torch_dtype": "bfloat16", "quantization_config": how}
    write_random_checkpoint(
        out, tensors, seed, stored, shard_bytes, config, overwrite, progress, registry.files
    )
    return Written(out, sizes_of(out), time.monotonic() - started)
