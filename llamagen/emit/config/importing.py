"""Where a configuration lies: config.json, params.json, or a checkpoint folder that has one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llamagen import files
from llamagen.analysis.family.identify import Match
from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.check_checkpoint import check_checkpoint
from llamagen.emit.config.formats import FILES, id_of, wanted_of
from llamagen.emit.config.json_source import read_json
from llamagen.emit.config.known import known_models
from llamagen.emit.config.read import Imported, import_wanted
from llamagen.ir.elaborate import build
from llamagen.spec.registry import Registry


def import_path(path: Path, spec_id: str | None = None) -> Imported:
    """The spec of a file or folder, under ``spec_id`` or a name made from the path.

    A folder's weights are compared with the spec by their headers. Raises LG106 to LG109, LG102, LG103 for what the
    file says, LG6xx for a checkpoint that does not fit it.
    """
    file = path
    if files.is_folder(path):
        found = next((path / name for name in FILES if files.exists(path / name)), None)
        if found is None:
            return _by_shapes(path, spec_id or id_of(path / FILES[0]))
        file = found
    registry = Registry()
    models = known_models(registry)
    source = read_json(file, within=path if file != path else None)
    wanted = wanted_of(source, tuple(sorted({one.mapping.kind for one in models})))
    made = import_wanted(wanted, spec_id or id_of(file), models, registry)
    return _checked(made, path, registry) if files.is_folder(path) else made


def _by_shapes(folder: Path, spec_id: str) -> Imported:
    """A folder of weights alone: the known models that have exactly these names and shapes."""
    from llamagen.weights.checkpoint import Checkpoint
    from llamagen.weights.names import best_fit

    missing = f"the folder `{folder}` has neither config.json nor params.json"
    if not _has_weights(folder):
        raise LlamagenError.of("LG106", missing, help="give the configuration file itself")
    registry = Registry()
    fit = best_fit(Checkpoint.open(folder), registry)
    if fit is None or not fit.exact:
        near = f"; the nearest is `{fit.ids[0]}`" if fit is not None else ""
        message = f"{missing}, and its tensors are those of no known model{near}"
        help = "put the config.json of the model beside them"
        raise LlamagenError.of("LG106", message, help=help)
    base = fit.ids[0]
    text = f"spec: 1\nid: {spec_id}\nextends: {base}\n"
    note = "recognised by names and shapes; rope, epsilon and token ids leave no trace in them"
    match = Match(base, (), ())
    return Imported(text, registry.load_text(text), match, (), fit.ids, (), {}, (), (note,))


def _checked(made: Imported, folder: Path, registry: Registry) -> Imported:
    if made.resolved.spec.root is None or not _has_weights(folder):
        return made
    report = check_checkpoint(made.resolved, build(made.resolved), folder, registry)
    if not report.clean:
        raise LlamagenError(found for found in report.findings if found.severity != "note")
    notes = tuple(found.message for found in report.findings)
    return replace(made, notes=(*made.notes, *notes))


def _has_weights(folder: Path) -> bool:
    return any(n.endswith((".safetensors", ".pth")) for n in files.names_in(folder, files.CONFIG))
