"""What ``generate`` writes for a model, and writing only what changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llamagen.emit.targets import TARGETS, Target
from llamagen.ir.bounded import CacheKind, with_caches
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import Graph
from llamagen.ir.verify import verify
from llamagen.spec.resolve import ResolvedSpec


@dataclass(frozen=True, slots=True)
class Subject:
    """What emitters read: a resolved spec and its verified graph."""

    resolved: ResolvedSpec
    graph: Graph
    """The text model as the spec says it, whatever the cache."""
    cache: CacheKind = "full"

    def graphs(self) -> dict[str, Graph]:
        """Every graph of the model by name. Raises LG705 if its caches are to be bounded and cannot be."""
        return with_caches(build_all(self.resolved), self.cache)


def files_of(subject: Subject, targets: Sequence[Target]) -> dict[str, str]:
    """File name -> text, in the order of ``TARGETS``. Deterministic; reads no weights."""
    verify(subject.graph, thorough=True)
    made: dict[str, str] = {}
    for target in TARGETS:
        if target in targets:
            made.update(_EMITTERS[target](subject))
    return made


def identity_of(graph: Graph) -> str:
    """The canonical text without the model's name: equal for models that can share generated files."""
    from llamagen.ir.text import render

    lines = render(graph).split("\n")
    return "\n".join(line for line in lines if not line.startswith(("graph ", "digest ")))


def _text(subject: Subject) -> dict[str, str]:
    from llamagen.analysis.rewrites import profiles_text
    from llamagen.analysis.show import card_text
    from llamagen.ir.graph import MAIN
    from llamagen.ir.text import render
    from llamagen.spec.fmt import resolved_text

    graphs = subject.graphs()
    texts = {f"{'graph' if name == MAIN else name}.txt": render(g) for name, g in graphs.items()}
    return {
        "resolved.txt": resolved_text(subject.resolved),
        **texts,
        "profiles.txt": profiles_text(graphs),
        "card.md": card_text(subject.resolved),
    }


def _torch(subject: Subject) -> dict[str, str]:
    from llamagen.emit.torch.module import formatted, source_of
    from llamagen.ir.graph import MAIN, names_elsewhere

    graphs = subject.graphs()
    sources = {
        f"{'modeling' if name == MAIN else name}.py": source_of(
            graph, names_elsewhere(graphs, name)
        )
        for name, graph in graphs.items()
    }
    return formatted(sources)


def _onnx(subject: Subject) -> dict[str, str]:
    from llamagen.emit.onnx.emit import emit_onnx
    from llamagen.emit.onnx.text import render

    graphs = subject.graphs()
    return {f"{name}.onnx.txt": render(emit_onnx(graph)) for name, graph in graphs.items()}


def _config(subject: Subject) -> dict[str, str]:
    from llamagen.emit.config.table import config_files

    return config_files(subject.resolved)


_EMITTERS: Mapping[Target, Callable[[Subject], dict[str, str]]] = {
    Target.TEXT: _text,
    Target.TORCH: _torch,
    Target.ONNX: _onnx,
    Target.CONFIG: _config,
}
