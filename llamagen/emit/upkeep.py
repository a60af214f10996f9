"""Files of the repository that are derived from its specs: spec/counts.json and spec/schema.json."""

from __future__ import annotations

from pathlib import Path

from llamagen.emit.files import write_changed
from llamagen.resources import data_folder
from llamagen.spec.json_schema import schema_text
from llamagen.spec.registry import Registry


def save_counts() -> bool:
    """Count the parameters of every shipped model and save them in spec/counts.json; whether the file changed."""
    from llamagen.analysis.numbers.counts import counts_path

    path = counts_path()
    written, _ = write_changed(path.parent, {path.name: counts_text()})
    return bool(written)


def counts_text() -> str:
    """What spec/counts.json must hold."""
    from llamagen.analysis.numbers.counts import counts_text

    registry = Registry()
    return counts_text(registry.load(spec_id) for spec_id in registry.ids(abstract=False))


def schema_is_fresh() -> bool:
    """Whether the shipped spec/schema.json is what ``schema_text`` gives."""
    shipped = data_folder("spec") / "schema.json"
    return shipped.is_file() and shipped.read_text(encoding="utf-8") == schema_text()


def write_schema(path: Path) -> bool:
    """Write the schema unless the file has it already; whether it was written."""
    written, _ = write_changed(path.parent, {path.name: schema_text()})
    return bool(written)
