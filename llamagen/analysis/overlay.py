"""The smallest spec that extends A and is B, as YAML; and changes of leaves as data that can be applied."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llamagen.spec.resolve import APPENDED, NONE, NOT_INHERITED, ResolvedSpec, tree_to_plain
from llamagen.spec.source_nodes import Plain

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
    plain = tree_to_plain(resolved.tree)
    assert isinstance(plain, dict)
    return {k: v for k, v in plain.items() if k not in NOT_INHERITED - {"title", "doc"}}


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


def apply(a: Mapping[str, Plain], changes: tuple[LeafChange, ...]) -> dict[str, Plain]:
    """``apply(a, leaf_changes(a, b))`` has the content of ``b``."""
    result: dict[str, Plain] = json.loads(json.dumps(dict(a)))
    for change in changes:
        here: dict[str, Plain] = result
        for name in change.path[:-1]:
            below = here[name]
            assert isinstance(below, dict)
            here = below
        if change.absent_after:
            del here[change.path[-1]]
        else:
            here[change.path[-1]] = change.after
    return result


def overlay(before: ResolvedSpec, after: ResolvedSpec) -> str:
    """YAML text of a spec with B's id that extends A and resolves to B.

    Values that A has and B lacks are unset with ``null``, parts of blocks with ``none``. What inheritance cannot
    take back (entries of ``conflicts`` and ``uncertain``, options of blocks) stays, and a comment says so.
    """
    a, b = tree_to_plain(before.tree), tree_to_plain(after.tree)
    assert isinstance(a, dict) and isinstance(b, dict)
    kept_a = {k: v for k, v in a.items() if k not in NOT_INHERITED}
    kept_b = {k: v for k, v in b.items() if k not in NOT_INHERITED}
    head: dict[str, Plain] = {"spec": 1, "id": after.spec.id, "extends": before.spec.id}
    head.update({k: b[k] for k in ("abstract", "title", "doc") if k in b})
    remarks = [
        f"# {path} of {before.spec.id} stays: inheritance only adds to it\n"
        for path in lasting(a, b)
    ]
    return "".join([*remarks, *_yaml({**head, **_minimal(kept_a, kept_b, ())}, 0)])


def lasting(a: Mapping[str, Plain], b: Mapping[str, Plain]) -> tuple[str, ...]:
    """Paths of A that no overlay can take back."""
    found = [name for name in sorted(APPENDED) if not _begins(b.get(name), a.get(name))]
    blocks_a, blocks_b = a.get("blocks"), b.get("blocks")
    if isinstance(blocks_a, dict) and isinstance(blocks_b, dict):
        for name in blocks_a.keys() & blocks_b.keys():
            here, there = _options(blocks_a[name]), _options(blocks_b[name])
            found += [f"blocks.{name}.options.{o}" for o in here if o not in there]
    return tuple(sorted(found))


def _begins(items: Plain, start: Plain) -> bool:
    first = start if isinstance(start, list) else []
    every = items if isinstance(items, list) else []
    return every[: len(first)] == first


def _options(block: Plain) -> Mapping[str, Plain]:
    options = block.get("options") if isinstance(block, dict) else None
    return options if isinstance(options, dict) else {}


def _minimal(a: Mapping[str, Plain], b: Mapping[str, Plain], path: Path) -> dict[str, Plain]:
    if path and "kind" in b and "kind" in a and a["kind"] != b["kind"]:
        # A mapping whose kind is overridden is replaced whole (spec/resolve.py).
        return dict(b)
    result: dict[str, Plain] = {}
    for name in dict.fromkeys([*a, *b]):
        here = (*path, name)
        if name not in b:
            if here[0] in APPENDED:
                continue
            removed_part = len(here) == 4 and here[0] == "blocks" and here[2] == "parts"
            if not (len(here) == 4 and here[0] == "blocks" and here[2] == "options"):
                result[name] = NONE if removed_part else None
        elif name not in a:
            result[name] = b[name]
        else:
            x, y = a[name], b[name]
            if isinstance(x, dict) and isinstance(y, dict):
                below = _minimal(x, y, here)
                if below:
                    result[name] = below
            elif x != y or type(x) is not type(y):
                result[name] = _appended(x, y) if here[0] in APPENDED else y
    return result


def _appended(a: Plain, b: Plain) -> Plain:
    if isinstance(a, list) and isinstance(b, list):
        return [item for item in b if item not in a]
    return b


def _yaml(tree: Mapping[str, Plain], depth: int) -> Iterator[str]:
    pad = "  " * depth
    for name, value in tree.items():
        key = name if _bare_key(name) else json.dumps(name)
        match value:
            case dict() if value:
                yield f"{pad}{key}:\n"
                yield from _yaml(value, depth + 1)
            case str() if "\n" in value.rstrip("\n") or value.endswith("\n"):
                yield f"{pad}{key}: |{'' if value.endswith(chr(10)) else '-'}\n"
                for line in value.rstrip("\n").split("\n"):
                    yield f"{pad}  {line}\n" if line else "\n"
            case _:
                yield f"{pad}{key}: {flow(value)}\n"


def _bare_key(name: str) -> bool:
    words = name.replace("_", "").replace("-", "")
    return words.isascii() and words.isalnum() and not words.isdigit() and words not in _WORDS


_WORDS = frozenset({"on", "off", "yes", "no", "true", "false", "null", "y", "n"})


def flow(value: Plain) -> str:
    """A value on one line, in the strict subset that the loader reads back unchanged."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return float_text(value)
        case str():
            return json.dumps(value, ensure_ascii=False)
        case list():
            return f"[{', '.join(map(flow, value))}]"
        case dict():
            pairs = (f"{n if _bare_key(n) else json.dumps(n)}: {flow(v)}" for n, v in value.items())
            return f"{{{', '.join(pairs)}}}"


def float_text(value: float) -> str:
    """A float that YAML 1.1 and 1.2 readers agree on: digits on both sides of the point, a signed exponent."""
    text = repr(value)
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    if "." not in mantissa:
        mantissa += ".0"
    sign = "" if exponent[0] in "+-" else "+"
    return f"{mantissa}e{sign}{exponent}"
