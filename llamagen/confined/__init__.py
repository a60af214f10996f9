"""Engines of others over files of others, in a process of their own that cannot take this one with it.

A script beside its caller defines ``answer(arguments)``, which reads stdin and yields bytes, or
``answering(arguments)``, a function from question to answer. It knows nothing of llamagen, so that it starts in some
20 ms. Its processor time is limited by the system (not Windows), its memory too where the system does so (Linux; macOS
takes the limit and ignores it), its answer here, and the time by the clock at twenty times the processor time, which
ends what waits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    import subprocess

_CHILD = Path(__file__).with_name("child.py")
_REFUSED = 3
_PATIENCE = 20


class Limits(NamedTuple):
    """What a script may take."""

    seconds: int
    """Of a processor."""
    memory: int
    """Bytes of address space, libraries included."""
    answer: int
    """Bytes."""
    file: int = 0
    """Bytes of a file that it writes."""


class Stopped(Exception):
    """The script raised an exception of the type ``kind``, or met a limit: then it is ``limit``."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def confined(
    script: Path, arguments: Sequence[str], fed: bytes | BinaryIO, limits: Limits
) -> bytes:
    """What ``script`` answers to ``given``, bytes or a file of this system, on its stdin. Raises Stopped."""
    import subprocess
    from contextlib import suppress
    from threading import Timer

    child = subprocess.Popen(
        _words("once", script, arguments, limits),
        stdin=subprocess.PIPE if isinstance(fed, bytes) else fed,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    clock = Timer(_PATIENCE * limits.seconds, child.kill)
    clock.daemon = True
    with child:
        assert child.stdout is not None and child.stderr is not None
        try:
            clock.start()
            if child.stdin is not None and isinstance(fed, bytes):
                with suppress(BrokenPipeError), child.stdin as stdin:
                    stdin.write(fed)
            answer = child.stdout.read(limits.answer + 1)
            if len(answer) > limits.answer:
                raise Stopped("limit", f"it makes more than {limits.answer:,} bytes")
            reason = child.stderr.read().decode("utf-8", "replace")
            code = child.wait()
        finally:
            clock.cancel()
            child.kill()
    if code == 0:
        return answer
    raise _raised(reason, limits) if code == _REFUSED else _ended(code, limits)


class Companion:
    """A script that answers one question after the other; limits are of each, but memory."""

    def __init__(self, script: Path, arguments: Sequence[str], limits: Limits) -> None:
        import subprocess
        from weakref import finalize

        self.limits = limits
        self.child = subprocess.Popen(
            _words("many", script, arguments, limits),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        finalize(self, _end, self.child)

    def ask(self, question: bytes) -> bytes:
        """Raises Stopped; where a limit was met there is no further answer."""
        import select
        from contextlib import suppress

        source, target = self.child.stdout, self.child.stdin
        assert source is not None and target is not None
        with suppress(BrokenPipeError):
            target.write(len(question).to_bytes(8, "little") + question)
            target.flush()
        if not select.select([source], [], [], _PATIENCE * self.limits.seconds)[0]:
            self.child.kill()
        head = source.read(9)
        if len(head) < 9:
            self.child.kill()
            raise _ended(self.child.wait(), self.limits)
        size = int.from_bytes(head[1:], "little")
        if size > self.limits.answer:
            self.child.kill()
            raise Stopped("limit", f"it makes more than {self.limits.answer:,} bytes")
        answer = source.read(size)
        if head[0]:
            raise _raised(answer.decode("utf-8", "replace"), self.limits)
        return answer


def _words(mode: str, script: Path, arguments: Sequence[str], limits: Limits) -> list[str]:
    # -I -S -E: no folder of the user, no environment; what can be imported is what can be imported here
    words = [sys.executable, "-I", "-S", "-E", str(_CHILD), mode, str(script)]
    words += [
        str(limits.seconds),
        str(limits.memory),
        str(limits.file),
        os.pathsep.join(filter(None, sys.path)),
    ]
    return [*words, *arguments]


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.communicate()


def _raised(reason: str, limits: Limits) -> Stopped:
    kind, _, text = reason.partition("\n")
    if kind == "MemoryError":
        return Stopped("limit", f"it needs more than {limits.memory >> 20:,} MiB of memory")
    return Stopped(kind, text)


def _ended(code: int, limits: Limits) -> Stopped:
    """By a signal, as processes end that run out of a limit."""
    import signal

    if code in [-getattr(signal, name, 0) for name in ("SIGXCPU", "SIGKILL")]:
        return Stopped("limit", f"it takes more than {limits.seconds} s of a processor")
    if code == -signal.SIGABRT:
        mebibytes = limits.memory >> 20
        return Stopped("limit", f"it gives up, as for more than {mebibytes:,} MiB of memory")
    return Stopped("limit", f"its process ended with {code}")
