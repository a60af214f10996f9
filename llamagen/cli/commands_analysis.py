"""Commands that ask: diff, compat, cost, plot, query, timeline, sql. None of them imports a runtime or numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, assert_never

import typer

from llamagen.analysis.diff.surfaces import Surface, Verdict
from llamagen.analysis.records import MAINLINE
from llamagen.cli import console
from llamagen.cli.console import Cell, TableFormat
from llamagen.cli.exit_codes import FINDINGS
from llamagen.cli.read import Cache, Id

if TYPE_CHECKING:
    from llamagen.analysis.diff.judge import Diff
    from llamagen.spec.expr import Static

_SIDE = "An id, a YAML file, REVISION:PATH of a spec in git, a config.json or a folder with one."
A = Annotated[str, typer.Argument(metavar="A", help=_SIDE)]
B = Annotated[str, typer.Argument(metavar="B", help="The same.")]
Context = Annotated[int, typer.Option(min=1, help="Tokens of each sequence.")]
Batch = Annotated[int, typer.Option(min=1, help="Sequences.")]
Dtype = Annotated[
    str,
    typer.Option(help="Storage of the weights: float32, bfloat16, float16, float8, int8, int4."),
]
Where = Annotated[str, typer.Option(metavar="EXPR", help="Only models for which this is true.")]


def diff(
    a: A,
    b: B,
    surface: Annotated[
        list[Surface] | None, typer.Option(help="Only this surface; may be repeated.")
    ] = None,
    fail_on: Annotated[
        Literal["breaking", "convertible", "grows", "compatible"] | None,
        typer.Option(help="Exit 1 if a chosen surface is this bad or worse."),
    ] = None,
    format: Annotated[
        Literal["text", "markdown", "html", "json", "github", "svg"],
        typer.Option(help="How the comparison is printed."),
    ] = "text",
    context: Context = 4096,
    batch: Batch = 1,
    dtype: Dtype = "bfloat16",
    device: Annotated[
        str | None,
        typer.Option(help="A device of spec/hardware.yaml: breaking if A fits it and B does not."),
    ] = None,
    as_overlay: Annotated[
        bool, typer.Option("--as-overlay", help="Print the smallest spec that extends A and is B.")
    ] = False,
) -> None:
    """Compare two models: what changed, why, and what it means for weights, tokens, numbers and runtimes."""
    from llamagen import api_analysis as api

    if as_overlay:
        console.out(api.overlay(a, b))
        return
    chosen = tuple(surface or Surface)
    result = api.diff(a, b, context=context, batch=batch, dtype=dtype, device=device)
    console.out(_diff_text(result, a, b, chosen, format))
    if fail_on is not None and any(_as_bad(result, s, Verdict(fail_on)) for s in chosen):
        raise typer.Exit(FINDINGS)


def _as_bad(result: Diff, surface: Surface, limit: Verdict) -> bool:
    """What could not be compared is not known to be good."""
    return not result.compared(surface) or result.verdict(surface).rank >= limit.rank


def _diff_text(
    result: Diff,
    before: str,
    after: str,
    surfaces: tuple[Surface, ...],
    format: Literal["text", "markdown", "html", "json", "github", "svg"],
) -> str:

    from llamagen.analysis.diff import render as render_diff

    match format:
        case "text":
            return render_diff.text(result, surfaces)
        case "markdown":
            return render_diff.markdown(result, surfaces)
        case "html":
            return render_diff.html_page(result, surfaces)
        case "json":
            return render_diff.json_text(result, surfaces)
        case "github":
            return render_diff.github(result, surfaces)
        case "svg":
            from llamagen import api_analysis as api

            return api.diff_picture(before, after, result)
        case _:
            assert_never(format)


def compat(
    a: A,
    b: B,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="Only this runtime of spec/runtimes.yaml; may be repeated."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Dtype the runtime computes in.")] = "float32",
    format: Annotated[Literal["text", "json"], typer.Option(help="How it is printed.")] = "text",
) -> None:
    """Say whether A's weights run in B, what must be converted, and what runtimes do with B; exit 1 if they do not."""
    from llamagen import api_analysis as api
    from llamagen.analysis.diff import render_compat

    report = api.compat(a, b, runtimes=tuple(runtime or ()), dtype=dtype)
    console.out(render_compat.text(report) if format == "text" else render_compat.json_text(report))
    if report.verdict is Verdict.BREAKING:
        raise typer.Exit(FINDINGS)


def cost(
    spec: Id,
    context: Context = 4096,
    batch: Batch = 1,
    dtype: Dtype = "bfloat16",
    device: Annotated[
        str | None, typer.Option(help="A device of spec/hardware.yaml: rooflines, and what fits.")
    ] = None,
    tp: Annotated[int, typer.Option(min=1, help="Devices that share the model.")] = 1,
    images: Annotated[
        int, typer.Option(min=1, help="Images of a sequence, or tiles, for a model that takes any.")
    ] = 1,
    cache: Cache = "full",
    format: Annotated[Literal["text", "json"], typer.Option(help="How it is printed.")] = "text",
) -> None:
    """Count parameters, memory and FLOPs of a workload, exactly; bounds on a device."""
    from llamagen import api_analysis as api
    from llamagen.analysis import cost as costs

    report = api.cost(
        spec,
        context=context,
        batch=batch,
        dtype=dtype,
        device=device,
        tp=tp,
        images=images,
        cache=cache,
    )
    console.out(costs.text(report) if format == "text" else costs.json_text(report))


def plot(
    specs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Models; every model with a graph by default."),
    ] = None,
    longest: Annotated[
        int, typer.Option("--context", min=2048, help="Longest context, tokens.")
    ] = 131072,
) -> None:
    """Draw the KV cache over the context as SVG."""
    from llamagen import api_analysis as api

    console.out(api.plot(specs or (), longest=longest))


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
    format: Annotated[TableFormat, typer.Option(help="How the answer is printed.")] = "table",
) -> None:
    """Filter, sort and count the models with expressions over their sizes, numbers and history."""
    from llamagen import api_analysis as api
    from llamagen.analysis.records import COLUMNS

    if columns:
        console.table(["name", "meaning"], [(n, c.doc) for n, c in COLUMNS.items()], format)
        return
    if share is not None:
        found = api.share(share, where)
        heads = (share, "models", "share", "ids")
        if format == "json":
            console.records(heads, [(s.value, s.count, float(s.fraction), s.ids) for s in found])
            return
        rows = [
            (_cell(s.value), s.count, f"{float(s.fraction):.1%}", ", ".join(s.ids)) for s in found
        ]
        console.table(heads, rows, format)
        return
    names = _expressions(select)
    answer = api.query(where, select=names, sort=sort, first=first)
    _answer(answer.columns, answer.rows, format)
    if not answer.rows:
        console.note("no model matches")


def _expressions(select: str) -> list[str]:
    """Split at semicolons, or without any at the commas outside of brackets."""
    if ";" in select:
        return [text.strip() for text in select.split(";")]
    found, depth = [""], 0
    for char in select:
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            found.append("")
        else:
            found[-1] += char
    return [text.strip() for text in found]


def _answer(columns: Sequence[str], rows: Sequence[Sequence[Static]], format: TableFormat) -> None:
    if format == "json":
        console.records(columns, rows)
    else:
        console.table(columns, [tuple(map(_cell, row)) for row in rows], format)


def _cell(value: Static) -> Cell:
    from llamagen.analysis.tables import static_text

    match value:
        case bool() | float() | tuple() | Mapping():
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
    where: Where = MAINLINE,
) -> None:
    """Show when a value changed over the releases, when it first appeared, or that it never changed."""
    from llamagen import api_analysis as api
    from llamagen.analysis.queries import history_text, timeline_text

    if path is None:
        console.out(history_text(api.history(where)))
    else:
        console.out(timeline_text(api.timeline(path, where)))


def sql(
    statement: Annotated[
        str | None,
        typer.Argument(metavar="[SELECT]", help="One SELECT; without it the tables are listed."),
    ] = None,
    format: Annotated[TableFormat, typer.Option(help="How the answer is printed.")] = "table",
) -> None:
    """Ask in SQL: tables models, layers, parameters, changes, sources; read only."""
    from llamagen import api_analysis as api
    from llamagen.analysis.sql import TABLES

    if statement is None:
        tables = [(name, t.doc, ", ".join(t.columns)) for name, t in TABLES.items()]
        console.table(["table", "rows", "columns"], tables, format)
        return
    result = api.sql(statement)
    _answer(result.columns, result.rows, format)
