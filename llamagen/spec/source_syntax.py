"""libyaml's and PyYAML's syntax errors as sentences: both parsers give the same ones."""

from __future__ import annotations

import re

from yaml import MarkedYAMLError, YAMLError

from llamagen.diagnostics import Diagnostic, Related, Span

_QUOTE = "put the text in single quotes"

# (what either parser says, our sentence, what to do); the first match wins.
_SENTENCES: tuple[tuple[str, str, str], ...] = (
    (
        r"mapping values are not allowed",
        "a `key:` is not allowed here",
        "check the indentation of this line and the one before; text with `: ` needs quotes",
    ),
    (
        r"mapping keys are not allowed",
        "a `? key` is not allowed here",
        "write plain `key: value` lines",
    ),
    (
        r"(block )?sequence entries are not allowed",
        "a list item is not allowed here",
        "start the list on a line of its own, under its key",
    ),
    (
        r"cannot start any token",
        "a value cannot start with this character",
        _QUOTE,
    ),
    (
        r"could not find expected ':'",
        "this line is not `key: value`",
        "add the `:` and a space; if the line continues a text, indent it more or use `|`",
    ),
    (
        r"found unexpected end of stream",
        "this quoted text is never closed",
        "add the closing quote",
    ),
    (
        r"found unexpected document (indicator|separator)",
        "a document marker stands inside quoted text",
        "close the quotes before it",
    ),
    (
        r"unknown escape character",
        "this backslash escape does not exist",
        "use single quotes, in which a backslash is only a backslash",
    ),
    (
        r"(hexdecimal number|hexadecimal numbers|invalid Unicode character escape)",
        "this backslash escape needs hexadecimal digits of a valid character",
        "use single quotes, in which a backslash is only a backslash",
    ),
    (
        r"expected ',' or '\]'",
        "this `[` list is not closed, or a comma is missing",
        "check commas and brackets; text with `,`, `[`, `]`, `{` or `}` needs quotes here",
    ),
    (
        r"expected ',' or '\}'",
        "this `{` mapping is not closed, or a comma is missing",
        "check commas and braces; text with `,`, `[`, `]`, `{` or `}` needs quotes here",
    ),
    (
        r"expected the node content|expected node content",
        "a value is expected here",
        f"write the value; if it is text that starts like this, {_QUOTE}",
    ),
    (
        r"expected <block end>|did not find expected key|expected '-' indicator",
        "this line does not belong to the block around it",
        "align it with the lines of its block",
    ),
    (
        r"or chomping|chomping or|indentation indicator|comment or (a )?line break",
        "the text of a `|` or `>` block starts on the next line",
        "keep the line of the `|` empty, and indent the text below it",
    ),
    (
        r"leading (empty|spaces)",
        "the first lines of this block are indented more than its text",
        "indent all lines of the block alike",
    ),
    (
        r"expected '?<document start>'?",
        "the mapping ended before this line",
        "check the indentation of this line, brackets, braces and quotes",
    ),
    (
        r"alphabetic or numeric",
        "`&` and `*` are not allowed here",
        _QUOTE,
    ),
    (
        r"tag|URI",
        "`!` is not allowed here",
        _QUOTE,
    ),
    (
        r"maximum nesting depth",
        "this is nested deeper than the parser reads",
        "flatten the structure",
    ),
    (
        r"unexpected ':'",
        "a `:` is not allowed in unquoted text here",
        _QUOTE,
    ),
)
# Here the place where the parser gave up says less than where the text starts.
_TOO_DEEP = re.compile(r"maximum nesting depth")  # libyaml's own bound, met while it looks ahead
_AT_START = re.compile(r"could not find expected ':'|found unexpected end of stream")


def syntax_error(failure: YAMLError, file: str, lines: tuple[str, ...]) -> Diagnostic:
    """LG010 (LG007 for its bound on nesting) for what a parser raised."""
    problem = str(getattr(failure, "problem", None) or failure)
    code = "LG007" if _TOO_DEEP.search(problem) else "LG010"
    message, advice = next(
        ((sentence, fix) for said, sentence, fix in _SENTENCES if re.search(said, problem)),
        (f"this is not YAML: {problem}", "check the line and the one before it"),
    )
    if not isinstance(failure, MarkedYAMLError) or failure.problem_mark is None:
        return Diagnostic(code, "error", message, Span(file, 1, 1), help=advice)
    mark = failure.problem_mark
    if failure.context_mark is not None and _AT_START.search(problem):
        mark = failure.context_mark
    span = clamped(file, mark.line, mark.column, lines)
    related: tuple[Related, ...] = ()
    if failure.context and failure.context_mark is not None:
        start = clamped(file, failure.context_mark.line, failure.context_mark.column, lines)
        what = re.sub(r"^while (parsing|scanning) (an? )?", "", failure.context)
        if start != span:
            related = (Related(f"in this {what}, which starts here", start),)
    return Diagnostic(code, "error", message, span, related, advice)


def clamped(file: str, line: int, column: int, lines: tuple[str, ...]) -> Span:
    """A mark as a span; one after the last line becomes the end of the last line with text."""
    while line > 0 and (line >= len(lines) or (column == 0 and not lines[line].strip())):
        line -= 1
        column = len(lines[line])
    return Span(file, line + 1, column + 1)
