"""From the files of an ``extends`` chain to one merged tree, in which every leaf knows where it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from llamagen.diagnostics import Diagnostic, Related, Span
from llamagen.spec.expr import (
    ExpressionError,
    Return,
    Statement,
    names,
    parse_statements,
)
from llamagen.spec.schema import Spec
from llamagen.spec.source import Key, Map, Node, Plain, Scalar, Seq, SourceMap, Woven, to_plain

if TYPE_CHECKING:
    from llamagen.ir.graph import Graph

ARCHITECTURE = ("root", "outputs", "graphs", "hyperparameters", "constants", "patterns", "blocks")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a leaf's value was written: the spec that wrote it and the place."""

    spec_id: str
    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value of the merged tree; ``origins`` from the first base that wrote it to the one that counts."""

    node: Scalar | Seq
    origins: tuple[Origin, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """A mapping of the merged tree. ``keys`` are the keys as last written."""

    entries: Mapping[str, Tree]
    keys: Mapping[str, Key]
    span: Span


Tree: TypeAlias = "Leaf | Branch"


@dataclass(frozen=True)
class ResolvedSpec:
    """A validated spec and where everything in it comes from."""

    spec: Spec
    tree: Branch
    plain: Mapping[str, Plain] = field(compare=False, repr=False)
    """``tree`` as plain data."""
    chain: tuple[str, ...]
    """Ids from the first base to the spec itself."""
    files: tuple[str, ...]
    """Their files; two may claim one id."""
    warnings: tuple[Diagnostic, ...] = field(default=(), compare=False)
    graphs: dict[str, Graph] = field(default_factory=dict, init=False, compare=False, repr=False)
    """Filled by ``ir.elaborate``, so that each is built once."""

    @cached_property
    def digest(self) -> str:
        """sha256 of the architecture (wiring and numbers, not the record), hex."""
        kept = {key: self.plain[key] for key in ARCHITECTURE if key in self.plain}
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def leaves(self) -> tuple[tuple[str, Leaf], ...]:
        """Every leaf with its dotted path, in file order."""
        return tuple(_leaves(self.tree, ""))

    def leaf(self, *path: str) -> Leaf | None:
        node = self.find(*path)
        return node if isinstance(node, Leaf) else None

    def find(self, *path: str) -> Tree | None:
        tree: Tree | None = self.tree
        for name in path:
            tree = tree.entries.get(name) if isinstance(tree, Branch) else None
        return tree

    def scalar(self, *path: str) -> Scalar | None:
        leaf = self.leaf(*path)
        return leaf.node if leaf and isinstance(leaf.node, Scalar) else None

    def place(self, *path: str) -> Span | None:
        """The place of the value at ``path`` (of its key, for a mapping), or of the closest thing above it."""
        tree: Tree = self.tree
        span = self.tree.span
        for name in path:
            below = tree.entries.get(name) if isinstance(tree, Branch) else None
            if not isinstance(tree, Branch) or below is None:
                break
            span = tree.keys[name].span if isinstance(below, Branch) else below.node.span
            tree = below
        return span


def _leaves(tree: Branch, prefix: str) -> Iterator[tuple[str, Leaf]]:
    for name, below in tree.entries.items():
        if isinstance(below, Leaf):
            yield prefix + name, below
        else:
            yield from _leaves(below, f"{prefix}{name}.")


NOT_INHERITED = frozenset({"spec", "id", "extends", "abstract", "title", "doc"})
APPENDED = frozenset({"conflicts", "uncertain"})
PATTERN_FORMS = frozenset({"cycle", "list", "every", "default"})
NONE = "none"


Merged: TypeAlias = "dict[str, tuple[Branch, tuple[Diagnostic, ...]]]"
"""File -> what it and its bases merge to; a file has one chain, so the name is enough."""


def merge(
    chain: Sequence[SourceMap], known: Merged | None = None
) -> tuple[Branch, tuple[Diagnostic, ...]]:
    """Merge files from the first base to the spec itself; findings are redundant overrides and type clashes.

    ``known`` keeps the trees of bases, for the next chain that has them.
    """
    known = {} if known is None else known
    tree: Branch | None = None
    findings: tuple[Diagnostic, ...] = ()
    for source in chain:
        if source.file not in known:
            merged, own_findings = inherit(tree, source)
            known[source.file] = merged, (*findings, *own_findings)
        tree, findings = known[source.file]
    assert tree is not None, "a chain has at least one file"
    # A base's own lints are shown when the base is checked, not with every heir.
    own = chain[-1].file
    shown = (f for f in findings if f.severity == "error" or (f.span and f.span.file == own))
    return tree, tuple(shown)


def inherit(base: Branch | None, source: SourceMap) -> tuple[Branch, tuple[Diagnostic, ...]]:
    """What a file that extends ``base`` merges to, and the findings on that file alone."""
    merger = _Merger()
    id_node = source.root.get("id")
    spec_id = id_node.text if isinstance(id_node, Scalar) else source.file
    inherited = Branch({}, {}, source.root.span)
    if base is not None:
        kept = {k: v for k, v in base.entries.items() if k not in NOT_INHERITED}
        inherited = Branch(kept, base.keys, source.root.span)
    return merger.branch(inherited, source.root, spec_id, ()), tuple(merger.findings)


def replaced_whole(path: tuple[str, ...], base: Collection[str], new: Collection[str]) -> bool:
    """Whether the mapping at ``path`` with the keys ``new`` replaces an inherited one with the keys ``base``.

    The options of a block do (``null`` is a value there, so nothing else could take one away), a pattern of another
    form does, and so does a mapping that states its ``kind``, unless its keys are names that the author chose.
    """
    match path:
        case ("blocks", _, "options"):
            return True
        case ("patterns", _):
            return any(form in new and form not in base for form in PATTERN_FORMS)
        case () | ("constants" | "invariants" | "provenance" | "patterns" | "blocks", *_):
            return False
        case _:
            return "kind" in new and "kind" in base


class _Merger:
    def __init__(self) -> None:
        self.findings: list[Diagnostic] = []

    def tree(self, node: Node, spec_id: str, path: tuple[str, ...]) -> Tree:
        if isinstance(node, Map):
            return self.branch(Branch({}, {}, node.span), node, spec_id, path)
        return Leaf(node, (Origin(spec_id, node.span, _text(node)),))

    def branch(self, base: Branch, node: Map, spec_id: str, path: tuple[str, ...]) -> Branch:
        if base.entries and replaced_whole(path, base.entries, [k.text for k, _ in node.entries]):
            base = Branch({}, {}, node.span)
        entries = dict(base.entries)
        keys = dict(base.keys)
        for key, value in node.entries:
            keys[key.text] = key
            here = (*path, key.text)
            inherited = entries.get(key.text)
            if inherited is None:
                entries[key.text] = self.tree(value, spec_id, here)
            else:
                entries[key.text] = self.override(inherited, key, value, spec_id, here)
        return Branch(entries, keys, node.span)

    def override(
        self, base: Tree, key: Key, node: Node, spec_id: str, path: tuple[str, ...]
    ) -> Tree:
        match base, node:
            case Branch(), Map():
                return self.branch(base, node, spec_id, path)
            case Branch(), Scalar(value=None):
                return Leaf(node, (Origin(spec_id, node.span, _text(node)),))
            case Leaf(node=Scalar() as was, origins=origins), Map() if _is_forward(path):
                woven = self.woven(was, node, origins[-1], path)
                return Leaf(woven, (*origins, Origin(spec_id, node.span, woven.text)))
            case Leaf(), Map():
                return self.tree(node, spec_id, path)
            case Branch(), Seq() if path[0] == "patterns" and path[2:] == ("at",):
                return self.tree(node, spec_id, path)
            case Leaf(node=Seq() as items, origins=origins), Seq() if path[0] in APPENDED:
                joined = Seq((*items.items, *node.items), node.span, node.flow)
                return Leaf(joined, (*origins, Origin(spec_id, node.span, _text(node))))
            case Leaf(node=was, origins=origins), Scalar() | Seq():
                same = to_plain(was) == to_plain(node) and type(to_plain(was)) is type(
                    to_plain(node)
                )
                if same and len(path) > 1 and path[0] != "provenance":  # each file proves its own
                    self.redundant(key, origins[-1], path)
                return Leaf(node, (*origins, Origin(spec_id, node.span, _text(node))))
            case Branch(span=span), _:
                message = f"`{'.'.join(path)}` is a mapping in the base and a single value here"
                related = (Related("it is a mapping here", span),)
                help = "override the keys that differ, or write `null` to unset it"
                self.findings.append(
                    Diagnostic("LG204", "error", message, node.span, related, help)
                )
                return base
            case _:
                raise AssertionError((base, node))

    def woven(self, was: Scalar, node: Map, origin: Origin, path: tuple[str, ...]) -> Scalar:
        """The equations of a base with those of ``node`` in place of theirs, by the names that they give.

        A name that the base does not give is a new equation, before the first that reads it; null takes one away.
        """
        try:
            statements = parse_statements(was.text)
        except ExpressionError:  # is found where the base is checked
            return was
        edits: list[_Edit] = []
        reads = {s.extent[0]: _read(s) for s in statements}
        known = {*map(_given, statements)}
        # those of the base first, then new ones from the last to the first: each before what reads it
        entries = [e for e in node.entries if e[0].text in known]
        entries += [e for e in reversed(node.entries) if e[0].text not in known]
        for key, value in entries:
            try:
                edit = _edit(was.text, statements, reads, key.text, value)
            except ExpressionError as error:
                span = value.slice_span(*error.extent) if isinstance(value, Scalar) else value.span
                span = span if error.extent != NOWHERE else key.span
                related = (Related(f"the equations of {origin.spec_id}", origin.span),)
                message = f"`{'.'.join(path)}`: {error.message}"
                self.findings.append(
                    Diagnostic("LG206", "error", message, span, related, error.help)
                )
                continue
            edits.insert(0, edit)
            if edit[2] and edit[2] == was.text[edit[0] : edit[1]]:
                self.redundant(key, origin, (*path, key.text))
        text, at = "", 0
        pieces: list[tuple[int, Scalar, int]] = []
        for start, end, new, source, offset in sorted(edits, key=lambda edit: edit[0]):
            pieces += [(len(text), was, at)]
            text += was.text[at:start]
            pieces += [(len(text), source, offset)] if new else []
            text, at = text + new, end
        pieces.append((len(text), was, at))
        text += was.text[at:]
        return Woven(text, text, was.style, node.span, was.lines, tuple(pieces))

    def redundant(self, key: Key, origin: Origin, path: tuple[str, ...]) -> None:
        message = f"`{'.'.join(path)}` repeats the value that is inherited"
        related = (Related(f"inherited from {origin.spec_id}", origin.span),)
        help = "remove it: a spec states only what it changes"
        self.findings.append(Diagnostic("LG501", "note", message, key.span, related, help))


def _is_forward(path: tuple[str, ...]) -> bool:
    return len(path) == 3 and path[0] == "blocks" and path[2] == "forward"


NOWHERE = (-1, -1)
"""Extent of a fault that is in the key."""


_Edit: TypeAlias = tuple[int, int, str, Scalar, int]
"""What is put in place of ``text[start:end]``, and where that was written."""


def _given(statement: Statement) -> str:
    """The names that an equation gives, as an override of it writes them."""
    if isinstance(statement, Return):
        return "return"
    return ", ".join(target.id for target in statement.targets)


def _read(statement: Statement) -> set[str]:
    values = statement.values if isinstance(statement, Return) else (statement.value,)
    return {n.id for value in values for n in names(value)}


def _edit(
    text: str, statements: Sequence[Statement], reads: dict[int, set[str]], name: str, value: Node
) -> _Edit:
    """The override of the equation ``name``; ``reads`` has the names that are read from each place on, and is renewed.

    Raises ExpressionError, at the value or NOWHERE.
    """
    found = [s for s in statements if _given(s) == name]
    if len(found) > 1:
        help = "write the whole `forward`"
        raise ExpressionError(f"`{name}` is given {len(found)} times", NOWHERE, help)
    if not isinstance(value, Scalar) or not isinstance(value.value, str | None):
        raise ExpressionError("an equation is a text", NOWHERE, "quote it")
    if value.value is None:
        if not found or name == "return":
            known = ", ".join(map(_given, statements[:-1]))
            raise ExpressionError(f"there is no equation `{name}` to take away: {known}", NOWHERE)
        start, end = found[0].extent
        reads[start] = set()
        return start, end, "", value, 0
    new = value.text.strip()
    offset = value.text.index(new)
    lead = "return " if name == "return" else f"{name} = "
    try:
        first, *more = parse_statements(lead + new + ("" if name == "return" else "\nreturn _"))
    except ExpressionError as error:
        begin, end = (max(place - len(lead), 0) + offset for place in error.extent)
        raise ExpressionError(error.message, (begin, end), error.help) from None
    if len(more) > (name != "return"):
        raise ExpressionError("one equation for each name", (offset, offset + len(new)))
    if found:
        start, end = found[0].extent
        reads[start] = _read(first)
        head = len("return") if name == "return" else text.index("=", start) + 1 - start
        start += head + len(text[start + head : end]) - len(text[start + head : end].lstrip())
        return start, end, new, value, offset
    words = set(name.split(", "))
    before = min((at for at, read in reads.items() if words & read), default=max(reads))
    reads[before] = reads[before] | _read(first)
    indent = text[text.rfind("\n", 0, before) + 1 : before]
    return before, before, f"{lead}{new}\n{indent}", value, offset - len(lead)


def _text(node: Scalar | Seq) -> str:
    if isinstance(node, Scalar):
        return node.text
    return json.dumps(to_plain(node), ensure_ascii=False)


def tree_to_plain(tree: Branch) -> dict[str, Plain]:
    """The merged tree as plain data, without what was unset by ``null`` and the parts removed by ``none``."""
    kept: dict[str, Plain] = {}
    for name, below in tree.entries.items():
        special = name in ("blocks", "patterns")
        plain = _special_plain(below, (name,)) if special else value_to_plain(below)
        if plain is not None:
            kept[name] = plain
    return kept


def value_to_plain(tree: Tree) -> Plain:
    """A part of the tree as plain data; what is unset is left out."""
    if isinstance(tree, Leaf):
        return to_plain(tree.node)
    below = ((name, value_to_plain(value)) for name, value in tree.entries.items())
    return {name: plain for name, plain in below if plain is not None}


def _special_plain(tree: Tree, path: tuple[str, ...]) -> Plain:
    """As ``value_to_plain`` for blocks and patterns, where null can be a value and ``none`` removes a part."""
    if isinstance(tree, Leaf):
        plain = to_plain(tree.node)
        # `none` is the expression language's word for null; options take either.
        return None if _is_option(path) and plain == NONE else plain
    kept: dict[str, Plain] = {}
    for name, below in tree.entries.items():
        here = (*path, name)
        plain = _special_plain(below, here)
        if plain is None and not _is_option(here) and not _is_pattern_value(here):
            continue
        if plain == NONE and _is_part(here):
            continue
        kept[name] = plain
    return kept


def _is_option(path: tuple[str, ...]) -> bool:
    return len(path) == 4 and path[0] == "blocks" and path[2] == "options"


def _is_part(path: tuple[str, ...]) -> bool:
    return len(path) == 4 and path[0] == "blocks" and path[2] == "parts"


_PATTERN_VALUES = frozenset({"value", "otherwise", "default"})
"""Keys of a pattern whose value a layer can have, so that ``null`` is one and unsets nothing."""


def _is_pattern_value(path: tuple[str, ...]) -> bool:
    return len(path) == 3 and path[0] == "patterns" and path[2] in _PATTERN_VALUES
