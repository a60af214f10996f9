"""A checkpoint as a list of stored tensors, whatever its files are.

Opening reads headers only, and imports neither torch nor numpy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.files import INDEX, WEIGHTS, exists, is_folder, names_in, read_bytes
from llamagen.weights.float8 import paired
from llamagen.weights.meta_pth import read_pth
from llamagen.weights.problems import problem, quoted, shape_text
from llamagen.weights.safetensors_file import TensorEntry, read_header
from llamagen.weights.stamps import Stamp, stamp_of
from llamagen.weights.stored_tensor import StoredTensor
from llamagen.weights.strict_json import parse_strict

CheckpointKind = Literal["safetensors", "meta"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_BARE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors")
_META_SHARD = re.compile(r"consolidated(?:\.([0-9]{2}))?\.pth")
_ADAPTER = re.compile(
    r"adapter_(config\.json|model\b.*)|adapters?\.(safetensors|npz|bin)|(.+[-_.])?lora([-_.].+)?\.(safetensors|npz|bin)",
    re.IGNORECASE,
)
"""Files of PEFT, MLX and diffusers; transformers too looks in the folder of the weights alone."""


def require_no_adapter(folder: Path) -> None:
    """Raises LG623 for a folder with files of an adapter: the model alone would be another one. LG601 if unreadable."""
    try:
        found = sorted(one.name for one in folder.iterdir() if _ADAPTER.fullmatch(one.name))
    except OSError as error:
        raise problem("LG601", f"cannot read {quoted(str(folder))}: {error.strerror}") from error
    if found:
        raise problem(
            "LG623",
            f"{quoted(str(folder / found[0]))} belongs to an adapter, which cannot be applied yet",
            help="merge it into the weights (PEFT: `merge_and_unload()`, then `save_pretrained`), "
            "or move the adapter's files away for the model without it",
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Stored tensors by name, in the order of the files, and the config beside them."""

    path: Path
    kind: CheckpointKind
    tensors: Mapping[str, StoredTensor]
    files: tuple[Path, ...]
    config_file: Path | None = field(default=None)
    """`config.json` (Hub) or `params.json` (Meta) beside the weights, if there is one."""
    stamps: Mapping[Path, Stamp | None] = field(default_factory=dict)
    """What the files were before their headers were read."""

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """A folder (Hub or Meta), a `.safetensors` file, an index, or one unsharded `.pth` file.

        Raises LG601 to LG606, and LG623 for a folder with an adapter; see `safetensors_file` and `meta_pth` for what
        is refused.
        """
        place = Path(path)
        if is_folder(place):
            return cls._open_folder(place)
        if place.name.endswith(".safetensors.index.json"):
            return cls._from_safetensors(place, _read_index(place))
        if place.suffix == ".pth":
            return cls._from_meta(place, (place,))
        if place.suffix == ".safetensors" or exists(place):
            return cls._from_safetensors(place, {place: None})
        raise problem(
            "LG601",
            f"{quoted(str(place))} does not exist",
            help="a checkpoint is a folder with model.safetensors, its index, or "
            "consolidated.*.pth, or a single .safetensors file",
        )

    @classmethod
    def _open_folder(cls, folder: Path) -> Self:
        require_no_adapter(folder)
        single, index = folder / _SINGLE, folder / _INDEX
        has_single, has_index = exists(single), exists(index)
        if has_single and has_index:
            raise problem(
                "LG604",
                f"{quoted(str(folder))} has both {_SINGLE} and {_INDEX}",
                help=f"remove one, or point at {single} itself",
            )
        if has_single:
            return cls._from_safetensors(folder, {single: None})
        if has_index:
            return cls._from_safetensors(folder, _read_index(index, folder))
        shards = _meta_shards(folder)
        if shards:
            return cls._from_meta(folder, shards)
        loose = [name for name in names_in(folder, WEIGHTS) if name.endswith(".safetensors")]
        listed = ", ".join(quoted(name) for name in loose[:4])
        raise problem(
            "LG601",
            f"{quoted(str(folder))} has no {_SINGLE}, no {_INDEX} and no consolidated.*.pth",
            help=f"it has {listed}; point at the file itself" if loose else None,
        )

    @classmethod
    def _from_safetensors(cls, path: Path, files: Mapping[Path, frozenset[str] | None]) -> Self:
        tensors: dict[str, StoredTensor] = {}
        found: list[Diagnostic] = []
        stamps = {file: stamp_of(file) for file in files}
        folder = path if is_folder(path) else path.parent
        for file, announced in files.items():
            try:
                header = read_header(file, None if file == path else folder)
            except LlamagenError as error:
                found.extend(error.diagnostics)
                continue
            names = {entry.name for entry in header.tensors}
            if announced is not None and names != announced:
                found.append(_index_mismatch(file, names, announced))
                continue
            for entry in header.tensors:
                tensors[entry.name] = StoredTensor(entry.name, entry.dtype, entry.shape, (entry,))
        tensors, misfits = paired(tensors)
        if found or misfits:
            raise LlamagenError([*found, *misfits])
        config = folder / "config.json"
        return cls(
            path,
            "safetensors",
            MappingProxyType(tensors),
            tuple(files),
            config if exists(config) else None,
            stamps,
        )

    @classmethod
    def _from_meta(cls, path: Path, files: Sequence[Path]) -> Self:
        ranks: list[dict[str, TensorEntry]] = []
        found: list[Diagnostic] = []
        stamps = {file: stamp_of(file) for file in files}
        folder = path if is_folder(path) else path.parent
        for file in files:
            try:
                entries = read_pth(file, None if file == path else folder)
                ranks.append({entry.name: entry for entry in entries})
            except LlamagenError as error:
                found.extend(error.diagnostics)
        if found:
            raise LlamagenError(found)
        tensors: dict[str, StoredTensor] = {}
        for name in dict.fromkeys(name for rank in ranks for name in rank):
            pieces = [rank[name] for rank in ranks if name in rank]
            kinds = {(piece.dtype, piece.shape) for piece in pieces}
            if len(pieces) == len(ranks) and len(kinds) == 1:
                first = pieces[0]
                tensors[name] = StoredTensor(name, first.dtype, first.shape, tuple(pieces))
            else:
                found.append(_rank_mismatch(name, files, ranks))
        if found:
            raise LlamagenError(found)
        params = folder / "params.json"
        return cls(
            path,
            "meta",
            MappingProxyType(tensors),
            tuple(files),
            params if exists(params) else None,
            stamps,
        )


def _meta_shards(folder: Path) -> tuple[Path, ...]:
    numbered: dict[int, Path] = {}
    for name in names_in(folder, WEIGHTS):
        match = _META_SHARD.fullmatch(name)
        if match is not None:
            numbered[int(match[1] or 0)] = folder / name
    missing = [number for number in range(max(numbered, default=-1) + 1) if number not in numbered]
    if missing:
        raise problem(
            "LG606",
            f"{quoted(str(folder))} lacks consolidated.{missing[0]:02d}.pth: it has "
            f"{len(numbered)} of them, the last is number {max(numbered):02d}",
            help="shards are the ranks of one model; all of them are needed",
        )
    return tuple(numbered[number] for number in sorted(numbered))


def _rank_mismatch(
    name: str, files: Sequence[Path], ranks: Sequence[Mapping[str, TensorEntry]]
) -> Diagnostic:
    seen = [
        f"{file.name}: {rank[name].dtype} {shape_text(rank[name].shape)}"
        if name in rank
        else f"{file.name}: absent"
        for file, rank in zip(files, ranks, strict=True)
    ]
    return Diagnostic(
        "LG606",
        "error",
        f"the shards disagree about {quoted(name)}: {'; '.join(seen)}",
        help="are these files of one model?",
    )


def _index_mismatch(file: Path, names: set[str], announced: frozenset[str]) -> Diagnostic:
    absent, extra = sorted(announced - names), sorted(names - announced)
    parts = []
    if absent:
        parts.append(f"lacks {quoted(absent[0])}{_more(absent)}, which the index puts there")
    if extra:
        parts.append(f"has {quoted(extra[0])}{_more(extra)}, which the index does not put there")
    return Diagnostic(
        "LG604",
        "error",
        f"{quoted(str(file))} {' and '.join(parts)}",
        help="the index and the shards must come from the same save",
    )


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _read_index(index: Path, within: Path | None = None) -> dict[Path, frozenset[str]]:
    where = quoted(str(index))
    data = read_bytes(index, INDEX, within=within)
    try:
        table = parse_strict(data)
    except ValueError as error:
        raise problem("LG604", f"{where} is not usable JSON: {error}") from error
    weight_map = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise problem("LG604", f"{where} has no weight_map")
    found: list[Diagnostic] = []
    shards: dict[str, set[str]] = {}
    refused: set[str] = set()
    for name, shard in weight_map.items():
        if isinstance(shard, str) and _BARE_NAME.fullmatch(shard):
            shards.setdefault(shard, set()).add(name)
        elif ascii(shard) not in refused:
            refused.add(ascii(shard))
            found.append(
                Diagnostic(
                    "LG604",
                    "error",
                    f"{where} puts tensor {quoted(name)} into {shard!a}",
                    help="a shard must be a bare file name ending in .safetensors, in the folder "
                    "of the index",
                )
            )
    if found:
        raise LlamagenError(found)
    return {index.parent / shard: frozenset(names) for shard, names in sorted(shards.items())}
