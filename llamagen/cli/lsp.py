"""`llamagen lsp`: a language server for specs over stdio, by pygls: the checker, the table of ops, and the places that
a resolved spec knows, as an editor asks for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llamagen.analysis.check import check_text
from llamagen.analysis.explain import explain_named, explain_value
from llamagen.diagnostics import Diagnostic, LlamagenError, Span
from llamagen.ir.elaborate import SPELLINGS, build
from llamagen.ir.graph import OpPart
from llamagen.ops.table import OPS
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import Hyperparameters

try:
    from lsprotocol import types as lsp
    from pygls.lsp.server import LanguageServer
    from pygls.workspace import TextDocument
except ImportError:
    help = "`pip install 'llamagen[lsp]'`"
    raise LlamagenError.of("LG901", "`llamagen lsp` needs pygls", help=help) from None

_SEVERITIES = {
    "error": lsp.DiagnosticSeverity.Error,
    "warning": lsp.DiagnosticSeverity.Warning,
    "note": lsp.DiagnosticSeverity.Information,
}
_PLAIN = lsp.MarkupKind.PlainText
_EXTENDS = re.compile(r"^extends:\s*(\S*)")
_WORD = re.compile(r"[A-Za-z_][\w]*")
_BLOCK = re.compile(r"^  (\w+):\s*(#.*)?$")
_SECTIONS = ("hyperparameters", "constants", "patterns")


def serve() -> None:
    """Serve an editor: findings while one types, completion, hovers and definitions, over stdio."""
    server().start_io()


def server() -> LanguageServer:
    editor = LanguageServer("llamagen", "v1", text_document_sync_kind=lsp.TextDocumentSyncKind.Full)
    last: dict[str, ResolvedSpec] = {}
    """By address of a document, what it meant when it could last be read: a line that is half written has no tree."""

    def look(uri: str) -> None:
        document = editor.workspace.get_text_document(uri)
        found = check_text(document.source, _file(document))
        with suppress(LlamagenError):  # it is among the findings
            last[uri] = Registry().load_text(document.source, _file(document))
        shown = [_shown(document, one) for one in found.findings]
        editor.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(uri, shown))

    @editor.feature(lsp.TEXT_DOCUMENT_DID_OPEN)
    def opened(asked: lsp.DidOpenTextDocumentParams) -> None:
        look(asked.text_document.uri)

    @editor.feature(lsp.TEXT_DOCUMENT_DID_CHANGE)
    def changed(asked: lsp.DidChangeTextDocumentParams) -> None:
        look(asked.text_document.uri)

    def cursor(asked: lsp.CompletionParams | lsp.HoverParams | lsp.DefinitionParams) -> Cursor:
        document = editor.workspace.get_text_document(asked.text_document.uri)
        at = document.position_codec.position_from_client_units(document.lines, asked.position)
        return Cursor(document, at.line, at.character, last.get(document.uri))

    @editor.feature(lsp.TEXT_DOCUMENT_COMPLETION, lsp.CompletionOptions(trigger_characters=["/"]))
    def completed(asked: lsp.CompletionParams) -> list[lsp.CompletionItem]:
        return list(_offers(cursor(asked)))

    @editor.feature(lsp.TEXT_DOCUMENT_HOVER)
    def hovered(asked: lsp.HoverParams) -> lsp.Hover | None:
        said = _words(cursor(asked))
        return None if said is None else lsp.Hover(lsp.MarkupContent(_PLAIN, said))

    @editor.feature(lsp.TEXT_DOCUMENT_DEFINITION)
    def defined(asked: lsp.DefinitionParams) -> lsp.Location | None:
        at = cursor(asked)
        place = _definition(at)
        return None if place is None else _location(at.document, place)

    return editor


# a document


def _file(document: TextDocument) -> str:
    path = unquote(urlsplit(document.uri).path)
    return path or document.uri


def _range(document: TextDocument, span: Span) -> lsp.Range:
    """Lines and columns of a span count from 1, in characters; an editor's from 0, in its own units."""
    lines = document.lines
    start = lsp.Position(span.line - 1, span.col - 1)
    end = lsp.Position(span.end_line - 1, span.end_col - 1)
    return document.position_codec.range_to_client_units(lines, lsp.Range(start, end))


def _shown(document: TextDocument, found: Diagnostic) -> lsp.Diagnostic:
    message, span = found.message, found.span
    if span is None or span.file != _file(document):  # of a base: said where the text begins
        message = f"{span}: {message}" if span else message
        span = Span(_file(document), 1, 1)
    if found.help:
        message += f"\nhelp: {found.help}"
    severity = _SEVERITIES[found.severity]
    where = _range(document, span)
    return lsp.Diagnostic(where, message, severity=severity, code=found.code, source="llamagen")


def _location(document: TextDocument, span: Span) -> lsp.Location:
    if span.file == _file(document):
        return lsp.Location(document.uri, _range(document, span))
    other = TextDocument(Path(span.file).resolve().as_uri(), position_codec=document.position_codec)
    return lsp.Location(other.uri, _range(other, span))


@dataclass(frozen=True)
class Cursor:
    """A place in a document, counted from 0, and what the document last meant."""

    document: TextDocument
    line: int
    column: int
    spec: ResolvedSpec | None

    @property
    def text(self) -> str:
        lines = self.document.lines
        return lines[self.line] if self.line < len(lines) else ""

    @property
    def word(self) -> str:
        words = _WORD.finditer(self.text)
        return next((w[0] for w in words if w.start() <= self.column <= w.end()), "")

    @property
    def base(self) -> str | None:
        """The id behind ``extends:``, where that is the line."""
        match = _EXTENDS.match(self.text)
        return match[1].strip("'\"") if match else None

    @property
    def block(self) -> str | None:
        """The block whose parts or equations the line is among."""
        for line in reversed(self.document.lines[: self.line + 1]):
            if match := _BLOCK.match(line):
                return match[1]
            if line[:1].strip() and not line.startswith("#"):
                return None
        return None


# answers


def _offers(at: Cursor) -> Iterator[lsp.CompletionItem]:
    kinds, spec = lsp.CompletionItemKind, at.spec
    if at.base is not None:
        for one in Registry().ids(sketches=True):
            yield lsp.CompletionItem(one, kind=kinds.File)
        return
    for op in OPS.values():
        if not op.internal:
            operands = ", ".join((*op.operands, *(f"[{name}]" for name in op.optional_operands)))
            detail = f"{op.name}({operands})"
            yield lsp.CompletionItem(
                op.name, kind=kinds.Function, detail=detail, documentation=op.doc
            )
    for name, spelling in SPELLINGS.items():
        if name not in OPS:
            yield lsp.CompletionItem(
                name, kind=kinds.Function, detail=spelling.signature, documentation=spelling.doc
            )
    for name, about in Hyperparameters.model_fields.items():
        yield lsp.CompletionItem(name, kind=kinds.Constant, documentation=about.description)
    if spec is None:
        return
    for name in (*spec.spec.constants, *spec.spec.patterns):
        yield lsp.CompletionItem(name, kind=kinds.Constant)
    for name, block in spec.spec.blocks.items():
        yield lsp.CompletionItem(name, kind=kinds.Class, documentation=block.doc)
    inside = spec.spec.blocks.get(at.block or "")
    for name, part in (inside.parts if inside is not None else {}).items():
        yield lsp.CompletionItem(name, kind=kinds.Field, detail=str(part))


def _words(at: Cursor) -> str | None:
    word, block, spec = at.word, at.block, at.spec
    if spec is not None:
        if block is not None and (said := _of_block(spec, block, word)):
            return said
        for section in _SECTIONS:
            if spec.find(section, word) is not None:
                about = Hyperparameters.model_fields.get(word)
                meaning = f"{about.description}\n" if about and about.description else ""
                return meaning + explain_value(Registry(), spec, f"{section}.{word}")
        if word in spec.spec.blocks and (doc := spec.spec.blocks[word].doc):
            return f"{word}: {doc}"
    if word in OPS or word in SPELLINGS:
        return explain_named(word)
    return None


def _of_block(spec: ResolvedSpec, block: str, word: str) -> str | None:
    """A part with its weights, or a value of the equations with its shape, of every variant of the block."""
    try:
        graph = build(spec)
    except LlamagenError:  # it is among the findings
        return None
    lines: list[str] = []
    for one in graph.blocks.values():
        if one.definition != block:
            continue
        part = one.parts.get(word)
        if isinstance(part, OpPart):
            weights = (f"{p.name} {list(p.shape)}" for p in part.parameters)
            lines.append(f"{word}: {part.op}, {', '.join(weights) or 'no weights'}")
        elif word in one.values:
            lines.append(f"{word}: {one.values[word].type}")
    return "\n".join(dict.fromkeys(lines)) or None


def _definition(at: Cursor) -> Span | None:
    if at.base is not None:
        with suppress(LlamagenError):
            return Span(str(Registry().locate(at.base)), 1, 1)
        return None
    of_block = ("blocks", at.block or "", "parts", at.word)
    for path in (of_block, *((section, at.word) for section in (*_SECTIONS, "blocks"))):
        if at.spec is not None and at.spec.find(*path) is not None:
            return at.spec.place(*path)
    return None
