"""README.md of an exported folder: what it is, and how to run it with the clients that can."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from llamagen.diagnostics.markdown import cell, code
from llamagen.emit.clients.contract import Contract, Unfit, bounds_text
from llamagen.emit.config.settings import Settings, SpecialTokens
from llamagen.emit.manifest import AdapterRecord, RandomSource, Source, adapter_file
from llamagen.emit.onnx.data import DATA_SUFFIX
from llamagen.emit.onnx.emit import OnnxModel
from llamagen.emit.onnx.initializers import Encoding, Initializer
from llamagen.emit.onnx.layout import Layout
from llamagen.emit.onnx.profile import CPU
from llamagen.emit.onnx.session import DEVICES
from llamagen.emit.written import llamagen_version
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import MAIN, Graph, all_parameters
from llamagen.resources import templates
from llamagen.spec.resolve import ResolvedSpec
from llamagen.units import count_text

TESTED: Mapping[str, str] = {
    "onnxruntime-genai": "0.18.0",
    "optimum-onnx": "0.1.0",
    "@huggingface/transformers": "4.3.1",
}
"""The clients that the tests of llamagen run on its folders, and their versions."""

PAGE_FILE = "index.html"
WEB_FOLDER = "web"
"""Of what the page runs with."""

OLDER = (
    "uses GroupQueryAttention as ONNX Runtime 1.32 has it, and transformers.js brings 1.30; "
    "an export with `--profile portable` runs there"
)

UNTESTED = "uses GroupQueryAttention, which was not tested"

ONE_ROW = (
    "padding may be anywhere; with past keys and values several tokens at once are for one row, "
    "and several rows go on by one token a call: the attention refuses another call "
    "(from onnxruntime 1.32 on `--runtime 1.32` has no such limit)"
)

TESTED_TYPES = frozenset({"llama"})
"""``model_type`` of the folders that optimum and transformers.js are tested with."""

TOKENIZER_SETTINGS = "tokenizer_config.json"
"""Without it transformers.js opens no tokenizer."""

PROMPT = "The capital of France is"
WORDS = (9906, 1917)
"""Hello world in the vocabulary of Llama 3; any ids will do for a folder without a tokenizer."""

PURPOSES: tuple[tuple[str, str], ...] = (
    ("index.html", "a page that runs the model in a browser"),
    ("genai_config.json", "settings of onnxruntime-genai"),
    ("config.json", "settings of transformers, optimum and transformers.js"),
    ("generation_config.json", "special tokens and sampling"),
    ("tokenizer.json", "the tokenizer"),
    (TOKENIZER_SETTINGS, "its settings"),
    ("special_tokens_map.json", "its special tokens"),
    ("added_tokens.json", "tokens beyond its own"),
    ("vocab.json", "its tokens, for older readers"),
    ("merges.txt", "how it joins them"),
    ("tokenizer.model", "the tokenizer as Meta released it"),
    ("chat_template.jinja", "turns a conversation into a prompt"),
    ("chat_template.json", "turns a conversation into a prompt"),
    ("preprocessor_config.json", "how transformers prepares images"),
    ("processor_config.json", "joins them and the tokenizer in transformers"),
    ("LICENSE", "of the weights"),
    ("LICENSE.md", "of the weights"),
    ("LICENSE.txt", "of the weights"),
    ("NOTICE", "of the weights"),
    ("NOTICE.txt", "of the weights"),
    ("USE_POLICY.md", "of the weights"),
    ("spec.yaml", "the architecture, complete; `llamagen verify` reads it"),
)

Client = Literal["llamagen", "onnxruntime", "onnxruntime-genai", "optimum", "transformers.js"]


@dataclass(frozen=True, slots=True)
class Exported:
    """A folder before its README: what it was made from and the names of the files in it."""

    resolved: ResolvedSpec
    graphs: Mapping[str, Graph]
    model: OnnxModel
    source: Source
    contract: Contract
    tokens: SpecialTokens
    settings: Settings
    names: frozenset[str]
    context: int | None
    """Tokens that the model can read."""
    layout: Layout
    adapters: Mapping[str, AdapterRecord]


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A client that cannot run the folder: clauses that follow "the model"."""

    client: Client
    reasons: str


@dataclass(frozen=True, slots=True)
class Page:
    """What the template places."""

    title: str
    id: str
    facts: tuple[Row, ...]
    files: tuple[Row, ...]
    clients: tuple[Client, ...]
    refusals: tuple[Refusal, ...]
    tested: Mapping[str, str]
    text: bool
    """There is a tokenizer."""
    text_in_js: bool
    """And what transformers.js reads beside it."""
    prompt: str
    ids: tuple[int, ...]
    bos: int | None
    stop: tuple[int, ...]
    pad: int | None
    feeds: tuple[str, ...]
    predicts: bool
    """It gives logits, and can be run token by token."""
    loop: bool
    """It gives nothing else, so that what is left are its caches."""
    cache_dtype: str
    several_graphs: bool
    file: str
    """The text model."""
    layout: Layout
    provider: str
    device: str
    """What it is made for, as `--provider` takes it."""
    session: Mapping[str, str]
    page: bool
    """There is an index.html."""
    adapter: str | None
    """One of the adapters beside the weights, and its file."""
    adapter_file: str
    browser: bool
    """ONNX Runtime's WebAssembly build, as transformers.js brings it, has no bfloat16; float16 was not tested."""


def page_of(exported: Exported) -> Page:
    contract, tokens = exported.contract, exported.tokens
    refusals = tuple(_refusals(exported))
    refused = {refusal.client for refusal in refusals}
    every: tuple[Client, ...] = (
        "llamagen",
        "onnxruntime",
        "onnxruntime-genai",
        "optimum",
        "transformers.js",
    )
    first = () if tokens.bos is None else (tokens.bos,)
    words = WORDS if max(WORDS) < contract.vocab_size else (1, 2, 3)
    model = exported.model
    adapter = next(iter(exported.adapters), None)
    return Page(
        title=cell(exported.resolved.spec.title or exported.resolved.spec.id),
        id=exported.resolved.spec.id,
        facts=tuple(_facts(exported)),
        files=tuple(_files(exported)),
        clients=tuple(client for client in every if client not in refused),
        refusals=refusals,
        tested=TESTED,
        text="tokenizer.json" in exported.names,
        text_in_js={"tokenizer.json", TOKENIZER_SETTINGS} <= exported.names,
        prompt=PROMPT,
        ids=(*first, *words),
        bos=tokens.bos,
        stop=tokens.eos,
        pad=tokens.pad if tokens.pad is not None else next(iter(tokens.eos), None),
        feeds=contract.inputs,
        predicts="logits" in exported.graphs[MAIN].output_names,
        loop=exported.graphs[MAIN].output_names == ("logits",),
        cache_dtype=model.cache_dtype,
        several_graphs=len(exported.graphs) > 1,
        file=exported.layout.file(MAIN),
        layout=exported.layout,
        provider=model.profile.provider,
        device=DEVICES[model.profile.provider],
        session=model.session_settings,
        page=PAGE_FILE in exported.names,
        adapter=adapter,
        adapter_file="" if adapter is None else adapter_file(adapter),
        browser=model.dtype == "float32" and all(map(_in_browser, model.initializers)),
    )


def _in_browser(entry: Initializer) -> bool:
    """Whether WebAssembly reads it, as far as that was tested."""
    if entry.part is None:
        return entry.dtype == "float32"
    return entry.part.encoding.kind == "blocks" and entry.dtype != "bfloat16"


def _refusals(exported: Exported) -> Iterator[Refusal]:
    contract = exported.contract
    spec = exported.resolved.spec
    if isinstance(contract, Unfit):
        reasons = " and ".join(contract.reasons)
        if not contract.plain:
            yield Refusal("onnxruntime", reasons)
        for client in _OTHERS:
            yield Refusal(client, reasons)
        return
    kind = exported.settings.model_type
    if exported.model.profile.provider != CPU:
        if exported.model.profile.io_dtypes[exported.model.dtype] == "bfloat16":
            yield Refusal("onnxruntime", "has bfloat16 caches, which numpy cannot hold")
        yield Refusal("optimum", "is made for a GPU, which was not tested")
        yield Refusal("transformers.js", "is made for a GPU, which was not tested")
        return
    if exported.model.fused_attention:
        yield Refusal("transformers.js", OLDER if exported.model.batched_chunks else UNTESTED)
    if kind not in TESTED_TYPES:
        named = (
            "has no `config.json`" if kind is None else f"is a {code(kind)}, which was not tested"
        )
        yield Refusal("optimum", named)
        if not exported.model.fused_attention:
            yield Refusal("transformers.js", named)
    elif spec.hyperparameters.hidden_size != contract.num_heads * contract.head_dim:
        yield Refusal("optimum", "has heads that do not fill its width")


_OTHERS: tuple[Client, ...] = ("onnxruntime-genai", "optimum", "transformers.js")


def _facts(exported: Exported) -> Iterator[Row]:
    spec, model = exported.resolved.spec, exported.model
    yield Row("architecture", f"`{spec.id}`, digest `{exported.graphs[MAIN].digest[:16]}`")
    count = sum(p.count for p in all_parameters(dict(exported.graphs)).values())
    yield Row("parameters", count_text(count))
    yield Row("weights", "; ".join(_stored(model)))
    merged = None if isinstance(exported.source, RandomSource) else exported.source.adapter
    if merged is not None:
        yield Row("merged into them", f"{code(merged.name)}, {_of_adapter(merged)}")
    for called, adapter in exported.adapters.items():
        yield Row("beside them", f"adapter {code(called)}, {_of_adapter(adapter)}")
    yield Row("computation", model.dtype)
    profile = model.profile
    since = f"; needs onnxruntime {model.runtime} or later" if model.fused_attention else ""
    yield Row("operators", f"profile {profile.name}, opset {profile.opset}{since}")
    outputs = exported.graphs[MAIN].outputs
    coded = model.cache_dtype != profile.io_dtypes[model.dtype]
    if [name for name, _ in outputs] == ["logits"]:
        yield Row("logits" if coded else "logits and caches", profile.io_dtypes[model.dtype])
    else:
        shapes = (f"{code(name)} [{', '.join(map(str, t.shape))}]" for name, t in outputs)
        per = f"{', '.join(shapes)}; B texts, S new tokens; {profile.io_dtypes[model.dtype]}"
        yield Row("outputs", per)
    if coded:
        yield Row("caches", f"{model.cache_dtype}, scaled by feature of each head")
    if not model.batched_chunks:
        yield Row("calls of several rows", ONE_ROW)
    flat = flatten(exported.graphs[MAIN])
    if any(slot.keep is not None for slot in flat.slots):
        kept = f"bounded: {bounds_text(flat)}; `attention_mask` covers every token; pad on the left"
        yield Row("past keys and values", kept)
    yield Row("vocabulary", f"{exported.contract.vocab_size:,}")
    if exported.context is not None:
        yield Row("context", _context(exported.context, spec.hyperparameters.max_positions))
    release = spec.release
    if release is not None and release.licence is not None:
        yield Row("licence of the weights", cell(release.licence))
    yield Row("written by", f"llamagen {llamagen_version()}")


def _of_adapter(adapter: AdapterRecord) -> str:
    on = "" if adapter.base is None else f", trained on {code(adapter.base)}"
    return f"a LoRA of rank {adapter.rank}{on}; sha256 `{adapter.sha256[:16]}`"


def _context(tokens: int, of_model: int | None) -> str:
    """``20 tokens (the model has 100)``"""
    more = f" (the model has {of_model:,})" if of_model is not None and of_model > tokens else ""
    return f"{tokens:,} tokens{more}"


def _stored(model: OnnxModel) -> Iterator[str]:
    """What the parameters are stored as, the most first, with their number where there are several kinds."""
    counts: Counter[str] = Counter()
    for entry in model.initializers:
        if entry.part is not None and entry.part.role != "codes":
            continue
        label = entry.dtype if entry.part is None else _encoding(entry.part.encoding)
        counts[label] += sum(prod(source.shape) for source in entry.sources)
    for label, count in counts.most_common():
        yield label if len(counts) == 1 else f"{label} ({count:,})"


def _encoding(how: Encoding) -> str:
    match how.kind:
        case "blocks":
            return f"int{how.bits} in blocks of {how.block}"
        case "experts":
            return f"experts int{how.bits} in blocks of {how.block}"
        case "channels":
            return "int8 by row, with activations in int8"


def _files(exported: Exported) -> Iterator[Row]:
    for name in exported.graphs:
        file = exported.layout.file(name)
        purpose = "the model's graph" if name == MAIN else "one of the graphs for images"
        yield Row(code(file), purpose)
        yield Row(code(f"{file}.txt"), "the same to read")
    for name in sorted(n for n in exported.names if re.fullmatch(r"stage_\d+\.onnx", n)):
        yield Row(code(name), "some of its layers, for a device of their own")
    for name in sorted(n for n in exported.names if _is_data(n)):
        yield Row(code(name), "weights")
    for name in exported.adapters:
        yield Row(code(adapter_file(name)), "what the adapter adds to them")
    for name, purpose in PURPOSES:
        if name in exported.names:
            yield Row(code(name), purpose)
    if PAGE_FILE in exported.names:
        yield Row(
            code(f"{WEB_FOLDER}/"),
            "what the page runs with: transformers.js and ONNX Runtime, from npm",
        )
    yield Row(code("MANIFEST.json"), "what it was made from, and a hash of every file")


def _is_data(name: str) -> bool:
    return DATA_SUFFIX in name or name.endswith(".safetensors")


def readme_text(exported: Exported) -> str:
    """The README as Markdown. Deterministic."""
    return templates("docs").get_template("folder.md.j2").render(folder=page_of(exported))
