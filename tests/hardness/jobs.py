"""Commands that write, each with the two states that its output may be in."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llamagen.api import random_checkpoint
from llamagen.cli import main

TINY = Path(__file__).parents[1] / "cases" / "common" / "tiny.yaml"

State = Mapping[str, str]
"""Relative path -> SHA-256 of every file of an output."""

LEFTOVER = ".llamagen"
"""In the name of whatever a writer that died may leave."""


@dataclass(frozen=True)
class Job:
    """``words(folder, version)`` write version 0 or 1 of an output below ``folder``.

    ``whole``: the output is one version or the other; otherwise each of its files is.
    """

    name: str
    words: Callable[[Path, int], list[str]]
    whole: bool
    prepare: Callable[[Path, int], None] = lambda folder, version: None
    """Puts inputs of a version below ``folder``, where the command changes files in place."""


def _export(folder: Path, version: int) -> list[str]:
    words = ["export", str(TINY), "--random-weights", str(version + 1), "--overwrite"]
    return [*words, "--out", str(folder / "out")]


def _random_checkpoint(folder: Path, version: int) -> list[str]:
    words = ["random-checkpoint", str(TINY), "--seed", str(version + 1), "--overwrite"]
    return [*words, "--shards", "20 kB", "--out", str(folder / "out")]


def _convert(folder: Path, version: int) -> list[str]:
    checkpoint = folder.parent / f"checkpoint-{version}"
    if not checkpoint.exists():
        random_checkpoint(TINY, checkpoint, seed=version)
    words = ["convert", str(checkpoint), "--from", str(TINY), "--overwrite", "--shards", "20 kB"]
    return [*words, "--out", str(folder / "out")]


def _spec(folder: Path, version: int) -> Path:
    """The tiny model; of another width and in no canonical form as version 1."""
    text = TINY.read_text()
    if version == 1:
        text = text.replace("vocab_size: ", "vocab_size:    1")
    path = folder.parent / f"input-{version}" / "tiny.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def _generate(folder: Path, version: int) -> list[str]:
    return ["generate", str(_spec(folder, version)), "--to", str(folder / "out")]


def _fmt(folder: Path, version: int) -> list[str]:
    return ["fmt", str(folder / "out")]


def _unformatted(folder: Path, version: int) -> None:
    (folder / "out").mkdir(exist_ok=True)
    for name in "abc":
        text = TINY.read_text().replace("hidden_size: ", "hidden_size:     ")
        (folder / "out" / f"{name}.yaml").write_text(f"# {name}\n" + text)


JOBS: Mapping[str, Job] = {
    job.name: job
    for job in (
        Job("export", _export, whole=True),
        Job("random-checkpoint", _random_checkpoint, whole=True),
        Job("convert", _convert, whole=True),
        Job("generate", _generate, whole=False),
        Job("fmt", _fmt, whole=False, prepare=_unformatted),
    )
}


def state_of(folder: Path) -> State:
    """The output below ``folder``; empty where there is none. Leftovers are not part of it.

    A folder that waits while the new one takes its place is the output: the next run puts it back.
    """
    aside = folder / f".out{LEFTOVER}" / "old"
    root = folder / "out" if (folder / "out").exists() or not aside.exists() else aside
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and LEFTOVER not in path.relative_to(root).parts
    }


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders, not what is inside of them."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob(f"*{LEFTOVER}*")
        if LEFTOVER not in path.parent.name
    )


def call(words: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command in this process."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = main(words)
    return code, said.getvalue()


def quiet_child(words: list[str], before: Callable[[], None] = lambda: None) -> int:
    """Fork a child that runs a command; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 4
    try:
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(silent, stream)
        before()
        code = main(words)
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)
