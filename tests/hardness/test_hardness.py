"""The attacks of ``python -m tests.hardness``, once each; and that they find what they look for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.counting import count

ROOT = Path(__file__).resolve().parents[2]

NAIVE = """
import contextlib, pathlib, shutil, sys, tempfile
import llamagen.writing as writing, llamagen.spec.fmt as fmt

@contextlib.contextmanager
def straight(target, listing, overwrite=False, reads=()):
    place = pathlib.Path(target)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    yield place

def in_place(folder, files, reads=()):
    for name, text in files.items():
        (folder / name).write_text(text)
    return tuple(files), ()

writing.staged_folder = straight
fmt.write_changed = in_place
from random import Random
from tests.hardness.attacks import Arena, at_every_step, limited
from tests.hardness.jobs import JOBS
with tempfile.TemporaryDirectory() as folder:
    arena = Arena(JOBS["export"], pathlib.Path(folder))
    print("export", len(at_every_step(arena, fresh=False, limit=200).findings))
    arena = Arena(JOBS["fmt"], pathlib.Path(folder))
    print("fmt", len(limited(arena, Random(0), iter(range(5))).findings))
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the attacks fork, which a process with threads must not."""
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.timeout(900)
def test_every_attack_once() -> None:
    out = run("-m", "tests.hardness", "--only", "writers", "--minutes", "0").stdout
    figures = re.search(r"([\d,]+) kills survived; 0 findings", out)
    assert figures is not None and int(figures[1].replace(",", "")) > 100, out
    count("kills survived", int(figures[1].replace(",", "")))
    for name in ("export", "random-checkpoint", "convert", "generate", "fmt"):
        assert f"{name}: SIGKILL before each file operation" in out


def test_writers_in_place_are_found() -> None:
    """The harness against writers that do what everybody does."""
    found = dict(line.split() for line in run("-c", NAIVE).stdout.splitlines())
    assert int(found["export"]) > 3 and int(found["fmt"]) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_attacks_for_minutes() -> None:
    out = run("-m", "tests.hardness", "--only", "writers", "--minutes", "4", "--seed", "1").stdout
    assert "; 0 findings" in out
