"""Graph -> the text of one standalone PyTorch file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from llamagen.emit.torch.check import check_source
from llamagen.emit.torch.classes import ClassView, class_view
from llamagen.emit.torch.names import docstring_text
from llamagen.emit.torch.plan import ExpertsView, Extra, NormView, Plan, make_plan
from llamagen.emit.torch.prelude import Prelude
from llamagen.emit.torch.root import RootView, root_view
from llamagen.ir.graph import Graph
from llamagen.ops.code import WIDTH, Text, call, literal, signature, statement
from llamagen.resources import templates

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True, slots=True)
class AttentionView:
    """Which attention functions the file has, and what they take."""

    sdpa: bool
    eager: bool
    full: bool
    grouped: bool
    extras: tuple[Extra, ...]
    plain: bool
    unmasked: bool

    def has(self, name: str) -> bool:
        return any(e.name == name for e in self.extras)

    def always(self, name: str) -> bool:
        return any(e.name == name and e.always for e in self.extras)

    def signature(self, name: str) -> str:
        parameters = ["q_BNSH: Tensor", "k_BKTH: Tensor", "v_BKTH: Tensor"]
        if name != "full_attention":
            parameters.append(f"mask: {self.mask}")
        parameters += [e.parameter for e in self.extras]
        return "\n".join(signature(name, parameters, "Tensor", 0))

    @property
    def mask(self) -> str:
        return "Tensor | None" if self.may_be_none else "Tensor"

    @property
    def may_be_none(self) -> bool:
        """Two implementations: no mask means that a kernel knows it; one: that nothing is hidden."""
        return self.plain if self.sdpa else self.unmasked

    @property
    def type(self) -> str:
        """The parameter types of ``Attend``."""
        return "..." if self.extras else f"[Tensor, Tensor, Tensor, {self.mask}]"

    @property
    def fused(self) -> list[str]:
        """The call of torch's kernel with a mask."""
        given = [
            "mask",
            *(["is_causal=S > 1 and mask is None"] if self.plain else []),
            *self.options,
        ]
        return self._kernel(given)

    @property
    def full_kernel(self) -> list[str]:
        return self._kernel(self.options)

    @property
    def options(self) -> list[str]:
        scale = ["scale=scale"] if self.has("scale") else []
        return [*scale, *(["enable_gqa=True"] if self.grouped else [])]

    @property
    def scale_keyword(self) -> str:
        return ", scale=scale" if self.has("scale") else ""

    def _kernel(self, given: list[str]) -> list[str]:
        arguments = [Text(a) for a in ("q_BNSH", "k_BKTH", "v_BKTH", *given)]
        return statement("return ", call("F.scaled_dot_product_attention", *arguments), 1)

    @property
    def scale(self) -> str:
        return "scale" if self.has("scale") else "q_BNSH.shape[-1] ** -0.5"


@dataclass(frozen=True, slots=True)
class FileView:
    """Everything the template prints."""

    spec_id: str
    constants: tuple[tuple[str, str], ...]
    prelude: Prelude
    attention: AttentionView
    helpers: frozenset[str]
    norms: tuple[NormView, ...]
    experts: tuple[ExpertsView, ...]
    classes: tuple[ClassView, ...]
    root: RootView
    elsewhere: tuple[str, ...]
    """How names of weights begin that belong to other graphs of the model."""

    @property
    def numbered(self) -> bool:
        """Whether layers of one stack are in several graphs."""
        return any(".N." in start for start in self.elsewhere)

    @property
    def not_elsewhere(self) -> str:
        name = "any_layer(name)" if self.numbered else "name"
        return f"not {name}.startswith(ELSEWHERE)"

    @property
    def elsewhere_lines(self) -> list[str]:
        starts = [literal(start).text for start in self.elsewhere]
        line = f"ELSEWHERE = ({', '.join(starts)}{',' * (len(starts) == 1)})"
        if len(line) <= WIDTH:
            return [line]
        return ["ELSEWHERE = (", *(f"    {start}," for start in starts), ")"]

    @property
    def uses_math(self) -> bool:
        return any("math." in line for r in self.prelude.ropes for line in r.scaled)

    @property
    def collections(self) -> str:
        names = ["Callable"] if self.attention.sdpa else []
        names += ["Collection"] if self.root.generates else []
        names += ["Iterator"] if self.root.reads_cross else []
        names += ["Sequence"] if self.root.caches or self.root.staged else []
        return ", ".join(names)


def file_view(graph: Graph, elsewhere: Sequence[str] = ()) -> FileView:
    """Raises LlamagenError (LG740, LG741) for what cannot be a PyTorch module."""
    plan = make_plan(graph)
    classes = _classes(plan)
    root = root_view(plan)
    return FileView(
        spec_id=docstring_text(graph.spec_id),
        constants=plan.constants.lines(),
        prelude=plan.prelude,
        attention=_attention(plan),
        helpers=frozenset(plan.helpers),
        norms=tuple(plan.norms.values()),
        experts=tuple(plan.experts.values()),
        classes=classes,
        root=root,
        elsewhere=tuple(elsewhere),
    )


def _classes(plan: Plan) -> tuple[ClassView, ...]:
    """Blocks that differ in shapes alone read the same: one class is enough. Those below come first."""
    kept: dict[tuple[str, ClassView], ClassView] = {}
    for block in plan.graph.blocks.values():
        if block.name != plan.graph.root:
            view = class_view(plan, block)
            first = kept.setdefault((block.definition, replace(view, name="")), view)
            plan.names[block.name] = first.name
    return tuple(kept.values())


def _attention(plan: Plan) -> AttentionView:
    return AttentionView(
        sdpa=plan.choice,
        eager=plan.masked or plan.special,
        full="full_attention" in plan.helpers,
        grouped=plan.grouped,
        extras=plan.extras,
        plain=any(m.plain for m in plan.prelude.masks),
        unmasked=plan.unmasked,
    )


@cache
def _environment() -> Environment:
    return templates("torch")


def emit_torch(graph: Graph, elsewhere: Sequence[str] = ()) -> str:
    """A Python file that defines the model, standalone but for torch: same graph, same bytes.

    ``elsewhere`` are beginnings of names in a checkpoint that other graphs of the model read (``names_elsewhere``).
    The text is parsed again and checked against an allow-list of syntax (check.py). Raises LlamagenError.
    """
    text = _environment().get_template("modeling.py.j2").render(view=file_view(graph, elsewhere))
    if " F." not in text and "(F." not in text:  # known when every body is printed
        text = text.replace("import torch.nn.functional as F\n", "")
    check_source(text)
    return text
