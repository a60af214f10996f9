"""Class names for the specialisations of a block definition."""

from __future__ import annotations

from collections.abc import Mapping

from llamagen.ir.graph import Block
from llamagen.ops.op import AttrValue

MAX_WORD = 24
"""Letters of an option's value that a name takes up; names that become equal are numbered."""


def variant_names(blocks: Mapping[str, Block]) -> dict[str, str]:
    """Key -> a unique readable name. A definition with one variant keeps its name; options tell others apart."""
    by_definition: dict[str, list[str]] = {}
    for key, block in blocks.items():
        by_definition.setdefault(block.definition, []).append(key)
    names: dict[str, str] = {}
    for definition, keys in by_definition.items():
        if len(keys) == 1:
            names[keys[0]] = definition
            continue
        options = {key: blocks[key].options for key in keys}
        differing = [o for o in options[keys[0]] if len({options[k][o] for k in keys}) > 1]
        for key in keys:
            words = "".join(_word(o, options[key][o]) for o in differing)
            name, n = words + definition, 1
            while name in names.values() or (name in by_definition and name != definition):
                n += 1
                name = f"{words}{definition}{n}"
            names[key] = name
    return names


def _word(option: str, value: AttrValue) -> str:
    match value:
        case None:
            return ""
        case bool():
            return _camel(option) if value else ""
        case str():
            word = _camel(value)[:MAX_WORD]
            return f"{_camel(option)}{word}" if word[:1].isdecimal() else word
        case int():
            return f"{_camel(option)}{value}".replace("-", "Minus")
        case _:
            return _camel(option)


def _camel(text: str) -> str:
    ascii_words = "".join(c if c.isascii() and c.isalnum() else " " for c in text).split()
    return "".join(w[0].upper() + w[1:] for w in ascii_words)
