"""Applies one mutant at a time to a copy of the tree and looks for the first test that fails.

Every attempt is a fork of this process, which has imported the large libraries and nothing of the
project: an attempt costs what its tests cost. A killer counts only if it passes on the unchanged copy.
"""

from __future__ import annotations

import compileall
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from tests.mutants.table import ROOT, Mutant, Table, change_of

COPIED = ("llamagen", "templates", "spec", "tests", "pyproject.toml")
TIMEOUT = 150.0
"""Seconds an attempt may take."""

Verdict = Literal["killed", "survived", "timeout", "broken"]


@dataclass(frozen=True)
class Attempt:
    """``failed`` is the first test that failed; ``broken``: the tests could not even be collected."""

    failed: str | None
    seconds: float
    timed_out: bool = False
    broken: bool = False


@dataclass(frozen=True)
class Result:
    mutant: Mutant
    verdict: Verdict
    killer: str
    seconds: float
    """Time of the run that killed it, imports excluded."""


def preload() -> None:
    """Import what every attempt needs; nothing that starts threads is called."""
    import hypothesis
    import onnx
    import onnx_ir
    import onnxruntime
    import torch
    import transformers

    assert hypothesis and onnx and onnx_ir and onnxruntime
    torch.set_num_threads(1)
    for name in ("LlamaForCausalLM", "Llama4ForCausalLM", "MixtralForCausalLM", "AutoConfig"):
        getattr(transformers, name)


@contextmanager
def copied_tree() -> Iterator[Path]:
    with TemporaryDirectory(prefix="mutants-") as folder:
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                skip = shutil.ignore_patterns("__pycache__", ".hypothesis")
                shutil.copytree(source, Path(folder) / name, ignore=skip)
            else:
                shutil.copy2(source, folder)
        compileall.compile_dir(folder, quiet=2)
        yield Path(folder)


class Recorder:
    """A pytest plugin that keeps the first failure."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self.broken = False

    def pytest_runtest_logreport(self, report: object) -> None:
        if getattr(report, "failed", False) and self.failed is None:
            self.failed = str(getattr(report, "nodeid", ""))

    def pytest_collectreport(self, report: object) -> None:
        self.broken |= bool(getattr(report, "failed", False))


def attempt(copy: Path, arguments: Sequence[str], timeout: float = TIMEOUT) -> Attempt:
    """Run pytest in a fork, in ``copy``, until the first failure."""
    log, answer = copy / "attempt.log", copy / "attempt.json"
    answer.unlink(missing_ok=True)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(copy, arguments, log, answer)
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() - began > timeout:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Attempt(None, timeout, timed_out=True)
        time.sleep(0.02)
    if not answer.exists():
        raise RuntimeError(f"the tests ended without an answer:\n{log.read_text()[-3000:]}")
    found = json.loads(answer.read_text())
    return Attempt(found["failed"], found["seconds"], broken=found["broken"])


def _child(copy: Path, arguments: Sequence[str], log: Path, answer: Path) -> None:
    """Never returns."""
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        for name in [n for n in sys.modules if n.split(".")[0] in ("tests", "llamagen")]:
            del sys.modules[name]
        here = {str(ROOT), "", os.getcwd()}
        sys.path[:] = [str(copy), *(p for p in sys.path if p not in here)]
        sys.dont_write_bytecode = True
        os.chdir(copy)
        import hypothesis
        import pytest

        only = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile("mutants", phases=only, database=None)
        hypothesis.settings.load_profile("mutants")
        import llamagen

        assert str(llamagen.__file__).startswith(str(copy)), llamagen.__file__
        recorder, began = Recorder(), time.monotonic()
        fixed = [
            "-x",
            "-q",
            "--no-header",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
        ]
        status = int(pytest.main([*fixed, *arguments], plugins=[recorder]))
        found = {
            "failed": recorder.failed,
            "broken": recorder.broken or status not in (0, 1),
            "seconds": time.monotonic() - began,
        }
        answer.write_text(json.dumps(found))
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


class Runner:
    """Remembers which tests pass on the unchanged copy. ``killers`` are those of an earlier run, by mutant."""

    def __init__(self, table: Table, copy: Path, killers: Mapping[str, str]) -> None:
        self.table = table
        self.copy = copy
        self.killers = killers
        self.sound: dict[str, bool] = {}

    def run(self, mutant: Mutant) -> Result:
        """Apply ``mutant`` and run its last killer, then its suites, until a test fails that passes without it."""
        seconds = 0.0
        if (killer := self.killers.get(mutant.id)) is not None and self.exists(killer):
            found = self.mutated(mutant, [killer])
            seconds += found.seconds
            if found.failed is not None and self.passes_unchanged(found.failed):
                return Result(mutant, "killed", found.failed, seconds)
        for arguments in self.table.suites[mutant.tests]:
            while True:
                found = self.mutated(mutant, [*arguments, *self.deselected()])
                seconds += found.seconds
                if found.failed is None or self.passes_unchanged(found.failed):
                    break
            if found.timed_out:
                return Result(mutant, "timeout", " ".join(arguments), seconds)
            if found.broken:
                return Result(mutant, "broken", " ".join(arguments), seconds)
            if found.failed is not None:
                return Result(mutant, "killed", found.failed, seconds)
        return Result(mutant, "survived", "", seconds)

    def exists(self, test: str) -> bool:
        return (self.copy / test.partition("::")[0]).is_file()

    def mutated(self, mutant: Mutant, arguments: Sequence[str]) -> Attempt:
        change = change_of(mutant, self.copy)
        try:
            change.path.write_text(change.text)
            return attempt(self.copy, arguments)
        finally:
            change.path.write_text(change.original)

    def deselected(self) -> list[str]:
        """A test that fails anyway proves nothing."""
        return [f"--deselect={test}" for test, passes in self.sound.items() if not passes]

    def passes_unchanged(self, test: str) -> bool:
        if test not in self.sound:
            found = attempt(self.copy, [test])
            self.sound[test] = found.failed is None and not found.broken
        return self.sound[test]
