"""The other ends of a broken equation: parts it calls, and the spec that is being built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from llamagen.diagnostics import Diagnostic, Related
from llamagen.spec.expr import Extent
from llamagen.spec.resolved import ResolvedSpec

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST = 3


def with_notes(found: Diagnostic, resolved: ResolvedSpec, block: str, extent: Extent) -> Diagnostic:
    """``found`` with the declarations of the parts in ``extent`` that another file wrote, and the spec's own place.

    An equation is often inherited and right; what broke it is a part or a number of the spec that is built.
    """
    if found.span is None:
        return found
    notes = [*_parts(found, resolved, block, extent), *_spec(found, resolved)]
    return replace(found, related=(*found.related, *notes)) if notes else found


def _parts(
    found: Diagnostic, resolved: ResolvedSpec, block: str, extent: Extent
) -> Iterator[Related]:
    text = resolved.scalar("blocks", block, "forward")
    if text is None or found.span is None:
        return
    start, end = extent
    words = dict.fromkeys(_WORD.findall(text.text[start:end]))
    declared = [(word, resolved.scalar("blocks", block, "parts", word)) for word in words]
    elsewhere = [
        (word, node)
        for word, node in declared
        if node is not None and node.span.file != found.span.file
    ]
    for word, node in elsewhere[:_MOST]:
        yield Related(f"`{word}` is declared here", node.span)


def _spec(found: Diagnostic, resolved: ResolvedSpec) -> Iterator[Related]:
    place = resolved.place("id")
    if place is not None and found.span is not None and place.file != found.span.file:
        yield Related(f"found while building `{resolved.spec.id}`", place)
