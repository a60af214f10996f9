"""A checkpoint as a list of stored tensors, whatever its files are; and folders of our own in the Hub's format.

Opening reads headers only, and imports neither torch nor numpy.

Float8: Meta's FP8 releases (fbgemm: Llama-3.1-405B-Instruct-FP8) and transformers' `fbgemm_fp8` store a float8 tensor X
beside X_scale, the number that its values are multiplied with: [out, 1] for X [out, in], or [1]; for stacked experts
[E, in, out] a scale [E, 1, out], or [E, out, 1] for `down_proj`. Llama-4-Maverick-17B-128E-Instruct-FP8
(compressed-tensors) has every expert by itself, [out, in] beside [out, 1]; spec/dialects/hub-llama4-experts.yaml stacks
them. `input_scale_ub` bounds activations of their kernels; it is no weight.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from llamagen.diagnostics import Diagnostic, LlamagenError, quoted
from llamagen.files import CONFIG, INDEX, WEIGHTS, exists, is_folder, names_in, read_bytes
from llamagen.weights.gguf_file import PACKED, read_gguf
from llamagen.weights.gguf_hub import hub_files
from llamagen.weights.meta_pth import read_pth
from llamagen.weights.packed import Packed, find_packed, packed_by
from llamagen.weights.safetensors import (
    NewTensor,
    TensorEntry,
    parse_strict,
    read_header,
    shape_text,
    write_safetensors,
)

FLOAT8 = "F8_E4M3"
SCALE_SUFFIX = "_scale"
SCALE_DTYPES = ("F32", "BF16", "F16")
_NO_WEIGHT = ("input_scale_ub", "input_scale")

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PAIRS = ((_SINGLE, _INDEX), ("pytorch_model.bin", "pytorch_model.bin.index.json"))
"""One file, or shards by an index: as transformers looks for them, and in this order."""
WEIGHTS_FILES = (".safetensors", ".bin", ".pth", ".index.json")
"""How a file ends that a configuration lies beside."""
_BARE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_META_SHARD = re.compile(r"consolidated(?:\.([0-9]{2}))?\.pth")
_ADAPTER = re.compile(
    r"adapter_(config\.json|model\b.*)|adapters?\.(safetensors|npz|bin)|(.+[-_.])?lora([-_.].+)?\.(safetensors|npz|bin)",
    re.IGNORECASE,
)
"""Files of PEFT, MLX and diffusers; transformers too looks in the folder of the weights alone."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A name in the checkpoint: one entry, or one per model-parallel rank of equal shape.

    `shape` is that of one entry; how ranks join is a rule of the naming layout.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    entries: tuple[TensorEntry, ...]
    scale: TensorEntry | None = None
    """What a float8 tensor is multiplied with."""
    swapped_scale: bool = False
    packed: Packed | None = None
    """How it is decoded, if it is packed; its shape is that of the matrix."""

    @property
    def read_as(self) -> str:
        """The dtype its values have when they are read."""
        coded = self.scale is not None or self.packed is not None or self.dtype in PACKED
        return "F32" if coded else self.dtype


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a writer cannot help changing: the file itself if it is replaced, its size and time if written to."""

    device: int
    inode: int
    size: int
    modified_ns: int


def stamp_of(path: Path) -> Stamp | None:
    """Of the file behind links; None where there is none, which its reader reports."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return Stamp(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def stamps_of(folder: Path) -> dict[Path, Stamp | None]:
    """Of every file of a folder, or none for one that is not there."""
    paths = sorted(folder.iterdir()) if is_folder(folder) else ()
    return {path: stamp_of(path) for path in paths if os.path.isfile(path)}


def require_unchanged(before: Mapping[Path, Stamp | None]) -> None:
    """Raises LG622 for every file that is not what it was: reading a large checkpoint takes minutes."""
    changed = [
        Diagnostic(
            "LG622",
            "error",
            f"{quoted(str(path))} was changed while it was read; what came of it was discarded",
            help="wait until the download or copy is complete, then run the command again",
        )
        for path, stamp in before.items()
        if stamp_of(path) != stamp
    ]
    if changed:
        raise LlamagenError(changed)


def require_no_adapter(folder: Path) -> None:
    """Raises LG623 for a folder with files of an adapter: the model alone would be another one. LG601 if unreadable."""
    adapters = [name for name in names_in(folder, WEIGHTS) if _ADAPTER.fullmatch(name)]
    if adapters:
        raise LlamagenError.of(
            "LG623",
            f"{quoted(str(folder / adapters[0]))} belongs to an adapter, which changes the model",
            help=f"`export BASE --adapter {folder}` merges a LoRA of PEFT into the weights of BASE; "
            "move the adapter's files away for the model without it",
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Stored tensors by name, in the order of the files, and the config beside them."""

    path: Path
    kind: Literal["safetensors", "meta", "gguf"]
    tensors: Mapping[str, StoredTensor]
    stamps: Mapping[Path, Stamp | None]
    """Its files, and what they were before their headers were read."""
    config_file: Path | None = None
    """`config.json` (Hub) or `params.json` (Meta) beside the weights, if there is one."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """What a GGUF says of its model, as the small files of the Hub's format, by name."""
    licence: str | None = None
    """As a GGUF states it."""

    @classmethod
    def open(cls, path: str | Path, adapter: Path | None = None) -> Self:
        """A folder (Hub or Meta), a `.safetensors` or `.bin` file, an index, an unsharded `.pth` file, a `.gguf` file.

        Raises LG601 to LG606, LG609 for float8 without scales, LG623 for a folder with an adapter but ``adapter``; see
        `safetensors` and `meta_pth` for what is refused.
        """
        place = Path(path)
        if is_folder(place):
            if adapter is None or place.resolve() != adapter.resolve():
                require_no_adapter(place)
            for single, index in ((place / one, place / many) for one, many in _PAIRS):
                if exists(single) and exists(index):
                    raise LlamagenError.of(
                        "LG604",
                        f"{quoted(str(place))} has both {single.name} and {index.name}",
                        help=f"remove one, or point at {single} itself",
                    )
                if exists(single):
                    return cls._of_hub(place, {single: None})
                if exists(index):
                    return cls._of_hub(place, read_index(index, place))
            if shards := _meta_shards(place):
                return cls._of_meta(place, shards)
            loose = [
                n for n in names_in(place, WEIGHTS) if n.endswith((".safetensors", ".gguf", ".bin"))
            ]
            listed = ", ".join(quoted(name) for name in loose[:4])
            raise LlamagenError.of(
                "LG601",
                f"{quoted(str(place))} has no {_SINGLE}, no pytorch_model.bin, no index of shards and no "
                "consolidated.*.pth",
                help=f"it has {listed}; point at the file itself" if loose else None,
            )
        if place.name.endswith((".safetensors.index.json", ".bin.index.json")):
            return cls._of_hub(place, read_index(place))
        if place.suffix == ".pth":
            return cls._of_meta(place, (place,))
        if place.suffix == ".gguf":
            return cls._of_gguf(place)
        if place.suffix == ".safetensors" or exists(place):
            return cls._of_hub(place, {place: None})
        raise LlamagenError.of(
            "LG601",
            f"{quoted(str(place))} does not exist",
            help="a checkpoint is a folder with model.safetensors or pytorch_model.bin, their index, or "
            "consolidated.*.pth, or a single .safetensors, .bin or .gguf file",
        )

    @classmethod
    def _of_hub(cls, path: Path, files: Mapping[Path, frozenset[str] | None]) -> Self:
        """Files, and the names that an index puts there, if there is one."""
        stamps = {file: stamp_of(file) for file in files}
        headers, findings = _all_of(path, files, _header_of)
        tensors: dict[str, StoredTensor] = {}
        for file, entries in headers.items():
            announced = files[file]
            if announced is not None and {entry.name for entry in entries} != announced:
                findings.append(_index_mismatch(file, {e.name for e in entries}, announced))
                continue
            tensors |= {e.name: StoredTensor(e.name, e.dtype, e.shape, (e,)) for e in entries}
        findings += _decode(tensors, path)
        findings += _pair_scales(tensors)
        if findings:
            raise LlamagenError(findings)
        return cls(path, "safetensors", tensors, stamps, _beside(path, "config.json"))

    @classmethod
    def _of_meta(cls, path: Path, files: Sequence[Path]) -> Self:
        stamps = {file: stamp_of(file) for file in files}
        headers, findings = _all_of(path, files, read_pth)
        if findings:
            raise LlamagenError(findings)
        ranks = [{entry.name: entry for entry in entries} for entries in headers.values()]
        tensors: dict[str, StoredTensor] = {}
        for name in dict.fromkeys(name for rank in ranks for name in rank):
            first, *rest = entries = [rank[name] for rank in ranks if name in rank]
            alike = all((e.dtype, e.shape) == (first.dtype, first.shape) for e in rest)
            if alike and len(entries) == len(ranks):
                tensors[name] = StoredTensor(name, first.dtype, first.shape, tuple(entries))
            else:
                findings.append(_rank_mismatch(name, files, ranks))
        if findings:
            raise LlamagenError(findings)
        return cls(path, "meta", tensors, stamps, _beside(path, "params.json"))

    @classmethod
    def _of_gguf(cls, path: Path) -> Self:
        stamps = {path: stamp_of(path)}
        header = read_gguf(path)
        tensors = {e.name: StoredTensor(e.name, e.dtype, e.shape, (e,)) for e in header.tensors}
        licence = header.keys.get("general.license")
        stated = licence if isinstance(licence, str) else None
        return cls(path, "gguf", tensors, stamps, texts=hub_files(path, header), licence=stated)


def _header_of(file: Path, within: Path | None) -> tuple[TensorEntry, ...]:
    return (read_pth if file.suffix == ".bin" else read_header)(file, within)


def _all_of(
    path: Path,
    files: Iterable[Path],
    read: Callable[[Path, Path | None], tuple[TensorEntry, ...]],
) -> tuple[dict[Path, tuple[TensorEntry, ...]], list[Diagnostic]]:
    """The tensors of every file that can be read, and what is wrong with the others."""
    headers: dict[Path, tuple[TensorEntry, ...]] = {}
    findings: list[Diagnostic] = []
    for file in files:
        try:
            headers[file] = read(file, None if file == path else _folder(path))
        except LlamagenError as error:
            findings += error.diagnostics
    return headers, findings


def _folder(path: Path) -> Path:
    return path if is_folder(path) else path.parent


def _beside(path: Path, name: str) -> Path | None:
    file = _folder(path) / name
    return file if exists(file) else None


def _meta_shards(folder: Path) -> tuple[Path, ...]:
    numbered: dict[int, Path] = {}
    for name in names_in(folder, WEIGHTS):
        match = _META_SHARD.fullmatch(name)
        if match is not None:
            numbered[int(match[1] or 0)] = folder / name
    missing = [number for number in range(max(numbered, default=-1) + 1) if number not in numbered]
    if missing:
        raise LlamagenError.of(
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
    message = f"the shards disagree about {quoted(name)}: {'; '.join(seen)}"
    return Diagnostic("LG606", "error", message, help="are these files of one model?")


def _index_mismatch(file: Path, names: set[str], announced: frozenset[str]) -> Diagnostic:
    def some(verb: str, names: set[str] | frozenset[str], but: str) -> str:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"{verb} {quoted(min(names))}{more}, which the index {but}" if names else ""

    lacks = some("lacks", announced - names, "puts there")
    has = some("has", names - announced, "does not put there")
    message = f"{quoted(str(file))} {' and '.join(filter(None, (lacks, has)))}"
    help = "the index and the shards must come from the same save"
    return Diagnostic("LG604", "error", message, help=help)


def read_index(index: Path, within: Path | None = None) -> dict[Path, frozenset[str]]:
    """The shards that an index names, beside it, and the tensors of each. Raises LG604."""
    where = quoted(str(index))
    try:
        table = parse_strict(read_bytes(index, INDEX, within=within))
    except ValueError as error:
        raise LlamagenError.of("LG604", f"{where} is not usable JSON: {error}") from error
    weight_map = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise LlamagenError.of("LG604", f"{where} has no weight_map")
    shards: dict[str, set[str]] = {}
    refused: dict[str, str] = {}
    kind = ".bin" if index.name.endswith(".bin.index.json") else ".safetensors"
    for name, shard in weight_map.items():
        if isinstance(shard, str) and _BARE_NAME.fullmatch(shard) and shard.endswith(kind):
            shards.setdefault(shard, set()).add(name)
        else:
            refused.setdefault(ascii(shard), name)
    if refused:
        help = f"a shard must be a bare file name ending in {kind}, in the folder of the index"
        raise LlamagenError(
            Diagnostic("LG604", "error", f"{where} puts tensor {quoted(name)} into {it}", help=help)
            for it, name in refused.items()
        )
    return {index.parent / shard: frozenset(names) for shard, names in sorted(shards.items())}


def _decode(tensors: dict[str, StoredTensor], path: Path) -> list[Diagnostic]:
    """Put matrices in place of what they are packed in, as the config.json beside says; what is none is LG627."""
    config_file = _beside(path, "config.json")
    try:
        config = (
            parse_strict(read_bytes(config_file, CONFIG, within=config_file.parent))
            if config_file is not None
            else None
        )
    except ValueError:
        return []  # whoever reads the configuration says so
    how = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(how, dict):
        return []
    kind, bits = packed_by(how, str(path))
    if kind is None:
        return []
    entries = {name: tensor.entries[0] for name, tensor in tensors.items()}
    found, taken, findings = find_packed(entries, kind, bits)
    for name in taken:
        del tensors[name]
    for name, packed in found.items():
        entry = packed.codes
        tensors[name] = StoredTensor(name, entry.dtype, packed.shape, (entry,), packed=packed)
    return findings


# Float8


def _pair_scales(tensors: dict[str, StoredTensor]) -> list[Diagnostic]:
    """Put scales beside what they scale, in place of tensors of their own; what does not fit is LG609.

    A checkpoint without float8 tensors stays as it is.
    """
    scaled = [tensor for tensor in tensors.values() if tensor.dtype == FLOAT8]
    findings: list[Diagnostic] = []
    for tensor in scaled:
        name = tensor.name + SCALE_SUFFIX
        scale = tensors.get(name)
        swapped = None if scale is None else _is_swapped(tensor.shape, scale.shape)
        if scale is not None and swapped is not None and scale.dtype in SCALE_DTYPES:
            tensors[tensor.name] = replace(tensor, scale=scale.entries[0], swapped_scale=swapped)
            del tensors[name]
            continue
        but = f"there is no {quoted(name)}"
        if scale is not None:
            stored_as = f"{scale.dtype} {shape_text(scale.shape)}"
            but = f"{quoted(name)} is {stored_as}, which is no scale for each of its outputs"
        message = f"{quoted(tensor.name)} is {FLOAT8} {shape_text(tensor.shape)}, but {but}"
        help = "use the checkpoint before quantisation, in bfloat16, float16 or float32"
        findings.append(Diagnostic("LG609", "error", message, help=help))
    for name in list(tensors) if scaled else ():
        if name.rsplit(".", 1)[-1] in _NO_WEIGHT:
            del tensors[name]
    return findings


def _is_swapped(shape: tuple[int, ...], scale: tuple[int, ...]) -> bool | None:
    """Whether the last two dimensions of ``scale`` have to be exchanged; None if it does not fit."""
    match shape:
        case (out, _) if scale in ((out, 1), (), (1,), (1, 1)):
            return False
        case (experts, _, out) if scale in ((experts, 1, out), (experts, out, 1)):
            return scale == (experts, out, 1) and out != 1
        case _:
            return None


# Writing


def write_tensors(
    staging: Path,
    tensors: Sequence[tuple[NewTensor, Iterable[memoryview]]],
    max_shard_bytes: int | None,
) -> None:
    """`model.safetensors`, or shards of consecutive tensors and their index. A larger tensor has its own."""
    shards: list[list[tuple[NewTensor, Iterable[memoryview]]]] = []
    size = 0
    for tensor, blocks in tensors:
        if not shards or (max_shard_bytes is not None and size + tensor.nbytes > max_shard_bytes):
            shards.append([])
            size = 0
        shards[-1].append((tensor, blocks))
        size += tensor.nbytes
    if len(shards) == 1:
        write_safetensors(staging / _SINGLE, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(staging / name, shard)
        weight_map |= {tensor.name: name for tensor, _ in shard}
    total = sum(tensor.nbytes for tensor, _ in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(staging / _INDEX, index)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")
