"""Words for findings about weight files; the codes are rows of spec/rules/diagnostics.yaml."""

from __future__ import annotations

import os
from pathlib import Path

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.diagnostics import quoted as quoted


def problem(code: str, message: str, help: str | None = None) -> LlamagenError:
    return LlamagenError(Diagnostic(code, "error", message, help=help))


def shape_text(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def open_regular(path: Path) -> int:
    """A read-only descriptor of a regular file, through symlinks (the Hub cache is made of them).

    Raises LG601 when the file is absent, unreadable, or not a regular file.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = error.strerror or str(error)
        if os.path.islink(path) and not os.path.exists(
            path
        ):  # False for what no file system can name
            reason = f"the link points to {quoted(str(path.readlink()))}, which does not exist"
        raise problem(
            "LG601",
            f"cannot open {quoted(str(path))}: {reason}",
            help="check the path, and that the download is complete",
        ) from error
    if not path.is_file():
        os.close(descriptor)
        raise problem("LG601", f"{quoted(str(path))} is not a regular file")
    return descriptor
