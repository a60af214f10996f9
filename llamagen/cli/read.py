"""Commands that read: none of them imports torch, onnx, onnxruntime or numpy."""

from __future__ import annotations

from typing import Annotated, Literal, assert_never

import typer

from llamagen.cli import console
from llamagen.cli.console import DiagnosticFormat, TableFormat
from llamagen.cli.exit_codes import FINDINGS

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
Id = Annotated[
    str, typer.Argument(metavar="ID", help="An id such as llama/3.2/1b, or a YAML file.")
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
    from llamagen import api

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
    generation: Annotated[
        str | None, typer.Option(metavar="GEN", help="Only this generation, e.g. 3.2.")
    ] = None,
    status: Annotated[
        Literal["released", "announced", "unreleased", "sketch"] | None,
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
    from llamagen import api_analysis
    from llamagen.analysis.records import LIST_COLUMNS

    if save_numbers:
        api_analysis.save_numbers()
    rows = api_analysis.list_models(generation=generation, status=status, modality=modality)
    if format in ("json", "csv"):
        console.table(LIST_COLUMNS, [row.cells() for row in rows], format)
    else:
        console.table(LIST_COLUMNS[:-1], [row.shown() for row in rows], format)


def show(spec: Id) -> None:
    """Show one model: sizes, parameters, memory, history."""
    from llamagen import api_analysis

    for section in api_analysis.show(spec):
        console.section(section.title, section.rows)


def resolve(
    spec: Id,
    origins: Annotated[
        bool,
        typer.Option("--origins", help="Say where every value comes from: file:line:col and base."),
    ] = False,
) -> None:
    """Print a spec with everything it inherits, as one canonical YAML file."""
    from llamagen import api

    model = api.load(spec)
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
            help="An id, a diagnostic code, an op's name, `ops`, or a profile (ort-cpu, ort-cuda).",
        ),
    ],
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH", help="With an id: the path of a value, e.g. hyperparameters.rope.theta."
        ),
    ] = None,
) -> None:
    """Explain a value of a model (ID PATH), a diagnostic code (LG021), an op, or a profile's rewrites."""
    from llamagen import api_analysis

    console.out(api_analysis.explain(subject, path))


def graph(
    spec: Id,
    form: Annotated[
        Literal["text", "mermaid", "tower", "svg", "explorer"],
        typer.Option(
            "--as",
            help="Canonical text, a Mermaid flowchart, a tower as text or SVG, JSON for Model Explorer.",
        ),
    ] = "text",
    name: Annotated[
        str | None,
        typer.Option("--graph", metavar="NAME", help="Of a model with images, only this graph."),
    ] = None,
) -> None:
    """Print the typed graphs of a model."""
    from llamagen import api_analysis as api

    match form:
        case "text":
            console.out(api.graph_text(spec, name))
        case "mermaid":
            console.out(api.graph_mermaid(spec, name))
        case "tower":
            console.out(api.graph_tower(spec, name))
        case "svg":
            console.out(api.graph_svg(spec, name))
        case "explorer":
            console.out(api.graph_explorer(spec, name))
        case _:
            assert_never(form)
