"""A resolved spec as text: one file without ``extends`` that means the same, and a table of where each leaf is from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llamagen.diagnostics import Span
from llamagen.spec.fmt import format_source
from llamagen.spec.plain_yaml import INDENT, flow_node, key_text
from llamagen.spec.resolved import Branch, Origin, ResolvedSpec
from llamagen.spec.source import Plain, load_source

_DROPPED = frozenset({"extends"})


@dataclass(frozen=True, slots=True)
class OriginRow:
    """A leaf of a resolved spec: its value as written, and everyone who wrote it, first base first."""

    path: str
    text: str
    origins: tuple[Origin, ...]

    @property
    def span(self) -> Span:
        return self.origins[-1].span

    @property
    def spec_id(self) -> str:
        """The spec whose value counts."""
        return self.origins[-1].spec_id


def resolved_text(resolved: ResolvedSpec) -> str:
    """The spec as one YAML file in canonical form; loading it gives the same architecture digest."""
    from llamagen.spec.schema import Spec

    lines = [line for line in _branch(resolved.tree, resolved.plain, 0) if line]
    source = load_source("\n".join(lines) + "\n", f"<resolved {resolved.spec.id}>")
    return format_source(source, tuple(Spec.model_fields))


def origin_rows(resolved: ResolvedSpec) -> tuple[OriginRow, ...]:
    """Every leaf that is set, in the order of the merged tree."""
    return tuple(
        OriginRow(path, leaf.origins[-1].text, leaf.origins)
        for path, leaf in resolved.leaves()
        if path not in _DROPPED
    )


def _branch(tree: Branch, plain: Mapping[str, Plain], depth: int) -> Iterator[str]:
    """``plain`` is the same tree without what was unset or removed; the nodes know how numbers were written."""
    pad = INDENT * depth
    for name, value in plain.items():
        if depth == 0 and name in _DROPPED:
            continue
        below = tree.entries[name]
        key = key_text(name)
        if value is None:
            yield f"{pad}{key}: null"
        elif isinstance(below, Branch):
            assert isinstance(value, dict), (name, value)
            lines = list(_branch(below, value, depth + 1))
            yield f"{pad}{key}:" if lines else f"{pad}{key}: {{}}"
            yield from lines
        else:
            yield f"{pad}{key}: {flow_node(below.node)}"
