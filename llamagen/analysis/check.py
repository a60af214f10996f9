"""Every finding about a set of specs, all at once: resolved, built and linted.

Lint rules are data (spec/rules/lint.yaml); this file only says what they can see.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, StringConstraints

from llamagen.analysis.numbers import (
    behind,
    count_parameters,
)
from llamagen.analysis.sources import known_sources, matches, source_of, uncertain
from llamagen.analysis.tables import fill, holds, hyperparameter_scope, load_table
from llamagen.diagnostics import Diagnostic, LlamagenError, Span
from llamagen.files import is_folder
from llamagen.ir.elaborate import LETTERS, build_all
from llamagen.ir.graph import MAIN, Block, Graph, Node, OpPart, places
from llamagen.ir.pipeline import pipeline_of
from llamagen.ir.shard import plan
from llamagen.ir.verify import all_used
from llamagen.ops.op import Role, State, a_int
from llamagen.spec.expr import Static
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import Closed
from llamagen.spec.source import to_plain

_UNSOURCED = "LG510"
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What ``check`` found; ``specs`` counts the files that were looked at."""

    specs: int
    findings: tuple[Diagnostic, ...]

    @property
    def clean(self) -> bool:
        """Notes are not findings."""
        return all(one.severity == "note" for one in self.findings)


Backend: TypeAlias = Callable[[Mapping[str, Graph]], object]
"""Raises LlamagenError for graphs that it cannot express."""


def check(
    targets: Sequence[str | Path] = (),
    roots: Sequence[Path] = (),
    *,
    notes: bool = False,
    backend: Backend | None = None,
) -> CheckReport:
    """Every finding about ids, YAML files and folders; without targets about all shipped specs, and those of ``roots``.

    Notes (hints that are no findings) are left out unless asked for. What ``backend`` refuses is a finding too. Raises
    LlamagenError LG201 for a target that does not exist; faults of specs are in the report.
    """
    registry = Registry(roots)
    paths = _paths(registry, [str(target) for target in targets])
    findings: dict[Diagnostic, None] = {}
    graphs: dict[str, Graph | None] = {}
    for path in paths:
        findings.update(dict.fromkeys(_findings(partial(registry.load, path), graphs, backend)))
    kept = (one for one in findings if notes or one.severity != "note")
    return CheckReport(len(paths), tuple(kept))


def check_text(text: str, name: str) -> CheckReport:
    """The same about one spec that is given as YAML text; ``name`` stands for its file. Notes are there."""
    found = dict.fromkeys(_findings(lambda: Registry().load_text(text, name), {}))
    return CheckReport(1, tuple(found))


def _findings(
    load: Callable[[], ResolvedSpec],
    graphs: dict[str, Graph | None],
    backend: Backend | None = None,
) -> Iterator[Diagnostic]:
    """``graphs`` has those of the wirings that were looked at, by their digest."""
    try:
        resolved = load()
        yield from resolved.warnings
        # rules about the wiring see the same places in every variant of an architecture
        first = resolved.digest not in graphs
        if first:
            # every graph is built; what cannot be built by itself has none
            concrete = not resolved.spec.abstract and resolved.spec.root is not None
            several = build_all(resolved) if concrete else {}
            pipeline_of(several)
            if several and backend is not None:
                for message, span in all_used(several[MAIN]):
                    raise LlamagenError.of("LG420", message, span)
                backend(several)
            graphs[resolved.digest] = several.get(MAIN)
        yield from _lint(resolved, graphs[resolved.digest], wiring=first)
    except LlamagenError as error:
        yield from error.diagnostics


def _lint(resolved: ResolvedSpec, graph: Graph | None, *, wiring: bool) -> Iterator[Diagnostic]:
    # a file that states no source at all does not keep sources; the shipped ones all do
    keep = {
        origin.span.file
        for path, leaf in resolved.leaves
        if path.startswith("provenance.")
        for origin in leaf.origins
    }
    for one in lint(resolved, graph, wiring=wiring):
        if one.code != _UNSOURCED or (one.span is not None and one.span.file in keep):
            yield one


def _paths(registry: Registry, targets: Sequence[str]) -> tuple[Path, ...]:
    names: Iterable[str] = targets or registry.ids(sketches=True)
    missing: list[Diagnostic] = []
    paths: dict[Path, None] = {}
    for name in names:
        try:
            paths.update(dict.fromkeys(_expand(registry, name)))
        except LlamagenError as error:
            missing.extend(error.diagnostics)
    if missing:
        raise LlamagenError(missing)
    return tuple(paths)


def _expand(registry: Registry, target: str) -> Iterator[Path]:
    folder = Path(target)
    if target.endswith(_SUFFIXES) or not is_folder(folder):
        yield registry.locate(target)
        return
    # not rglob, which fails where another writer removes a folder meanwhile; a pipe is a finding
    every = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
    below = sorted(p for p in every if p.suffix in _SUFFIXES)
    if not below:
        help = "a checkpoint folder is checked with `--as ID`"
        raise LlamagenError.of("LG201", f"the folder `{target}` has no specs (*.yaml)", help=help)
    yield from below


# lint

Subject = Literal["model", "value", "provenance", "attention", "linear", "token", "release"]

_WIRING: frozenset[Subject] = frozenset({"model", "attention", "linear"})


class Case(Closed):
    """YAML laid over the test model (tests/unit/analysis): what fires the rule, and what does not."""

    fires: str
    silent: str


class LintRule(Closed):
    """One rule. ``over`` is what it looks at one by one; ``when`` is true where it finds something."""

    title: str
    severity: Literal["warning", "note"]
    over: Subject
    when: str
    message: str
    help: str
    explanation: str
    place: str | None = Field(
        default=None, description="Dotted path the finding points at; default: the subject."
    )
    case: Case


RuleId = Annotated[str, StringConstraints(pattern=r"^LG5[0-9]{2}$")]


class LintRules(Closed):
    version: Literal[1]
    rules: dict[RuleId, LintRule]


def lint_rules() -> dict[str, LintRule]:
    """Every rule by id, in the order of the file."""
    return dict(load_table("rules/lint.yaml", LintRules).rules)


def lint(
    resolved: ResolvedSpec, graph: Graph | None = None, *, wiring: bool = True
) -> tuple[Diagnostic, ...]:
    """Findings of all rules, by place and id. Without a graph (abstract specs) rules about the wiring rest.

    They also rest without ``wiring``, for a graph whose findings another spec has already got.
    """
    findings: list[Diagnostic] = []
    subjects = _Subjects(resolved, graph)
    for rule_id, rule in lint_rules().items():
        if rule.over in _WIRING and not wiring:
            continue
        seen: set[tuple[str, Span | None]] = set()
        for scope, span in subjects.of(rule.over):
            if not holds(rule.when, scope):
                continue
            place = resolved.place(*rule.place.split(".")) if rule.place is not None else span
            message = fill(rule.message, scope)
            if (message, place) in seen:
                continue
            seen.add((message, place))
            help = fill(rule.help, scope)
            findings.append(Diagnostic(rule_id, rule.severity, message, place, (), help))
    return tuple(sorted(findings, key=lambda f: (f.span or Span("", 0, 0), f.code, f.message)))


Scoped = Iterator[tuple[dict[str, Static], Span | None]]

_SOURCED = ("hyperparameters", "constants", "patterns")
_RECORD = ("provenance.", "release.", "training.")
_NAME = re.compile(r"[A-Za-z_]\w*")


class _Subjects:
    """Scopes of the rules. Names are documented in spec/rules/lint.yaml."""

    def __init__(self, resolved: ResolvedSpec, graph: Graph | None) -> None:
        self.resolved = resolved
        self.graph = graph
        self.base = hyperparameter_scope(resolved)
        self.kinds: dict[Subject, Callable[[], Scoped]] = {
            "model": self.model,
            "value": self.values,
            "provenance": self.provenance,
            "attention": self.attentions,
            "linear": self.linears,
            "token": self.tokens,
            "release": self.release,
        }
        self.known: dict[Subject, list[tuple[dict[str, Static], Span | None]]] = {}

    def of(self, subject: Subject) -> Scoped:
        """The subjects of one kind, computed once for all rules."""
        if subject not in self.known:
            self.known[subject] = list(self.kinds[subject]())
        return iter(self.known[subject])

    def model(self) -> Scoped:
        if self.graph is None:
            return
        report = count_parameters({MAIN: self.graph})
        attentions = [scope for scope, _ in self.of("attention")]
        yield (
            {
                **self.base,
                "params": report.total,
                "active_params": report.active,
                "tp_degrees": plan(self.graph).degrees,
                "attention_layers": len(attentions),
                "rope_layers": sum(1 for a in attentions if a["rotated"]),
                "placed": any(map(_is_placed, self.graph.blocks.values())),
                "local_layers": sum(1 for a in attentions if a["reach"] is not None),
            },
            self.resolved.place("hyperparameters"),
        )

    def values(self) -> Scoped:
        if self.resolved.spec.abstract:
            return
        release = self.resolved.spec.release
        sketch = release is not None and release.status == "sketch"
        doubts = uncertain(self.resolved)
        wiring = (leaf for path, leaf in self.resolved.leaves if not path.startswith(_RECORD))
        words = {word for leaf in wiring for word in _NAME.findall(str(to_plain(leaf.node)))}
        words |= {name for letter, name in LETTERS.items() if letter in words}
        for path, leaf in self.resolved.leaves:
            section = path.split(".", 1)[0]
            if section in _SOURCED:
                source = source_of(self.resolved, path)
                scope: dict[str, Static] = {
                    "path": path,
                    "section": section,
                    "text": leaf.origins[-1].text,
                    "source": source,
                    "written_in": leaf.origins[-1].spec_id,
                    "own": leaf.origins[-1].spec_id == self.resolved.spec.id,
                    "read": path.removeprefix(f"{section}.").partition(".")[0]
                    in {"max_positions", *words},
                    "sketch": sketch,
                    "doubted": any(matches(doubt.path, path) for doubt in doubts),
                }
                yield scope, leaf.node.span

    def provenance(self) -> Scoped:
        paths = [path for path, _ in self.resolved.leaves]
        known = known_sources()
        for glob, source in self.resolved.spec.provenance.items():
            entry = self.resolved.leaf("provenance", glob)
            if entry is None or entry.origins[-1].spec_id != self.resolved.spec.id:
                continue
            key = source.split("#", 1)[0].split(" ", 1)[0].rstrip(":,;")
            scope: dict[str, Static] = {
                "glob": glob,
                "source": source,
                "key": key,
                "known": key in known,
                "covers": sum(1 for path in paths if matches(glob, path)),
                "abstract": self.resolved.spec.abstract,
            }
            yield scope, entry.node.span

    def attentions(self) -> Scoped:
        if self.graph is None:
            return
        done: dict[tuple[str, int], dict[str, Static]] = {}
        for here in places(self.graph, Role.ATTENTION):
            key = (here.block.name, id(here.node))
            if key not in done:
                done[key] = self.attention(self.graph, here.block, here.node)
            yield {**done[key], "path": here.path}, here.node.span

    def attention(self, graph: Graph, block: Block, node: Node) -> dict[str, Static]:
        """All that a rule may ask of an attention op but its path."""
        q, k, v = graph.operand_types(block, node)[:3]
        back = {name: behind(block, node.operands[i]) for i, name in enumerate("qkv")}
        producers = {r: n for n in block.nodes for r in n.results}
        rows = {n: [producers[v].row for v in back[n] if v in producers] for n in "qkv"}
        rotated = {n: any(row.role is Role.ROTATION for row in rows[n]) for n in "qk"}
        # keys of another layer are what they are there: cached, and rotated as these queries are
        handed = not any(row.role is Role.LINEAR or row.state is State.SLOT for row in rows["k"])
        handed = handed and any(one.id in back["k"] for one in block.inputs)
        mask = graph.mask_of(node)
        return {
            **self.base,
            "predicts": "logits" in graph.output_names,
            "heads": q.shape[1].value,
            "kv_heads": k.shape[1].value,
            "key_dim": k.shape[3].value,
            "value_dim": v.shape[3].value,
            "masked": len(node.operands) > 3 and (mask is None or "padding" not in mask.attrs),
            "cached": handed or any(row.state is State.SLOT for row in rows["k"]),
            "rotated": rotated["q"] and (rotated["k"] or handed),
            "rotated_query_only": rotated["q"] and not (rotated["k"] or handed),
            "reach": min((n for n in graph.limits(node) if n is not None), default=None),
        }

    def tokens(self) -> Scoped:
        tokens = self.resolved.spec.tokenizer
        if tokens is None or self.graph is None:
            return
        rows = [
            parameter.shape[0]
            for block in self.graph.blocks.values()
            for part in block.parts.values()
            if isinstance(part, OpPart) and part.row.role is Role.EMBEDDING
            for parameter in part.parameters
        ]
        named = [
            ("bos_id", tokens.bos_id, ("bos_id",)),
            *(("eos_ids", one, ("eos_ids",)) for one in tokens.eos_ids),
            ("pad_id", tokens.pad_id, ("pad_id",)),
            *((n, one, ("special_tokens", n)) for n, one in tokens.special_tokens.items()),
        ]
        for name, one, path in named:
            if one is not None and rows:
                leaf = self.resolved.leaf("tokenizer", *path)
                own = leaf is not None and leaf.origins[-1].spec_id == self.resolved.spec.id
                scope: dict[str, Static] = {"name": name, "id": one, "rows": max(rows), "own": own}
                yield scope, self.resolved.place("tokenizer", *path)

    def release(self) -> Scoped:
        """The repository that a spec claims as its own publication."""
        repo = self.resolved.leaf("release", "repo")
        if repo is None or self.resolved.spec.abstract:
            return
        writer = repo.origins[-1].spec_id
        yield (
            {
                "repo": repo.origins[-1].text,
                "written_in": writer,
                "own": writer == self.resolved.spec.id,
            },
            self.resolved.place("extends") or self.resolved.place("id"),
        )

    def linears(self) -> Scoped:
        if self.graph is None:
            return
        for block in self.graph.blocks.values():
            for part in block.parts.values():
                if isinstance(part, OpPart) and part.row.role is Role.LINEAR:
                    scope: dict[str, Static] = {
                        "part": part.name,
                        "block": block.definition,
                        "in_features": a_int(part.attrs, "in_features"),
                        "out_features": a_int(part.attrs, "out_features"),
                        "bias": part.attrs["bias"] is True,
                    }
                    yield scope, part.span


_OF_POSITIONS = (Role.ROPE_TABLE, Role.MASK, Role.TEMPERATURE)


def _is_placed(block: Block) -> bool:
    """Whether tokens have positions there without a rotation: learned ones, or a bias of the scores by distance."""
    return any(
        node.attrs.get("alibi") is True
        or ("@positions" in node.operands and node.row.role not in _OF_POSITIONS)
        for node in block.nodes
    )
