"""One command from arguments to exit code: the only place that turns exceptions into text."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from llamagen.cli import console
from llamagen.cli.exit_codes import CLEAN, INTERNAL, INTERRUPTED, INVALID, USAGE
from llamagen.cli.surroundings import endings, fix_streams, working_folder
from llamagen.diagnostics import Diagnostic, LlamagenError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; ``argv`` lacks the program's name. Returns the exit code: every exception ends here."""
    fix_streams()
    with endings():
        try:
            working_folder()
            return _run(sys.argv[1:] if argv is None else argv)
        except LlamagenError as error:
            console.diagnostics(error.diagnostics)
            return INVALID
        except OSError as error:
            return _unwritable(error)


def _run(argv: Sequence[str]) -> int:
    gc.set_threshold(200_000)  # a tenth of a short command is spent collecting what imports made
    # Validation is ours alone: pydantic would search every installed package for plugins, which also takes its time.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    from llamagen.cli.app import OPTIONS, app_of

    try:
        app_of(argv)(list(argv), prog_name="llamagen")
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer's word for KeyboardInterrupt
            console.note("interrupted")
        return _flushed(end.code if isinstance(end.code, int) else CLEAN)
    except LlamagenError as error:
        console.diagnostics(error.diagnostics)
        usage = all(one.code.startswith("LG9") for one in error.diagnostics)
        return _flushed(USAGE if usage else INVALID)
    except KeyboardInterrupt:
        console.note("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return _pipe_closed()
    except Exception as error:
        if isinstance(error, OSError) and _of_stdout(error):
            raise
        return _internal(error, OPTIONS.traceback)
    return _flushed(CLEAN)


def _of_stdout(error: OSError) -> bool:
    """Whether it was raised where results are printed: by the console, or by the libraries that print for it."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    name = "" if at is None else str(at.tb_frame.f_globals.get("__name__", ""))
    return name == console.__name__ or name.split(".")[0] in ("rich", "typer")


def _unwritable(error: OSError) -> int:
    """The results of a command could not be printed, whatever else it did."""
    _drop_stdout()
    with suppress(OSError):
        message = f"cannot write to stdout: {error.strerror or error}"
        help = "free space where it goes, or send it elsewhere"
        console.diagnostics([Diagnostic("LG632", "error", message, help=help)])
    return INVALID


def _internal(error: Exception, traceback: bool) -> int:
    if traceback:
        import traceback as tracebacks

        console.note("".join(tracebacks.format_exception(error)).rstrip("\n"))
    first = str(error).split("\n", 1)[0]
    reason = f"{type(error).__name__}: {first}" if first else type(error).__name__
    console.note(f"error[LG999]: internal error: {reason}")
    console.note(
        "   = help: this is a bug in llamagen, not in your input; please report it to its issue tracker with"
    )
    console.note(
        "           the command and the spec, and the output of `llamagen --traceback COMMAND ...`"
    )
    return INTERNAL


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _pipe_closed()
    return code


def _pipe_closed() -> int:
    """The reader of our output left (``llamagen list | head``): end quietly, as other tools do."""
    _drop_stdout()
    return CLEAN


def _drop_stdout() -> None:
    """What is left in its buffer goes nowhere, so that Python does not complain about it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
