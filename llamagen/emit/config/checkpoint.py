"""Whether a checkpoint is of a spec: its tensors, by their headers, and the configuration beside them.

Headers cannot tell Llama 3 from 3.1 (the rotary frequencies leave no trace in them), or an epsilon from another; the
config.json or params.json beside them can. Only keys that the graph depends on count: token ids and lengths do not.
A checkpoint of a known architecture in other sizes, as people make to try things, is taken in these.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from llamagen import files
from llamagen.analysis.check import CheckReport
from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.diagnostics.names import NAME_ALIASES
from llamagen.emit.config.foreign import FILES, Foreign, entries, foreign_of, id_of, usual_leaves
from llamagen.emit.config.importing import Difference, Imported, Match, differences, import_foreign
from llamagen.emit.config.json_source import Json, JsonSource, parse_json, read_json
from llamagen.emit.config.table import (
    CONFIG_FILE,
    CONFIG_FUNCTIONS,
    ConfigTable,
    config_scope,
    flat,
    known_tables,
    knows,
    plain,
    same,
    table_of,
    value_of,
)
from llamagen.ir.elaborate import build, build_all
from llamagen.ir.graph import names_read
from llamagen.ops.activations import ACTIVATIONS
from llamagen.spec.expr import names, parse
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import ConfigMapping
from llamagen.weights.checkpoint import WEIGHTS_FILES, Checkpoint
from llamagen.weights.names import Resolution, best_fit, bind, explained, listed

_FAR = 4
"""A model that differs in so many values is not worth naming."""
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Fit:
    """A checkpoint against a spec: which stored tensors make each parameter, and every finding."""

    resolved: ResolvedSpec
    """The spec asked for, or the same in the checkpoint's own sizes."""
    stored: Checkpoint
    resolution: Resolution
    findings: tuple[Diagnostic, ...]

    def require(self) -> Fit:
        """Raises LlamagenError if a finding is an error."""
        if any(one.severity == "error" for one in self.findings):
            raise LlamagenError(one for one in self.findings if one.severity != "note")
        return self


def fit(
    resolved: ResolvedSpec,
    checkpoint: Path,
    registry: Registry,
    *,
    compare_values: bool = False,
    ignore_config: bool = False,
    resize: bool = True,
    adapter: Path | None = None,
) -> Fit:
    """Reads headers only, and with ``compare_values`` the tensors that must be equal.

    Findings are LG61x, LG618 alone for a checkpoint of another model of ``registry``, and what ``disagreements`` has
    unless ``ignore_config``. The checkpoint's folder may be that of ``adapter``. With ``resize`` a note LG646 says that
    the sizes are the checkpoint's. Raises LG601 to LG606 and LG10x for files that cannot be read.
    """
    graph = build(resolved)
    stored = Checkpoint.open(checkpoint, adapter)
    resolution = bind(resolved, graph, stored, compare_values=False)
    notes: tuple[Diagnostic, ...] = ()
    if not _fits(resolution) and resize and not ignore_config:
        sized = _resized(resolved, stored, registry)
        if sized is not None and sized.findings[0].severity == "error":
            return sized
        if sized is not None:
            resolved, resolution, notes = sized.resolved, sized.resolution, sized.findings
    if compare_values and _fits(resolution):
        resolution = bind(resolved, build(resolved), stored)
    if not _fits(resolution):
        findings = explained(resolution, resolved, build(resolved), stored, registry)
        return Fit(resolved, stored, resolution, findings)
    findings = (*notes, *resolution.diagnostics)
    if not ignore_config:
        findings += disagreements(resolved, config_of(stored), registry)
    return Fit(resolved, stored, resolution, findings)


def config_of(stored: Checkpoint) -> JsonSource | None:
    """The configuration of a checkpoint: a file beside the weights, or what a GGUF says itself. Raises LG106."""
    if (text := stored.texts.get(CONFIG_FILE)) is not None:
        return parse_json(text.encode("utf-8"), f"{stored.path} ({CONFIG_FILE})")
    file = stored.config_file
    return read_json(file, within=file.parent) if file is not None else None


def _fits(resolution: Resolution) -> bool:
    return all(one.severity != "error" for one in resolution.diagnostics)


def check_checkpoint(
    resolved: ResolvedSpec, folder: Path, registry: Registry, adapter: Path | None = None
) -> CheckReport:
    """``check CHECKPOINT --as ID``: what ``export`` would say of its headers; a clean report says what was found."""
    fitted = fit(resolved, folder, registry, adapter=adapter)
    report = CheckReport(1, fitted.findings)
    if not report.clean:
        return report
    tensors = fitted.stored.tensors
    dtypes = Counter(tensor.dtype for tensor in tensors.values())
    counted = ", ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes.items()))
    names_of, id = fitted.resolution.layout, fitted.resolved.spec.id
    message = f"{len(tensors)} tensors ({counted}) in {names_of} names fit `{id}`"
    return CheckReport(1, (*fitted.findings, Diagnostic("LG619", "note", message)))


@dataclass(frozen=True)
class _Beside:
    """The configuration file beside a checkpoint's weights, against the table of a spec."""

    table: ConfigTable
    source: JsonSource
    registry: Registry

    @cached_property
    def tables(self) -> list[ConfigTable]:
        """Of every known model; most files are of the spec's own kind and agree, and none of these is read."""
        return known_tables(self.registry)

    @cached_property
    def foreign(self) -> Foreign:
        others = () if self.source.value.get("model_type") == self.table.kind else self.tables
        return foreign_of(self.source, (self.table.kind, *(one.kind for one in others)))

    @cached_property
    def reads(self) -> frozenset[str]:
        """Names of the spec that its graphs depend on."""
        return names_read(build_all(self.table.resolved))

    def stated(self, table: ConfigTable) -> Mapping[str, Json]:
        """What the file says by the keys of ``table``, also by those that `read_config` spells otherwise."""
        foreign = self.foreign
        stated = dict(foreign.values)
        raw = {f"{k}.{n}": v for k, v in foreign.source.value.items() for n, v in entries(v)}
        for key in {**table.fixed, **table.expressions}.keys() - stated.keys():
            older = key.replace("rope_parameters.rope_theta", "rope_theta")
            if key in raw or older in stated:
                stated[key] = raw[key] if key in raw else stated[older]
        if foreign.partial:
            return stated
        meant = table.absences(stated)
        said = {key: v for key, v in stated.items() if v is not None or key not in meant}
        return {**meant, **said}  # silence has a meaning, and null is silence where it has one

    def clashes(self, table: ConfigTable) -> Iterator[Difference]:
        """Keys by which the file is another graph than the model of ``table``, where the spec's reads these names."""
        foreign = self.foreign
        if foreign.kind != table.kind:
            yield Difference("model_type", foreign.kind, table.kind)
            return
        for one in differences(self.stated(table), {**table.fixed, **table.fields}):
            expression = table.expressions.get(one.key)
            if expression is None:
                counts = one.key in table.fixed
            else:
                counts = any(name.id in self.reads for name in names(parse(expression)))
            if counts:
                yield one
        if foreign.scaled is not None and table.scaled not in (None, foreign.scaled):
            yield Difference("use_scaled_rope", foreign.scaled, table.scaled)

    def unseen(self) -> list[str]:
        """Keys of the table that the graph depends on and the file neither states nor implies."""
        if self.foreign.partial:
            return []
        stated = {*self.stated(self.table), *self.table.mapping.omits}
        return [
            key
            for key, expression in self.table.expressions.items()
            if key not in stated and any(n.id in self.reads for n in names(parse(expression)))
        ]

    def unknown(self) -> list[str]:
        """Keys of the file that the table says nothing of, as the file calls them; none for a table that is shipped:
        it has all keys that count, and tools write more into files than anybody lists."""
        table, foreign = self.table, self.foreign
        kind = table.resolved.leaf("config", "kind")
        if kind is None or self.registry.path_of(kind.origins[-1].spec_id) is not None:
            return []
        known = {*table.expressions, *table.fixed, *table.literals, *flat(table.mapping.absent)}
        known |= {key.replace("rope_parameters.rope_theta", "rope_theta") for key in known}
        return [
            foreign.named(key)
            for key, value in foreign.values.items()
            if key not in known and table.passed_over(key, value) is None
        ]

    def namesakes(self) -> tuple[str, ...]:
        """Ids of the models whose graph the file makes."""
        return tuple(one.spec.id for one in self.tables if not any(self.clashes(one)))

    def finding(self, clash: Difference, help: str | None) -> Diagnostic:
        """LG607"""
        key, id = self.foreign.named(clash.key), self.table.spec.id
        message = f"`{key}` is {json.dumps(clash.here)} here; `{id}` has {json.dumps(clash.known)}"
        return Diagnostic("LG607", "error", message, self.foreign.place(clash.key), (), help)

    def help(self) -> str:
        rest = f"or let `{self.table.spec.id}` count with `export --ignore-config`"
        if equal := self.namesakes():
            return f"the file is that of {listed(equal)}: take its spec, {rest}"
        kin = [one for one in self.tables if one.kind == self.foreign.kind]
        counts = [(sum(1 for _ in self.clashes(one)), one.spec.id) for one in kin]
        fewest, name = min(counts, default=(_FAR, ""), key=lambda one: one[0])
        nearest = ""
        if fewest < _FAR:
            nearest = f"`{name}` is nearest, but for {fewest} value{'s' * (fewest > 1)}; "
        return f"{nearest}`llamagen import` writes a spec of the file, {rest}"


def disagreements(
    resolved: ResolvedSpec, config: JsonSource | None, registry: Registry
) -> tuple[Diagnostic, ...]:
    """LG607 for each key of ``config`` that makes another graph; a warning LG648 for what was not compared, a note
    LG608 where there is no file.

    Raises LG10x for a file that cannot be read.
    """
    table = table_of(resolved)
    if config is None:
        message = "there is no config.json or params.json beside the weights to compare with"
        return (Diagnostic("LG608", "note", message),)
    if table is None:
        return _by_usual_names(resolved, config)
    beside = _Beside(table, config, registry)
    clashes = list(beside.clashes(table))
    findings = [
        beside.finding(one, beside.help() if one is clashes[-1] else None) for one in clashes
    ]
    if unseen := beside.unseen():
        findings.append(_not_compared(f"{Path(config.file).name} does not state", unseen))
    if unknown := beside.unknown():
        says = f"the `config` table of `{resolved.spec.id}` does not have"
        findings.append(_not_compared(says, unknown))
    return tuple(findings)


USUAL_KEYS: Mapping[str, str] = {
    **NAME_ALIASES,
    "hidden_act": "hidden_act",
    "hidden_activation": "hidden_act",
    "activation_function": "hidden_act",
    "moe_intermediate_size": "expert_intermediate_size",
    "attention_multiplier": "attention_scale",
    "attn_logit_softcapping": "attention_softcap",
    "final_logit_softcapping": "logit_softcap",
    "rope_scaling": "rope_scaling(rope)",
    "use_scaled_rope": "rope.kind != 'default'",
}
"""Keys of foreign configurations -> what a spec says of the same."""
_SAME_ACTIVATION = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
"""transformers' ACT2FN -> the same function here."""


def _sure(name: str, value: Json, known: Json) -> bool:
    """Whether values that differ say two things: a spec can have other words for a kind of rope or an activation."""
    match value:
        case str():
            return value in ACTIVATIONS and isinstance(known, str) and known in ACTIVATIONS
        case Mapping():  # one for each kind of layer has none of these keys
            return all(knows(value.get("rope_type"), key) for key in value.keys() - {"rope_type"})
        case _:
            return name != "head_dim"  # DeepSeek-V3's is the rotated part's


def _by_usual_names(resolved: ResolvedSpec, source: JsonSource) -> tuple[Diagnostic, ...]:
    """For a spec that does not say how its configuration is read: LG607 where a key of a usual name has another value
    than the spec, a warning LG648 with all keys whose meaning is not sure."""
    table = ConfigTable(resolved, ConfigMapping(kind="", fields={}))
    reads, scope = names_read(build_all(resolved)), config_scope(resolved.spec)
    known_names = {*scope, *CONFIG_FUNCTIONS}
    unseen: list[str] = []
    findings: list[Diagnostic] = []
    for key, path, value in usual_leaves(source.value):
        name = key.rpartition(".")[2]
        if name in ("model_type", "architectures") or table.passed_over(key, value) is not None:
            continue
        text = USUAL_KEYS.get(name, name)
        meant = name.isidentifier() and all(n.id in known_names for n in names(parse(text)))
        expression = text if meant else "none"
        known = plain(value_of(expression, scope))
        here = _SAME_ACTIVATION.get(value, value) if isinstance(value, str) else value
        if expression == "none" or (known is None and value is not None and name != "rope_scaling"):
            unseen.append(path)
        elif same(here, known) or not any(n.id in reads for n in names(parse(expression))):
            continue
        elif not _sure(name, here, known):
            unseen.append(path)
        else:
            message = f"`{path}` is {json.dumps(value)} here; `{resolved.spec.id}` has {json.dumps(known)}"
            help = f"or let `{resolved.spec.id}` count with `export --ignore-config`"
            findings.append(Diagnostic("LG607", "error", message, source.place(path), (), help))
    if unseen:
        says = f"`{resolved.spec.id}` has no `config` table that says what these keys mean:"
        findings.append(_not_compared(says, unseen))
    return tuple(findings)


def _not_compared(why: str, keys: Sequence[str]) -> Diagnostic:
    shown = ", ".join(f"`{key}`" for key in keys[:_SHOWN])
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    message = f"not everything was compared; {why} {shown}{more}"
    help = "see to it that they say what the spec does"
    return Diagnostic("LG648", "warning", message, None, (), help)


def _resized(resolved: ResolvedSpec, stored: Checkpoint, registry: Registry) -> Fit | None:
    """``resolved`` in the sizes of ``stored``, if both its config.json and its tensors say it is just that.

    None when the file is that of another known model, when it says what this architecture cannot, or when the tensors
    are not those of the file. Its findings are the note LG646, or LG607 for each value that no number makes another:
    a scaling of the positions, an activation.
    """
    table = table_of(resolved)
    config = config_of(stored) if table is not None else None
    if config is None or table is None:
        return None
    beside = _Beside(table, config, registry)
    if beside.foreign.kind != table.kind or beside.namesakes():
        return None
    try:
        imported = import_foreign(beside.foreign, id_of(Path(config.file)), [table], registry)
    except LlamagenError:
        return None  # the tensors that do not fit say more than what the file cannot say
    resolution = bind(imported.resolved, build(imported.resolved), stored, compare_values=False)
    if not _fits(resolution):
        return None
    help = "that is more than another size: `llamagen import` writes a spec of the file"
    clashes = (c for c in beside.clashes(table) if not _same_form(c.here, c.known))
    findings = tuple(beside.finding(one, help) for one in clashes)
    if not findings:
        sizes = _sizes(imported.nearest.differences)
        message = (
            f"this is `{resolved.spec.id}` in other sizes, by its {Path(config.file).name}: {sizes}"
        )
        help = "`llamagen import` writes them as a spec; an exported folder has it as spec.yaml"
        findings = (Diagnostic("LG646", "note", message, help=help),)
    return Fit(imported.resolved, stored, resolution, findings)


def _same_form(here: Json, known: Json) -> bool:
    """Numbers for numbers, what is said of every layer, and records of these; silence can stand for a number."""
    match here, known:
        case (bool(), _) | (_, bool()):
            return same(here, known)
        case (int() | float() | None, int() | float() | None):
            return True
        case (list() | tuple(), list() | tuple()):
            return True
        case (Mapping(), Mapping()):
            alike = here.keys() == known.keys()
            return alike and all(_same_form(here[key], known[key]) for key in here)
        case _:
            return same(here, known)


def _sizes(all_differences: Sequence[Difference]) -> str:
    """The first sizes, and before them the numbers that change what is computed: a rotary base, an epsilon."""
    stated = [one for one in all_differences if one.known is not None]
    real = [one for one in stated if isinstance(one.here, float)]
    whole = [one for one in stated if isinstance(one.here, int)]
    shown = [f"{one.key} {one.here} for {one.known}" for one in (*real, *whole[:_SHOWN])]
    more = len(all_differences) - len(shown)
    return ", ".join([*shown, *([f"{more} more"] if more else [])])


def import_path(path: Path, spec_id: str | None = None, adapter: Path | None = None) -> Imported:
    """The spec of a config.json, a params.json, a folder with one or a file of weights beside one, under ``spec_id`` or
    a name made from the path.

    Weights are compared with the spec by their headers; their folder may be that of ``adapter`` too.

    Raises LG106 to LG109, LG102, LG103 for what the file says, LG6xx for a checkpoint that does not fit it.
    """
    registry = Registry()
    weights = path.name.endswith(WEIGHTS_FILES)
    folder = path.parent if weights else path if files.is_folder(path) else None
    file = path
    if path.suffix == ".gguf":
        return _of_gguf(path, spec_id, registry)
    if folder is not None:
        present = (folder / name for name in FILES if files.exists(folder / name))
        if (config := next(present, None)) is None:
            return _by_shapes(path, spec_id or id_of(folder / FILES[0]), registry)
        file = config
    tables = known_tables(registry)
    foreign = foreign_of(read_json(file, within=folder), (one.kind for one in tables))
    imported = import_foreign(foreign, spec_id or id_of(file), tables, registry)
    has = weights or (folder is not None and has_weights(folder))
    if not has or imported.resolved.spec.root is None:
        return imported
    return _checked(imported, path, registry, adapter)


def _of_gguf(path: Path, spec_id: str | None, registry: Registry) -> Imported:
    stored = Checkpoint.open(path)
    config = config_of(stored)
    assert config is not None, "every GGUF that is read has one"
    tables = known_tables(registry)
    foreign = foreign_of(config, (one.kind for one in tables))
    imported = import_foreign(foreign, spec_id or id_of(path), tables, registry, stored.licence)
    return _checked(imported, path, registry)


def _checked(
    imported: Imported, checkpoint: Path, registry: Registry, adapter: Path | None = None
) -> Imported:
    report = check_checkpoint(imported.resolved, checkpoint, registry, adapter)
    if not report.clean:
        raise LlamagenError(one for one in report.findings if one.severity != "note")
    return replace(imported, notes=(*imported.notes, *(one.message for one in report.findings)))


def _by_shapes(path: Path, spec_id: str, registry: Registry) -> Imported:
    """Weights alone: the known models that have exactly these names and shapes."""
    folder = path if files.is_folder(path) else path.parent
    missing = f"the folder `{folder}` has neither config.json nor params.json"
    if path == folder and not has_weights(folder):
        raise LlamagenError.of("LG106", missing, help="give the configuration file itself")
    fit = best_fit(Checkpoint.open(path), registry)
    if fit is None or not fit.exact:
        near = f"; the nearest is `{fit.ids[0]}`" if fit is not None else ""
        message = f"{missing}, and its tensors are those of no known model{near}"
        help = "put the config.json of the model beside them"
        raise LlamagenError.of("LG106", message, help=help)
    base = fit.ids[0]
    text = f"spec: 1\nid: {spec_id}\nextends: {base}\n"
    note = "recognised by names and shapes; rope, epsilon and token ids leave no trace in them"
    resolved = registry.load_text(text)
    return Imported(text, resolved, Match(base, (), ()), alike=fit.ids, notes=(note,))


def has_weights(folder: Path) -> bool:
    names = files.names_in(folder, files.CONFIG)
    return any(n.endswith((".safetensors", ".pth")) or n.startswith("pytorch_model") for n in names)
