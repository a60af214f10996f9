"""Whether the configuration beside a checkpoint's weights is that of a spec.

Headers cannot tell Llama 3 from 3.1 (the rotary frequencies leave no trace in them), or an epsilon from another; the
config.json or params.json beside them can. Only keys that the graph depends on count: token ids and lengths do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamagen.analysis.family.identify import same
from llamagen.diagnostics import Diagnostic, Span
from llamagen.emit.config.codecs import Json
from llamagen.emit.config.formats import wanted_of
from llamagen.emit.config.json_source import read_json
from llamagen.emit.config.known import Known, known_models
from llamagen.emit.config.table import absences, fixed_of, flat, mapping_of
from llamagen.emit.config.wanted import Wanted
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import names_read
from llamagen.spec.expr import names, parse
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.weights.names import listed

_FAR = 4
"""A model that differs in so many values is not worth naming."""


@dataclass(frozen=True, slots=True)
class Clash:
    """A key whose value makes another graph than the spec's."""

    shown: str
    here: Json
    spec: Json
    place: Span

    def finding(self, spec_id: str, help: str | None) -> Diagnostic:
        """LG607."""
        message = f"`{self.shown}` is {_text(self.here)} here; `{spec_id}` has {_text(self.spec)}"
        return Diagnostic("LG607", "error", message, self.place, (), help)


def disagreements(
    resolved: ResolvedSpec, config: Path | None, registry: Registry
) -> tuple[Diagnostic, ...]:
    """LG607 for each key that makes another graph; one note LG608 where there is nothing to compare.

    Raises LG10x for a file that cannot be read.
    """
    mapping = mapping_of(resolved)
    if config is None:
        message = "there is no config.json or params.json beside the weights to compare with"
        return (Diagnostic("LG608", "note", message),)
    if mapping is None:
        message = f"`{resolved.spec.id}` has no `config` table to compare {config.name} with"
        return (Diagnostic("LG608", "note", message),)
    source = read_json(config, within=config.parent)
    own = Known(resolved, mapping)
    # Most files are of the spec's own kind and agree: the other models are read when they can help.
    alike = source.value.get("model_type") == mapping.kind
    models = [] if alike else known_models(registry)
    wanted = wanted_of(source, tuple(sorted({mapping.kind, *(m.mapping.kind for m in models)})))
    reads = names_read(build_all(resolved))
    if wanted.kind != mapping.kind:
        found = [Clash("model_type", wanted.kind, mapping.kind, source.place("model_type"))]
    else:
        found = list(clashes(wanted, own, reads))
    if not found:
        return ()
    help = _help(wanted, models or known_models(registry), reads, resolved.spec.id)
    return tuple(one.finding(resolved.spec.id, help if one is found[-1] else None) for one in found)


def fitting(wanted: Wanted, models: Sequence[Known], reads: frozenset[str]) -> tuple[str, ...]:
    """Ids of the models whose graph a file makes, where the graph depends on the names ``reads`` of a spec."""
    kin = (one for one in models if one.mapping.kind == wanted.kind)
    return tuple(one.spec.id for one in kin if not any(clashes(wanted, one, reads)))


def clashes(wanted: Wanted, model: Known, reads: frozenset[str]) -> Iterator[Clash]:
    """Keys by which ``wanted`` is another graph than ``model``, which reads these names of its spec."""
    expressions = flat(model.mapping.fields)
    fixed = fixed_of(model.mapping)
    for key, value in _said(wanted, model).items():
        if key in expressions:
            counts = any(name.id in reads for name in names(parse(expressions[key])))
            expected = model.fields[key]
        else:
            counts, expected = key in fixed, fixed.get(key)
        if counts and not same(value, expected):
            yield Clash(wanted.named(key), value, expected, wanted.place(key))
    scaled = model.spec.hyperparameters.rope
    if wanted.scaled is not None and scaled is not None:
        expected = scaled.kind != "default"
        if wanted.scaled != expected:
            place = wanted.source.place("use_scaled_rope")
            yield Clash("use_scaled_rope", wanted.scaled, expected, place)


def _said(wanted: Wanted, model: Known) -> Mapping[str, Json]:
    """The values of the file and what its silence means; ``null`` is silence where silence has a meaning."""
    if wanted.partial:
        return wanted.values
    meant = absences(model.mapping, wanted.values)
    given = {k: v for k, v in wanted.values.items() if v is not None or k not in meant}
    return {**meant, **given}


def _help(wanted: Wanted, models: list[Known], reads: frozenset[str], spec_id: str) -> str:
    rest = f"or let `{spec_id}` count with `export --ignore-config`"
    equal = fitting(wanted, models, reads)
    if equal:
        return f"the file is that of {listed(equal)}: take its spec, {rest}"
    kin = [one for one in models if one.mapping.kind == wanted.kind]
    counts = [(sum(1 for _ in clashes(wanted, one, reads)), one.spec.id) for one in kin]
    fewest, name = min(counts, default=(_FAR, ""), key=lambda one: one[0])
    if fewest < _FAR:
        but = f"`{name}` is nearest, but for {fewest} value{'s' * (fewest > 1)}"
        return f"{but}; `llamagen import` writes a spec of the file, {rest}"
    return f"`llamagen import` writes a spec of the file, {rest}"


def _text(value: Json) -> str:
    return json.dumps(value)
