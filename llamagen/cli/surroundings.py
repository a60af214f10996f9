"""What a command finds around it: streams that are closed, a folder that is gone, a system that ends it."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from llamagen.cli.exit_codes import INVALID
from llamagen.diagnostics import LlamagenError

_POLITE = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Windows has no SIGHUP."""
_SHRUNK = b"""
error[LG622]: a file became shorter while it was read: its pages are gone (SIGBUS)
  = help: wait until the copy or download is complete, then run the command again
"""


def fix_streams() -> None:
    """The same bytes in every locale: UTF-8 and plain line feeds. What is closed is open to nothing.

    A file that a command opens must not become its stdout.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _open_nothing(number)
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")


def _open_nothing(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def working_folder() -> None:
    """Relative names need one. Raises LG601."""
    try:
        os.getcwd()
    except OSError as error:
        os.chdir("/")  # what comes now only says so
        message = f"the working folder is gone: {error.strerror}"
        raise LlamagenError.of("LG601", message, help="change to a folder that exists") from error


@contextmanager
def endings() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that nothing half-written stays; a lost page of a file has a name."""
    _name_lost_pages()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _POLITE}
    ours = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _end(number: int, frame: FrameType | None) -> None:
    for one in _POLITE:
        signal.signal(one, signal.SIG_IGN)  # it is ending
    raise SystemExit(128 + number)


def _lost_page(number: int) -> None:
    os.write(2, _SHRUNK)
    os._exit(INVALID)


_ON_LOST_PAGE = ctypes.CFUNCTYPE(None, ctypes.c_int)(_lost_page)
"""Kept alive as long as the system may call it."""


def _name_lost_pages() -> None:
    """A mapped file that becomes shorter ends the process where it reads, in ONNX Runtime as well as here: no code of
    ours can go on, but it can say why. Python's own handlers would never be reached."""
    if hasattr(signal, "SIGBUS"):  # Windows lets no one shorten a mapped file
        ctypes.CDLL(None).signal(int(signal.SIGBUS), _ON_LOST_PAGE)
