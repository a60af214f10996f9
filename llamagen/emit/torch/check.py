"""What generated Python may contain, and running it. A second pair of eyes: text of a spec must never become code."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from llamagen import files
from llamagen.diagnostics import LlamagenError

IMPORTS = frozenset(
    {
        "json",
        "math",
        "collections.abc",
        "pathlib",
        "typing",
        "torch",
        "torch.nn.functional",
        "safetensors.torch",
    }
)

_NODES: tuple[type[ast.AST], ...] = (
    ast.Module, ast.Import, ast.ImportFrom, ast.alias, ast.ClassDef, ast.FunctionDef, ast.arguments, ast.arg,
    ast.Return, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For, ast.If, ast.With, ast.withitem, ast.Break,
    ast.Raise, ast.Expr, ast.Call, ast.keyword, ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Starred,
    ast.Constant, ast.JoinedStr, ast.FormattedValue, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.ListComp,
    ast.SetComp, ast.DictComp, ast.comprehension, ast.IfExp, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip
_NAMES = frozenset(
    {
        "bool", "cls", "dict", "float", "hasattr", "int", "isinstance", "iter", "len", "list", "max", "min", "next",
        "property", "classmethod", "enumerate", "range", "self", "set", "sorted", "str", "sum", "super", "tuple",
        "ValueError",
    }
)  # fmt: skip
_ATTRIBUTES = frozenset({"__init__"})


@dataclass(frozen=True, slots=True)
class Besides:
    """What another kind of file than `modeling.py` may have too."""

    imports: frozenset[str] = frozenset()
    """Of a file beside it with a dot before."""
    names: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()
    syntax: tuple[type[ast.AST], ...] = ()


_NOTHING = Besides()


def check_source(text: str, besides: Besides = _NOTHING) -> None:
    """Raises LlamagenError (LG742) when ``text`` has syntax, an import, a builtin or a dunder outside the list."""
    if not text.isascii():
        raise LlamagenError.of("LG742", "generated code must be ASCII")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        message = f"generated code does not parse, line {error.lineno}: {error.msg}"
        raise LlamagenError.of("LG742", message) from None
    nodes = list(ast.walk(tree))
    bound = _bound(nodes) | _NAMES | besides.names
    for node in nodes:
        problem = None if isinstance(node, besides.syntax) else _problem(node, bound, besides)
        if problem is not None:
            line = getattr(node, "lineno", 0)
            raise LlamagenError.of(
                "LG742", f"generated code, line {line}: {problem} is not allowed"
            )


def _bound(nodes: Sequence[ast.AST]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.arg(arg=name):
                names.add(name)
            case ast.alias(name=name, asname=asname):
                names.add(asname or name.partition(".")[0])
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case _:
                pass
    return names


def _problem(node: ast.AST, bound: set[str], besides: Besides) -> str | None:
    imports, attributes = IMPORTS | besides.imports, _ATTRIBUTES | besides.attributes
    match node:
        case ast.Import(names=aliases) if {a.name for a in aliases} - imports:
            return f"importing {', '.join(a.name for a in aliases)}"
        case ast.ImportFrom(module=module, level=level) if (
            "." * level + (module or "") not in imports
        ):
            return f"importing from {module}"
        case ast.Name(id=name, ctx=ast.Load()) if name not in bound:
            return f"the name `{name}`"
        case ast.Attribute(attr=name) if name.startswith("_") and name not in attributes:
            return f"the attribute `{name}`"
        case _ if not isinstance(node, _NODES):
            return f"{type(node).__name__}"
        case _:
            return None


def load_module(source: str | Path) -> ModuleType:
    """The module of a generated file, given its text or its path. Imports torch.

    The text passes the same allow-list as at emission first (LlamagenError LG742): what a spec could smuggle into it
    does not run. It is no sandbox for a file that somebody edited: torch reaches everything. The same text gives the
    same module object.
    """
    text = files.read_text(source, files.EXPORTED) if isinstance(source, Path) else source
    name = f"llamagen_generated_{sha256(text.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    check_source(text)
    module = ModuleType(name)
    module.__file__ = str(source) if isinstance(source, Path) else f"<{name}>"
    # torch.compile and dataclasses look a class's module up by name.
    sys.modules[name] = module
    try:
        exec(compile(text, module.__file__, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module
