"""Ways to end or hinder a command, and what must be true of its output afterwards."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.hardness.jobs import Job, State, call, leftovers, quiet_child, state_of

CLEAN, INVALID, INTERRUPTED = 0, 3, 130


@dataclass
class Tally:
    """``hit`` of ``tried`` runs were really ended or refused; the others finished first."""

    what: str
    tried: int = 0
    hit: int = 0
    findings: list[str] = field(default_factory=list)


class Arena:
    """A job in a folder of its own, with the states that its output may have."""

    def __init__(self, job: Job, root: Path) -> None:
        self.job = job
        self.folder = root / job.name / "at"
        self.folder.mkdir(parents=True)
        self.allowed: list[State] = []
        self.seconds = 0.0
        for version in (0, 1):
            job.prepare(self.folder, version)
            before = state_of(self.folder)
            began = time.monotonic()
            code, said = call(job.words(self.folder, version))
            self.seconds = time.monotonic() - began
            assert code == CLEAN, said
            self.allowed += [before, state_of(self.folder)]
        # a job that changes files in place goes from the first to the second state every time
        self.allowed = self.allowed[:2] if self.allowed[0] else self.allowed[1::2]
        assert self.allowed[0] != self.allowed[1], "the versions must differ"

    def run(self, version: int, before: Callable[[], None] = lambda: None) -> int:
        """Start the command in a child; its process id."""
        self.job.prepare(self.folder, version)
        return quiet_child(self.job.words(self.folder, version), before)

    def check(self, tally: Tally, when: str, empty: bool = False) -> None:
        """Record what must not be: a mixture, a half file, temporary files of two writers."""
        found = state_of(self.folder)
        if not self.is_allowed(found) and not (empty and not found):
            tally.findings.append(f"{self.job.name}, {when}: neither the old nor the new output")
        places = {name.rsplit("/", 1)[0] for name in leftovers(self.folder)}
        if self.job.whole and len(leftovers(self.folder)) > 1:
            tally.findings.append(f"{self.job.name}, {when}: leftovers add up in {places}")

    def is_allowed(self, found: State) -> bool:
        if self.job.whole:
            return found in self.allowed
        old, new = self.allowed
        return set(found) <= {*old, *new} and all(
            digest in (old.get(name), new.get(name)) for name, digest in found.items()
        )

    def finish(self, tally: Tally) -> None:
        """The next run must succeed and leave nothing behind."""
        self.job.prepare(self.folder, 1)
        code, said = call(self.job.words(self.folder, 1))
        if code != CLEAN:
            tally.findings.append(f"{self.job.name}: the next run ended with {code}: {said}")
        elif state_of(self.folder) != self.allowed[1]:
            tally.findings.append(f"{self.job.name}: the next run did not write what it should")
        elif left := leftovers(self.folder):
            tally.findings.append(f"{self.job.name}: the next run left {left}")


def wait(pid: int, patience: float = 60.0) -> int:
    """Exit code of a child, negative for a signal."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found == pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"a command did not end in {patience:.0f} s")


def signalled(
    arena: Arena, generator: random.Random, how: signal.Signals, runs: Iterator[int]
) -> Tally:
    """Send a signal at a random moment of every run."""
    tally = Tally(f"{arena.job.name}: {how.name} at a random moment")
    # before and after it listens
    ends = {INTERRUPTED} if how is signal.SIGINT else {-how, 128 + how}
    for i in runs:
        pid = arena.run(i % 2)
        time.sleep(generator.uniform(0, 1.1 * arena.seconds))
        os.kill(pid, how)
        code = wait(pid)
        tally.tried += 1
        tally.hit += code in ends
        if code not in {CLEAN, *ends}:
            tally.findings.append(f"{arena.job.name}: {how.name} ended in exit code {code}")
        arena.check(tally, f"after {how.name}")
    arena.finish(tally)
    return tally


TOUCHING = frozenset(
    {
        "open",
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.truncate",
        "os.chmod",
        "shutil.rmtree",
    }
)
"""What Python announces before it does it, and what changes a folder."""


def at_every_step(arena: Arena, fresh: bool, limit: int) -> Tally:
    """SIGKILL before the first operation on the folder, then before the second, until a run gets through."""
    where = "no output yet" if fresh else "an output to replace"
    tally = Tally(f"{arena.job.name}: SIGKILL before each file operation, {where}")
    for step in range(1, limit + 1):
        if fresh:
            shutil.rmtree(arena.folder / "out", ignore_errors=True)
        if not arena.job.whole:  # only what differs is written
            arena.job.prepare(arena.folder, 0)
            call(arena.job.words(arena.folder, 0))
        pid = arena.run(
            step % 2 if arena.job.whole else 1, partial(_die_at, step, str(arena.folder))
        )
        code = wait(pid)
        tally.tried += 1
        tally.hit += code == -signal.SIGKILL
        arena.check(tally, f"killed before operation {step}", empty=fresh)
        if code == CLEAN:
            break
    else:
        tally.findings.append(f"{arena.job.name}: no run got through in {limit} steps")
    arena.finish(tally)
    return tally


def _die_at(step: int, folder: str) -> None:
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in TOUCHING and any(str(a).startswith(folder) for a in arguments):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def limited(arena: Arena, generator: random.Random, runs: Iterator[int]) -> Tally:
    """Files may grow to a random size only."""
    tally = Tally(f"{arena.job.name}: files end at a random size")
    largest = max(p.stat().st_size for p in (arena.folder / "out").rglob("*") if p.is_file())
    for i in runs:
        size = generator.randrange(1, largest + largest // 10)
        limit = (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        pid = arena.run(
            i % 2,
            partial(resource.setrlimit, resource.RLIMIT_FSIZE, limit),
        )
        _refused(arena, tally, wait(pid), f"after files were limited to {size} bytes")
    arena.finish(tally)
    return tally


def _refused(arena: Arena, tally: Tally, code: int, when: str) -> None:
    tally.tried += 1
    tally.hit += code == INVALID
    if code not in (CLEAN, INVALID):
        tally.findings.append(f"{arena.job.name}, {when}: exit code {code}")
    arena.check(tally, when)
    if left := leftovers(arena.folder):
        tally.findings.append(f"{arena.job.name}, {when}: left {left}")


def together(
    arena: Arena, generator: random.Random, runs: Iterator[int], writers: int = 4
) -> Tally:
    """Several of the same command into one output at the same time."""
    tally = Tally(f"{arena.job.name}: {writers} at the same time")
    for i in runs:
        delays = [generator.uniform(0, arena.seconds / 2) for _ in range(writers)]
        pids = [
            arena.run((i + n) % 2 if arena.job.whole else 1, partial(time.sleep, d))
            for n, d in enumerate(delays)
        ]
        codes = [wait(pid) for pid in pids]
        tally.tried += writers
        tally.hit += codes.count(INVALID)
        if CLEAN not in codes or not set(codes) <= {CLEAN, INVALID}:
            tally.findings.append(f"{arena.job.name}: writers ended with {codes}")
        arena.check(tally, "after several writers")
        if left := leftovers(arena.folder):
            tally.findings.append(f"{arena.job.name}: several writers left {left}")
    arena.finish(tally)
    return tally


def can_mount(folder: Path) -> bool:
    """Whether a small file system can be made here."""
    folder.mkdir(exist_ok=True)
    made = _mount("-t", "tmpfs", "-o", "size=64k", "none", str(folder)) == 0
    return made and subprocess.run(["umount", str(folder)], check=False).returncode == 0


def _mount(*words: str) -> int:
    if shutil.which("mount") is None:
        return 1
    return subprocess.run(["mount", *words], check=False, capture_output=True).returncode


@contextmanager
def mounted(folder: Path, kilobytes: int) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    assert _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)) == 0
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(job: Job, root: Path, generator: random.Random, runs: Iterator[int]) -> Tally:
    """A file system with room for one output, and a random part of a second."""
    tally = Tally(f"{job.name}: the disk is full")
    disk = root / "disk"
    for i in runs:
        with mounted(disk, 4 << 10):
            arena = Arena(job, disk)
            room = shutil.disk_usage(disk).free
            keep = generator.randrange(0, _size(arena.folder / "out"))
            (disk / "other").write_bytes(bytes(room - keep))
            _refused(arena, tally, wait(arena.run(i % 2)), "on a full disk")
            (disk / "other").unlink()
            arena.finish(tally)
    return tally


def _size(folder: Path) -> int:
    """Bytes of all files, in whole pages."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


def read_only(job: Job, root: Path) -> Tally:
    """A file system that takes no writes."""
    tally = Tally(f"{job.name}: the target is read-only")
    disk = root / "disk"
    with mounted(disk, 64 << 10):
        arena = Arena(job, disk)
        words: Sequence[str] = job.words(arena.folder, 0)
        job.prepare(arena.folder, 0)
        before = state_of(arena.folder)
        assert _mount("-o", "remount,ro", str(disk)) == 0
        code, said = call(list(words))
        tally.tried, tally.hit = 1, int(code == INVALID)
        if code != INVALID or "LG633" not in said or state_of(arena.folder) != before:
            tally.findings.append(f"{job.name}: exit code {code} on a read-only disk: {said}")
        assert _mount("-o", "remount,rw", str(disk)) == 0
    return tally
