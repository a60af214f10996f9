"""Decoders in sizes that vLLM's kernels for a CPU take, as folders for transformers; ``python -m`` of them is a table.

    python -m tests.clients.vllm_models [NAME...]

verifies each against vLLM, as far as its engine table says that it can, and prints a row of Markdown.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import llamagen
from bench.environments import environment
from llamagen.analysis.engines import refusals
from llamagen.emit.options import ExportOptions
from llamagen.verify.engine import verify_engine
from llamagen.verify.report import Row

SPECS = Path(__file__).parents[1] / "specs"
CODE = ExportOptions(format="transformers", custom_code=True)
_SIZES = (
    "vocab_size: 512, hidden_size: 128, num_layers: 4, num_heads: 4, num_kv_heads: 2, "
    "head_dim: 32, max_positions: 512"
)
_EXPERTS = "num_experts: 4, expert_intermediate_size: 64"
_DENSE = "intermediate_size: 256"
_MORE = {
    "gemma2": f"{_DENSE}, sliding_window: 8, embedding_multiplier: 11.313708498984761",
    "gemma3": f"{_DENSE}, sliding_window: 8, embedding_multiplier: 11.313708498984761",
    "mistral": f"{_DENSE}, sliding_window: 8",
    "mixtral": _EXPERTS,
    "qwen3_moe": f"{_DENSE}, {_EXPERTS}",
    "olmoe": _EXPERTS,
    "gpt2": "num_kv_heads: 4, intermediate_size: 256",
}
"""What further hyperparameters are in a spec of its size."""


def spec_of(name: str, folder: Path) -> Path:
    """A spec of tests/specs in these sizes; ``odd`` has them itself, ``llama`` is one of the family."""
    if name == "odd":
        return SPECS / "odd.yaml"
    path = folder / f"{name}.yaml"
    base, more = f"{SPECS}/foreign/{name}.yaml", _MORE.get(name, _DENSE)
    if name == "llama":
        base, more = "llama/1/_base", f"{_DENSE}, norm_eps: 1.0e-6"
    sizes = ", ".join(
        one
        for one in _SIZES.split(", ")
        if one.partition(":")[0] not in more.replace(":", " ").split()
    )
    path.write_text(
        f"spec: 1\nid: resized/{name}\nextends: {base}\nhyperparameters: {{{sizes}, {more}}}\n",
        encoding="utf-8",
    )
    return path


def folder_of(name: str, place: Path, options: ExportOptions = CODE) -> Path:
    out = place / f"{name}-folder"
    llamagen.load(spec_of(name, place)).export(out, options, random_weights=1)
    return out


def main() -> None:
    names = sys.argv[1:] or ["odd", *sorted(p.stem for p in SPECS.glob("foreign/[a-z]*.yaml"))]
    print("| spec | one device | two |\n|---|---|---|")
    for name in names:
        with TemporaryDirectory() as place:
            folder = Path(place)
            model = llamagen.load(spec_of(name, folder))
            if reasons := refusals("vllm", model.spec, model.graph):
                print(f"| {name} | refused: {reasons[0]} | |", flush=True)
                continue
            out = folder_of(name, folder)
            cells = []
            for tensor in (1, 2):
                try:
                    report = verify_engine(out, python=environment("vllm"), tensor=tensor)
                except llamagen.LlamagenError as error:
                    cells.append(f"refused: {error.diagnostics[0].message}")
                else:
                    cells.append(_cell(report.rows))
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _cell(rows: tuple[Row, ...]) -> str:
    if any(row.verdict != "equal" for row in rows):
        return f"{rows[-1].verdict}: {rows[-1].note}"
    most = max(row.difference.rms_over_std for row in rows if row.difference is not None)
    return f"equal, {most:.0e}"


if __name__ == "__main__":
    main()
