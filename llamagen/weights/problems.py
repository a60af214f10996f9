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


def open_beside(path: Path) -> int:
    """A read-only descriptor of a regular file in a folder of others.

    A link is followed inside the folder, and where the Hub's cache has them: models--A--B/snapshots/REVISION/FILE ->
    models--A--B/blobs/HASH. Any other could lead to a file that is none of its business. Raises LG601.
    """
    real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(path.parent))
    snapshots = [above.parent for above in (folder, *folder.parents)]
    blobs = [one.parent / "blobs" for one in snapshots if one.name == "snapshots"]
    if not real.is_relative_to(folder) and real.parent not in blobs:
        raise problem(
            "LG601",
            f"{quoted(str(path))} is a link to {quoted(str(real))}, which is not in its folder",
            help="copy the file there if it belongs to the checkpoint",
        )
    return open_regular(real)


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
