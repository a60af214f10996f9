"""genai_config.json and README.md beside a model and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from llamagen.emit.clients.contract import Decoder, Unfit, contract_of
from llamagen.emit.clients.readme import Exported, readme_text
from llamagen.emit.config.settings import Settings, SpecialTokens, special_tokens
from llamagen.emit.config.table import CONFIG_FILE
from llamagen.emit.manifest import AdapterRecord, Source
from llamagen.emit.onnx.data import DATA_SUFFIX
from llamagen.emit.onnx.emit import OnnxModel
from llamagen.emit.onnx.layout import FLAT, Layout
from llamagen.emit.onnx.session import DEVICES
from llamagen.emit.onnx.stages import Stage
from llamagen.emit.written import write_text
from llamagen.ir.graph import MAIN, Graph
from llamagen.spec.resolve import ResolvedSpec

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_LENGTH = 4096
"""Tokens of prompt and answer together, unless the caller asks for more. A cache that past and present share is
allocated at this length when a generation starts: at the 131,072 of Llama 3.1 that is 8.6 GB for a 1B model."""

GENERIC = "decoder"
PIPELINE = "decoder-pipeline"
NAMED = frozenset({"llama"})
"""Names of transformers that the runtime knows too; every other decoder is the generic one."""


def genai_config(
    decoder: Decoder,
    tokens: SpecialTokens,
    settings: Settings,
    emitted: OnnxModel,
    *,
    context: int,
    hidden_size: int | None,
    stages: Sequence[Stage] = (),
    layout: Layout = FLAT,
) -> str:
    """genai_config.json: what onnxruntime-genai must know to generate with a folder.

    Threads are left to ONNX Runtime, because a folder does not know the machine it runs on. Without a padding token
    of its own a model pads with the one that ends a text: the runtime takes padding at the end of a row only.
    """
    kind, device = settings.model_type, DEVICES[emitted.profile.provider]
    pad = tokens.pad if tokens.pad is not None else next(iter(tokens.eos), None)
    pipeline: list[Json] = [
        {one.name: {"filename": one.file, "inputs": [*one.inputs], "outputs": [*one.outputs]}}
        for one in stages
    ]
    model: dict[str, Json] = {
        "type": PIPELINE if stages else kind if kind in NAMED else GENERIC,
        "context_length": context,
        "vocab_size": decoder.vocab_size,
        "bos_token_id": tokens.bos,
        "eos_token_id": tokens.eos[0] if len(tokens.eos) == 1 else list(tokens.eos) or None,
        "pad_token_id": pad,
        "decoder": {
            **({"pipeline": pipeline} if stages else {"filename": layout.file(MAIN)}),
            "session_options": {
                "log_id": "onnxruntime-genai",
                **emitted.session_settings,
                "provider_options": [] if device == "cpu" else [{device: {}}],
            },
            "head_size": decoder.head_dim,
            "hidden_size": hidden_size,
            "num_attention_heads": decoder.num_heads,
            "num_hidden_layers": decoder.layers,
            "num_key_value_heads": decoder.num_kv_heads,
            "inputs": {
                **{name: name for name in decoder.inputs},
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    search: dict[str, Json] = {
        "max_length": min(context, MAX_LENGTH),
        "past_present_share_buffer": emitted.in_place and not stages,
        **_sampling(settings),
    }
    return json.dumps(_known({"model": model, "search": search}), indent=2) + "\n"


def _sampling(settings: Settings) -> dict[str, Json]:
    """As generation_config.json has it; greedy without one, as in transformers."""
    sampling: dict[str, Json] = {"do_sample": settings.generation.get("do_sample") is True}
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        value = settings.number(name)
        if value is not None:
            sampling[name] = value
    return sampling


def _known(tree: Mapping[str, Json]) -> dict[str, Json]:
    """Without what is not known: the runtime takes null for a mistake."""
    return {
        key: _known(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }


GENAI_FILE = "genai_config.json"
README_FILE = "README.md"


def write_client_files(
    folder: Path,
    resolved: ResolvedSpec,
    graphs: Mapping[str, Graph],
    model: OnnxModel,
    source: Source,
    stages: Sequence[Stage] = (),
    layout: Layout = FLAT,
    adapters: Mapping[str, AdapterRecord] = MappingProxyType({}),
) -> None:
    """Write what clients read, last of all: the files of the checkpoint in ``folder`` decide.

    A model that the decoder contract of onnxruntime-genai cannot carry gets no genai_config.json; its README says why.
    Raises LG765 for a configuration file that is not JSON.
    """
    spec = resolved.spec
    settings = Settings.of_folder(folder)
    contract = contract_of(graphs[MAIN])
    # A profile may count positions itself.
    taken = {value.name for value in model.model.graph.inputs}
    contract = replace(contract, inputs=tuple(n for n in contract.inputs if n in taken))
    limits = (spec.hyperparameters.context, model.max_context)
    context = min((limit for limit in limits if limit is not None), default=None)
    if isinstance(contract, Decoder) and context is None:
        reason = "has no stated context length (`max_positions`)"
        contract = Unfit(
            (reason,), plain=True, inputs=contract.inputs, vocab_size=contract.vocab_size
        )
    tokens = special_tokens(settings, spec, contract.vocab_size)
    if isinstance(contract, Decoder):
        assert context is not None
        width = spec.hyperparameters.hidden_size
        text = genai_config(
            contract,
            tokens,
            settings,
            model,
            context=context,
            hidden_size=width,
            stages=stages,
            layout=layout,
        )
        write_text(folder / GENAI_FILE, text)
    chunks = len(list(folder.glob(layout.path(f"{layout.stem(MAIN)}{DATA_SUFFIX}*"))))
    if settings.config and chunks:
        # to transformers.js `model.onnx` is fp32, and what is beside it is fetched by number; by the name without dtype
        # config.json stays right when a graph of another dtype is put beside this one
        of_file = MAIN if layout.folder else f"{MAIN}.onnx"
        said = {"dtype": layout.dtype, "use_external_data_format": {of_file: chunks}}
        config = {**settings.config, "transformers.js_config": said}
        write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = frozenset(path.relative_to(folder).as_posix() for path in paths)
    exported = Exported(
        resolved,
        graphs,
        model,
        source,
        contract,
        tokens,
        settings,
        names,
        context,
        layout,
        adapters,
    )
    write_text(folder / README_FILE, readme_text(exported))
