"""The process of a script: its limits first, then what it answers. Started by ``confined``; imports nothing slow."""

import os
import resource
import sys

_REFUSED = 3
_REASON = 400


def main(script: str, seconds: str, memory: str, path: str, *arguments: str) -> None:
    for what, most in (
        (resource.RLIMIT_CPU, int(seconds)),
        (resource.RLIMIT_AS, int(memory)),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        soft, hard = resource.getrlimit(what)
        known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(what, (min([most, *known]), hard))
    said = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries print what nobody reads
    sys.path += [folder for folder in path.split(os.pathsep) if folder not in sys.path]
    names: dict[str, object] = {"__name__": "confined", "__file__": script}
    try:
        with open(script, "rb") as file:
            exec(compile(file.read(), script, "exec"), names)
        answer = names["answer"]
        assert callable(answer)
        for piece in answer(arguments):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    except BaseException as error:  # whatever an engine raises, a panic of Rust too
        reason = f"{type(error).__name__}\n{_text(error)}"
        os.write(said, reason.encode("utf-8", "backslashreplace")[:_REASON])
        os._exit(_REFUSED)
    os._exit(0)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_REASON]
    except Exception:  # a text that cannot be made
        return ""


main(*sys.argv[1:])
