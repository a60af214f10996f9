"""Writing genai_config.json and README.md beside a model and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llamagen.emit.clients.decoder import Decoder, Unfit, contract_of
from llamagen.emit.clients.genai import PROVIDERS, genai_config
from llamagen.emit.clients.readme import Exported, readme_text
from llamagen.emit.clients.tokens import special_tokens
from llamagen.emit.config.settings import Settings
from llamagen.emit.onnx.model import OnnxModel
from llamagen.emit.onnx.write import MODEL_FILE
from llamagen.emit.written import write_text
from llamagen.ir.graph import MAIN, Graph
from llamagen.spec.resolve import ResolvedSpec

GENAI_FILE = "genai_config.json"
README_FILE = "README.md"


def write_client_files(
    folder: Path, resolved: ResolvedSpec, graphs: Mapping[str, Graph], model: OnnxModel
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
    context = _context(spec.hyperparameters.max_positions, model.max_context)
    if isinstance(contract, Decoder) and context is None:
        reason = "has no stated context length (`max_positions`)"
        contract = Unfit(
            (reason,), plain=True, inputs=contract.inputs, vocab_size=contract.vocab_size
        )
    tokens = special_tokens(settings, spec, contract.vocab_size)
    if isinstance(contract, Decoder):
        assert context is not None
        text = genai_config(
            contract,
            tokens,
            settings,
            filename=MODEL_FILE,
            context=context,
            hidden_size=spec.hyperparameters.hidden_size,
            share_buffer=model.in_place,
            providers=PROVIDERS[model.profile.provider],
            session=model.session_settings,
        )
        write_text(folder / GENAI_FILE, text)
    exported = Exported(
        resolved, graphs, model, contract, tokens, settings, frozenset(_names(folder)), context
    )
    write_text(folder / README_FILE, readme_text(exported))


def _context(stated: int | None, tables: int | None) -> int | None:
    """Tokens that the model can read: those of the spec, and no more than its tables of positions have."""
    return min((limit for limit in (stated, tables) if limit is not None), default=None)


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
