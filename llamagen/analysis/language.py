"""`llamagen explain language`: the whole language of specs on one page, from the tables that read it."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator

from pydantic import BaseModel

from llamagen.ir.elaborate import AMBIENT, GRAPH_INPUTS, LETTERS, SPELLINGS
from llamagen.ops.dims import RUN_TIME
from llamagen.ops.rope import ROPE_KINDS
from llamagen.ops.table import OPS
from llamagen.spec.expr import FUNCTIONS, SIGNATURES
from llamagen.spec.schema import (
    AtPattern,
    BlockDefinition,
    CheckpointNaming,
    ConfigMapping,
    CyclePattern,
    EveryPattern,
    GraphDefinition,
    Hyperparameters,
    ListPattern,
    NameRule,
    NamingLayout,
    Spec,
)

WIDTH = 110

OPERATORS = """\
a if test else b      either of two, both may be ops; where(test, a, b) picks by place
or  and  not          of truth values, of tensors too
==  !=  <  <=  >  >=  of tensors too, by place; in  not in
+  -                  of tensors too, with broadcasting
*  /  @               of tensors too, @ is the product of matrices; // and % of numbers
-x                    of tensors too
**                    of tensors too
f(x, key=value)  a.b  a[i]  [a, b]  1  2.5  1.0e-5  'text'  true  false  none\
"""
"""Loosest first."""


def language() -> str:
    """Keys of a spec, patterns, blocks, equations, names in scope, functions, ops, graphs, config, checkpoints."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield from _words(
        "A spec is a YAML file, one model. It extends another (`extends: llama/3.2/1b`, or a path) and says what "
        "is different, or stands by itself: `spec`, `id`, `hyperparameters`, `root` and `blocks` are a model. "
        "Mappings are merged key by key, anything else is replaced; `null` takes away what a base has; its equations "
        "read such a hyperparameter as none."
    )
    yield from _section("Keys of a spec", _keys(Spec))
    yield from _section(
        "hyperparameters: numbers by the field's standard names", _keys(Hyperparameters)
    )
    yield from _section(
        f"rope: a mapping with `kind` ({', '.join(ROPE_KINDS)}), `theta` and what the kind takes",
        (
            line
            for name, kind in ROPE_KINDS.items()
            for line in _words(f"{name}: {kind.doc}", "  ", "      ")
        ),
    )
    yield from _section("patterns: a value a layer, by name; four ways to write one", _patterns())
    yield from _section("blocks: name -> definition", _keys(BlockDefinition))
    yield from _section("Equations (`forward`), one a line", _equations())
    yield from _section(
        "Expressions, in equations, parts, invariants and `config`; loosest first", _code(OPERATORS)
    )
    yield from _section(
        "Functions of numbers, texts and lists; many are ops of tensors too",
        (f"  {SIGNATURES[name]}" for name in FUNCTIONS),
    )
    yield from _section(
        "Ops; `llamagen explain NAME` has operands, attributes and the formula", _ops()
    )
    yield from _section(
        "graphs: further graphs beside `root`, for images and what joins them",
        _keys(GraphDefinition),
    )
    yield from _section(
        "config: how a config.json says the same, for import, export and checks",
        _keys(ConfigMapping),
    )
    yield from _section("checkpoint: how stored names become part names", _keys(CheckpointNaming))
    yield from (
        "",
        "  a layout:",
        *_keys(NamingLayout, "    "),
        "",
        "  a rule:",
        *_keys(NameRule, "    "),
    )


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    yield from ("", "", title, "-" * len(title), "")
    yield from lines


def _keys(model: type[BaseModel], indent: str = "  ") -> Iterator[str]:
    fields = model.model_fields
    names = {key: field.alias or key for key, field in fields.items()}
    width = max(map(len, names.values()))
    for key, field in fields.items():
        needed = "" if not field.is_required() else " Required."
        said = (field.description or "").strip() + needed
        yield from _words(said, f"{indent}{names[key].ljust(width)}  ", indent + " " * (width + 2))


def _patterns() -> Iterator[str]:
    examples = {
        CyclePattern: "kinds: {cycle: [local, local, global]}",
        ListPattern: "dropped: {list: [true, false]}",
        EveryPattern: "experts: {every: 2, value: true, otherwise: false}",
        AtPattern: "kinds: {default: local, at: {global: [5, 11]}}",
    }
    for pattern, example in examples.items():
        yield from (f"  {example}", *_words(inspect.getdoc(pattern) or "", "      "))
    yield from ("", *_words("`kinds[layer]` reads one in the second argument of a `stack`.", "  "))


def _equations() -> Iterator[str]:
    yield from (
        "  h = part(x)             a tensor by name; each name is given once",
        "  values, index = topk(x, k=2)",
        "  return h, values        the last line",
        "  # a remark",
        "",
    )
    ambient = ", ".join(f"`{name}`" for name in AMBIENT)
    inputs = ", ".join(f"`{name}`" for name in GRAPH_INPUTS)
    names = (
        "Names in scope: the block's `inputs` and `options`; its parts, which are called; tensors of earlier "
        f"equations; hyperparameters, constants and patterns; {ambient}; and the inputs that the graph declares. "
        f"The root's inputs are {inputs}. Sizes that are known at run time have names in shapes, "
        f"`reshape(x, shape=[B, S, num_heads, head_dim])`: {', '.join(RUN_TIME)} stand for batch, new tokens, all "
        f"tokens, images. {', '.join(f'{k} is `{n}`' for k, n in LETTERS.items())} there. An axis may be named by its "
        "size, `softmax(x, axis=T)`, where one axis has it; `einsum` names all."
    )
    yield from _words(names, "  ")
    whole = "What is known without a tensor is computed when the graph is built, and may choose parts and shapes."
    yield from _words(whole, "  ")


def _ops() -> Iterator[str]:
    shown = [op for op in OPS.values() if not op.internal]
    width = max(len(op.name) for op in shown)
    for title, of_parts in (
        ("Parts, declared under `parts`:", True),
        ("Called in equations:", False),
    ):
        yield from (f"  {title}", "")
        for op in shown:
            if op.is_part == of_parts:
                doc = op.doc.replace("``", "`")
                yield from _words(doc, f"  {op.name.ljust(width)}  ", " " * (width + 4))
        yield ""
    yield "  Called in equations and parts, each for several ops:"
    for spelling in SPELLINGS.values():
        yield from ("", f"  {spelling.signature}", *_words(spelling.doc, "      "))


def _code(text: str) -> Iterator[str]:
    return (f"  {line}".rstrip() for line in text.rstrip("\n").splitlines())


def _words(text: str, first: str = "", rest: str | None = None) -> list[str]:
    following = first if rest is None else rest
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=following) or [first]
