"""Commands that compare two models: diff and compat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from llamagen import api
from llamagen.analysis.diff import compat as compats
from llamagen.analysis.diff import render
from llamagen.analysis.diff.judge import Diff, Surface, Verdict
from llamagen.cli import console
from llamagen.cli.exit_codes import FINDINGS
from llamagen.cli.read import Batch, Context, Dtype, known_ids

Form: TypeAlias = Literal["text", "markdown", "html", "json", "github", "svg", "png"]

_FORMS: Mapping[str, Callable[[Diff, tuple[Surface, ...]], str]] = {
    "markdown": render.markdown,
    "html": render.html_page,
    "github": render.github,
}

_SIDE = "An id, a YAML file, REVISION:PATH of a spec in git, a config.json or a folder with one."
A = Annotated[str, typer.Argument(metavar="A", help=_SIDE, autocompletion=known_ids)]
B = Annotated[str, typer.Argument(metavar="B", help="The same.", autocompletion=known_ids)]


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
    format: Annotated[Form, typer.Option(help="How the comparison is printed.")] = "text",
    full: Annotated[
        bool, typer.Option("--full", help="As text: every change with its places and causes.")
    ] = False,
    context: Context = 4096,
    batch: Batch = 1,
    dtype: Dtype = "bfloat16",
    device: Annotated[
        str | None,
        typer.Option(help="A device of spec/hardware.yaml: breaking if A fits it and B does not."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="A YAML file: rules and paths to `ignore`, and `levels` of rules."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="A diff that --format json wrote: what it says is left out."),
    ] = None,
    as_overlay: Annotated[
        bool, typer.Option("--as-overlay", help="Print the smallest spec that extends A and is B.")
    ] = False,
) -> None:
    """Compare two models: what changed, why, and what it means for weights, tokens, numbers and runtimes."""
    if as_overlay:
        console.out(api.overlay(a, b))
        return
    chosen = tuple(surface or Surface)
    result = api.diff(a, b, context=context, batch=batch, dtype=dtype, device=device)
    if policy is not None or baseline is not None:
        from llamagen.analysis.diff import policy as policies  # reads models of JSON, as below

        result = policies.applied(
            result,
            policies.read_policy(policy) if policy is not None else policies.Policy(),
            policies.read_baseline(baseline) if baseline is not None else None,
        )
    if format == "svg":
        console.out(api.diff_picture(a, b, result))
    elif format == "png":
        console.picture(api.png(api.diff_picture(a, b, result)))
    elif format == "json":
        from llamagen.analysis.diff.document import json_text

        console.out(json_text(result, chosen))
    elif format == "text":
        console.out(render.text(result, chosen, full=full))
    else:
        console.out(_FORMS[format](result, chosen))
    if fail_on is not None and any(_as_bad(result, s, Verdict(fail_on)) for s in chosen):
        raise typer.Exit(FINDINGS)


def _as_bad(result: Diff, surface: Surface, limit: Verdict) -> bool:
    """What could not be compared is not known to be good."""
    return not result.compared(surface) or result.verdict(surface).rank >= limit.rank


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
    report = api.compat(a, b, runtimes=tuple(runtime or ()), dtype=dtype)
    console.out(compats.text(report) if format == "text" else compats.json_text(report))
    if report.verdict is Verdict.BREAKING:
        raise typer.Exit(FINDINGS)
