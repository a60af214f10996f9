"""The models of a registry that have a `config:` table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from llamagen.emit.config.codecs import Json
from llamagen.emit.config.table import ignored_by, literals_of, mapping_of, written_fields
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import ConfigMapping, Spec


@dataclass(frozen=True)
class Known:
    """A known model with a table."""

    resolved: ResolvedSpec
    mapping: ConfigMapping

    @property
    def spec(self) -> Spec:
        return self.resolved.spec

    @cached_property
    def fields(self) -> dict[str, Json]:
        return written_fields(self.spec, self.mapping)

    @cached_property
    def literals(self) -> dict[str, Json]:
        return literals_of(self.mapping)

    @cached_property
    def ignored(self) -> dict[str, str]:
        return ignored_by(self.mapping)


def known_models(registry: Registry) -> list[Known]:
    """Models with a table, older and surer ones first: of two equal ones the first is extended."""
    found: list[Known] = []
    for spec_id in registry.ids(abstract=False):
        resolved = registry.load(spec_id)
        mapping = mapping_of(resolved) if resolved.spec.config is not None else None
        if mapping is not None:
            found.append(Known(resolved, mapping))
    return sorted(found, key=_age)


def _age(one: Known) -> tuple[str, int, int, str]:
    release = one.spec.release
    date = "" if release is None or release.date is None else release.date.isoformat()
    return date or "9999", len(one.resolved.chain), len(one.spec.uncertain), one.spec.id
