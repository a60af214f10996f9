"""The smallest spec that extends A and is B, as YAML; and changes of leaves as data that can be applied."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath

from llamagen.diagnostics import LlamagenError
from llamagen.spec.fmt import format_source, lines
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import (
    APPENDED,
    NONE,
    NOT_INHERITED,
    ResolvedSpec,
    inherit,
    replaced_whole,
    tree_to_plain,
)
from llamagen.spec.schema import Spec
from llamagen.spec.source import Plain, SourceMap, load_source

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LeafChange:
    """The value at ``path`` of A and of B; ``absent`` marks a side that has none."""

    path: Path
    before: Plain
    after: Plain
    absent_before: bool
    absent_after: bool


def plain_of(resolved: ResolvedSpec) -> dict[str, Plain]:
    """What a spec says after inheritance, without its name and place in the family."""
    return {k: v for k, v in resolved.plain.items() if k not in NOT_INHERITED - {"title", "doc"}}


def leaf_changes(a: Mapping[str, Plain], b: Mapping[str, Plain]) -> tuple[LeafChange, ...]:
    """Leaf by leaf, A's order first. Lists are leaves; so are mappings that the other side lacks whole."""
    return tuple(_changes(a, b, ()))


def _changes(a: Mapping[str, Plain], b: Mapping[str, Plain], path: Path) -> Iterator[LeafChange]:
    for name in dict.fromkeys([*a, *b]):
        here = (*path, name)
        if name not in a:
            yield LeafChange(here, None, b[name], True, False)
        elif name not in b:
            yield LeafChange(here, a[name], None, False, True)
        else:
            x, y = a[name], b[name]
            if isinstance(x, dict) and isinstance(y, dict):
                yield from _changes(x, y, here)
            elif x != y or type(x) is not type(y):
                yield LeafChange(here, x, y, False, False)


def overlay(before: ResolvedSpec, after: ResolvedSpec) -> str:
    """Canonical YAML text of a spec with B's id that extends A and resolves to B, which is checked.

    Values that A has and B lacks are unset with ``null``, parts of blocks with ``none``; options are stated whole.
    A is named by its path from the working folder unless its id is known. ``conflicts`` and ``uncertain`` of a base
    can only be added to: where B does not begin with A's, both stay, and a comment says so. Raises LG902 when the
    text would give anything else than B.
    """
    a, b = before.plain, after.plain
    kept_a = {k: v for k, v in a.items() if k not in NOT_INHERITED}
    kept_b = {k: v for k, v in b.items() if k not in NOT_INHERITED}
    base, remarks = _base(before)
    head: dict[str, Plain] = {"spec": 1, "id": after.spec.id, "extends": base}
    head.update({k: b[k] for k in ("abstract", "title", "doc") if k in b})
    stays = lasting(a, b)
    remarks += [
        f"# {path} of {before.spec.id} stays: inheritance only adds to it\n" for path in stays
    ]
    entries = lines({**head, **_minimal(kept_a, kept_b, ())})
    body = [f"{line}\n" for _, line in entries]
    source = load_source("".join([*remarks, *body]), f"<overlay of {before.spec.id}>")
    text = format_source(source, tuple(Spec.model_fields))
    expected = {k: v for k, v in b.items() if k not in ("spec", "extends", *stays)}
    check(before, load_source(text, source.file), expected, stays)
    return text


def check(
    base: ResolvedSpec,
    source: SourceMap,
    expected: Mapping[str, Plain],
    ignored: tuple[str, ...] = (),
) -> None:
    """Raise LG902 unless ``source`` laid over ``base`` is ``expected``, apart from the sections ``ignored``."""
    tree, findings = inherit(base.tree, source)
    built = {k: v for k, v in tree_to_plain(tree).items() if k not in ("spec", "extends", *ignored)}
    changes = leaf_changes(built, expected)
    if not changes and not any(f.severity == "error" for f in findings):
        return
    paths = [".".join(c.path) for c in changes] or [f.message for f in findings]
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    message = (
        f"no spec that extends `{base.spec.id}` can be `{expected['id']}`: inheritance cannot change"
        f" {', '.join(f'`{p}`' for p in paths[:3])}{more}"
    )
    help = "write the model as a spec of its own: `llamagen show --resolved` prints it whole"
    raise LlamagenError.of("LG902", message, help=help)


def _base(before: ResolvedSpec) -> tuple[str, list[str]]:
    """What ``extends`` says of A, and remarks."""
    file, spec_id = FilePath(before.tree.span.file), before.spec.id
    known = Registry().path_of(spec_id)
    if file.is_file():
        if known is not None and known.resolve() == file.resolve():
            return spec_id, []
        return FilePath(os.path.relpath(file)).as_posix(), []
    remark = f"# {spec_id} was read from {' '.join(str(file).split())}: keep it as a spec that `extends` can name\n"
    return spec_id, [remark]


def lasting(a: Mapping[str, Plain], b: Mapping[str, Plain]) -> tuple[str, ...]:
    """Sections of A that no overlay can take back."""
    return tuple(n for n in sorted(APPENDED) if n in b and not _begins(b[n], a.get(n)))


def _begins(items: Plain, start: Plain) -> bool:
    first = start if isinstance(start, list) else []
    every = items if isinstance(items, list) else []
    return every[: len(first)] == first


def _minimal(a: Mapping[str, Plain], b: Mapping[str, Plain], path: Path) -> dict[str, Plain]:
    result: dict[str, Plain] = {}
    for name in dict.fromkeys([*a, *b]):
        here = (*path, name)
        if name not in b:
            is_part = len(here) == 4 and here[0] == "blocks" and here[2] == "parts"
            result[name] = NONE if is_part else None
        elif name not in a:
            result[name] = b[name]
        else:
            x, y = a[name], b[name]
            if isinstance(x, dict) and isinstance(y, dict):
                below = _minimal(x, y, here)
                if below and replaced_whole(here, x, below):
                    # Where B lacks the `kind` of A, unsetting it is what makes the mapping replace A's.
                    result[name] = y if replaced_whole(here, x, y) else {"kind": None, **y}
                elif below:
                    result[name] = below
            elif x != y or type(x) is not type(y):
                result[name] = _appended(x, y) if here[0] in APPENDED else y
    return result


def _appended(a: Plain, b: Plain) -> Plain:
    if isinstance(a, list) and isinstance(b, list):
        return b[len(a) :] if _begins(b, a) else [item for item in b if item not in a]
    return b
