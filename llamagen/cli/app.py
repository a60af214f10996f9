"""The commands. Each one calls ``llamagen.api``, or an analysis of its own name, and renders what that returns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import typer


@dataclass
class Options:
    """Options of the program, not of a command: set once by the root callback, read by the entry."""

    traceback: bool = False


OPTIONS = Options()

COMMANDS: Mapping[str, tuple[str, str]] = {
    "list": ("read.list_models", "List the models of the family."),
    "show": ("read.show", "Show one model: sizes, parameters, memory, history."),
    "check": ("read.check", "Check specs, or a checkpoint against a spec."),
    "resolve": ("read.resolve", "Print a spec with everything it inherits."),
    "explain": ("read.explain", "Explain a value, a diagnostic code or an op."),
    "graph": ("read.graph", "Print the typed graph of a model."),
    "diff": ("compare.diff", "Compare two models, surface by surface."),
    "compat": ("compare.compat", "Say whether A's weights run in B, and where."),
    "cost": ("read.cost", "Count parameters, memory and FLOPs of a workload."),
    "parallel": ("read.parallel", "Say how a model is cut over GPUs."),
    "plot": ("read.plot", "Draw the KV cache over the context as SVG."),
    "query": ("read.query", "Filter and sort the models with expressions."),
    "timeline": ("read.timeline", "Show how a value moved through the releases."),
    "sql": ("read.sql", "Ask about the family in SQL."),
    "site": ("make.site", "Write the family as a site of static files."),
    "mcp": ("mcp.serve", "Serve the readers to a program that speaks MCP."),
    "lsp": ("lsp.serve", "Serve an editor: findings, completion, hovers, definitions."),
    "new": ("make.new", "Begin a spec like a model, a config.json or a checkpoint."),
    "import": ("read.import_config", "Turn a config.json or params.json into a spec."),
    "fmt": ("make.fmt", "Write specs in canonical form."),
    "schema": ("make.schema", "Print the JSON schema of spec files."),
    "generate": ("make.generate", "Write PyTorch code, ONNX graph, configs and texts."),
    "export": ("work.export", "Write a folder with weights: ONNX, or for transformers and vLLM."),
    "verify": ("verify.verify", "Compare an exported folder with independent witnesses."),
    "run": ("work.run", "Generate with an exported folder."),
    "convert": ("work.convert", "Write A's checkpoint as one of B, where that is exact."),
    "random-checkpoint": ("work.random_checkpoint", "Write a checkpoint with random weights."),
}
"""In the order of the help: where a command is, whose module is loaded when it is called, and its line there."""


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
    """The parser of a command line: of the command that it names alone, whose module is loaded."""
    first = next((w for w in words or _to_complete() if w not in ("--traceback", "--")), None)
    app = typer.Typer(
        name="llamagen",
        help="LLaMA architectures as YAML specs: check and explain them, generate PyTorch and ONNX from them.",
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
    for name, (place, summary) in COMMANDS.items():
        module, _, function = place.partition(".")
        if name == first:
            run = getattr(import_module(f"llamagen.cli.{module}"), function)
            app.command(name, short_help=summary)(run)
        elif first not in COMMANDS:  # nothing is run: the help, or what is no command
            app.command(name, short_help=summary)(_not_run)
    return app


def _to_complete() -> Sequence[str]:
    """Words of a line that a shell asks to complete: it gives them in the environment."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    return line.split()[1:]


def _not_run() -> None:
    raise AssertionError("the name of a command is a word of its own")
