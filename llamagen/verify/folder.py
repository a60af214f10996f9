"""Is an exported folder the model it says it is? ONNX Runtime against independent witnesses.

The witnesses get the folder's own weights, read back from its data files: what is compared is the
computation. That the weights are the checkpoint's is the exporter's contract (llamagen/weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from llamagen import files
from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.emit.calibrate import (
    MOST,
    WINDOW,
    any_angle,
    built_in_text,
    digest_of,
    drawn_ids,
    turned_keys,
)
from llamagen.emit.export import Encode
from llamagen.emit.manifest import MANIFEST, SPEC_FILE, RandomSource, graph_path, read_manifest
from llamagen.emit.onnx.emit import INPUT_NAMES, LARGEST_CODE
from llamagen.emit.onnx.session import (
    OpenOptions,
    array_of,
    open_session,
    provider_of,
    read_adapter,
    require_inputs,
    require_interface,
    table_context,
)
from llamagen.emit.supply import TOKENIZER_FILE
from llamagen.ir.elaborate import build_all
from llamagen.ir.flatten import FlatGraph, crossing, flatten, known_ids
from llamagen.ir.graph import MAIN, Graph, all_parameters
from llamagen.ir.pipeline import Pipeline, pipeline_of
from llamagen.ir.reference import Rounding
from llamagen.ops.op import Role, a_str
from llamagen.ops.rope import ROPE_KINDS
from llamagen.spec.registry import Registry
from llamagen.verify import oracles
from llamagen.verify.exact import ExactGraph, exact_model, read_back
from llamagen.verify.graph_copies import in_eight_bits, open_graph
from llamagen.verify.limits import (
    ADAPTED,
    CODED,
    EXACT,
    WHOLE,
    BoundRule,
    Difference,
    Tolerance,
    between_float32,
    difference,
    far,
    for_few_tokens,
    has_learned_positions,
    largest_of,
    limit_scenarios,
    limits_of,
    measured_tolerance,
    unmeasured_tolerance,
)
from llamagen.verify.oracles import NOT_RECORDED, READS_TEXT, Recorded, Script
from llamagen.verify.report import (
    EXACTLY,
    SPEC,
    WITNESSES,
    Facts,
    LayerRow,
    Row,
    VerifyReport,
    WitnessName,
)
from llamagen.verify.routing import (
    LEAST_DECIDED,
    Router,
    RoutersDiffer,
    Routing,
    compared,
    measured_reach,
    scores_of,
    usual_reach,
)
from llamagen.verify.scenarios import (
    FloatArray,
    IntArray,
    Scenario,
    image_scenarios,
    scenarios,
)
from llamagen.verify.stored import StoredWeights, graph_of, in_three_products, stored_weights
from llamagen.verify.witnesses import (
    COUNTS_PADDING,
    COUNTS_PLACES,
    GraphsWitness,
    OneGraph,
    OnnxWitness,
    OpenOnnx,
    ReferenceWitness,
    StagedGraph,
    TextSession,
    TorchWitness,
    TransformersWitness,
    with_experts,
)
from llamagen.weights.checkpoint import require_unchanged, stamps_of

if TYPE_CHECKING:
    from onnxruntime import OrtValue

PROMPT_TOKENS = 12

MAX_REFERENCE_PARAMETERS = 300_000_000
"""Beyond, the float64 reference would run for hours: it reads and widens every weight at every step."""

DROPS_SEEN = "a bounded cache of chunks is fed without padding between tokens: pad on the left"
"""It keeps places, and chunks count tokens: padding in between pushes out what can still be seen."""

LOGITS_ALONE = "compare with torch, the reference or another export, which give every output"

COUNTS_ITSELF = "this model counts the tokens of its mask and takes no positions"
"""Positions that jump cannot be given to it; a real text has none."""

ONE_ROW = "this model goes on with several tokens for one row only, as onnxruntime before 1.32 does"
"""The attention refuses such a call; a folder made with --runtime 1.32 takes it."""

ROUNDS_ACTIVATIONS = (
    "it rounds activations to int8 as the folder does, and both are compared without that"
)

WINDOWS_COUNT_TOKENS = (
    "row by row: windows of the fused attention count tokens, not padding between them"
)

LAYER_CASES = ("prefill", "left padding", "images decode")
"""Those whose layers are looked at: without a cache, with all that can go wrong with it, with images."""

ADAPTED_CASES = ("prefill", "decode")
_OF_WEIGHTS = ("torch", "reference", "transformers")
"""Witnesses that are given the weights of the folder, and so those with an adapter."""

CODED_CASE = "decode"
"""It has no padding, behind which a cache holds anything."""
CODES_FACTOR = 6.0
"""By how much rounding may be more than that of codes with scales of just these keys and values. Scales of a text are
larger than it wants, and random ids make keys beyond them: 1.2 to 1.8 times as much in random models, 3.2 times in
SmolLM2-135M-Instruct. Scales of a half: 11 to 70 times; of four times the size: 6.9."""

SCALES_APART = Tolerance(0.5, 0.2)
"""Weights in four bits make other keys than those before them, by which scales were chosen; half a scale is 1."""

CHOICES = "experts chosen"

NO_PAST = "it is given no keys and values of tokens before"

TURNS_BY_CALL = "frequencies that depend on the call are computed in steps of float32"
"""Its angles are those of no table that could be read back."""

MAX_READ_BACK = 10_000_000_000
"""Of a larger model no case is evaluated exactly: it would take longer than all others."""
MAX_EXACT_PARAMETERS = 50_000_000
"""Of a larger model cases of many calls are not evaluated exactly as well: each call widens every weight."""
FEW_CALLS = 5
MAX_DECODED = 1 << 28
"""Weights in codes of eight bits that are decoded once for the cases of more calls; the others run each product as the
folder has it."""
MAX_TOGETHER = 1 << 27
"""Logits that are computed in one batch."""

ROUNDED, FAR_ROUNDED = "rounded", "rounded, angles too"
"""The reference with every result rounded: what a dtype alone does to a model."""
REFERENCES = ("reference", ROUNDED, FAR_ROUNDED)


NO_SPINNING = "session.intra_op.allow_spinning"
"""Threads of ONNX Runtime do not wait at work for its next call, while witnesses compute."""


CaseProgress: TypeAlias = Callable[[int, int, str], None]
"""Called with (done, in all, what was done)."""


def silent(done: int, total: int, what: str) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class Subject:
    """What is verified: an exported folder, the graphs its spec says, and its weights."""

    folder: Path
    graphs: Mapping[str, Graph]
    pipeline: Pipeline | None
    stored: StoredWeights
    options: OpenOptions
    """Of sessions, as the folder asks for."""
    stages: tuple[str, ...] = ()
    """Graphs that are the text model in turn."""
    adapters: tuple[str, ...] = ()
    """Those that lie beside the model."""
    adapter: Mapping[str, OrtValue] = field(default_factory=dict)
    """What one of them gives the text model, whose weights are then with it."""

    def with_adapter(self, name: str) -> Subject:
        """Raises LG713, LG773 for one that is broken."""
        own = replace(self, adapter=read_adapter(self.folder, name, self.adapters))
        return replace(own, stored=self.stored.with_adapter(own.given))

    @property
    def given(self) -> dict[str, NDArray[np.float32]]:
        """The numbers of ``adapter``; float32 holds each."""
        return {name: array_of(value).astype(np.float32) for name, value in self.adapter.items()}

    @property
    def size(self) -> int:
        """Parameters of all graphs."""
        return sum(p.count for p in all_parameters(self.graphs).values())

    @property
    def too_large(self) -> bool:
        """For the float64 reference."""
        return self.size > MAX_REFERENCE_PARAMETERS

    def says(self, key: str) -> str | None:
        """What the text model's file says about itself."""
        return self.stored.metadata.get(f"llamagen.{key}")

    @property
    def context(self) -> int | None:
        """Tokens that its tables of positions cover: those of rope, or learned ones. None without a table."""
        tables = table_context(self.stored.metadata, graph_path(self.folder))
        main = self.graphs[MAIN]
        learned = main.constants.get("max_positions")
        if tables is None and isinstance(learned, int) and has_learned_positions(flatten(main)):
            return learned
        return tables


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
        own = stored if name == MAIN else stored_weights(folder, name)
        file = graph_path(folder, name).name
        if graph.digest != own.metadata.get("llamagen.spec_digest"):
            message = f"{SPEC_FILE} is not the spec that {file} was made from"
            raise LlamagenError.of("LG772", message, help="export the model again")
        own.require(graph.parameters, file)
        stored = stored.joined(own)
    manifest = read_manifest(folder)
    if manifest.weights.mode == "copy":  # those of a checkpoint's own files are cast in the graph
        stored.require_dtype()
    settings = {NO_SPINNING: "0", **manifest.session}
    options = OpenOptions(provider=provider, settings=settings, made_for=manifest.made_for)
    adapters = tuple(manifest.adapters)
    return Subject(folder, graphs, pipeline_of(graphs), stored, options, manifest.stages, adapters)


def no_ids(_: str, __: str) -> Sequence[int]:
    """For who has no tokenizer at hand."""
    return ()


def verify_folder(
    folder: str | Path,
    against: Sequence[str] = ("torch", "reference"),
    steps: int = 16,
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    seed: int = 0,
    layers: bool = False,
    provider: str = "cpu",
    leave_out: Collection[str] = (),
    trust_code: str | Path | None = None,
    save_oracle: str | Path | None = None,
    encode: Encode = no_ids,
    progress: CaseProgress = silent,
) -> VerifyReport:
    """Compare with each witness what ``scenarios`` feeds: prompts, ``steps`` decode steps, ids of ``seed``.

    A folder with graphs for images is compared on text with images too, through all of them; a graph that no case
    reaches is a finding, unless it is one of ``leave_out``. With
    ``layers`` the residual stream after each layer is compared as well, with the reference or, for
    a model too large for it, with torch. Weights are read lazily, but the torch and transformers
    witnesses hold the whole model in float32. ``against`` may name a Python file, an .npz or another export as well;
    transformers runs code of the folder ``trust_code`` alone, and ``save_oracle`` gets what the first witness gives.
    ``encode`` reads the text that scales of keys and values were chosen with.
    ``progress`` gets (cases done, in all), each once for every backend.
    Raises LG770 (not an exported folder), LG775 (one for transformers), LG771 (an
    unknown witness), LG772 (the folder's spec is not the one the model was made from), LG773
    (weights that do not fit), LG774 (a file that is no witness for these inputs), LG764 (more tokens than the
    model was exported for), LG711 to LG713 (ONNX Runtime refuses the model), LG622 (a file of the
    folder changed meanwhile). A witness that fails once it was asked ends nothing: its row says so, and nothing passes.
    """
    folder = Path(folder)
    own = _own(against)
    names = [Path(n).name if oracles.is_path(n) else _known(n) for n in dict.fromkeys(against)]
    if not names:
        help = f"name {', '.join(name for name in WITNESSES if name != SPEC)}, or a file of yours"
        raise LlamagenError.of("LG771", "no witness is named", help=help)
    recording = None if save_oracle is None else Path(save_oracle)
    if recording is not None:
        oracles.require_recordable(recording)
    trusted = None if trust_code is None else Path(trust_code)
    asked = Asked(own, {"prompt-tokens": prompt_tokens, "steps": steps, "seed": seed}, trusted)
    recorded: dict[str, FloatArray] = {}
    if files.exists(folder / MANIFEST):
        read_manifest(folder)  # LG775 for a folder of the other kind says what looks at it
    before = stamps_of(folder)
    subject = subject_of(folder, provider_of(provider))
    plans = list(plans_of(subject, prompt_tokens, steps, seed, leave_out))
    plans += [plans[0].with_adapter(name) for name in subject.adapters]
    every = "reference" in names
    exactly = [cases_exactly(subject, plan.cases, every) for plan in plans]
    outputs = len(subject.graphs[MAIN].output_names)
    asking = [[n for n in names if not plan.adapter or n in _OF_WEIGHTS] for plan in plans]
    compared_cases = sum(len(ours) * len(p.cases) for ours, p in zip(asking, plans, strict=True))
    done, total = 0, sum(len(plan.cases) for plan in plans)
    total += outputs * (compared_cases + sum(len(cases) for cases in exactly))

    def step(what: str) -> None:
        nonlocal done
        done = min(done + 1, total)  # a row about all cases is no case
        progress(done, total, what)

    rows: list[Row] = []
    read = True  # the tables, and each row is the spec's
    layer_rows: list[LayerRow] = []
    for plan, again, ours in zip(plans, exactly, asking, strict=True):
        adapted = subject.with_adapter(plan.adapter) if plan.adapter else subject
        comparison = Comparison(adapted, plan, step, asked)
        tables = list(comparison.constants())
        read = read and all(row.verdict == "equal" for row in tables)
        if not plan.adapter:  # beside an adapter they are the same
            rows += (*tables, *comparison.in_codes(encode), *comparison.staged())
        for name in ours:
            for row in comparison.rows(name):
                rows.append(row)
                step(f"{name}, {row.case}")
        for row in comparison.meanings(again):
            rows.append(row)
            step(f"spec, {row.case}")
        layer_rows += comparison.layer_rows(names) if layers else ()
        for name in names[:1]:
            recorded |= comparison.expected.get(name, {})
    require_unchanged(before)
    order = (SPEC, *names)
    rows.sort(key=lambda row: order.index(row.witness))  # of one witness, text comes first
    main = subject.graphs[MAIN]
    flat = flatten(main)
    cases = tuple(case for plan in plans for case in plan.cases)
    ran = [case for case in cases if any(row.is_of(case.name) for row in rows)]
    meant = [case for case in cases if any(row.is_of(case.name, exactly=True) for row in rows)]
    whole = not any(row.witness == names[0] and row.missing for row in rows)
    if recording is not None and whole:
        oracles.save(recording, names[0], recorded, cases, asked.options)
    facts = Facts(
        digest=main.digest,
        parameters=subject.size,
        dtype=subject.stored.dtype,
        profile=subject.says("profile") or "",
        tied=tuple(sorted(_tied(flat))),
        seed=seed,
        cases=cases,
        limits=limits_of(flat, subject.context, ran, meant, read=read),
    )
    return VerifyReport(main.spec_id, tuple(rows), facts, tuple(layer_rows))


@dataclass(frozen=True, slots=True)
class Asked:
    """What the caller brings, and how the cases were made."""

    own: Mapping[WitnessName, Path]
    """Files and folders that are witnesses."""
    options: Mapping[str, int]
    trust_code: Path | None
    """A folder whose code transformers may run."""


NOTHING_MORE = Asked({}, {}, None)


def _own(against: Sequence[str]) -> dict[WitnessName, Path]:
    """Raises LG771 for two of one name."""
    own = {name: file for name, file in oracles.READERS.items() if name in against}
    for name in filter(oracles.is_path, dict.fromkeys(against)):
        path = Path(name)
        if path.name in own:
            message = f"{str(own[path.name])!r} and {name!r} would both be called `{path.name}`"
            raise LlamagenError.of("LG771", message, help="compare with one after the other")
        own[path.name] = path
    return own


def _known(name: str) -> WitnessName:
    known = [witness for witness in WITNESSES if witness != SPEC]
    if name in known:
        return name
    others = f"witnesses are {', '.join(known)}; a file or folder has a slash: `./{name}`"
    help = did_you_mean(name, known, others)
    raise LlamagenError.of("LG771", f"there is no witness `{name}`", help=help)


def _tied(flat: FlatGraph) -> Iterator[str]:
    for node in flat.nodes:
        for path in node.parameters.values():
            if not path.startswith(f"{node.path}.") and path != node.path:
                yield node.path


@dataclass(frozen=True, slots=True)
class Plan:
    """Cases that need some of the graphs, and no more are opened; or why there are none."""

    graphs: tuple[str, ...]
    cases: tuple[Scenario, ...]
    skipped: str = ""
    missing: bool = False
    """Graphs that nobody said to leave out have no case."""
    adapter: str = ""
    """With one that lies beside the model."""

    def with_adapter(self, name: str) -> Plan:
        """A prompt and what follows it: the rest is said of the graph, which is the same."""
        cases = [case for case in self.cases if case.name in ADAPTED_CASES]
        called = tuple(
            replace(case, name=f"{case.name} with {name}", same_as=None) for case in cases
        )
        return replace(self, cases=called, adapter=name)


def plans_of(
    subject: Subject, prompt_tokens: int, steps: int, seed: int, leave_out: Collection[str] = ()
) -> Iterator[Plan]:
    """Cases of text, then those with images. Raises LG771 for a graph to leave out that is none beside the text."""
    others = [name for name in subject.graphs if name != MAIN]
    for name in leave_out:
        if name not in others:
            have = f"it has {', '.join(others)}" if others else "it has only the text model"
            message = f"there is no graph `{name}` to leave out; {have}"
            raise LlamagenError.of("LG771", message, help="take it out of --leave-out")

    def without(graphs: Sequence[str], why: str) -> Plan:
        unseen = [name for name in others if name not in leave_out]
        if unseen:
            why += (
                f": {', '.join(unseen)} not compared; name them with --leave-out if that is right"
            )
        return Plan(tuple(graphs), (), why, missing=bool(unseen))

    last = subject.says("logits") == "last"
    limit = subject.context
    main = subject.graphs[MAIN]
    vocab_size = known_ids(main)

    def too_long(cases: Sequence[Scenario]) -> str:
        longest = max(case.input_ids.shape[1] for case in cases)
        return f"cases of {longest:,} tokens" if limit is not None and longest > limit else ""

    def plan(graphs: Sequence[str], cases: Sequence[Scenario]) -> Plan:
        return Plan(tuple(graphs), tuple(case.of_last() if last else case for case in cases))

    jump = far(main, prompt_tokens + steps)
    text = scenarios(vocab_size, prompt_tokens, steps, seed, jump)
    if long := too_long(text):
        message = f"{long} are more than the model was exported for, {limit:,}"
        help = "--steps and --prompt-tokens make them shorter"
        raise LlamagenError.of("LG764", message, help=help)
    yield plan(
        (MAIN,), (*text, *limit_scenarios(flatten(main), vocab_size, limit, seed, subject.size))
    )
    pipeline = subject.pipeline
    if pipeline is None:
        if others:
            yield without((), "no graph reads images that the text is given")
        return
    if set(others) <= set(leave_out):
        yield without(pipeline.graphs, "images: left out")
        return
    try:
        cases = image_scenarios(pipeline, subject.graphs, vocab_size, steps, seed + 1)
    except ValueError as error:
        yield without(pipeline.graphs, f"images: {error}")
        return
    if long := too_long(cases):
        yield without(pipeline.graphs, f"images: {long}, and the model was exported for {limit:,}")
        return
    yield plan(pipeline.graphs, cases)


def cases_exactly(subject: Subject, cases: Sequence[Scenario], every: bool) -> tuple[Scenario, ...]:
    """Those whose meaning is compared, with no rounding: ``every`` one where the reference is a witness.

    Whatever the witness, a prompt reads every number of the graph, and what is around a limit the numbers that matter
    nowhere else; of a model too large for the reference the prompt has to do.
    """
    if subject.too_large:
        return tuple(cases[:1])
    few = subject.size <= MAX_EXACT_PARAMETERS
    return tuple(
        case
        for case in cases
        if (case is cases[0] or case.before or every) and (few or len(case.splits) <= FEW_CALLS)
    )


AnyWitness: TypeAlias = GraphsWitness | TransformersWitness | Script | Recorded

Scores: TypeAlias = tuple[FloatArray, ...]
"""[tokens, E] of every router."""


@dataclass(frozen=True, slots=True)
class Output:
    """One of what a model gives, and the columns it has beside the others."""

    name: str
    columns: slice
    of_text: bool
    """Whether it has numbers for a text, the same for all its tokens in a call."""

    def part(self, case: Scenario, everything: FloatArray) -> FloatArray:
        """Its rows and columns of what a model gives for all tokens, or for those that end a call."""
        own = everything[:, self.columns]
        return case.of_texts(own) if self.of_text and len(own) == case.tokens else own


def outputs_of(graph: Graph) -> tuple[Output, ...]:
    outputs: list[Output] = []
    end = 0
    for name, type_ in graph.outputs:
        start, end = end, end + type_.shape[-1].value
        outputs.append(Output(name, slice(start, end), of_text=len(type_.shape) == 2))
    return tuple(outputs)


@dataclass(frozen=True, slots=True)
class LayerId:
    """A layer of one of the graphs of a model."""

    graph: str
    path: str


class Comparison:
    """What ONNX Runtime makes of the cases of a plan, against every witness; each is computed once.

    In a low precision witnesses of a model with routers compute with the experts that ONNX Runtime chose.
    """

    def __init__(
        self, subject: Subject, plan: Plan, ran: Callable[[str], None], asked: Asked = NOTHING_MORE
    ) -> None:
        """``ran`` is called with the name of each case that was evaluated."""
        self.subject = subject
        self.asked = asked
        self.expected: dict[WitnessName, dict[str, FloatArray]] = {}
        """What witnesses give of all tokens of a case."""
        self.beside: dict[WitnessName, Subject] = {}
        """Exports that are witnesses."""
        self.dtype = subject.stored.dtype
        self.skipped, self.missing = plan.skipped, plan.missing
        self.graphs = {name: subject.graphs[name] for name in plan.graphs}
        gives = next(
            (g for g in reversed(self.graphs.values()) if "logits" in g.output_names),
            subject.graphs[MAIN],
        )
        self.outputs = outputs_of(gives)
        self.width = self.outputs[-1].columns.stop
        self.only_logits = [output.name for output in self.outputs] == ["logits"]
        self.cases = {case.name: case for case in plan.cases}
        nodes = [node for graph in self.graphs.values() for node in flatten(graph).nodes]
        chunked = any(node.attrs.get("chunk") is not None for node in nodes)
        self.drops_seen = chunked and subject.says("cache") == "bounded"
        self.stretched = any(node.row.role is Role.TEMPERATURE for node in nodes)
        self.turns_by_call = any(
            node.row.role is Role.ROPE_TABLE and ROPE_KINDS[a_str(node.attrs, "scaling")].of_call
            for node in nodes
        )
        main = flatten(subject.graphs[MAIN])
        attends = any(node.row.role is Role.ATTENTION for node in main.nodes)
        unordered = any(
            node.row.role is Role.MASK and node.attrs.get("padding") is not None for node in nodes
        )
        self.sees_by_call = attends and (unordered or not main.slots)
        self.sees_by_call |= any(output.of_text for output in self.outputs)
        """Whether what a token sees depends on the call it is in: nothing before it without a cache, or all of it."""
        self.routed = self.dtype != "float32" and any(n.row.role is Role.CHOICE for n in nodes)
        self.rounds_activations = subject.stored.rounds_activations
        self.made_exact = False
        """Whether products of a quantised model are computed in float32 here."""
        self.coded_cache = subject.says("cache_dtype") is not None
        """Whether keys and values, which are in codes, are floats here."""
        self.given: dict[str, FloatArray] = {}
        """By the name of a case, what ONNX Runtime gives of its logits."""
        self.routing: dict[str, Routing] = {}
        self.computed: dict[tuple[WitnessName, str], FloatArray] = {}
        """Logits of a case by a witness, or by the reference that bounds are measured with."""
        self.scores: dict[tuple[WitnessName, str], Scores] = {}
        self.witnesses: dict[str, AnyWitness] = {}
        self.bounds: dict[tuple[str, str], tuple[Tolerance, Difference | None]] = {}
        """By the names of a case and of an output."""
        self.reach: dict[str, tuple[float, ...]] = {}
        self.ran = ran
        self.exactly: GraphsWitness | None = None
        """The graphs of the folder in exact arithmetic, once ``constants`` has read their tables back."""
        if self.cases:
            for name, path in asked.own.items():
                if name not in oracles.READERS and (not path.suffix or self.reads_text_alone):
                    self.witness(
                        name
                    )  # what is wrong with its file is said before anything is computed
            self.run_onnx()

    @property
    def reads_text_alone(self) -> bool:
        """As oracles in Python and recorded logits do."""
        return not any(case.images for case in self.cases.values())

    def run_onnx(self) -> None:
        """Every case, and on the way the experts that are chosen."""
        subject, sessions, decoded = self.subject, {}, {}
        long = any(len(case.splits) > FEW_CALLS for case in self.cases.values())
        for name, graph in self.graphs.items():
            file = graph_path(subject.folder, name)
            one, exact, _ = open_graph(file, subject.options, routers=self.routed)
            self.made_exact |= exact
            reads = {*(INPUT_NAMES.get(v.id, v.id) for v in graph.inputs), *crossing(graph, "read")}
            writes = (*graph.output_names, *crossing(graph, "write"))
            require_interface(one.session, file, reads, writes, dict(graph.outputs))
            adapter = subject.adapter if name == MAIN else {}
            require_inputs(one.session, file, adapter)
            sessions[name] = replace(one, adapter=adapter)
            if long and 0 < in_eight_bits(file) <= MAX_DECODED:
                again = open_graph(file, subject.options, routers=self.routed, decoded=True)
                decoded[name] = replace(again[0], adapter=adapter)
        for case in self.cases.values():
            if not self.refused(case):
                many = len(case.splits) > FEW_CALLS
                opened = {**sessions, **decoded} if many else sessions
                chosen: dict[str, dict[str, list[IntArray]]] = {name: {} for name in opened}
                told = {n: replace(one, told=_into(chosen[n])) for n, one in opened.items()}
                self.given[case.name] = case.given(self.model("onnx", told))
                self.routing[case.name] = Routing(
                    {
                        graph: tuple(np.concatenate(calls, axis=1) for calls in routers.values())
                        for graph, routers in chosen.items()
                        if routers
                    }
                )
            self.ran(f"onnxruntime, {case.name}")

    def refused(self, case: Scenario) -> bool:
        return self.subject.says("chunks") == "one row" and case.in_chunks

    # Witnesses

    def model(self, name: WitnessName, graphs: Mapping[str, OneGraph]) -> GraphsWitness:
        """The graphs as one model that gives every output."""
        names = tuple(output.name for output in self.outputs)
        return GraphsWitness(name, graphs, self.subject.pipeline, names)

    def reference(self, rounding: Rounding = None, float32_angles: bool = False) -> GraphsWitness:
        read = self.subject.stored.read
        graphs: dict[str, OneGraph] = {
            name: ReferenceWitness.of_graph(graph, read, rounding, float32_angles)
            for name, graph in self.graphs.items()
        }
        adapted = self.subject.stored.adapted
        if adapted and rounding is not None:
            flat = in_three_products(flatten(self.graphs[MAIN]), adapted)
            read = self.subject.stored.read_apart
            graphs[MAIN] = ReferenceWitness(
                flat, read, rounding, "reference", self.graphs[MAIN].output_names, float32_angles
            )
        return self.model("reference", graphs)

    def witness(self, name: WitnessName) -> AnyWitness:
        """Built once: torch and transformers hold all weights."""
        if name not in self.witnesses:
            subject, read = self.subject, self.subject.stored.read
            match name:
                case "reference":
                    self.witnesses[name] = self.reference()
                case _ if name in (ROUNDED, FAR_ROUNDED):
                    self.witnesses[name] = self.reference(self.dtype, name == FAR_ROUNDED)
                case "torch":
                    graphs: dict[str, OneGraph] = {
                        n: TorchWitness.of_graph(g, read) for n, g in self.graphs.items()
                    }
                    self.witnesses[name] = self.model(name, graphs)
                case "transformers":
                    self.require_logits("transformers")
                    paths = list(all_parameters(subject.graphs))
                    images = subject.pipeline is not None
                    self.witnesses[name] = TransformersWitness.of_folder(
                        subject.folder, paths, read, images=images, trusted=self.asked.trust_code
                    )
                case _:
                    self.witnesses[name] = self.own(name, self.asked.own[name])
        return self.witnesses[name]

    def own(self, name: WitnessName, path: Path) -> AnyWitness:
        """One that the caller brings. Raises LG774, and as for any export."""
        if name in oracles.READERS:
            self.require_logits(name)
            return Script.of_reader(name, graph_path(self.subject.folder), self.width)
        match path.suffix:
            case ".py":
                self.require_logits(name)
                return Script.of(path, self.subject.folder, self.width)
            case ".npz":
                self.require_logits(name)
                cases = [case for case in self.cases.values() if not case.images]
                return Recorded.read(path, cases, self.width, self.asked.options)
        other = self.beside[name] = subject_of(path, self.subject.options.provider)
        theirs, own = (_gives(one.graphs[MAIN]) for one in (other, self.subject))
        if theirs != own:
            message = f"{path} gives {theirs}, {self.subject.folder} gives {own}"
            raise LlamagenError.of("LG774", message, help="compare exports of one vocabulary")
        graphs: dict[str, OneGraph] = {
            graph: open_graph(graph_path(path, graph), other.options)[0]
            for graph in self.graphs
            if graph in other.graphs
        }
        names = tuple(output.name for output in self.outputs)
        return GraphsWitness(name, graphs, other.pipeline, names)

    def require_logits(self, name: WitnessName) -> None:
        """Raises LG774 for a witness that is asked for logits."""
        if not self.only_logits:
            gives = ", ".join(f"`{output.name}`" for output in self.outputs)
            message = f"`{name}` is asked for logits alone, and this model gives {gives}"
            raise LlamagenError.of("LG774", message, help=LOGITS_ALONE)

    def by_token(self, case: Scenario) -> bool:
        """Whether windows count tokens where the case has padding between them: then rows are fed one by one."""
        return self.subject.says("window") == "tokens" and case.has_holes

    def logits(self, name: WitnessName, case: Scenario, *, alone: bool = False) -> FloatArray:
        """By a witness, of all tokens; ``alone`` feeds it row by row."""
        witness = self.witness(name)
        if isinstance(witness, Recorded):
            return witness.of_case(case)
        if name in REFERENCES and not self.routed:
            if case.same_as is not None and self.is_same(case):
                return case.moved(self.logits(name, self.cases[case.same_as]))
            read = self.in_one_call(case).read
            case = next(one for one in self.cases.values() if self.in_one_call(one).read == read)
        if (name, case.name) not in self.computed:
            alone = alone or self.by_token(case)
            batch = [case] if alone else self.beside_it(name, case)
            fed = Scenario.together([self.fed(name, one) for one in batch])
            logits, self.scores[name, case.name] = self.through(witness, fed, alone=alone)
            parts = np.split(logits, np.cumsum([one.tokens for one in batch])[:-1])
            self.computed |= {
                (name, one.name): part for one, part in zip(batch, parts, strict=True)
            }
        return self.computed[name, case.name]

    def fed(self, name: WitnessName, case: Scenario) -> Scenario:
        return self.in_one_call(case) if name in REFERENCES else case

    def beside_it(self, name: WitnessName, case: Scenario) -> list[Scenario]:
        """``case``, and others whose rows are of the same batch for a witness of this house: it reads its weights once.

        ONNX Runtime is asked case by case, and so are witnesses of others: what is beside a row may matter to them.
        """
        batch = [case]
        if self.routed or case.images or case.before or name not in (*REFERENCES, "torch"):
            return batch
        tokens = case.input_ids.size
        splits = self.fed(name, case).splits
        for one in self.cases.values():
            alike = (
                (one.shift, one.images, one.before, one.same_as) == (case.shift, {}, 0, None)
                and self.fed(name, one).splits == splits
                and not self.by_token(one)
                and (name in REFERENCES or one.mask.all() == case.mask.all())
            )
            known = {self.fed(name, other).read for other in batch}
            if alike and self.fed(name, one).read not in known:
                tokens += one.input_ids.size
                if tokens * self.width <= MAX_TOGETHER:
                    batch.append(one)
        return batch

    def through(
        self,
        witness: GraphsWitness | TransformersWitness | Script,
        case: Scenario,
        *,
        alone: bool = False,
    ) -> tuple[FloatArray, Scores]:
        """Logits, and the scores of the routers where they were told what to choose."""
        rows = case.alone(self.subject.pipeline) if alone else (case,)
        if not self.routed or isinstance(witness, Script) or witness.name in self.asked.own:
            return np.concatenate([row.logits(witness) for row in rows]), ()
        routing = self.routing[case.name]
        logits: list[FloatArray] = []
        scores: list[Scores] = []
        for row, own in zip(rows, routing.rows(case) if alone else (routing,), strict=True):
            routers = own.routers()
            logits.append(row.logits(with_experts(witness, routers)))
            scores.append(scores_of(routers, row))
        joined = tuple(np.concatenate(of) for of in zip(*scores, strict=True))
        return np.concatenate(logits), joined

    # Rows

    def rows(self, name: WitnessName) -> Iterator[Row]:
        """Logits of every case; then, in a low precision, the experts that were chosen."""
        note = self.skipped
        if not note and name == "reference" and self.subject.too_large:
            note = f"{self.subject.size:,} parameters are too many for the float64 reference"
        own = self.asked.own.get(name)
        if not note and own is not None and own.suffix and not self.reads_text_alone:
            note = READS_TEXT
        if note:
            yield Row(name, "all", None, None, note, missing=self.missing)
            return
        try:
            witness = self.witness(name)
            if isinstance(witness, Script):
                witness.load()
        except LlamagenError as error:
            yield self.failed(name, "all", error)
            return
        known: dict[str, FloatArray] = {}
        for case in self.cases.values():
            if note := self.unfit(name, case):
                yield Row(name, case.name, None, None, note)
                continue
            try:
                yield from self.of_outputs(name, case, known)
            except RoutersDiffer as error:
                yield Row(name, case.name, None, None, f"{name} chooses experts otherwise: {error}")
            except LlamagenError as error:
                yield self.failed(name, case.name, error)
        if self.routed and name not in self.asked.own:
            yield self.choices(name, [self.cases[case] for case in known])

    def failed(self, name: WitnessName, case: str, error: LlamagenError) -> Row:
        """Of a witness that cannot run. Raises ``error`` where it is about something else."""
        (found, *_) = error.diagnostics
        if found.code != "LG774" and name not in self.asked.own:
            raise error
        note = "; ".join(filter(None, (f"{found.code}: {found.message}", found.help)))
        return Row(name, case, None, None, note, missing=True)

    # The graph itself, without any rounding

    def constants(self) -> Iterator[Row]:
        """Tables of the graphs against the spec's formulas in float64, each row of them."""
        if not self.cases:
            return
        graphs: dict[str, OneGraph] = {}
        for name, graph in self.graphs.items():
            file = graph_path(self.subject.folder, name)
            model, weights = exact_model(file)
            if name == MAIN:
                weights = {**weights, **self.subject.given}
            exact = ExactGraph.of_model(model, weights, str(file))
            graphs[name] = exact
            for table in read_back(exact, flatten(graph), self.dtype):
                away = Difference(table.farthest, table.farthest, 1.0, table.count, 0.0)
                allowed = Tolerance(table.allowed, table.allowed)
                yield Row(SPEC, f"table {table.name}", away, allowed)
        self.exactly = self.model("exact", graphs)

    def in_codes(self, encode: Encode) -> Iterator[Row]:
        """Keys and values in codes beside floats, token by token: how far that rounds, where it may round as far as
        codes do whose scales hold just what this text makes; then the scales themselves."""
        if not self.coded_cache or CODED_CASE not in self.cases:
            return
        case = self.cases[CODED_CASE]
        case = replace(case, splits=(1,) * case.input_ids.shape[1], last=False)
        file, options = graph_path(self.subject.folder), self.subject.options
        floats, codes = (open_graph(file, options, coded_cache=kept)[0] for kept in (False, True))
        exact = floats.open()
        expected = _token_by_token(case, exact)
        steps: dict[str, FloatArray] = {}
        for name, past in exact.past.items():
            largest = np.abs(past.astype(np.float64)).max(axis=(0, 2), keepdims=True)
            steps[name] = np.where(largest > 0, largest, 1) / LARGEST_CODE
        rounded = floats.open()

        def to_codes() -> None:
            rounded.past = {
                name: np.rint(past.astype(np.float64) / steps[name]) * steps[name]
                for name, past in rounded.past.items()
            }

        fitting = difference(_token_by_token(case, rounded, to_codes), expected)
        found = difference(_token_by_token(case, codes.open()), expected)
        bound = Tolerance(None, CODES_FACTOR * fitting.rms_over_std, "measured")
        yield Row(SPEC, f"{case.name}, cache in {self.subject.says('cache_dtype')}", found, bound)
        yield self.cache_scales(floats, encode)

    def cache_scales(self, floats: OnnxWitness, encode: Encode) -> Row:
        """Scales beside the largest keys and values that the folder makes of the text that they were chosen with, as
        logarithms to base 2: of each past the root of the mean square, of which the largest counts."""
        folder, graph, case = self.subject.folder, self.graphs[MAIN], "scales of the cache"
        manifest = read_manifest(folder)
        assert manifest.coded_cache is not None
        digest, source = manifest.coded_cache.calibration, manifest.weights.source
        if digest is None and isinstance(source, RandomSource):
            ids = drawn_ids(source.seed, known_ids(graph))
        elif digest != digest_of(built_in_text()) or not files.exists(folder / TOKENIZER_FILE):
            return Row(SPEC, case, None, None, "the text that they were chosen with is not here")
        else:
            tokenizer = files.read_text(folder / TOKENIZER_FILE, files.TOKENIZER, within=folder)
            ids = list(encode(tokenizer, built_in_text()))
        if len(ids) < WINDOW:
            return Row(SPEC, case, None, None, "no text was read")
        turned = turned_keys(flatten(graph))
        largest: dict[str, FloatArray] = {}
        for row in np.asarray(ids[: min(len(ids), MOST) // WINDOW * WINDOW]).reshape(-1, 1, WINDOW):
            text = Scenario(case, row, np.ones_like(row), (WINDOW,)).of_last()
            given = floats.open()
            session = TextSession(given)
            for call in text.calls():
                session.step(*call)
            for name, past in given.past.items():
                exact = past.astype(np.float64)
                seen = any_angle(exact, turned[name]) if name in turned else np.abs(exact)
                most: FloatArray = seen.max(axis=(0, 2))
                largest[name] = np.maximum(largest.get(name, most), most)
        model = graph_of(graph_path(folder))
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        farthest, squares = 0.0, 0.0
        for name, most in largest.items():
            steps = np.where(most > 0, most, 1) / LARGEST_CODE
            scales = numpy_helper.to_array(stored[f"{name}_scale"])
            apart = np.log2(scales.reshape(steps.shape) / steps)
            farthest = max(farthest, float(np.sqrt(np.square(apart).mean())))
            squares += float(np.square(apart).sum())
        count = sum(most.size for most in largest.values())
        found = Difference(farthest, math.sqrt(squares / count), 1.0, count, 0.0)
        return Row(SPEC, case, found, SCALES_APART)

    def staged(self) -> Iterator[Row]:
        """The stages in turn beside the whole model, as both lie in the folder."""
        subject = self.subject
        if not subject.stages:
            return
        opened = [
            OnnxWitness(open_session(graph_path(subject.folder, name), subject.options))
            for name in (MAIN, *subject.stages)
        ]
        whole, in_turn = opened[0], StagedGraph(tuple(opened[1:]))
        for case in self.cases.values():
            if not self.refused(case):
                expected = case.given(self.model("whole", {MAIN: whole}))
                found = case.given(self.model("stages", {MAIN: in_turn}))
                for output in self.outputs:
                    away = self.away(output, case, found, expected, self.given.__getitem__)
                    what = f"{self.label(case, output)}, in stages"
                    yield Row(SPEC, what, away, EXACT)

    def meanings(self, cases: Sequence[Scenario]) -> Iterator[Row]:
        """The graphs in exact arithmetic, with the cache that they keep, against the reference."""
        size = self.subject.size
        why = ""
        if self.turns_by_call:
            why = TURNS_BY_CALL
        elif size > MAX_READ_BACK:
            why = f"{size:,} parameters are too many to compute with all of them in float64"
        if why and self.cases:
            yield Row(SPEC, f"all{EXACTLY}", None, None, why)
            cases = (self.one_token(),) if self.turns_by_call and size <= MAX_READ_BACK else ()
        for case in cases:
            if not self.unfit("reference", case):
                assert self.exactly is not None
                expected = self.expected_exactly(case)
                found = case.given(self.exactly)
                for output in self.outputs:
                    away = self.away(
                        output, case, found, case.ending(expected), self.given.__getitem__
                    )
                    yield Row(SPEC, f"{self.label(case, output)}{EXACTLY}", away, EXACT)

    def one_token(self) -> Scenario:
        """Texts of one token, at position 0, where no frequency turns anything."""
        ids = next(iter(self.cases.values())).input_ids[:1, :8].T
        case = Scenario("one token", ids, np.ones_like(ids), (1,))
        return case.of_last() if self.subject.says("logits") == "last" else case

    def in_one_call(self, case: Scenario) -> Scenario:
        """What the reference is asked: fewer calls, the same logits, unless what a call has changes them."""
        return case if self.turns_by_call or self.sees_by_call else case.whole()

    def expected_exactly(self, case: Scenario) -> FloatArray:
        """Logits of the reference with the experts of its own choice."""
        if not self.routed and case.name in self.cases:
            return self.logits("reference", case)
        rows = case.alone(self.subject.pipeline) if self.by_token(case) else (case,)
        reference = self.reference()
        return np.concatenate([self.in_one_call(row).logits(reference) for row in rows])

    def unfit(self, name: WitnessName, case: Scenario) -> str:
        """Why a case cannot be compared with a witness."""
        if self.refused(case):
            return ONE_ROW
        if name in oracles.READERS and self.rounds_activations:
            return ROUNDS_ACTIVATIONS
        if self.drops_seen and case.has_holes:
            return DROPS_SEEN
        if case.before and isinstance(self.witness(name), TransformersWitness | Script):
            return NO_PAST
        if case.shift and self.subject.says("positions") == "counted":
            return COUNTS_ITSELF
        if name in self.asked.own:
            witness = self.witness(name)
            if isinstance(witness, Recorded) and case.name not in witness.logits:
                return NOT_RECORDED
            other = self.beside.get(name)
            if other is not None and other.says("chunks") == "one row" and case.in_chunks:
                return ONE_ROW
            if other is not None and other.says("positions") == "counted" and case.shift:
                return COUNTS_ITSELF
        return COUNTS_PLACES if name == "transformers" and self.stretched and case.shift else ""

    def label(self, case: Scenario, output: Output) -> str:
        return case.name if self.only_logits else f"{case.name}, {output.name}"

    def by_reference(self, case: str) -> FloatArray:
        return self.logits("reference", self.cases[case])

    def away(
        self,
        output: Output,
        case: Scenario,
        found: FloatArray,
        expected: FloatArray,
        known: Callable[[str], FloatArray],
    ) -> Difference:
        """How far an output is from what it should be, by what is ``known`` of a case by its name.

        A case may have one text with one score: errors of what texts have are in units of a batch of them.
        """
        std: float | None = None
        if output.of_text:
            batch = next(one for one in self.cases.values() if len(one.mask) > 1)
            std = float(output.part(batch, known(batch.name)).std())
            std = std if 0 < std < np.inf else None
        own, wanted = (output.part(case, array) for array in (found, expected))
        return difference(own, wanted, output.name, std)

    def of_outputs(
        self, name: WitnessName, case: Scenario, known: dict[str, FloatArray]
    ) -> Iterator[Row]:
        """A comparison of every output; what the witness gives goes to ``known``, except what another case has."""
        padded = name == "transformers" and self.stretched and not case.mask.all()
        if name in self.beside and self.beside[name].says("logits") == "last":
            ends = case.of_last()
            own = self.given[case.name] if case.last else ends.ending(self.given[case.name])
            theirs = ends.given(cast("GraphsWitness", self.witness(name)))
            for output in self.outputs:
                away = self.away(output, ends, own, theirs, self.given.__getitem__)
                what = self.label(case, output)
                yield Row(name, what, away, self.tolerance(name, ends, output))
            return
        if case.same_as in known and self.is_same(case):
            expected = case.moved(known[case.same_as])
        else:
            expected = known[case.name] = self.logits(name, case, alone=padded)
        self.expected.setdefault(name, {})[case.name] = expected
        note = COUNTS_PADDING if padded else ""
        if self.by_token(case):
            note = WINDOWS_COUNT_TOKENS
        found = self.given[case.name]
        if not note and name == "transformers" and case.images:
            note = self.departures(case, found)
        for output in self.outputs:
            what = self.label(case, output) + ", float products" * self.made_exact
            what += ", float cache" * self.coded_cache
            bound = self.tolerance(name, case, output)
            away = self.away(
                output,
                case,
                found,
                case.ending(expected),
                lambda batch: self.logits(name, self.cases[batch]),
            )
            if self.dtype == "float32":
                rounding = self.bounds[case.same_as or case.name, output.name][1]
                bound = largest_of(bound, away.count, rounding)
            yield Row(name, what, away, bound, note)

    def is_same(self, case: Scenario) -> bool:
        """Whether ``case`` has the logits of another one: its tokens, and the same experts for each of them."""
        if case.same_as is None or self.turns_by_call or self.sees_by_call:
            return False
        if not self.routed:
            return True
        base = self.routing[case.same_as].of_tokens(self.cases[case.same_as])
        own = self.routing[case.name].of_tokens(case)
        return all(
            np.array_equal(np.sort(a), np.sort(case.moved(chosen)))
            for a, chosen in zip(own, base, strict=True)
        )

    def departures(self, case: Scenario, found: FloatArray) -> str:
        """What is corrected in transformers, and how far it is from the folder without, one at a time."""
        witness = self.witness("transformers")
        assert isinstance(witness, TransformersWitness)
        notes: list[str] = []
        for one in witness.corrections:
            apart = ""
            if not self.subject.too_large:
                others = tuple(other for other in witness.corrections if other is not one)
                logits, _ = self.through(replace(witness, corrections=others), case)
                apart = f" (without, {difference(found, case.ending(logits)).max_over_std:.1f} std apart)"
            notes.append(f"{one.name}{apart}")
        return f"corrected in transformers: {', '.join(notes)}" if notes else ""

    def tolerance(self, name: WitnessName, case: Scenario, output: Output) -> Tolerance:
        """One bound a case for all witnesses; only between two float32 results is it wider."""
        key = case.same_as or case.name, output.name
        if key not in self.bounds:
            self.bounds[key] = self.bound(self.cases[key[0]], output)
        bound, rounding = self.bounds[key]
        if case.last and self.dtype != "float32" and rounding is not None:
            bound = for_few_tokens(bound, rounding, int(case.mask[:, case.ends].sum()))
        # a reader of the graph rounds where the folder does, in whatever dtype
        rounds = "float32" if name in oracles.READERS else self.dtype
        return bound if name == "reference" else between_float32(rounds, bound)

    def bound(self, case: Scenario, output: Output) -> tuple[Tolerance, Difference | None]:
        """For all its tokens: measured, and with what, where the reference is at hand, from the table otherwise."""
        parts = CODED if self.subject.stored.coded else WHOLE
        parts = ADAPTED if self.subject.adapter else parts
        if self.subject.too_large:
            return unmeasured_tolerance(self.dtype, parts), None
        name = FAR_ROUNDED if case.shift or case.before else ROUNDED
        rounded, exact = self.logits(name, case), self.logits("reference", case)
        rounding = self.away(output, case, rounded, exact, self.by_reference)
        if self.routed:
            scores = self.scores["reference", case.name], self.scores[name, case.name]
            self.reach[case.name] = measured_reach(*scores)
        return measured_tolerance(self.dtype, rounding, parts), rounding

    def choices(self, name: WitnessName, cases: Sequence[Scenario]) -> Row:
        """Whether the experts are those that the witness would have chosen, seen by torch or by the reference.

        transformers may choose by another function of the scores; for it, too, the reference is asked.
        """
        what = f"{CHOICES}, images" if any(case.images for case in self.cases.values()) else CHOICES
        if not cases:
            return Row(name, what, None, None, "no case was compared")
        if name == "transformers" and self.subject.too_large:
            return Row(name, what, None, None, "compared with torch: `--against torch`")
        seen_by: WitnessName = "torch" if name == "torch" else "reference"
        routers: list[Router] = []
        for case in cases:
            if seen_by == "reference":
                self.logits(seen_by, case)
            scores = self.scores[seen_by, case.name]
            reach = self.reach.get(case.same_as or case.name) or usual_reach(scores, self.dtype)
            chosen = self.routing[case.name].of_tokens(case)
            routers += map(Router, chosen, scores, reach, self.chooses_experts())
        found = compared(routers)
        if found.decided < LEAST_DECIDED * found.count:
            return Row(name, what, None, None, f"too few to say anything: {found}")
        rule: BoundRule = "fixed" if self.subject.too_large else "measured"
        return Row(name, what, found.difference, found.tolerance(rule), f"{found}")

    def chooses_experts(self) -> tuple[bool, ...]:
        """Of every router in order, whether experts are evaluated by the places that it gives; all where none is."""
        nodes = [node for graph in self.graphs.values() for node in flatten(graph).nodes]
        read = {o for n in nodes if n.row.role is Role.EXPERTS for o in n.operands}
        routers = tuple(n.results[1] in read for n in nodes if n.row.role is Role.CHOICE)
        return routers if any(routers) else (True,) * len(routers)

    # Layers: where an error begins and how it grows; whether a folder passes, logits decide

    def layer_rows(self, names: Sequence[WitnessName]) -> Iterator[LayerRow]:
        """ONNX Runtime's layers and torch's, compared with the reference's or, without it, with torch's."""
        large = self.subject.too_large
        cases = [case for case in self.cases.values() if case.name in LAYER_CASES]
        if not cases or (large and "torch" not in names):
            return
        basis: Literal["reference", "torch"] = "torch" if large else "reference"
        folder, options = self.subject.folder, self.subject.options
        opened = {n: open_graph(graph_path(folder, n), options, layers=True) for n in self.graphs}
        onnx = self.model("onnx", {n: o[0] for n, o in opened.items()})
        marked = any(tapped for _, _, tapped in opened.values())
        for case in cases:
            exact = self.layers(self.witness(basis), case)
            by_onnx = self.layers(onnx, case) if marked else {}
            by_torch = {}
            if "torch" in names and not large:
                by_torch = self.layers(self.witness("torch"), case)
            for layer, value in exact.items():
                yield LayerRow(
                    case.name,
                    layer.graph,
                    layer.path,
                    basis,
                    difference(by_onnx[layer], value) if layer in by_onnx else None,
                    difference(by_torch[layer], value) if layer in by_torch else None,
                )

    def layers(self, witness: AnyWitness, case: Scenario) -> dict[LayerId, FloatArray]:
        """The residual stream after each layer, [tokens, D], in execution order, with ONNX Runtime's choice of experts.

        Padding is left out. A layer of images has a row for each of their patches.
        """
        assert isinstance(witness, GraphsWitness)
        if self.routed and witness.name != "onnx":
            directed = with_experts(witness, self.routing[case.name].routers())
            assert isinstance(directed, GraphsWitness)
            witness = directed
        seen: dict[LayerId, list[FloatArray]] = {}
        graphs: dict[str, OneGraph] = {}
        for name, graph in witness.graphs.items():
            assert isinstance(graph, ReferenceWitness | TorchWitness | OnnxWitness)
            graphs[name] = replace(graph, told=_layers_into(seen, name))
        case.given(replace(witness, graphs=graphs))
        once = () if witness.pipeline is None else witness.pipeline.once
        return {
            layer: np.concatenate([v.reshape(-1, v.shape[-1]) for v in values])
            if layer.graph in once
            else case.of_tokens(values)
            for layer, values in seen.items()
        }


def _gives(graph: Graph) -> str:
    """``61 logits a token and 3 scores a text``"""
    per = {2: "text", 3: "token"}
    each = (f"{t.shape[-1].value:,} {name} a {per[len(t.shape)]}" for name, t in graph.outputs)
    return " and ".join(each)


def _token_by_token(
    case: Scenario, graph: OpenOnnx, after: Callable[[], None] = lambda: None
) -> FloatArray:
    """Logits [tokens, V] of a case of single tokens; ``after`` each it is called."""
    session, pieces = TextSession(graph), list[FloatArray]()
    for call in case.calls():
        pieces.append(session.step(*call))
        after()
    return case.of_tokens(pieces)


def _into(chosen: dict[str, list[IntArray]]) -> Callable[[str, NDArray[np.generic]], None]:
    """Keeps what routers chose, call by call."""

    def keep(router: str, experts: NDArray[np.generic]) -> None:
        chosen.setdefault(router, []).append(np.asarray(experts, dtype=np.int64))

    return keep


def _layers_into(
    seen: dict[LayerId, list[FloatArray]], graph: str
) -> Callable[[str, NDArray[np.generic]], None]:
    def keep(path: str, value: NDArray[np.generic]) -> None:
        layer = LayerId(graph, path)
        seen.setdefault(layer, []).append(np.asarray(value, dtype=np.float64))

    return keep
