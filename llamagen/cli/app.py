"""The commands. Each one calls ``llamagen.api``, or an analysis of its own name, and renders what that returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import typer

from llamagen.cli import commands_analysis, import_command, make, read, work
from llamagen.cli.options import OPTIONS
from llamagen.cli.verify import verify


@dataclass(frozen=True, slots=True)
class _Command:
    summary: str
    run: Callable[..., None]


COMMANDS: Mapping[str, _Command] = {
    "list": _Command("List the models of the family.", read.list_models),
    "show": _Command("Show one model: sizes, parameters, memory, history.", read.show),
    "check": _Command("Check specs, or a checkpoint against a spec.", read.check),
    "resolve": _Command("Print a spec with everything it inherits.", read.resolve),
    "explain": _Command("Explain a value, a diagnostic code or an op.", read.explain),
    "graph": _Command("Print the typed graph of a model.", read.graph),
    "diff": _Command("Compare two models, surface by surface.", commands_analysis.diff),
    "compat": _Command("Say whether A's weights run in B, and where.", commands_analysis.compat),
    "cost": _Command("Count parameters, memory and FLOPs of a workload.", commands_analysis.cost),
    "plot": _Command("Draw the KV cache over the context as SVG.", commands_analysis.plot),
    "query": _Command("Filter and sort the models with expressions.", commands_analysis.query),
    "timeline": _Command(
        "Show how a value moved through the releases.", commands_analysis.timeline
    ),
    "sql": _Command("Ask about the family in SQL.", commands_analysis.sql),
    "import": _Command(
        "Turn a config.json or params.json into a spec.", import_command.import_config
    ),
    "fmt": _Command("Write specs in canonical form.", make.fmt),
    "schema": _Command("Print the JSON schema of spec files.", make.schema),
    "generate": _Command("Write PyTorch code, ONNX graph, configs and texts.", make.generate),
    "export": _Command("Write an ONNX folder with weights.", work.export),
    "verify": _Command("Compare an exported folder with independent witnesses.", verify),
    "run": _Command("Generate with an exported folder.", work.run),
    "convert": _Command("Write A's checkpoint as one of B, where that is exact.", work.convert),
    "random-checkpoint": _Command(
        "Write a checkpoint with random weights.", work.random_checkpoint
    ),
}
"""In the order of the help."""


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"llamagen {version('llamagen')}")
        except PackageNotFoundError:
            typer.echo("llamagen, not installed (run from its source)")
        raise typer.Exit


def _root(
    traceback: bool = typer.Option(
        False, "--traceback", help="Print the traceback of an internal error."
    ),
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_version, help="Print the version and exit."
    ),
) -> None:
    OPTIONS.traceback = traceback


def app_of(words: Sequence[str]) -> typer.Typer:
    """The parser of a command line: of the command that it names alone, since each takes a millisecond to build."""
    first = next((word for word in words if word != "--traceback"), None)
    app = typer.Typer(
        name="llamagen",
        help="LLaMA architectures as YAML specs: check and explain them, generate PyTorch and ONNX from them.",
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "terminal_width": 100,
            "max_content_width": 100,
        },
    )
    app.callback()(_root)
    for name, command in COMMANDS.items():
        if first not in COMMANDS or name == first:
            app.command(name, short_help=command.summary)(command.run)
    return app
