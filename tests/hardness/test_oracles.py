"""Every class of input, a few rounds; and that a reader which accepts or refuses everything is found."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamagen.diagnostics import LlamagenError
from tests.counting import count
from tests.fuzz.scratch import ROOT
from tests.hardness.classes import CLASSES
from tests.hardness.oracles import Case, score


@pytest.mark.parametrize("name", CLASSES)
def test_rules(name: str) -> None:
    cases, rounds = CLASSES[name]
    found = score(cases, range(rounds))
    count("inputs that break one rule", found.refused)
    assert not found.findings, "\n".join(found.findings.values())
    assert found.refused >= rounds and found.accepted >= rounds and found.crashed == 0


def nothing() -> None:
    pass


def refuse(code: str = "LG602") -> None:
    raise LlamagenError.of(code, "no")


def leave() -> None:
    Path("left").touch()
    refuse()


@pytest.mark.parametrize(
    ("sound", "broken", "wrong"),
    [
        (nothing, refuse, {}),
        (nothing, nothing, {"broken": "accepted"}),
        (refuse, refuse, {"sound": "refused"}),
        (nothing, lambda: refuse("LG001"), {"broken": "must be LG602"}),
        (nothing, lambda: 1 // 0, {"broken": "ZeroDivisionError"}),
        (nothing, leave, {"broken": "left"}),
    ],
)
def test_what_must_not_be_is_found(
    sound: Callable[[], object],
    broken: Callable[[], object],
    wrong: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    def cases(generator: random.Random, folder: Path) -> Iterator[Case]:
        yield Case("sound", None, sound)
        yield Case("broken", "LG602", broken)

    found = score(cases, range(2)).findings
    assert found.keys() == wrong.keys()
    assert all(words in found[name] for name, words in wrong.items())


CLASSES_OF_EACH_KIND = """
import os, sys
from tests.hardness import __main__ as hardness
from tests.hardness.oracles import Case

def right(generator, folder):
    yield Case("sound", None, lambda: None)

def wrong(generator, folder):
    yield Case("broken", "LG602", lambda: None)

def deadly(generator, folder):
    yield Case("broken", "LG602", os.abort)

classes = {c.__name__: (c, 1) for c in (right, wrong, deadly)}
hardness.EVERY, hardness.TARGETS = {name: classes[name] for name in sys.argv[1:]}, {}
sys.exit(hardness.main(["--only", "readers", "--minutes", "0"]))
"""


def figures(*names: str) -> tuple[int, list[list[str]]]:
    words = [sys.executable, "-c", CLASSES_OF_EACH_KIND, *names]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, [line.split() for line in done.stdout.splitlines()]


def test_the_command_fails_for_a_finding() -> None:
    """Also where a reader takes the process with it."""
    code, (_, right, *_) = figures("right")
    assert code == 0 and right[:4] == ["0", "1", "0", "right:"]
    code, (_, right, wrong, deadly, total, *findings) = figures("right", "wrong", "deadly")
    assert code == 1 and total[:3] == ["0", "2", "1"]
    assert wrong[:3] == ["0", "1", "0"] and deadly[:3] == ["0", "0", "1"]
    assert [line[0] for line in findings if line] == ["wrong:", "deadly:"]
