"""The process of a script: its limits first, then what it answers. Started by ``confined``; imports nothing slow."""

import os
import sys
from typing import BinaryIO

try:
    import resource
except ImportError:  # Windows: there the caller's clock and the length of the answer are the limits
    resource = None  # type: ignore[assignment]

_REFUSED = 3
_REASON = 400


def main(
    mode: str, script: str, seconds: str, memory: str, file: str, path: str, *arguments: str
) -> None:
    if resource is not None:
        limit(resource.RLIMIT_CPU, int(seconds))
        limit(resource.RLIMIT_AS, int(memory))
        limit(resource.RLIMIT_FSIZE, int(file))
        limit(resource.RLIMIT_CORE, 0)
    said, target = os.dup(2), os.fdopen(os.dup(1), "wb")
    for printed in (1, 2):  # scripts and libraries print what nobody reads
        os.dup2(os.open(os.devnull, os.O_WRONLY), printed)
    sys.path += [folder for folder in path.split(os.pathsep) if folder not in sys.path]
    names: dict[str, object] = {"__name__": "confined", "__file__": script}
    try:
        with open(script, "rb") as source:
            exec(compile(source.read(), script, "exec"), names)
        if mode == "many":
            many(names["answering"], arguments, int(seconds), target)
            return
        answer = names["answer"]
        assert callable(answer)
        for piece in answer(arguments):
            target.write(piece)
        target.flush()
    except BaseException as error:  # whatever an engine raises, a panic of Rust too
        os.write(said, reason(error))
        os._exit(_REFUSED)
    os._exit(0)


def many(opened: object, arguments: tuple[str, ...], seconds: int, target: BinaryIO) -> None:
    """Questions and answers are behind their length; an answer behind whether it is the text of an exception."""
    assert callable(opened)
    answering = opened(arguments)
    source = sys.stdin.buffer
    while head := source.read(8):
        question = source.read(int.from_bytes(head, "little"))
        if resource is not None:
            used = resource.getrusage(resource.RUSAGE_SELF)
            limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + seconds)
        try:
            answer = b"\0", answering(question)
        except BaseException as error:
            answer = b"\1", reason(error)
        target.write(answer[0] + len(answer[1]).to_bytes(8, "little") + answer[1])
        target.flush()
    os._exit(0)


def limit(what: int, most: int) -> None:
    """No more than is allowed already."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def reason(error: BaseException) -> bytes:
    try:
        text = str(error)[:_REASON]
    except Exception:  # a text that cannot be made
        text = ""
    return f"{type(error).__name__}\n{text}".encode("utf-8", "backslashreplace")


main(*sys.argv[1:])
