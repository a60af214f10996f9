"""Commands that read: none of them imports torch, onnx, onnxruntime or numpy, and each only what it asks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llamagen import api
from llamagen.api import MAINLINE
from llamagen.cli import console
from llamagen.cli.console import Cell, DiagnosticFormat, TableFormat
from llamagen.cli.exit_codes import FINDINGS
from llamagen.spec.families import EVERY_FAMILY, FAMILY, family_of

if TYPE_CHECKING:
    from llamagen.analysis.queries import Value
    from llamagen.emit.config.importing import Imported

Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TARGET", help="Ids, YAML files or folders; every shipped spec by default."
    ),
]
Cache = Annotated[
    Literal["full", "bounded"],
    typer.Option(help="Layers with a window or chunks keep every key, or those still visible."),
]


def known_ids(incomplete: str) -> list[str]:
    """Those that a shell completes."""
    from llamagen.spec.registry import Registry

    known = Registry().ids(abstract=False, sketches=True)
    return [one for one in known if one.startswith(incomplete)]


Id = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="An id such as llama/3.2/1b, or a YAML file.",
        autocompletion=known_ids,
    ),
]


def known_generations(incomplete: str) -> list[str]:
    """Those of LLaMA that a shell completes."""
    from llamagen.spec.registry import Registry

    ours = (one for one in Registry().ids(abstract=False) if family_of(one) == FAMILY)
    known = dict.fromkeys(one.split("/")[1] for one in ours)
    return [one for one in known if one.startswith(incomplete)]


def known_families(incomplete: str) -> list[str]:
    """Those that a shell completes."""
    from llamagen.spec.registry import Registry

    known = dict.fromkeys((EVERY_FAMILY, *map(family_of, Registry().ids(abstract=False))))
    return [one for one in known if one.startswith(incomplete)]


Family = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Of this family, the first word of an id, or of `all`.",
        autocompletion=known_families,
    ),
]
Context = Annotated[int, typer.Option(min=1, help="Tokens of each sequence.")]
Batch = Annotated[int, typer.Option(min=1, help="Sequences.")]
Tp = Annotated[int, typer.Option(min=1, help="Tensor parallel: devices that share each layer.")]
Pp = Annotated[int, typer.Option(min=1, help="Pipeline: devices that have some layers each.")]
Ep = Annotated[
    int, typer.Option(min=1, help="Expert parallel: devices that have some experts each.")
]
Dtype = Annotated[
    str,
    typer.Option(help="Storage of the weights: float32, bfloat16, float16, float8, int8, int4."),
]


def check(
    targets: Targets = None,
    format: Annotated[DiagnosticFormat, typer.Option(help="How findings are printed.")] = "text",
    as_id: Annotated[
        str | None,
        typer.Option("--as", metavar="ID", help="Compare a checkpoint's headers with this spec."),
    ] = None,
    notes: Annotated[
        bool, typer.Option("--notes", help="Print hints too; they are no findings.")
    ] = False,
) -> None:
    """Check specs, or a checkpoint folder against a spec (--as); exit 1 if there are findings."""
    if as_id is None:
        report = api.check(targets or (), notes=notes)
        what = "1 spec" if report.specs == 1 else f"{report.specs} specs"
    else:
        if not targets or len(targets) != 1:
            raise typer.BadParameter("give one checkpoint folder with --as")
        report = api.check_checkpoint(targets[0], as_id)
        what = f"{targets[0]} as {as_id}"
    console.diagnostics(report.findings, format)
    if format == "text" and report.clean:
        console.line(f"{what}: no findings")
    if not report.clean:
        raise typer.Exit(FINDINGS)


def list_models(
    family: Family = FAMILY,
    generation: Annotated[
        str | None,
        typer.Option(
            metavar="GEN", help="Only this generation, e.g. 3.2.", autocompletion=known_generations
        ),
    ] = None,
    status: Annotated[
        Literal["released", "served", "announced", "unreleased", "sketch"] | None,
        typer.Option(help="Only this status."),
    ] = None,
    modality: Annotated[
        Literal["text", "vision"] | None,
        typer.Option(help="Only models with or without image input."),
    ] = None,
    format: Annotated[TableFormat, typer.Option(help="How the list is printed.")] = "table",
    save_numbers: Annotated[
        bool,
        typer.Option(
            "--save-numbers", help="First measure every model again and save spec/numbers.json."
        ),
    ] = False,
) -> None:
    """List the models with dates, exact parameters, attention, context and licence."""
    from llamagen.analysis.records import LIST_COLUMNS

    if save_numbers:
        api.save_numbers()
    rows = api.list_models(family=family, generation=generation, status=status, modality=modality)
    if format in ("json", "csv"):
        console.table(LIST_COLUMNS, [row.cells() for row in rows], format)
    else:
        console.table(LIST_COLUMNS[:-1], [row.shown() for row in rows], format)


Form = Annotated[Literal["text", "json"], typer.Option("--format", help="How it is printed.")]


def show(spec: Id, form: Form = "text") -> None:
    """Show one model: sizes, parameters, memory, history."""
    sections = api.show(spec)
    if form == "json":
        from llamagen.analysis.documents import ShowDocument

        console.out(ShowDocument(sections={s.title: s.rows for s in sections}).json_text())
        return
    for section in sections:
        console.section(section.title, section.rows)


def resolve(
    spec: Id,
    origins: Annotated[
        bool,
        typer.Option("--origins", help="Say where every value comes from: file:line:col and base."),
    ] = False,
    form: Form = "text",
) -> None:
    """Print a spec with everything it inherits, as one canonical YAML file."""
    model = api.load(spec)
    if form == "json":
        from llamagen.analysis import documents

        rows = (
            documents.Origin(path=r.path, text=r.text, place=str(r.span), spec=r.spec_id)
            for r in model.origins
        )
        console.out(
            documents.OriginsDocument(values=tuple(rows)).json_text()
            if origins
            else documents.ResolveDocument(spec=model.resolved.plain).json_text()
        )
        return
    if not origins:
        console.out(model.resolved_text())
        return
    for row in model.origins:
        first = row.text.split("\n", 1)[0]
        text = first if first == row.text else f"{first} ..."
        via = "" if row.spec_id == model.id else f" via {row.spec_id}"
        over = "".join(
            f", over {old.text!r} of {old.spec_id}" for old in reversed(row.origins[:-1])
        )
        console.line(f"{row.path} = {text}\n    {row.span}{via}{over}")


def explain(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT",
            help="An id, a diagnostic code, an op's name, `language`, `ops`, or a profile (ort-cpu ...).",
        ),
    ],
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH", help="With an id: the path of a value, e.g. hyperparameters.rope.theta."
        ),
    ] = None,
    form: Form = "text",
) -> None:
    """Explain a value of a model (ID PATH), a diagnostic code (LG021), an op, or a profile's rewrites."""
    text = api.explain(subject, path)
    if form == "text":
        console.out(text)
        return
    from llamagen.analysis.documents import ExplainDocument

    value = api.explanation(subject, path) if path is not None else None
    document = ExplainDocument(subject=subject, path=path, text=text, value=value)
    console.out(document.json_text())


def graph(
    spec: Id,
    form: Annotated[
        Literal["text", "mermaid", "tower", "svg", "png", "explorer"],
        typer.Option(
            "--as",
            help="Canonical text, a Mermaid flowchart, a tower as text or picture, JSON for Model Explorer.",
        ),
    ] = "text",
    name: Annotated[
        str | None,
        typer.Option("--graph", metavar="NAME", help="Of a model with images, only this graph."),
    ] = None,
) -> None:
    """Print the typed graphs of a model."""
    if form == "png":
        console.picture(api.png(api.graph_svg(spec, name)))
        return
    draw = {
        "text": api.graph_text,
        "mermaid": api.graph_mermaid,
        "tower": api.graph_tower,
        "svg": api.graph_svg,
        "explorer": api.graph_explorer,
    }
    console.out(draw[form](spec, name))


def cost(
    spec: Id,
    context: Context = 4096,
    batch: Batch = 1,
    dtype: Dtype = "bfloat16",
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="A device of spec/hardware.yaml, or a file with its fields: rooflines, and what fits.",
        ),
    ] = None,
    tp: Tp = 1,
    pp: Pp = 1,
    ep: Ep = 1,
    images: Annotated[
        int, typer.Option(min=1, help="Images of a sequence, or tiles, for a model that takes any.")
    ] = 1,
    cache: Cache = "full",
    cache_dtype: Annotated[
        str | None,
        typer.Option(
            help="Of keys and values: float32, bfloat16, float16, float8, int8; as activations by default."
        ),
    ] = None,
    format: Annotated[Literal["text", "json"], typer.Option(help="How it is printed.")] = "text",
) -> None:
    """Count parameters, memory and FLOPs of a workload, exactly; bounds on a device."""
    from llamagen.analysis import cost as costs

    report = api.cost(
        spec,
        context=context,
        batch=batch,
        dtype=dtype,
        device=device,
        tp=tp,
        pp=pp,
        ep=ep,
        images=images,
        cache=cache,
        cache_dtype=cache_dtype,
    )
    console.out(costs.text(report) if format == "text" else costs.json_text(report))


def parallel(
    spec: Id,
    tp: Tp = 1,
    pp: Pp = 1,
    ep: Ep = 1,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs that there are; a multiple of all degrees together."),
    ] = None,
    context: Context = 4096,
    batch: Batch = 1,
    dtype: Dtype = "bfloat16",
    cache: Cache = "full",
    form: Form = "text",
) -> None:
    """Say how a model is cut over GPUs: what each part is, bytes of a GPU, traffic of a token."""
    from llamagen.analysis.parallel import json_text, text

    report = api.parallel(
        spec,
        tp=tp,
        pp=pp,
        ep=ep,
        gpus=gpus,
        context=context,
        batch=batch,
        dtype=dtype,
        cache=cache,
    )
    console.out((text if form == "text" else json_text)(report))


def plot(
    specs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Models; every model with a graph by default."),
    ] = None,
    longest: Annotated[
        int, typer.Option("--context", min=2048, help="Longest context, tokens.")
    ] = 131072,
    family: Family = FAMILY,
    format: Annotated[Literal["svg", "png"], typer.Option(help="How it is drawn.")] = "svg",
) -> None:
    """Draw the KV cache over the context as SVG, or as PNG."""
    svg = api.plot(specs or (), longest=longest, family=family)
    if format == "png":
        console.picture(api.png(svg))
    else:
        console.out(svg)


def query(
    where: Annotated[
        str, typer.Argument(metavar="[EXPR]", help="Only models for which this is true.")
    ] = "true",
    select: Annotated[
        str,
        typer.Option(help="Columns: expressions separated by commas, or by semicolons."),
    ] = "id,released,params",
    sort: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Order by this; a minus in front reverses.")
    ] = None,
    first: Annotated[int | None, typer.Option(min=1, help="Only so many rows.")] = None,
    share: Annotated[
        str | None, typer.Option(metavar="EXPR", help="How many of the models have each value.")
    ] = None,
    columns: Annotated[
        bool, typer.Option("--columns", help="List the names that expressions may use.")
    ] = False,
    family: Family = FAMILY,
    format: Annotated[TableFormat, typer.Option(help="How the answer is printed.")] = "table",
) -> None:
    """Filter, sort and count the models with expressions over their sizes, numbers and history."""
    from llamagen.analysis.records import COLUMNS

    if columns:
        console.table(["name", "meaning"], [(n, c.doc) for n, c in COLUMNS.items()], format)
        return
    if share is not None:
        shares = api.share(share, where, family=family)
        heads = (share, "models", "share", "ids")
        if format == "json":
            console.records(heads, [(s.value, s.count, float(s.fraction), s.ids) for s in shares])
            return
        rows = [
            (_cell(s.value), s.count, f"{float(s.fraction):.1%}", ", ".join(s.ids)) for s in shares
        ]
        console.table(heads, rows, format)
        return
    names = _expressions(select)
    answer = api.query(where, select=names, sort=sort, first=first, family=family)
    _answer(answer.columns, answer.rows, format)
    if not answer.rows:
        console.note("no model matches")


def _expressions(select: str) -> list[str]:
    """Split at semicolons, or without any at the commas outside of brackets."""
    if ";" in select:
        return [text.strip() for text in select.split(";")]
    texts, depth = [""], 0
    for char in select:
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            texts.append("")
        else:
            texts[-1] += char
    return [text.strip() for text in texts]


def _answer(columns: Sequence[str], rows: Sequence[Sequence[Value]], format: TableFormat) -> None:
    if format == "json":
        console.records(columns, rows)
    else:
        console.table(columns, [tuple(map(_cell, row)) for row in rows], format)


def _cell(value: Value) -> Cell:
    from llamagen.analysis.tables import static_text

    match value:
        case bool() | float() | tuple() | Mapping() | date():
            return static_text(value)
        case _:
            return value


def timeline(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[EXPR]", help="A name or expression; every hyperparameter by default."
        ),
    ] = None,
    where: Annotated[
        str, typer.Option(metavar="EXPR", help="Only models for which this is true.")
    ] = MAINLINE,
    releases: Annotated[
        bool,
        typer.Option("--releases", help="Every release: sizes, what was new, what is often said."),
    ] = False,
    family: Family = FAMILY,
    form: Form = "text",
) -> None:
    """Show when a value changed over the releases, when it first appeared, or that it never changed."""
    from llamagen.analysis.queries import history_text, timeline_text

    if releases:
        from llamagen.analysis.releases import json_text, text

        console.out((text if form == "text" else json_text)(api.releases(family=family)))
    elif form == "json":
        histories = (
            api.history(where, family=family)
            if path is None
            else (api.timeline(path, where, family=family),)
        )
        from llamagen.analysis.documents import TimelineDocument
        from llamagen.analysis.tables import jsonable

        plain = json.dumps({"timelines": [asdict(one) for one in histories]}, default=jsonable)
        console.out(TimelineDocument.model_validate_json(plain).json_text())
    elif path is None:
        console.out(history_text(api.history(where, family=family)))
    else:
        console.out(timeline_text(api.timeline(path, where, family=family)))


def sql(
    statement: Annotated[
        str | None,
        typer.Argument(metavar="[SELECT]", help="One SELECT; without it the tables are listed."),
    ] = None,
    family: Family = FAMILY,
    format: Annotated[TableFormat, typer.Option(help="How the answer is printed.")] = "table",
) -> None:
    """Ask in SQL, read only; without a statement the tables are listed."""
    from llamagen.analysis.sql import TABLES

    if statement is None:
        tables = [(name, t.doc, ", ".join(t.columns)) for name, t in TABLES.items()]
        console.table(["table", "rows", "columns"], tables, format)
        return
    result = api.sql(statement, family=family)
    _answer(result.columns, result.rows, format)


def import_config(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="config.json, params.json, or a folder with one."),
    ],
    id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Of the spec; made from the path by default."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="Write the spec here instead of stdout."),
    ] = None,
    form: Form = "text",
) -> None:
    """Turn a config.json, params.json or checkpoint folder into a spec, and say which known model it is."""
    from llamagen.writing import require_kin, write_changed

    if to is not None:
        require_kin(to, lambda text: re.search(r"^spec: \d", text, re.M) is not None, "a spec")
    imported = api.import_config(source, id)
    if form == "json":
        from llamagen.analysis.documents import Difference, ImportDocument, Nearest

        known = imported.nearest
        differences = (*known.differences, *known.marks)
        rows = tuple(Difference.model_validate(asdict(one)) for one in differences)
        document = ImportDocument(
            spec=imported.resolved.plain,
            exact=imported.exact,
            alike=imported.alike,
            nearest=Nearest(id=known.id, differences=rows),
            handled=imported.handled,
            ignored=dict(imported.ignored),
            dropped=imported.dropped,
            notes=imported.notes,
        )
        console.out(document.json_text())
    else:
        _report(imported)
    if to is None and form == "text":
        console.out(imported.text)
    elif to is not None:
        reads = list(source.iterdir()) if source.is_dir() else [source]
        written, _ = write_changed(to.parent, {to.name: imported.text}, reads)
        console.line(f"{'wrote' if written else 'unchanged'} {to}")


def _report(imported: Imported) -> None:
    """What it is and what became of every key, for people: on stderr."""
    if imported.exact:
        console.note(f"this is {', '.join(imported.exact)}, value for value")
    elif imported.alike:
        console.note(f"the architecture is that of {', '.join(imported.alike)}")
    else:
        console.note(f"the nearest known model is {imported.nearest.id}")
    for one in (*imported.nearest.differences, *imported.nearest.marks):
        console.note(f"  {one.key}: {one.here!r}, there {one.known!r}")
    console.note(f"{len(imported.handled)} keys handled, {len(imported.ignored)} ignored")
    for key, reason in imported.ignored.items():
        console.note(f"  {key}: {reason}")
    if imported.dropped:
        dropped = ", ".join(imported.dropped)
        console.note(f"formulas of {imported.nearest.id} that do not hold here: {dropped}")
    for text in imported.notes:
        console.note(text)
