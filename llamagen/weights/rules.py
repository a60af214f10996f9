"""How one dialect names and lays out what a spec calls by role path: rules as data.

A rule says which stored names make one wanted tensor. In patterns `{i}` stands for a number,
`{*}` for any text; `{cross_layers[i]}` (only in `to`) for the i-th number of a list of the
layout. A number that occurs in `from` but not in `to`, such as `experts.{e}`, ranges over 0, 1,
... and needs a `stack`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Count = int | str
"""A number, or the name of a hyperparameter until `NamingLayout.bound` puts the number in."""


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Identity(_Closed):
    kind: Literal["identity"] = "identity"


class RopePermute(_Closed):
    """Meta's interleaved rotary rows to half-split rows, per head (facts.md 4.10)."""

    kind: Literal["rope_permute"] = "rope_permute"
    heads: Count


class TransposeLast(_Closed):
    """[..., A, B] -> [..., B, A]."""

    kind: Literal["transpose"] = "transpose"


class ConcatSources(_Closed):
    """Joins the names of `from`, in their order, along `dim` (not negative)."""

    kind: Literal["concat"] = "concat"
    dim: Annotated[int, Field(ge=0, le=7)]


class StackSources(_Closed):
    """Joins the range of a free number of `from` along a new first dimension."""

    kind: Literal["stack"] = "stack"


class ReshapeTo(_Closed):
    """To the wanted shape, or to `shape`; the order of the elements stays."""

    kind: Literal["reshape"] = "reshape"
    shape: tuple[int, ...] | None = None


class SlicePart(_Closed):
    """Elements [start, stop) along `dim`: one part of a fused tensor."""

    kind: Literal["slice"] = "slice"
    dim: Annotated[int, Field(ge=0, le=7)]
    start: Count
    stop: Count


class TileTableRows(_Closed):
    """mllama's tile grid to a table by aspect ratio (facts.md 4.10)."""

    kind: Literal["tile_table"] = "tile_table"


Transform = Annotated[
    Identity
    | RopePermute
    | TransposeLast
    | ConcatSources
    | StackSources
    | ReshapeTo
    | SlicePart
    | TileTableRows,
    Field(discriminator="kind"),
]


def _as_tuple(value: object) -> object:
    match value:
        case tuple() | list():
            return tuple(value)
        case _:
            return (value,)


class NameRule(_Closed):
    """`from` (one or several stored names) make `to`, through `transform` from left to right.

    Steps before `concat` and `stack` apply to every source.
    """

    sources: Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(alias="from")]
    to: str
    transform: Annotated[tuple[Transform, ...], BeforeValidator(_as_tuple)] = (Identity(),)

    @model_validator(mode="after")
    def _joins(self) -> Self:
        concats = sum(isinstance(step, ConcatSources) for step in self.transform)
        stacks = sum(isinstance(step, StackSources) for step in self.transform)
        free = {
            name
            for source in self.sources
            for name in placeholders(source)
            if name not in placeholders(self.to)
        }
        if concats != (len(self.sources) > 1):
            raise ValueError(f"{self.to}: several names in `from` need exactly one concat")
        if stacks != len(free):
            raise ValueError(f"{self.to}: a free number in `from` needs exactly one stack")
        return self


class ShardRule(_Closed):
    """How the ranks of a Meta checkpoint join: along the first of `dims` that gives the wanted
    shape; none means that every rank holds the whole tensor."""

    names: tuple[str, ...]
    dims: tuple[Annotated[int, Field(ge=0, le=7)] | None, ...]


class NamingLayout(_Closed):
    """A dialect. It is a candidate when every pattern of `detect` matches some stored name.

    Of the rules whose `to` matches a wanted name the first whose sources exist is used. Stored
    names that match `drop` are ignored.
    """

    name: str
    detect: tuple[str, ...]
    rules: tuple[NameRule, ...]
    drop: tuple[str, ...] = ()
    shards: tuple[ShardRule, ...] = ()
    lists: Mapping[str, Count | tuple[int, ...]] = {}

    def bound(self, values: Mapping[str, int | tuple[int, ...]]) -> NamingLayout:
        """The layout with names of hyperparameters replaced by their values.

        Raises KeyError with the name of a value that is absent or of the wrong type.
        """
        rules = tuple(
            rule.model_copy(
                update={"transform": tuple(_bound_step(step, values) for step in rule.transform)}
            )
            for rule in self.rules
        )
        lists: dict[str, Count | tuple[int, ...]] = {}
        for name, value in self.lists.items():
            found = values.get(value) if isinstance(value, str) else value
            if not isinstance(found, tuple):
                raise KeyError(value)
            lists[name] = found
        return self.model_copy(update={"rules": rules, "lists": lists})

    def parameters(self) -> frozenset[str]:
        """Names of the hyperparameters that `bound` asks for."""
        steps = [step for rule in self.rules for step in rule.transform]
        counts: list[Count | tuple[int, ...]] = [*self.lists.values()]
        for step in steps:
            match step:
                case RopePermute(heads=heads):
                    counts.append(heads)
                case SlicePart(start=start, stop=stop):
                    counts += [start, stop]
                case _:
                    pass
        return frozenset(count for count in counts if isinstance(count, str))

    def numbers(self, name: str) -> tuple[int, ...]:
        """The list `name`, bound. Raises KeyError if it is absent or not bound."""
        found = self.lists[name]
        if not isinstance(found, tuple):
            raise KeyError(name)
        return found


def _bound_step(step: Transform, values: Mapping[str, int | tuple[int, ...]]) -> Transform:
    match step:
        case RopePermute(heads=heads):
            return RopePermute(heads=_number(heads, values))
        case SlicePart(dim=dim, start=start, stop=stop):
            return SlicePart(dim=dim, start=_number(start, values), stop=_number(stop, values))
        case _:
            return step


def _number(count: Count, values: Mapping[str, int | tuple[int, ...]]) -> int:
    found = values.get(count) if isinstance(count, str) else count
    if not isinstance(found, int):
        raise KeyError(count)
    return found


_PLACEHOLDER = re.compile(r"\{(?:(?P<list>[a-z_]+)\[(?P<index>[a-z_]+)\]|(?P<name>[a-z_]+|\*))\}")


def placeholders(pattern: str) -> tuple[str, ...]:
    """Names of the placeholders, those inside `{list[name]}` included; `*` is one of them."""
    return tuple(match["index"] or match["name"] for match in _PLACEHOLDER.finditer(pattern))


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> tuple[re.Pattern[str], tuple[tuple[str, str | None], ...]]:
    text = ""
    groups: list[tuple[str, str | None]] = []
    position = 0
    for match in _PLACEHOLDER.finditer(pattern):
        text += re.escape(pattern[position : match.start()])
        text += "(.+)" if match["name"] == "*" else "(0|[1-9][0-9]*)"
        groups.append((match["index"] or match["name"], match["list"]))
        position = match.end()
    return re.compile(text + re.escape(pattern[position:])), tuple(groups)


def match_name(pattern: str, name: str, layout: NamingLayout) -> Mapping[str, str] | None:
    """What the placeholders stand for if `name` has the form of `pattern`, else None."""
    expression, groups = _compiled(pattern)
    match = expression.fullmatch(name)
    if match is None:
        return None
    captured: dict[str, str] = {}
    for (key, through), text in zip(groups, match.groups(), strict=True):
        value = text
        if through is not None:
            numbers = layout.numbers(through)
            if int(text) not in numbers:
                return None
            value = str(numbers.index(int(text)))
        if captured.setdefault(key, value) != value:
            return None
    return captured


def fill_name(pattern: str, captured: Mapping[str, str]) -> str:
    """`pattern` with its placeholders replaced; all of them must be in `captured`."""
    return _PLACEHOLDER.sub(lambda match: captured[match["name"]], pattern)
