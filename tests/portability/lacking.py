"""Systems that are not at hand, simulated: llamagen's own modules do not see the names that they lack.

Only what is imported by `llamagen` is kept from it: the standard library and other packages have code of their own for
each system. What Python has where is said under "Availability" in its documentation.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

LINUX_ONLY = (
    *("copy_file_range", "eventfd", "fdatasync", "memfd_create", "pidfd_open", "posix_fadvise"),
    *("posix_fallocate", "preadv", "pwritev", "sched_getaffinity", "splice"),
    *("O_DIRECT", "O_LARGEFILE", "O_NOATIME", "O_PATH", "O_TMPFILE"),
)
"""Names of `os`; macOS has preadv from 11 on."""
POSIX_ONLY = (
    *(
        "chown",
        "fchmod",
        "fchown",
        "fork",
        "getuid",
        "geteuid",
        "getgid",
        "killpg",
        "lchown",
        "mkfifo",
        "pread",
    ),
    *("pwrite", "readv", "setsid", "statvfs", "sysconf", "uname", "wait4", "writev"),
    *("O_CLOEXEC", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC"),
)
POSIX_SIGNALS = (
    "SIGALRM",
    "SIGBUS",
    "SIGHUP",
    "SIGKILL",
    "SIGPIPE",
    "SIGQUIT",
    "SIGUSR1",
    "SIGXCPU",
    "SIGXFSZ",
)
POSIX_MODULES = ("fcntl", "grp", "posix", "pwd", "resource", "termios")


class _Part(ModuleType):
    """A module without some of its names, or with others of them."""

    def __init__(self, whole: ModuleType, lacks: Sequence[str], own: Mapping[str, object]) -> None:
        super().__init__(whole.__name__)
        self.__dict__.update(_whole=whole, _lacks=frozenset(lacks), **own)

    def __getattr__(self, name: str) -> object:
        if name in self.__dict__["_lacks"]:
            raise AttributeError(f"this system has no {self.__name__}.{name}")
        return getattr(self.__dict__["_whole"], name)


def _replace_absent(source: Any, to: Any, **more: Any) -> None:
    """Windows does not rename onto a file that is there."""
    if os.path.lexists(to):
        raise FileExistsError(17, "Cannot create a file when that file already exists", str(to))
    os.rename(source, to, **more)


def _open_no_folder(path: Any, flags: int, *more: Any, **named: Any) -> int:
    """Windows opens no folders."""
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return os.open(path, flags, *more, **named)


def take_away(system: str) -> None:
    """From now on llamagen sees what ``macos`` or ``windows`` has. It must not be imported yet."""
    assert not any(name.split(".")[0] == "llamagen" for name in sys.modules), "too late"
    parts: dict[str, ModuleType | None]
    if system == "macos":
        parts = {"os": _Part(os, LINUX_ONLY, {})}
    else:
        own = {"name": "nt", "rename": _replace_absent, "open": _open_no_folder, "O_BINARY": 0}
        parts = {
            "os": _Part(os, (*LINUX_ONLY, *POSIX_ONLY), own),
            "signal": _Part(signal, POSIX_SIGNALS, {}),
            **dict.fromkeys(POSIX_MODULES),
        }
    ordinary = builtins.__import__

    def limited(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        importer = str((globals or {}).get("__name__", ""))
        if name in parts and importer.split(".")[0] == "llamagen":
            part = parts[name]
            if part is None:
                raise ModuleNotFoundError(f"No module named {name!r}")
            return part
        return ordinary(name, globals, locals, fromlist, level)

    builtins.__import__ = limited  # type: ignore[assignment]
    if system == "windows":
        from llamagen import confined

        words = confined._words
        confined._words = lambda *given: _without_modules(words(*given))


def _without_modules(words: list[str]) -> list[str]:
    """The command of a child process, which finds none of the modules of POSIX."""
    first = next(i for i, word in enumerate(words) if word.endswith(".py"))
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({POSIX_MODULES!r})); "
    code += "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return [*words[:first], "-c", code, *words[first:]]
