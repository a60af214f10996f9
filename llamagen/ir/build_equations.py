"""Block equations to nodes, one statement after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamagen.ir.build_body import Body
from llamagen.ir.build_expressions import Expressions
from llamagen.ir.build_notes import with_notes
from llamagen.ir.build_parts import PartDeclaration
from llamagen.ir.build_site import RecordingScope, Site
from llamagen.ir.build_terms import Broken, Constant, Listed, Several, Tensor
from llamagen.ops.op import TensorType
from llamagen.ops.table import OPS
from llamagen.spec.evaluate import UnknownName
from llamagen.spec.expr import (
    Assign,
    ExpressionError,
    Extent,
    Name,
    Return,
    parse_statements,
)
from llamagen.spec.scope import expression_error

MAX_EQUATIONS = 400


class Equations:
    """The equations of one block under construction; what they made is in ``body`` and ``outputs``."""

    def __init__(
        self,
        site: Site,
        block: str,
        scope: RecordingScope,
        declarations: Mapping[str, PartDeclaration],
    ) -> None:
        self.site = site
        self.block = block
        self.body = Body(site, site.resolved.scalar("blocks", block, "forward"))
        self.expressions = Expressions(self.body, scope, declarations)
        self.outputs: list[str] = []
        self.assigned: dict[str, Extent] = {}

    def run(self, inputs: Sequence[str], types: Sequence[TensorType], forward: str) -> None:
        try:
            statements = parse_statements(forward)
            if len(statements) > MAX_EQUATIONS:
                raise ExpressionError(f"a block may have {MAX_EQUATIONS} equations", (0, 1))
            if len(inputs) != len(types):
                message = f"block `{self.block}` takes {', '.join(inputs)}: {len(inputs)} inputs"
                raise ExpressionError(f"{message}, not {len(types)}", (0, 1))
        except ExpressionError as error:
            self.report(error)
            return
        for name, type_ in zip(inputs, types, strict=True):
            self.expressions.names[name] = self.body.value(name, type_, named=True)
        for statement in statements:
            try:
                self.statement(statement)
            except ExpressionError as error:
                self.report(error)
                self.poison(statement)
            except Broken:
                self.poison(statement)
        self.find_unused(inputs)

    def report(self, error: ExpressionError) -> None:
        within = self.expressions
        known = dict.fromkeys(
            (*within.names, *within.declarations, *within.scope, *self.site.everywhere, *OPS)
        )
        code = "LG412" if isinstance(error, UnknownName) else "LG411"
        found = expression_error(code, self.body.text, error, known)
        notes = with_notes(found, self.site.resolved, self.block, error.extent)
        self.site.report(notes)

    def poison(self, statement: Assign | Return) -> None:
        if isinstance(statement, Assign):
            self.expressions.names.update({t.id: None for t in statement.targets})

    def find_unused(self, inputs: Sequence[str]) -> None:
        if any(term is None for term in self.expressions.names.values()) or not self.outputs:
            return
        for name, extent in self.assigned.items():
            if name not in self.expressions.read and name != "_":  # `_`: a result nobody wants
                self.report(ExpressionError(f"`{name}` is computed but never used", extent))
        if self.site.findings:
            return
        for name in self.expressions.declarations:
            if name not in self.body.parts:
                node = self.site.resolved.scalar("blocks", self.block, "parts", name)
                error = ExpressionError(f"part `{name}` is never called in `forward`", (0, 1))
                self.site.report(expression_error("LG413", node, error, {}))
        for name in inputs:
            if name not in self.expressions.read:
                self.report(ExpressionError(f"input `{name}` is never used", (0, 1)))

    def statement(self, statement: Assign | Return) -> None:
        if isinstance(statement, Return):
            terms = [self.expressions.tensor(value) for value in statement.values]
            if any(t.id.startswith("@") for t in terms):
                raise ExpressionError("a block returns values that it computes", statement.extent)
            self.outputs = [t.id for t in terms]
            return
        term = self.expressions.term(statement.value)
        targets = statement.targets
        for target in targets:
            self.check_target(target)
        if len(targets) == 1:
            if isinstance(term, Several):
                count = len(term.items)
                message = f"{count} results need {count} names, here is one"
                raise ExpressionError(message, statement.extent)
            self.bind(targets[0], term)
            return
        if not isinstance(term, Several) or len(term.items) != len(targets):
            count = len(term.items) if isinstance(term, Several) else 1
            raise ExpressionError(f"{len(targets)} names for {count} results", statement.extent)
        for target, item in zip(targets, term.items, strict=True):
            self.bind(target, item)

    def check_target(self, target: Name) -> None:
        clash = next(
            (
                what
                for what, names in (
                    ("a part", self.expressions.declarations),
                    ("a hyperparameter, constant, pattern or option", self.expressions.scope),
                    ("known everywhere", self.site.everywhere),
                )
                if target.id in names
            ),
            None,
        )
        if clash:
            raise ExpressionError(f"`{target.id}` is {clash}: choose another name", target.extent)

    def bind(self, target: Name, term: Tensor | Constant | Listed) -> None:
        self.assigned[target.id] = target.extent
        self.expressions.read.discard(target.id)
        if isinstance(term, Tensor) and term.id.startswith("%"):
            term = self.body.rename(term, target.id)
        if isinstance(term, Listed):
            fresh = [t for t in term.items if t.id.startswith("%")]
            made = {t.id: self.body.rename(t, target.id) for t in fresh}
            term = Listed(tuple(made.get(t.id, t) for t in term.items))
        self.expressions.names[target.id] = term
