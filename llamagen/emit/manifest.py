"""MANIFEST.json of an exported folder: what it was made from, with which options, and a hash of every file.

It holds no time, no path of this machine and nothing random: two exports of the same give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self, TypeAlias, TypeVar

from pydantic import Field, FiniteFloat, StringConstraints, ValidationError, model_validator

from llamagen import files
from llamagen.diagnostics import LlamagenError
from llamagen.emit.options import WeightMode
from llamagen.images.recipe import MAX_TOKENS, Recipe, TilesRecipe, TokenId, recipe_of
from llamagen.ir.bounded import CacheKind
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import MAIN
from llamagen.ir.pipeline import pipeline_of
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import Closed, first_fault
from llamagen.writing import Listing

MANIFEST = "MANIFEST.json"
SPEC_FILE = "spec.yaml"

SessionKey: TypeAlias = Annotated[str, StringConstraints(pattern=r"^session\.disable_prepacking$")]
"""No other: one makes ONNX Runtime read weights from outside the folder, another load a library."""

Switch: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[01]$")]

SchemeName: TypeAlias = Literal["none", "int4", "int8", "w8a8"]
MethodName: TypeAlias = Literal["rtn", "search"]

Sha256: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]
DTypeName: TypeAlias = Literal["float32", "float16", "bfloat16"]

_CHUNK = 1 << 20
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def adapter_file(name: str) -> str:
    """Where an adapter lies in a folder, in the format of ONNX Runtime."""
    return f"adapters/{name}.onnx_adapter"


class TensorRecord(Closed):
    """One tensor of a data file, in the order of the file."""

    name: str
    stop: Count = Field(description="Where its bytes end.")
    until: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")] = Field(
        description="First 16 digits of the sha256 of the file up to there."
    )


class FileRecord(Closed):
    """One file of the folder."""

    size: Count = Field(description="Bytes.")
    sha256: Sha256 | None = Field(
        description="Of the content; null for a referenced checkpoint file that was not read."
    )
    header_sha256: Sha256 | None = Field(
        default=None, description="Of a safetensors file's length prefix and header."
    )
    tensors: tuple[TensorRecord, ...] = Field(
        default=(), description="Of a data file: damage is in the first whose hash is another."
    )

    @model_validator(mode="after")
    def _hashed(self) -> Self:
        if self.sha256 is None and self.header_sha256 is None:
            raise ValueError("a file has the hash of its content or of its header")
        return self


class SpecRecord(Closed):
    id: str
    digest: str = Field(description="Of the resolved spec, which spec.yaml holds.")


class GraphRecord(Closed):
    """One ONNX graph of the model."""

    file: str
    digest: str = Field(description="Of the graph IR it was lowered from.")
    opset: dict[str, Annotated[int, Field(ge=1, le=1_000)]] = Field(
        description="Operator set domain, `ai.onnx` written out -> version."
    )
    outputs: dict[str, str] = Field(
        default={},
        description="Name -> shape of what it gives beside caches: B texts, S new tokens, I images.",
    )


class AdapterRecord(Closed):
    """A LoRA, merged into the weights or beside them."""

    name: str = Field(description="Of its folder.")
    base: str | None = Field(description="What it was trained on, as its configuration says.")
    rank: Count = Field(description="Of most of its products.")
    sha256: Sha256 = Field(description="Of the file of its weights.")


class CheckpointSource(Closed):
    kind: Literal["checkpoint"] = "checkpoint"
    layout: str = Field(description="Naming dialect of the checkpoint: hub, meta, ...")
    adapter: AdapterRecord | None = None


class RandomSource(Closed):
    kind: Literal["random"] = "random"
    seed: Count


Source: TypeAlias = Annotated[CheckpointSource | RandomSource, Field(discriminator="kind")]


class WeightsRecord(Closed):
    mode: WeightMode
    scanned: bool = Field(description="Whether every value was seen to be finite.")
    source: Source


class QuantizationRecord(Closed):
    """How weights are encoded; `none` is the dtype of the computation."""

    linear: SchemeName = Field(description="Projections.")
    head: SchemeName = Field(description="The head, unless it is tied to the embedding.")
    embedding: SchemeName
    tied: SchemeName = Field(description="A table that is both embedding and head.")
    sensitive: SchemeName = Field(
        default="none",
        description="Down projections and what attention reads, in the first, the last and every third layer; beside "
        "w8a8 in every layer, and what reads attention, and in those layers what makes the input of down projections.",
    )
    experts: SchemeName = Field(
        default="none",
        description="Stacked experts; never w8a8. What int4 costs there was never measured on a trained model.",
    )
    block_size: int = Field(
        ge=0,
        le=1 << 20,
        description="Weights of a row that share a scale; int4 and int8. A table whose rows are no whole blocks "
        "has smaller ones.",
    )
    symmetric: bool
    accuracy_level: int = Field(
        ge=0, le=4, description="Of MatMulNBits and QMoE; 4 rounds activations to int8."
    )
    method: MethodName = Field(
        default="rtn",
        description="Scales of int4 projections: search, by what they are multiplied with on a text; rtn, by the "
        "largest weight of a block. All others are rtn.",
    )
    calibration: Sha256 | None = Field(default=None, description="Of the text of a search.")
    kept: dict[str, tuple[str, ...]] = Field(
        default={},
        description="Type of GGUF -> weights whose blocks are those of the packed checkpoint, bit by bit.",
    )
    decoded: dict[str, tuple[str, ...]] = Field(
        default={}, description="Type of GGUF -> weights that were decoded from it to the dtype."
    )

    @property
    def any(self) -> bool:
        """Whether there is a scheme for some kind of weights."""
        schemes = (
            self.linear,
            self.sensitive,
            self.head,
            self.embedding,
            self.tied,
            self.experts,
        )
        return set(schemes) != {"none"} or bool(self.kept)


class CodedCacheRecord(Closed):
    """Keys and values are codes with a scale for each feature of each head, which the graph has."""

    dtype: Literal["int8"] = "int8"
    calibration: Sha256 | None = Field(
        description="Of the text that scales were chosen with; null: random ids, of random weights."
    )


class QualityRecord(Closed):
    """The folder as it runs against the float32 model; `llamagen verify DIR --quality CHECKPOINT` measures it."""

    inputs: str
    text: Sha256 | None = Field(
        default=None, description="Of the text; null for random ids, where there is no tokenizer."
    )
    positions: Count = Field(description="Tokens whose next one is compared.")
    kl_mean: FiniteFloat = Field(description="KL(float32 || folder) of the next token, nats, mean.")
    kl_max: FiniteFloat
    top1_agreement: FiniteFloat = Field(
        description="Share of positions with the same likeliest token."
    )
    perplexity: FiniteFloat | None = Field(
        default=None, description="Of the folder on the text; null for random ids."
    )
    float32_perplexity: FiniteFloat | None = Field(
        default=None, description="Of the float32 model on the same text."
    )
    prompts: Count = Field(
        default=0, description="Places of the text from which both models go on, greedily."
    )
    greedy_tokens: Count = Field(default=0, description="That each model writes behind a prompt.")
    greedy_same: Count = Field(default=0, description="Prompts behind which all are the same.")
    greedy_until: FiniteFloat = Field(
        default=0.0, description="Tokens before the first that differs, mean."
    )


class HandOver(Closed):
    """An output of one graph that is an input, of that name, of others."""

    made_by: str
    read_by: tuple[str, ...]
    placeholder: TokenId | None = Field(
        default=None,
        description="Token that stands for its rows; rows are used up by the tokens, in order. "
        "Null: read whole at every call.",
    )
    rows: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        default=None, description="Rows of an item (a tile), one a token."
    )


class ImagesRecord(Closed):
    """Graphs by role. Text without images needs the graph `model` alone."""

    once: tuple[str, ...] = Field(description="Run once for all images of a prompt, in order.")
    steps: tuple[str, ...] = Field(
        min_length=1,
        description="Run at every call, in order; the last one has the cache and gives logits.",
    )
    inputs: tuple[str, ...] = Field(description="What preprocessing gives the graphs run once.")
    beside: tuple[str, ...] = Field(
        description="What it gives the others, one entry a token; a new token is as the last one."
    )
    hand_overs: dict[str, HandOver]
    preprocessing: Recipe | None = Field(
        description="From image files to these inputs; null where its tokens are not published."
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Tokens that the recipe writes stand for the rows that are handed over."""
        recipe = self.preprocessing
        if isinstance(recipe, TilesRecipe):
            written = recipe.patch_token, recipe.tokens_per_tile
            for name, one in self.hand_overs.items():
                if one.placeholder is not None and (one.placeholder, one.rows) != written:
                    raise ValueError(f"tokens stand for rows of {name!r} that are not the recipe's")
        return self


class Manifest(Closed):
    """Version 1, described by spec/manifest.schema.json."""

    format: Literal[1] = 1
    llamagen: str = Field(description="Version that wrote the folder.")
    spec: SpecRecord
    profile: str
    dtype: DTypeName = Field(description="Of the computation.")
    cache: CacheKind = Field(
        default="full",
        description="`bounded`: inputs past_key_values.N of dimension `past_sequence_length_K` take K tokens at most.",
    )
    io_dtype: DTypeName = Field(description="Of logits, and of key/value caches that are no codes.")
    coded_cache: CodedCacheRecord | None = Field(
        default=None, description="null: caches are of `io_dtype`."
    )
    logits: Literal["last", "all"] = Field(
        description="After the last real token of a call, or after every one."
    )
    max_context: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        description="Tokens that the model's tables of positions cover; null where it computes them."
    )
    runtime: str | None = Field(
        default=None,
        description="Version of ONNX Runtime that the operators were chosen for; null before there was a choice.",
    )
    batched_chunks: bool = Field(
        default=True,
        description="Whether a call with a past may have several rows of several tokens; "
        "if not, its attention refuses such a call: several rows then go on by one token each.",
    )
    weights: WeightsRecord
    quantization: QuantizationRecord | None = Field(description="null: no weight is quantised.")
    quality: QualityRecord | None = Field(default=None, description="null: it was not measured.")
    session: dict[SessionKey, Switch] = Field(
        default={}, description="Configuration entries for sessions of ONNX Runtime."
    )
    graphs: dict[str, GraphRecord] = Field(
        description="By role; `model` is the text model, others hand it embeddings."
    )
    adapters: dict[str, AdapterRecord] = Field(
        default={},
        description="By name, those that stay apart: adapters/NAME.onnx_adapter gives values to inputs of the text "
        "model, which are of rank 0 without.",
    )
    stages: tuple[str, ...] = Field(
        default=(), description="The text model again, as graphs of some layers each, in order."
    )
    images: ImagesRecord | None = Field(
        default=None, description="How images go through the graphs; null for a model of text."
    )
    files: dict[str, FileRecord] = Field(
        description="Every file but this one, by its path in the folder."
    )

    @model_validator(mode="after")
    def _inside(self) -> Self:
        """Whoever reads the manifest opens what it names, and that is in the folder."""
        strange = [n for n in self.files if PurePosixPath(n).is_absolute() or ".." in n.split("/")]
        if strange:
            raise ValueError(f"{strange[0]!r} is not a file of the folder")
        for name, graph in self.graphs.items():
            if not _NAME.fullmatch(name) or not re.fullmatch(
                rf"{name}\.onnx|onnx/{name}(_[a-z0-9]+)?\.onnx", graph.file
            ):
                raise ValueError(f"the graph {name!r} is not in {graph.file!r}")
        if lacking := [name for name in self.stages if f"{name}.onnx" not in self.files]:
            raise ValueError(f"the stage {lacking[0]!r} is no file of the folder")
        for name in self.adapters:
            if not ADAPTER_NAME.fullmatch(name) or adapter_file(name) not in self.files:
                raise ValueError(f"the adapter {name!r} is no file of the folder")
        images = self.images
        run = (*images.once, *images.steps) if images else ()
        if images:
            run += tuple(over.made_by for over in images.hand_overs.values())
        unknown = [name for name in run if name not in self.graphs]
        if unknown:
            raise ValueError(f"images go through {unknown[0]!r}, which is no graph of the folder")
        return self

    @property
    def made_for(self) -> str:
        """The versions that the folder wants, in words."""
        opsets = {
            domain: max(one.opset.get(domain, 0) for one in self.graphs.values())
            for graph in self.graphs.values()
            for domain in graph.opset
        }
        versions = ", ".join(f"{domain} {version}" for domain, version in sorted(opsets.items()))
        return f"llamagen {self.llamagen} for {versions}"[:200]

    def text(self) -> str:
        """Canonical JSON, files by name."""
        listed = self.model_copy(update={"files": dict(sorted(self.files.items()))})
        return listed.model_dump_json(indent=2, exclude_none=False) + "\n"


class HubManifest(Closed):
    """MANIFEST.json of a folder for transformers."""

    format: Literal["transformers"] = "transformers"
    llamagen: str = Field(description="Version that wrote the folder.")
    spec: SpecRecord
    code: bool = Field(description="false: a class of transformers itself runs it.")
    weights: WeightsRecord
    files: dict[str, FileRecord]

    def text(self) -> str:
        """Canonical JSON, files by name."""
        listed = self.model_copy(update={"files": dict(sorted(self.files.items()))})
        return listed.model_dump_json(indent=2) + "\n"


def images_record(resolved: ResolvedSpec) -> ImagesRecord | None:
    """None for a model of text. Raises LG407 as ``pipeline_of`` does."""
    if not resolved.spec.graphs:
        return None
    graphs = build_all(resolved)
    pipeline = pipeline_of(graphs)
    if pipeline is None:
        return None
    hand_overs: dict[str, HandOver] = {}
    for made_by in pipeline.graphs:
        for name in pipeline.makes[made_by]:
            readers = [n for n in pipeline.graphs if name in pipeline.reads[n]]
            placeholder = pipeline.placeholders.get(name)
            if readers:
                hand_overs[name] = HandOver(
                    made_by=made_by,
                    read_by=tuple(readers),
                    placeholder=placeholder.token if placeholder else None,
                    rows=placeholder.rows if placeholder else None,
                )
    return ImagesRecord(
        once=pipeline.once,
        steps=pipeline.steps,
        inputs=pipeline.images,
        beside=pipeline.beside,
        hand_overs=hand_overs,
        preprocessing=recipe_of(resolved.spec),
    )


def schema_text() -> str:
    """The JSON schema: spec/manifest.schema.json."""
    return json.dumps(Manifest.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


M = TypeVar("M", Manifest, HubManifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an ONNX folder; no other file is looked at. Raises LG775."""
    return _read(folder, Manifest, "`verify DIR --against vllm` looks at such a folder")


def graph_path(folder: Path, name: str = MAIN) -> Path:
    """Where a graph of an exported folder lies, as its manifest says; NAME.onnx in a folder without one.

    Raises LG775 for a manifest that cannot be read, or where a link stands for the folder between.
    """
    file = f"{name}.onnx"
    if files.exists(folder / MANIFEST):
        graphs = read_manifest(folder).graphs
        file = graphs[name].file if name in graphs else file
    path = folder / file
    if path.parent != folder and path.parent.is_symlink():
        message = f"{str(path.parent)!r} is a link, and graphs are read in their own folder alone"
        raise LlamagenError.of(
            "LG775", message, help="if you trust it, put the folder itself there"
        )
    return path


def read_hub_manifest(folder: Path) -> HubManifest:
    """The manifest of a folder for transformers; no other file is looked at. Raises LG775."""
    return _read(folder, HubManifest, "export it with --format transformers")


def recorded_files(folder: Path) -> Mapping[str, FileRecord]:
    """What the manifest of either format lists. Raises LG775."""
    return (read_hub_manifest if _is_hub(_data(folder)) else read_manifest)(folder).files


def _read(folder: Path, kind: type[M], other: str) -> M:
    data = _data(folder)
    if _is_hub(data) != (kind is HubManifest):
        made = "transformers" if _is_hub(data) else "ONNX Runtime"
        raise LlamagenError.of("LG775", f"{folder} is a folder for {made}", help=other)
    try:
        return kind.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise LlamagenError.of(
            "LG775",
            f"{folder / MANIFEST} is not a manifest of this version: {first_fault(error)}",
            help="export the model again with this version of llamagen",
        ) from error


def _data(folder: Path) -> bytes:
    return files.read_bytes(folder / MANIFEST, files.MANIFEST, within=folder)


def _is_hub(data: bytes) -> bool:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("format") == "transformers"


EXPORT = Listing(MANIFEST, recorded_files)
"""How an exported folder says that llamagen wrote it."""


def hashed(path: Path) -> FileRecord:
    """The record of a file that is read whole for it."""
    digest, size = hashlib.sha256(), 0
    with files.open_file(path, files.DATA) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(size=size, sha256=digest.hexdigest())


def all_files(folder: Path, known: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
    """Records of every file below ``folder``; those in ``known`` are not read again."""
    paths: Iterable[Path] = sorted(p for p in folder.rglob("*") if p.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: known[name] if name in known else hashed(path)
        for name, path in names.items()
        if name != MANIFEST
    }
