"""Engines of others over files of others, in a process of their own that cannot take this one with it.

A script beside its caller defines ``answer(arguments)``, which reads stdin and yields bytes. It knows nothing of
llamagen, so that it starts in some 20 ms. Its processor time is limited by the system, its memory too where the system
does so (Linux; macOS takes the limit and ignores it), its answer here, and the time by the clock at twenty times the
processor time, which ends what waits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

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


class Stopped(Exception):
    """The script raised an exception of the type ``kind``, or met a limit: then it is ``limit``."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def confined(
    script: Path, arguments: Sequence[str], given: bytes | BinaryIO, limits: Limits
) -> bytes:
    """What ``script`` answers to ``given``, bytes or a file of this system, on its stdin. Raises Stopped."""
    import subprocess
    from contextlib import suppress
    from threading import Timer

    # -I -S -E: no folder of the user, no environment; what can be imported is what can be imported here
    words = [sys.executable, "-I", "-S", "-E", str(_CHILD), str(script)]
    words += [str(limits.seconds), str(limits.memory), os.pathsep.join(filter(None, sys.path))]
    child = subprocess.Popen(
        [*words, *arguments],
        stdin=subprocess.PIPE if isinstance(given, bytes) else given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    clock = Timer(_PATIENCE * limits.seconds, child.kill)
    clock.daemon = True
    with child:
        assert child.stdout is not None and child.stderr is not None
        try:
            clock.start()
            if child.stdin is not None and isinstance(given, bytes):
                with suppress(BrokenPipeError), child.stdin as stdin:
                    stdin.write(given)
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
    raise _stopped(code, reason, limits)


def _stopped(code: int, reason: str, limits: Limits) -> Stopped:
    import signal

    kind, _, text = reason.partition("\n")
    if code == _REFUSED and kind != "MemoryError":
        return Stopped(kind, text)
    if code == _REFUSED:
        return Stopped("limit", f"it needs more than {limits.memory >> 20:,} MiB of memory")
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return Stopped("limit", f"it takes more than {limits.seconds} s of a processor")
    return Stopped("limit", f"its process ended with {code}")
