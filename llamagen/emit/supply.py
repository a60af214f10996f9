"""Where an export gets its weights from: a checkpoint that fits, or random numbers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from llamagen.confined import Limits, Stopped, confined
from llamagen.diagnostics import Diagnostic, quoted
from llamagen.emit.config.checkpoint import Fit
from llamagen.emit.config.foreign import entries
from llamagen.emit.config.json_source import Json, read_json
from llamagen.emit.config.table import CONFIG_FILE
from llamagen.emit.manifest import AdapterRecord, CheckpointSource, RandomSource, hashed
from llamagen.emit.onnx.profile import OnnxDType
from llamagen.emit.written import write_text
from llamagen.files import COMPANION, checked, exists, is_folder, open_file, read_text
from llamagen.ops.op import Parameter
from llamagen.spec.schema import Spec
from llamagen.weights import sentencepiece_reader
from llamagen.weights.adapter import Adapter, LowRank
from llamagen.weights.byte_bpe import of_ranks
from llamagen.weights.checkpoint import Stamp, require_unchanged
from llamagen.weights.names import Binding
from llamagen.weights.pieces import Piece
from llamagen.weights.random import RandomTensor, random_pieces, random_rows
from llamagen.weights.safetensors import TargetDType
from llamagen.weights.tensors import Region
from llamagen.weights.values import read_packed, read_part, tensor_pieces

STORED: Mapping[OnnxDType, TargetDType] = MappingProxyType(
    {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
)
"""Names of the same three dtypes: in ONNX and specs, and in safetensors."""

TOKENIZER_FILE = "tokenizer.json"
_SENTENCEPIECE = Path(sentencepiece_reader.__file__)
_LIMITS = Limits(seconds=60, memory=4 << 30, answer=COMPANION.limit or 0)
"""A model of 32,000 pieces takes 2 s."""

_SETTINGS = "tokenizer_config.json"

COMPANIONS = (
    "config.json",
    "generation_config.json",
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
)
"""Small files of a Hub checkpoint that a runtime reads or that must stay with the weights; copied if they are there."""

CONFIGS = ("config.json", "generation_config.json")


AdapterChoice: TypeAlias = Path | Mapping[str, Path] | None
"""The folder of a LoRA that is merged into the weights, or several by name that stay apart."""


@dataclass(frozen=True, slots=True)
class KeptAdapter:
    """A LoRA that stays beside the weights: what it adds to them, by role path."""

    record: AdapterRecord
    products: Mapping[str, LowRank]


NO_ADAPTERS: Mapping[str, KeptAdapter] = MappingProxyType({})


def beside_weights(checkpoint: Path, adapter: AdapterChoice) -> Path | None:
    """The adapter that may lie in the folder of the weights."""
    if isinstance(adapter, Path | None):
        return adapter
    return next((one for one in adapter.values() if one.resolve() == checkpoint.resolve()), None)


class Supply(Protocol):
    """Every parameter of a model, by role path; as a base, one with nothing beside them."""

    @property
    def adapters(self) -> Mapping[str, KeptAdapter]:
        """Those that stay apart, by name."""
        return {}

    @property
    def source(self) -> CheckpointSource | RandomSource: ...

    @property
    def companions(self) -> Sequence[Path]:
        """Small files that go into the folder as they are."""
        return ()

    @property
    def texts(self) -> Mapping[str, str]:
        """More of them, by name."""
        return {}

    @property
    def tokenizer(self) -> str | None:
        """The text of a tokenizer.json."""
        return None

    def pieces(self, path: str, dtype: TargetDType, offset: int) -> Iterator[Piece]:
        """The parameter in ``dtype``, from byte ``offset`` of a file on."""

    def part(self, path: str, region: Region) -> npt.NDArray[np.float32]:
        """A rectangle of a parameter, exact and finite."""

    @property
    def packed(self) -> Mapping[str, str]:
        """Role paths of parameters that are packed in blocks -> GGUF's name of how."""
        return {}

    def packed_rows(
        self, path: str, start: int, stop: int, dtype: TargetDType
    ) -> npt.NDArray[np.uint8]:
        """Rows of one in a type that is kept, [n, bytes], whose numbers ``dtype`` can hold."""
        raise AssertionError("nothing is packed")

    def require_unchanged(self) -> None:
        """To be asked after the last read. Raises LG622 for files that were changed meanwhile."""


def companions_of(folder: Path, names: Sequence[str] = COMPANIONS) -> tuple[Path, ...]:
    """The small files that a checkpoint's folder has. Raises LG601 for a link to elsewhere or nothing."""
    paths = (folder / name for name in names)
    files = tuple(path for path in paths if exists(path) and not is_folder(path))
    for file in files:
        checked(file, COMPANION, within=folder)
    return files


def tokenizer_of(beside: Mapping[str, Path], spec: Spec) -> str | Diagnostic:
    """The text of a tokenizer.json that does what the tokenizer.model ``beside`` does, or LG650: why there is none.

    What stands behind the ranks of a tiktoken file is what ``spec`` says.
    """
    file = beside["tokenizer.model"]
    help = "copy the tokenizer.json of the same model into the checkpoint's folder"
    with open_file(file, COMPANION, within=file.parent) as source:
        if re.match(rb"[A-Za-z0-9+/=]+ 0\r?\n", source.read(80)):
            source.seek(0)
            named = spec.tokenizer.named_tokens if spec.tokenizer is not None else {}
            size = spec.hyperparameters.vocab_size or 0
            try:
                return json.dumps(of_ranks(source.read(), named, size), ensure_ascii=False)
            except ValueError as error:
                message = f"no tokenizer.json is made of {quoted(str(file))}: {error}"
                why = f"{help}; without it `run` takes ids alone"
                return Diagnostic("LG650", "warning", message, help=why)
    settings = read_json(beside[_SETTINGS]).value if _SETTINGS in beside else {}
    more: dict[str, Json] = {}
    if "added_tokens.json" in beside:
        listed = read_json(beside["added_tokens.json"]).value
        more = {str(i): {"content": text, "special": False} for text, i in listed.items()}
    for index, token in entries(settings.get("added_tokens_decoder")):
        stated = dict(entries(token))
        more[index] = {"content": stated.get("content"), "special": stated.get("special", False)}
    first = settings.get("add_bos_token", True)
    try:
        with open_file(file, COMPANION, within=file.parent) as source:
            words = (json.dumps(first), json.dumps(more))
            return confined(_SENTENCEPIECE, words, source, _LIMITS).decode("utf-8")
    except Stopped as error:
        why = f"it {error}" if error.kind == "NotRead" else f"SentencePiece cannot read it: {error}"
        if error.kind == "ModuleNotFoundError":
            why, help = "that takes the package sentencepiece", "pip install 'llamagen[tokenizer]'"
    message = f"no tokenizer.json is made of {quoted(str(file))}: {why}"
    return Diagnostic("LG650", "warning", message, help=f"{help}; without it `run` takes ids alone")


def place_companion(file: Path, folder: Path) -> None:
    """Copy a small file; a config.json without the quantisation that the weights of the folder no longer have.

    Raises LG601 for a link to elsewhere: what it leads to is not the checkpoint's, and would be handed on with it.
    """
    with open_file(file, COMPANION, within=file.parent) as source:
        if file.name == CONFIG_FILE:
            config = dict(read_json(file).value)
            if config.pop("quantization_config", None) is not None:
                write_text(folder / file.name, json.dumps(config, indent=2) + "\n")
                return
        with (folder / file.name).open("wb") as into:
            shutil.copyfileobj(source, into)


@dataclass(frozen=True)
class CheckpointSupply:
    """The tensors of a checkpoint that fits."""

    bindings: Mapping[str, Binding]
    source: CheckpointSource
    notes: tuple[Diagnostic, ...]
    """What is worth saying though it hinders nothing."""
    stamps: Mapping[Path, Stamp | None]
    """What its files were before anything was read."""
    companions: tuple[Path, ...]
    """Small files to copy from the checkpoint's folder."""
    texts: Mapping[str, str]
    """Small files that the checkpoint has in itself."""
    packed: Mapping[str, str]
    adapters: Mapping[str, KeptAdapter]

    @staticmethod
    def of(
        fitted: Fit, *, ignore_config: bool = False, adapter: AdapterChoice = None
    ) -> CheckpointSupply:
        """A checkpoint that fits; its own config.json is not copied if the spec's counts. Raises LG601, LG625."""
        stored, resolution = fitted.stored, fitted.resolution
        assert resolution.layout is not None
        folder = stored.path if stored.path.is_dir() else stored.path.parent
        kept = tuple(n for n in COMPANIONS if not ignore_config or n not in CONFIGS)
        texts = {name: text for name, text in stored.texts.items() if name in kept}
        notes = [one for one in fitted.findings if one.code != "LG608"]
        bindings = {binding.name: binding for binding in resolution.bindings}
        packed = {
            path: packing
            for path, binding in bindings.items()
            if binding.tensor.packed is not None and (packing := binding.tensor.packing())
        }
        matrices = sum(tensor.packed is not None for tensor in stored.tensors.values())
        if matrices > len(packed):
            message = f"{matrices - len(packed)} packed matrices of the checkpoint were decoded"
            help = "`--quantize` packs them again; products with activations in 8 bits are not imitated"
            notes.append(Diagnostic("LG628", "note", message, help=help))
        # beside one file of many lies what is others'
        companions = () if texts else companions_of(folder, kept)
        beside = {file.name: file for file in companions}
        if "tokenizer.model" in beside and TOKENIZER_FILE not in beside:
            tokenizer = tokenizer_of(beside, fitted.resolved.spec)
            if isinstance(tokenizer, Diagnostic):
                notes.append(tokenizer)
            else:
                texts[TOKENIZER_FILE] = tokenizer
        if scaled := sum(tensor.scale is not None for tensor in stored.tensors.values()):
            message = f"{scaled} float8 tensors of the checkpoint were multiplied with their scales"
            help = "activations, which its kernels round to float8 as well, are not rounded here"
            notes.append(Diagnostic("LG645", "note", message, help=help))
        stamps, source = stored.stamps, CheckpointSource(layout=resolution.layout)
        apart: dict[str, KeptAdapter] = {}
        if isinstance(adapter, Path):
            opened = Adapter.open(adapter)
            bindings, note = opened.merged_into(bindings, stored.path)
            packed = {p: how for p, how in packed.items() if bindings[p].tensor.packed is not None}
            stamps = {**stamps, **opened.stamps}
            notes.append(note)
            source = CheckpointSource(layout=resolution.layout, adapter=_record(opened))
        for name, place in (adapter or {}).items() if not isinstance(adapter, Path) else ():
            opened = Adapter.open(place)
            products, note = opened.apart_from(bindings, stored.path)
            stamps = {**stamps, **opened.stamps}
            notes.append(note)
            apart[name] = KeptAdapter(_record(opened), products)
        return CheckpointSupply(
            bindings,
            source,
            tuple(notes),
            stamps,
            companions,
            texts,
            packed,
            apart,
        )

    @property
    def tokenizer(self) -> str | None:
        if TOKENIZER_FILE in self.texts:
            return self.texts[TOKENIZER_FILE]
        files = (file for file in self.companions if file.name == TOKENIZER_FILE)
        return next((read_text(file, COMPANION, within=file.parent) for file in files), None)

    def pieces(self, path: str, dtype: TargetDType, offset: int) -> Iterator[Piece]:
        return tensor_pieces(self.bindings[path], dtype, offset)

    def part(self, path: str, region: Region) -> npt.NDArray[np.float32]:
        return read_part(self.bindings[path], region)

    def packed_rows(
        self, path: str, start: int, stop: int, dtype: TargetDType
    ) -> npt.NDArray[np.uint8]:
        return read_packed(self.bindings[path], start, stop, dtype)

    def require_unchanged(self) -> None:
        require_unchanged(self.stamps)


def _record(adapter: Adapter) -> AdapterRecord:
    digest = hashed(adapter.file).sha256
    assert digest is not None
    name = adapter.folder.absolute().name
    return AdapterRecord(name=name, base=adapter.base, rank=adapter.rank, sha256=digest)


@dataclass(frozen=True)
class RandomSupply(Supply):
    """Unit-scale random weights of ``seed``."""

    wanted: Mapping[str, Parameter]
    seed: int

    @property
    def source(self) -> RandomSource:
        return RandomSource(seed=self.seed)

    def pieces(self, path: str, dtype: TargetDType, offset: int) -> Iterator[Piece]:
        return random_pieces(self.seed, self._tensor(path), dtype, offset)

    def part(self, path: str, region: Region) -> npt.NDArray[np.float32]:
        start, stop = region[0] if region else (0, 1)
        rows = random_rows(self.seed, self._tensor(path), start, stop)
        inner = tuple(slice(first, last) for first, last in region[1:])
        return rows[:, *inner] if region else rows.reshape(())

    def require_unchanged(self) -> None:
        """Nothing is read."""

    def _tensor(self, path: str) -> RandomTensor:
        parameter = self.wanted[path]
        return RandomTensor(path, parameter.shape, parameter.kind)
