"""A spec and a checkpoint become a folder in the Hub's format, which transformers and engines that build on it load.

Where transformers has a class of the model's wiring the folder is a config.json beside the checkpoint's own files.
Else, or where it is asked for, the code is in the folder too.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from llamagen.analysis.engines import cutting_of, facts_of, refusals, require_decoder
from llamagen.diagnostics import LlamagenError
from llamagen.diagnostics.markdown import cell
from llamagen.emit.clients.readme import PURPOSES
from llamagen.emit.config.checkpoint import fit
from llamagen.emit.config.json_source import Json
from llamagen.emit.config.settings import json_object
from llamagen.emit.config.table import (
    CONFIG_FILE,
    GENERATION_FILE,
    config_files,
    initializer_range,
    plain,
)
from llamagen.emit.export import ExportJob
from llamagen.emit.manifest import (
    EXPORT,
    MANIFEST,
    SPEC_FILE,
    FileRecord,
    HubManifest,
    SpecRecord,
    WeightsRecord,
    all_files,
)
from llamagen.emit.options import DEFAULTS, WeightMode
from llamagen.emit.supply import (
    STORED,
    TOKENIZER_FILE,
    CheckpointSupply,
    RandomSupply,
    Supply,
    place_companion,
)
from llamagen.emit.torch.transformers import Names, emit_transformers
from llamagen.emit.written import ByteCounter, Written, llamagen_version, sizes_of, write_text
from llamagen.ir.elaborate import build, build_all
from llamagen.ir.graph import all_parameters
from llamagen.resources import templates
from llamagen.spec.fmt import resolved_text
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.weights.checkpoint import write_json, write_tensors
from llamagen.weights.link import as_stored, link
from llamagen.weights.names import Binding
from llamagen.weights.pieces import in_turn
from llamagen.weights.random import require_seed
from llamagen.weights.safetensors import NewTensor, TargetDType, TensorEntry, header_digest
from llamagen.writing import staged_folder

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_NAMES: Mapping[TargetDType, str] = {stored: name for name, stored in STORED.items()}
README = "README.md"


def code_files(resolved: ResolvedSpec) -> dict[str, str]:
    """Code and config.json of a model, file name -> text. Raises LG743 for what cannot be such code, LG740, LG741."""
    graph = build(resolved)
    decoder = require_decoder(graph)
    facts = facts_of(resolved.spec, graph, decoder)
    if reasons := refusals("transformers", resolved.spec, graph):
        raise LlamagenError.of("LG743", f"`{resolved.spec.id}`: {'; '.join(reasons)}")
    cutting = cutting_of(graph, decoder)
    texts = emit_transformers(
        graph,
        decoder,
        facts,
        cutting,
        initializer_range(resolved.spec),
        served=not refusals("vllm", resolved.spec, graph),
    )
    names, tokens = Names.of(resolved.spec.id), resolved.spec.tokenizer
    config: dict[str, Json] = {
        "architectures": [f"{names.stem}ForCausalLM"],
        "auto_map": dict(names.auto_map),
        "model_type": names.model_type,
        **{key: plain(value) for key, value in facts.items()},
        "llamagen": {
            "spec": resolved.spec.id,
            "digest": resolved.digest,
            "tensor_parallel": {
                engine: list(several)
                for engine, several in cutting.degrees.items()
                if not refusals(engine, resolved.spec, graph)
            },
        },
    }
    if tokens is not None:
        ids: dict[str, Json] = {"bos_token_id": tokens.bos_id, "eos_token_id": list(tokens.eos_ids)}
        ids |= {} if tokens.pad_id is None else {"pad_token_id": tokens.pad_id}
        texts[GENERATION_FILE] = _json({"_from_model_config": True, **ids})
        config |= ids
    return {**texts, CONFIG_FILE: _json(config)}


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# weights


@dataclass(frozen=True)
class _Stored:
    """Weights of a folder: the files of a checkpoint as they are, or new ones."""

    supply: Supply
    types: Mapping[str, TargetDType]
    linked: Mapping[str, TensorEntry] | None
    """None: they are written."""

    @property
    def record(self) -> WeightsRecord:
        mode: WeightMode = "copy" if self.linked is None else "reference"
        return WeightsRecord(mode=mode, scanned=mode == "copy", source=self.supply.source)

    @property
    def dtype(self) -> str:
        """What most tensors are stored in, as config.json says it."""
        ((most, _),) = Counter(self.types.values()).most_common(1)
        return _NAMES[most]


def _of_checkpoint(supply: CheckpointSupply, otherwise: TargetDType) -> _Stored:
    """Linked where every tensor is a parameter under its own name; what is packed becomes ``otherwise``."""
    types = {path: _type(binding, otherwise) for path, binding in supply.bindings.items()}
    try:
        entries = as_stored(supply.bindings.values())
    except LlamagenError:
        return _Stored(supply, types, None)
    own = all(path == entry.name for path, entry in entries.items())
    files = {entry.file.parent for entry in entries.values()}
    return _Stored(supply, types, entries if own and len(files) == 1 else None)


def _type(binding: Binding, otherwise: TargetDType) -> TargetDType:
    if binding.dtype == "F32" or binding.dtype == "F16" or binding.dtype == "BF16":
        return binding.dtype
    return otherwise


def _linked(entries: Mapping[str, TensorEntry], staging: Path) -> dict[str, FileRecord]:
    """The files, and their index as transformers wants it. One file may be called anything in a checkpoint."""
    linked = link(list(entries.values()), staging, or_copy=True)
    if len(linked) == 1:
        ((_, path),) = linked.items()
        linked = {SINGLE: path.rename(staging / SINGLE)}
    else:
        total = sum(entry.nbytes for entry in entries.values())
        where = {name: entry.file.name for name, entry in sorted(entries.items())}
        write_json(staging / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    return {
        name: FileRecord(size=path.stat().st_size, sha256=None, header_sha256=header_digest(path))
        for name, path in linked.items()
    }


def _written(
    stored: _Stored, shapes: Mapping[str, tuple[int, ...]], staging: Path, job: ExportJob
) -> None:
    new = [NewTensor(path, stored.types[path], shape) for path, shape in shapes.items()]
    counter = ByteCounter(job.progress, sum(one.nbytes for one in new))

    def blocks(one: NewTensor, dtype: TargetDType) -> Iterator[memoryview]:
        for block in in_turn(stored.supply.pieces(one.name, dtype, 0)):
            yield block
            counter.add(block.nbytes)

    write_tensors(staging, [(one, blocks(one, stored.types[one.name])) for one in new], None)


# the folder


def export_hub(
    job: ExportJob,
    checkpoint: Path | None,
    seed: int | None,
    registry: Registry,
    ignore_config: bool,
    adapter: Path | None = None,
) -> Written:
    """Write the folder, whole or not at all, with the weights of ``checkpoint`` or random ones of ``seed``.

    Weights stay in their stored type; packed ones are decoded to the dtype of the options. Raises LG60x to LG62x for
    a checkpoint as `export_checkpoint` does, LG63x for the output, LG743 for what cannot be code for transformers,
    LG744 for options of the other format.
    """
    started = time.monotonic()
    _require_fitting(job)
    if checkpoint is not None:
        fitted = fit(
            job.resolved,
            checkpoint,
            registry,
            compare_values=False,
            ignore_config=ignore_config,
            adapter=adapter,
        ).require()
        supply = CheckpointSupply.of(fitted, ignore_config=ignore_config, adapter=adapter)
        job = replace(job, resolved=fitted.resolved, reads=(*job.reads, checkpoint, *supply.stamps))
        stored, notes = _of_checkpoint(supply, job.stored_as), supply.notes
    else:
        assert seed is not None
        require_seed(seed)
        wanted = all_parameters(build_all(job.resolved))
        types = dict.fromkeys(wanted, job.stored_as)
        stored, notes = _Stored(RandomSupply(wanted, seed), types, None), ()
    native = {} if job.options.custom_code else config_files(job.resolved)
    texts = native or code_files(job.resolved)
    shapes = {p: one.shape for p, one in all_parameters(build_all(job.resolved)).items()}
    reads = (*job.reads, *stored.supply.companions)
    with staged_folder(job.out, EXPORT, job.overwrite, reads) as staging:
        known: dict[str, FileRecord] = {}
        if stored.linked is None:
            _written(stored, shapes, staging, job)
        else:
            known = _linked(stored.linked, staging)
        stored.supply.require_unchanged()
        write_text(staging / SPEC_FILE, resolved_text(job.resolved))
        for name, text in texts.items():
            write_text(staging / name, text)
        # beside code of ours a checkpoint's own config.json would name other code
        ours = set() if native else {CONFIG_FILE}
        for file in stored.supply.companions:
            if file.name not in ours:
                place_companion(file, staging)
        for name, text in stored.supply.texts.items():
            if name not in ours:
                write_text(staging / name, text)
        config = {k: v for k, v in json_object(staging / CONFIG_FILE).items() if k != "torch_dtype"}
        write_text(staging / CONFIG_FILE, _json({**config, "dtype": stored.dtype}))
        write_text(staging / README, _readme(job.resolved, staging, code=not native))
        manifest = HubManifest(
            llamagen=llamagen_version(),
            spec=SpecRecord(id=job.resolved.spec.id, digest=job.resolved.digest),
            code=not native,
            weights=stored.record,
            files=all_files(staging, known),
        )
        write_text(staging / MANIFEST, manifest.text())
    return Written(job.out, sizes_of(job.out), time.monotonic() - started, notes)


def _require_fitting(job: ExportJob) -> None:
    """Raises LG744 for options that make an ONNX folder."""
    ours = {"format", "custom_code", "dtype"}
    changed = [
        f"--{one.name.replace('_', '-')}"
        for one in fields(job.options)
        if one.name not in ours and getattr(job.options, one.name) != getattr(DEFAULTS, one.name)
    ]
    if changed:
        raise LlamagenError.of(
            "LG744",
            f"{', '.join(changed)} makes an ONNX folder, and --format transformers another",
            help="leave it out: such a folder has the whole model, its weights as the checkpoint stores them",
        )


_PURPOSES: Mapping[str, str] = {
    **dict(PURPOSES),
    SINGLE: "the weights",
    INDEX: "which file has which weight",
    CONFIG_FILE: "what engines read of the model",
}


def _readme(resolved: ResolvedSpec, staging: Path, *, code: bool) -> str:
    graph = build(resolved)
    names = sorted(path.name for path in staging.iterdir())
    ours = {f"{Names.of(resolved.spec.id).modeling}.py": "the model"}
    ours[f"{Names.of(resolved.spec.id).configuration}.py"] = "its configuration"
    purposes = {**_PURPOSES, **ours}
    cutting = cutting_of(graph, require_decoder(graph)) if code else None
    page = {
        "title": cell(resolved.spec.title or resolved.spec.id),
        "id": resolved.spec.id,
        "code": code,
        "text": TOKENIZER_FILE in names,
        "files": [{"name": cell(n), "value": purposes.get(n, "weights")} for n in names],
        "degrees": cutting.degrees if cutting else {},
        "reasons": cutting.reasons if cutting else {},
        "refusals": refusals("vllm", resolved.spec, graph) if code else (),
    }
    return templates("docs").get_template("hub.md.j2").render(folder=page)
