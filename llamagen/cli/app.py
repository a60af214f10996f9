"""The commands. Each one calls ``llamagen.api``, or an analysis of its own name, and renders what that returns."""

from __future__ import annotations

import typer

from llamagen.cli import commands_analysis, import_command, make, read, work
from llamagen.cli.options import OPTIONS
from llamagen.cli.verify import verify

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


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"llamagen {version('llamagen')}")
        except PackageNotFoundError:
            typer.echo("llamagen, not installed (run from its source)")
        raise typer.Exit


@app.callback()
def _root(
    traceback: bool = typer.Option(
        False, "--traceback", help="Print the traceback of an internal error."
    ),
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_version, help="Print the version and exit."
    ),
) -> None:
    OPTIONS.traceback = traceback


app.command("list", short_help="List the models of the family.")(read.list_models)
app.command(short_help="Show one model: sizes, parameters, memory, history.")(read.show)
app.command(short_help="Check specs, or a checkpoint against a spec.")(read.check)
app.command(short_help="Print a spec with everything it inherits.")(read.resolve)
app.command(short_help="Explain a value, a diagnostic code or an op.")(read.explain)
app.command(short_help="Print the typed graph of a model.")(read.graph)
app.command(short_help="Compare two models, surface by surface.")(commands_analysis.diff)
app.command(short_help="Say whether A's weights run in B, and where.")(commands_analysis.compat)
app.command(short_help="Count parameters, memory and FLOPs of a workload.")(commands_analysis.cost)
app.command(short_help="Draw the KV cache over the context as SVG.")(commands_analysis.plot)
app.command(short_help="Filter and sort the models with expressions.")(commands_analysis.query)
app.command(short_help="Show how a value moved through the releases.")(commands_analysis.timeline)
app.command(short_help="Ask about the family in SQL.")(commands_analysis.sql)
app.command("import", short_help="Turn a config.json or params.json into a spec.")(
    import_command.import_config
)
app.command(short_help="Write specs in canonical form.")(make.fmt)
app.command(short_help="Print the JSON schema of spec files.")(make.schema)
app.command(short_help="Write PyTorch code, ONNX graph, configs and texts.")(make.generate)
app.command(short_help="Write an ONNX folder with weights.")(work.export)
app.command(short_help="Compare an exported folder with independent witnesses.")(verify)
app.command("run", short_help="Generate with an exported folder.")(work.run)
app.command(short_help="Write A's checkpoint as one of B, where that is exact.")(work.convert)
app.command(short_help="Write a checkpoint with random weights.")(work.random_checkpoint)
