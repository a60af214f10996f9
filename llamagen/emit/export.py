"""The main job: a spec and a checkpoint (or a seed) become a folder that ONNX Runtime runs, whole or not at all.

Weights are streamed into data files, or the checkpoint's own safetensors are linked into the folder and read in place.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from llamagen.diagnostics import Diagnostic, LlamagenError, quoted
from llamagen.emit.calibrate import Activations, built_in_text, calibrated, digest_of, drawn_ids
from llamagen.emit.clients.files import write_client_files
from llamagen.emit.clients.web import fetched, require_runnable, write_page
from llamagen.emit.config.checkpoint import fit
from llamagen.emit.config.table import config_files
from llamagen.emit.manifest import (
    ADAPTER_NAME,
    EXPORT,
    MANIFEST,
    SPEC_FILE,
    AdapterRecord,
    CodedCacheRecord,
    FileRecord,
    GraphRecord,
    Manifest,
    MethodName,
    RandomSource,
    SpecRecord,
    WeightsRecord,
    adapter_file,
    all_files,
    images_record,
)
from llamagen.emit.onnx.adapters import write_adapter
from llamagen.emit.onnx.data import byte_count, together_initializers, write_graphs, write_models
from llamagen.emit.onnx.emit import (
    AS_EXPORTED,
    NO_RANGES,
    UNPACKED,
    OnnxModel,
    emit_onnx,
    require_codes,
)
from llamagen.emit.onnx.encode import encoded_pieces
from llamagen.emit.onnx.initializers import Initializer, Placement
from llamagen.emit.onnx.layout import FLAT, Layout, layout_of
from llamagen.emit.onnx.profile import OnnxDType, dtype_named
from llamagen.emit.onnx.stages import Stage, write_stages
from llamagen.emit.options import NOT_QUANTIZED, ExportOptions, one_of
from llamagen.emit.supply import (
    NO_ADAPTERS,
    STORED,
    AdapterChoice,
    CheckpointSupply,
    KeptAdapter,
    RandomSupply,
    Supply,
    beside_weights,
    place_companion,
)
from llamagen.emit.written import (
    ByteCounter,
    Progress,
    Written,
    llamagen_version,
    sizes_of,
    write_text,
)
from llamagen.files import TEXT, read_text
from llamagen.ir.bounded import with_caches
from llamagen.ir.elaborate import build_all
from llamagen.ir.flatten import flatten, known_ids
from llamagen.ir.graph import MAIN, Graph, all_parameters
from llamagen.spec.fmt import resolved_text
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.weights.link import as_stored, link, scan
from llamagen.weights.pieces import Piece
from llamagen.weights.quantize import KEPT
from llamagen.weights.random import require_seed
from llamagen.weights.remote import named
from llamagen.weights.safetensors import TargetDType, TensorEntry, header_digest
from llamagen.weights.values import overflow_magnitude
from llamagen.writing import staged_folder

Floats: TypeAlias = npt.NDArray[np.float32]

Encode: TypeAlias = Callable[[str, str], Sequence[int]]
"""The text of a tokenizer.json, and a text -> its ids."""


@dataclass(frozen=True)
class ExportJob:
    """One export: what both ways of giving weights share."""

    resolved: ResolvedSpec
    options: ExportOptions
    out: Path
    overwrite: bool
    progress: Progress
    reads: tuple[Path, ...]
    """Files of the spec and the checkpoint: what holds one of them is not overwritten."""
    encode: Encode

    @property
    def stored_as(self) -> TargetDType:
        """The dtype of the computation, as weights are stored in it. Raises LG702."""
        return STORED[dtype_named(self.options.dtype)]

    @cached_property
    def graphs(self) -> Mapping[str, Graph]:
        """The text model's graph and the further ones of the spec, by name. Raises LG705."""
        return with_caches(build_all(self.resolved), self.options.cache)

    def emitted(
        self,
        stored: Mapping[str, OnnxDType] = AS_EXPORTED,
        packed: Mapping[str, str] = UNPACKED,
        ranges: Mapping[str, Floats] = NO_RANGES,
        adapters: Mapping[str, KeptAdapter] = NO_ADAPTERS,
    ) -> dict[str, OnnxModel]:
        """The text model, and a model of each further graph of the spec, by name.

        Raises LG657, LG701 to LG709, LG717, LG725, LG726.
        """
        adapted = {path for adapter in adapters.values() for path in adapter.products}
        main = set(self.graphs[MAIN].parameters)
        exact = replace(self.options, quantize=NOT_QUANTIZED)
        return {
            # a graph that shares weights with the text model has the same codes; one for pixels stays as it is
            name: emit_onnx(
                graph,
                exact if main.isdisjoint(graph.parameters) else self.options,
                stored,
                packed,
                ranges,
                adapted if name == MAIN else (),
            )
            for name, graph in self.graphs.items()
        }

    @contextmanager
    def published(
        self,
        emitted: Mapping[str, OnnxModel],
        supply: Supply,
        weights: WeightsRecord,
        cache: CodedCacheRecord | None,
        layout: Layout = FLAT,
    ) -> Iterator[tuple[Path, dict[str, FileRecord]]]:
        """The staging folder and the records of its files, which the body fills; then all other files are added.

        Raises LG721 and LG722 if there is to be a page, and what it needs is not to be had.
        """
        reads = (*self.reads, *supply.companions)
        with ExitStack() as stack:
            packages = stack.enter_context(fetched()) if self.options.web else None
            staging = stack.enter_context(staged_folder(self.out, EXPORT, self.overwrite, reads))
            known: dict[str, FileRecord] = {}
            yield staging, known
            main, adapters = emitted[MAIN], supply.adapters
            for name, adapter in adapters.items():
                file = staging / adapter_file(name)
                write_adapter(file, main.adapted, main.dtype, adapter.products)
            supply.require_unchanged()
            write_text(staging / SPEC_FILE, resolved_text(self.resolved))
            for name, text in config_files(self.resolved).items():
                write_text(staging / name, text)
            for file in supply.companions:  # a checkpoint's own config wins
                place_companion(file, staging)
            for name, text in supply.texts.items():
                write_text(staging / name, text)
            if packages is not None:
                write_page(staging, self.resolved, emitted[MAIN], packages)
            stages = self.cut(staging)
            records = {name: adapter.record for name, adapter in adapters.items()}
            write_client_files(
                staging,
                self.resolved,
                self.graphs,
                main,
                weights.source,
                stages,
                layout,
                records,
            )
            files = all_files(staging, known)
            manifest = self.manifest(emitted, weights, cache, files, stages, layout, records)
            write_text(staging / MANIFEST, manifest.text())

    def cut(self, folder: Path) -> tuple[Stage, ...]:
        """The graphs of layers that are asked for. Raises LG724."""
        if self.options.stages is None:
            return ()
        if len(self.graphs) > 1:
            message = f"{self.resolved.spec.id} reads images: its graphs are not cut into stages"
            raise LlamagenError.of("LG724", message, help="leave out --stages")
        return write_stages(folder, self.options.stages)

    def manifest(
        self,
        emitted: Mapping[str, OnnxModel],
        weights: WeightsRecord,
        cache: CodedCacheRecord | None,
        files: dict[str, FileRecord],
        stages: Sequence[Stage],
        layout: Layout,
        adapters: Mapping[str, AdapterRecord],
    ) -> Manifest:
        main = emitted[MAIN]
        return Manifest(
            llamagen=llamagen_version(),
            spec=SpecRecord(id=self.resolved.spec.id, digest=self.resolved.digest),
            profile=main.profile.name,
            dtype=main.dtype,
            io_dtype=main.profile.io_dtypes[main.dtype],
            logits=main.logits,
            max_context=main.max_context,
            runtime=main.runtime,
            batched_chunks=main.batched_chunks,
            cache=self.options.cache,
            coded_cache=cache,
            weights=weights,
            quantization=main.quantization if main.quantization.any else None,
            session=dict(main.session_settings),
            graphs={
                name: GraphRecord(
                    file=layout.file(name),
                    digest=one.model.metadata_props["llamagen.spec_digest"],
                    opset={domain or "ai.onnx": v for domain, v in sorted(one.opsets.items())},
                    outputs={
                        output: f"[{', '.join(map(str, type_.shape))}]"
                        for output, type_ in self.graphs[name].outputs
                    },
                )
                for name, one in emitted.items()
            },
            adapters=dict(adapters),
            stages=tuple(stage.name for stage in stages),
            images=images_record(self.resolved),
            files=files,
        )


def export_checkpoint(
    job: ExportJob,
    checkpoint: Path,
    registry: Registry,
    ignore_config: bool,
    adapter: AdapterChoice = None,
) -> Written:
    """A checkpoint as an ONNX folder, in the sizes of the checkpoint where these alone are others than the spec's.

    The LoRA of ``adapter`` is merged into its weights (LG625 if it cannot be), or those that it names lie beside them
    (LG657 where they cannot).

    Raises LG60x and LG61x for a checkpoint that does not fit (all findings before anything is written; LG618 alone if
    it is that of another model of ``registry``; LG607 for a config.json of another graph, unless ``ignore_config``),
    LG620 to LG622 for its values, LG63x for the output, LG640 to LG642 for weights that cannot be referenced, LG701 to
    LG709 for options.
    """
    started = time.monotonic()
    copies = job.options.mode == "copy"
    if not isinstance(adapter, Path | None):
        _require_apart(job.options, adapter)
    # Comparing stored copies of a tied table reads both: that is for exports that read the weights anyway.
    compare_values = copies or job.options.scan
    fitted = fit(
        job.resolved,
        checkpoint,
        registry,
        compare_values=compare_values,
        ignore_config=ignore_config,
        adapter=beside_weights(checkpoint, adapter),
    ).require()
    supply = CheckpointSupply.of(fitted, ignore_config=ignore_config, adapter=adapter)
    reads = (*job.reads, checkpoint, *supply.stamps)
    job = replace(job, resolved=fitted.resolved, reads=reads)
    notes = _copied(job, supply, named(checkpoint)) if copies else _referenced(job, supply)
    return Written(job.out, sizes_of(job.out), time.monotonic() - started, (*supply.notes, *notes))


def _require_apart(options: ExportOptions, names: Collection[str]) -> None:
    """Raises LG657 for names and options that do not go with adapters kept apart."""
    strange = [name for name in names if not ADAPTER_NAME.fullmatch(name)]
    counts = Counter(name.lower() for name in names)
    twice = [name for name in names if counts[name.lower()] > 1]
    problems = (
        (
            strange,
            "{} cannot be the name of a file",
            "names have letters, digits, `_`, `-` and `.`",
        ),
        (twice, "{} is there twice on a system that takes A for a", "give each another name"),
        (options.stages is not None, "stages have no inputs for them", "leave out --stages"),
        (options.web, "its page cannot switch them", "leave out --web"),
        (
            options.cache_dtype is not None,
            "scales of keys and values are chosen without them",
            "leave out --cache-dtype",
        ),
    )
    found = [
        Diagnostic(
            "LG657",
            "error",
            "adapters cannot be kept apart: "
            + what.format(quoted(is_so[0]) if isinstance(is_so, list) else ""),
            help=help,
        )
        for is_so, what, help in problems
        if is_so
    ]
    if found:
        raise LlamagenError(found)


def export_random(job: ExportJob, seed: int) -> Written:
    """The same folder with the unit-scale random weights of ``seed``; equal seeds give equal bytes.

    Raises LG901 for a negative one.
    """
    started = time.monotonic()
    require_seed(seed)
    if job.options.mode == "reference":
        raise LlamagenError.of(
            "LG703",
            "random weights are in no file that could be referenced",
            help="leave out --weights, or write a file first with `llamagen random-checkpoint`",
        )
    supply = RandomSupply(all_parameters(build_all(job.resolved)), seed)
    notes = _copied(job, supply, "random")
    return Written(job.out, sizes_of(job.out), time.monotonic() - started, notes)


def _copied(job: ExportJob, supply: Supply, source: str) -> tuple[Diagnostic, ...]:
    """Stream the weights into data files; what is worth saying about it."""
    target = job.stored_as
    observed = _observed(job, supply)
    ranges = NO_RANGES if observed is None else observed.activations.ranges
    packed = _kept(job, supply, source)
    emitted = job.emitted(packed=packed, ranges=ranges, adapters=supply.adapters)
    if job.options.web:
        require_runnable(job.options, job.resolved, job.graphs, emitted[MAIN], supply)
    entries = together_initializers(emitted.values())
    counter = ByteCounter(job.progress, sum(map(byte_count, entries)))
    notes: tuple[Diagnostic, ...] = ()
    if supply.packed:
        became = _of_packed(supply.packed, entries)
        notes = (_told(became, job.options.dtype),)
        main = emitted[MAIN]
        emitted[MAIN] = replace(main, quantization=main.quantization.model_copy(update=became))
    importance: Mapping[str, Floats] = {}
    match _calibrated(job, supply, entries, observed):
        case Diagnostic() as note:
            notes += (note,)
        case (digest, importance):
            about = {"method": "search", "calibration": digest}
            main = emitted[MAIN]
            record = main.quantization.model_copy(update=about)
            emitted[MAIN] = replace(main, quantization=record)

    layout = layout_of(job.options, emitted[MAIN])
    stems = {layout.stem(name): one for name, one in emitted.items()}

    def weights(spots: Sequence[Placement]) -> Iterator[Piece]:
        if spots[0].initializer.part is not None:
            packed = partial(supply.packed_rows, dtype=target)
            yield from encoded_pieces(spots, supply.part, packed, importance)
            return
        offset = spots[0].offset
        for parameter in spots[0].initializer.sources:
            for piece in supply.pieces(parameter.path, target, offset):
                yield piece
                offset += piece.length

    source_of = WeightsRecord(mode="copy", scanned=True, source=supply.source)
    coded = _coded_cache(observed)
    with job.published(emitted, supply, source_of, coded, layout) as (staging, known):
        place = staging / layout.folder
        place.mkdir(exist_ok=True)
        written = write_models(stems, place, weights, report=counter.add)
        known |= {layout.path(name): record for name, record in written.items()}
    notes += without_effect(job.options, emitted)
    if any(i.part and not i.part.encoding.packing for i in entries):
        help = f"`llamagen verify {job.out} --quality {source}` measures it"
        if "logits" not in job.graphs[MAIN].output_names:
            help = "compare its outputs with those of an export with `--quantize none`"
        message = "what quantising cost was not measured"
        notes += (Diagnostic("LG644", "note", message, help=help),)
    return notes


def _kept(job: ExportJob, supply: Supply, source: str) -> Mapping[str, str]:
    """Role path -> type of GGUF, of the weights that stay in its blocks.

    Raises LG719 for a packed file that is to be quantised again, unless that was asked for.
    """
    options, packed = job.options.quantize, supply.packed
    if packed and options.asked - {"none"} and not options.requantize:
        counted = ", ".join(f"{n} in {name}" for name, n in Counter(packed.values()).items())
        raise LlamagenError.of(
            "LG719",
            f"the weights of {quoted(source)} are packed already ({counted}): quantising rounds them a second time",
            help="leave --quantize out, and they stay as they are; `--quantize none` decodes them, and --requantize "
            "does what was asked",
        )
    # bfloat16 cannot hold their scales, which are float16
    if options.asked or job.stored_as == "BF16":
        return {}
    return {path: name for path, name in packed.items() if name in KEPT}


def _of_packed(
    packed: Mapping[str, str], entries: Sequence[Initializer]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """By type, the weights of a packed file that stayed in its blocks, and those that did not."""
    kept = {s.path for e in entries if e.part and e.part.encoding.packing for s in e.sources}
    became: dict[str, dict[str, tuple[str, ...]]] = {"kept": {}, "decoded": {}}
    for path, name in packed.items():
        of_type = became["kept" if path in kept else "decoded"]
        of_type[name] = (*of_type.get(name, ()), path)
    return became


def _told(became: Mapping[str, Mapping[str, Sequence[str]]], dtype: str) -> Diagnostic:
    """LG651"""
    kept, decoded = (
        ", ".join(f"{len(paths)} in {name}" for name, paths in became[what].items()) or "none"
        for what in ("kept", "decoded")
    )
    message = f"packed weights that stay as they are: {kept}; decoded to {dtype}: {decoded}"
    return Diagnostic("LG651", "note", message, help="MANIFEST.json names them")


@dataclass(frozen=True, slots=True)
class Observed:
    """What the model computes on a text, and the digest of that; None of random ids."""

    activations: Activations
    text: str | None


def _read(job: ExportJob, supply: Supply) -> Observed | str:
    """What the model computes on the text of the options, or on ours; or why that is not known."""
    given = job.options.quantize.calibrate
    if supply.tokenizer is None:
        return "without a tokenizer.json beside the weights no text can be read"
    text = built_in_text() if given is None else read_text(given, TEXT)
    ids = job.encode(supply.tokenizer, text)
    found = calibrated(job.graphs[MAIN], supply.part, ids)
    return found if isinstance(found, str) else Observed(found, digest_of(text))


def _observed(job: ExportJob, supply: Supply) -> Observed | None:
    """What keys and values in codes must hold, where they are asked for.

    Ids that are drawn stand for a text of random weights, to which all ids are alike; a trained model makes of them
    other keys than of any text (bench/README.md). Raises LG726 where there can be no codes, or no text.
    """
    if job.options.cache_dtype is None:
        return None
    graph = job.graphs[MAIN]
    require_codes(graph, job.options)
    found: Observed | str = "the model keeps none"
    if flatten(graph).slots:
        found = _read(job, supply)
    if isinstance(found, str) and isinstance(supply.source, RandomSource):
        ids = drawn_ids(supply.source.seed, known_ids(graph))
        drawn = calibrated(graph, supply.part, ids)
        found = drawn if isinstance(drawn, str) else Observed(drawn, None)
    if isinstance(found, str):
        message = f"keys and values cannot be kept in {job.options.cache_dtype}: {found}"
        help = "how large they become is seen on a text; leave out --cache-dtype"
        raise LlamagenError.of("LG726", message, help=help)
    return found


def _coded_cache(observed: Observed | None) -> CodedCacheRecord | None:
    return None if observed is None else CodedCacheRecord(calibration=observed.text)


def _calibrated(
    job: ExportJob, supply: Supply, entries: Sequence[Initializer], observed: Observed | None
) -> tuple[str, Mapping[str, Floats]] | Diagnostic | None:
    """The digest of a text, and what it says each column of a weight counts; None where nobody asks.

    Raises LG707 for a method that does not exist, LG718 for one that was asked for and cannot be: without, LG649 says
    why scales are chosen by the weights alone.
    """
    options, known = job.options.quantize, get_args(MethodName)
    message = f"scales cannot be chosen by {options.method!r}; known: {', '.join(known)}"
    asked = options.method is not None and one_of(options.method, known, "LG707", message)
    coded = [entry.part.encoding for entry in entries if entry.part is not None]
    four = any(how.kind == "blocks" and how.bits == 4 and not how.packing for how in coded)
    if asked == "rtn":
        why = "--method rtn looks at no text"
    elif not four:
        why = "no projection has four bits"
    else:
        found = _read(job, supply) if observed is None or observed.text is None else observed
        if not isinstance(found, str):
            assert found.text is not None
            return found.text, found.activations.squares
        why = found
    if asked == "search" or (options.calibrate is not None and job.options.cache_dtype is None):
        raise LlamagenError.of("LG718", f"scales cannot be searched: {why}")
    if asked or not four:
        return None
    message = f"scales hold the largest weight of each block, and were not searched: {why}"
    return Diagnostic("LG649", "note", message)


# weights without copies: a graph whose external data is the checkpoint's own safetensors


def _referenced(job: ExportJob, supply: CheckpointSupply) -> tuple[Diagnostic, ...]:
    """Link the checkpoint's files and write graphs that read them in place; what is worth saying about it.

    Nothing but headers is read, unless the options ask for a scan. Raises LG640 to LG642 for what cannot be
    referenced, LG620 and LG621 for what a scan finds.
    """
    if job.options.quantizes:
        raise LlamagenError.of(
            "LG707",
            "quantised weights are computed, so they cannot be references into the checkpoint",
            help="quantise with --weights copy",
        )
    entries = as_stored(supply.bindings.values())
    target, scanned = job.stored_as, job.options.scan
    observed = _observed(job, supply)
    ranges = NO_RANGES if observed is None else observed.activations.ranges
    readable = _readable(entries, target, scanned)
    emitted = job.emitted(readable, ranges=ranges, adapters=supply.adapters)
    layout_of(job.options, emitted[MAIN])
    if job.options.web:
        require_runnable(job.options, job.resolved, job.graphs, emitted[MAIN], supply)
    places: list[Placement] = []
    for initializer in together_initializers(emitted.values()):
        entry = entries[initializer.name]
        places.append(Placement(initializer, entry.file.name, entry.offset, entry.nbytes))
    record = WeightsRecord(mode="reference", scanned=scanned, source=supply.source)
    with job.published(emitted, supply, record, _coded_cache(observed)) as (staging, known):
        linked = link(list(entries.values()), staging)
        counter = ByteCounter(job.progress, sum(path.stat().st_size for path in linked.values()))
        for name, path in linked.items():
            digest = None
            if scanned:
                digest = scan(path, supply.bindings.values(), target, counter.add)
            size, header = path.stat().st_size, header_digest(path)
            known[name] = FileRecord(size=size, sha256=digest, header_sha256=header)
        known |= write_graphs(emitted, places, staging)
    notes = without_effect(job.options, emitted)
    if scanned:
        return notes
    message = (
        "the weights are those of the checkpoint's own files and were not read: "
        "NaN and infinity were not looked for"
    )
    help = "`--scan` reads every byte, looks, and hashes the files"
    return (Diagnostic("LG643", "note", message, help=help), *notes)


def _readable(
    entries: Mapping[str, TensorEntry], target: TargetDType, scanned: bool
) -> dict[str, OnnxDType]:
    """The dtypes of stored tensors. Raises LG642 for those a graph cannot cast, or may lose values of unseen."""
    names: Mapping[str, OnnxDType] = {stored: name for name, stored in STORED.items()}
    readable: dict[str, OnnxDType] = {}
    strange: list[str] = []
    narrowed: list[str] = []
    for path, entry in entries.items():
        if entry.dtype not in names:
            strange.append(path)
            continue
        readable[path] = name = names[entry.dtype]
        if not scanned and overflow_magnitude(STORED[name], target) is not None:
            narrowed.append(path)
    problems: list[Diagnostic] = []
    for paths, why, help in (
        (strange, ", which a graph cannot read in place", "copy the weights with --weights copy"),
        (
            narrowed,
            f": values beyond {target} would become infinite without a word",
            "add --scan, which looks at every value, or --weights copy",
        ),
    ):
        if paths:
            more = f" and {len(paths) - 1} more are" if len(paths) > 1 else " is"
            message = f"`{paths[0]}`{more} stored as {entries[paths[0]].dtype}{why}"
            problems.append(Diagnostic("LG642", "error", message, help=help))
    if problems:
        raise LlamagenError(problems)
    return readable


def without_effect(
    options: ExportOptions, emitted: Mapping[str, OnnxModel]
) -> tuple[Diagnostic, ...]:
    """LG647 for options that change nothing in the folder: to be said, since a typed option is a wish."""
    models, quantize = emitted.values(), options.quantize
    notes: list[tuple[str, str]] = []
    if options.max_context is not None and all(m.max_context is None for m in models):
        text = "--max-context bounds nothing: no operator of this model reads a table of positions"
        notes.append((text, "the length of a generation is up to who runs the model"))
    if options.runtime is not None and not any(m.fused_attention for m in models):
        text = (
            "--runtime changes nothing: every version that it takes has the operators of this model"
        )
        notes.append((text, "leave it out"))
    if options.quantizes and not any(i.part for m in models for i in m.initializers):
        if not quantize.asked - {"none"}:  # only how to quantise was said, not what
            notes.append(("the weights are not quantised", "add --quantize int4, int8 or w8a8"))
        else:
            text = "nothing is quantised: the model has no such weights"
            notes.append((text, "--quantize takes projections too"))
    return tuple(Diagnostic("LG647", "note", text, help=help) for text, help in notes)
