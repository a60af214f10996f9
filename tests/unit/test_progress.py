"""Long commands on and off a terminal: how far, how fast, how long still; and Ctrl-C at any of these points."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamagen import api
from llamagen.cli import progress
from llamagen.units import seconds_text
from tests.parity.models import SPECS
from tests.unit.verify.test_folder import CASES, exported

MIB = 1 << 20


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_lines_off_a_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.byte_progress("writing") as update:
        for second in range(13):
            clock.now = float(second)
            update(second * 10 * MIB, 300 * MIB)
    assert capsys.readouterr().err.splitlines() == [
        "writing: 50 MiB of 300 MiB, 10.5 MB/s, 25 s left",
        "writing: 100 MiB of 300 MiB, 10.5 MB/s, 20 s left",
    ]


def test_cases_off_a_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.case_progress("comparing") as update:
        update(0, 21)
        clock.now = 8.0
        update(0, 21)
        clock.now = 300.0
        update(1, 21)
    assert capsys.readouterr().err.splitlines() == [
        "comparing: 0 cases of 21 cases, 0/s",
        "comparing: 1 cases of 21 cases, 0.0033/s, 1 h 40 min left",
    ]


def test_quick_work_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.byte_progress("writing") as update:
        update(1, 1)
    assert capsys.readouterr().err == "" and clock.now == 0


@pytest.mark.parametrize("make", [progress.byte_progress, progress.case_progress])
def test_a_bar_on_a_terminal_leaves_nothing(
    make: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with make("writing") as update:  # type: ignore[attr-defined]
        update(MIB, 2 * MIB)
    assert "writing" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (90_000, "25 h 0 min"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_verify_tells_every_case(tmp_path: Path) -> None:
    from llamagen import api

    steps: list[tuple[int, int]] = []

    def progress(done: int, total: int, what: str) -> None:
        steps.append((done, total))

    out = exported("mistral", tmp_path / "out")
    api.verify_folder(out, ["torch"], steps=1, progress=progress)
    count = 2 * len((*CASES, "around 5"))  # what the graph computes, and what the witness says
    count += len(("prefill", "around 5"))  # exactly
    assert steps == [(i, count) for i in range(1, count + 1)]


WAITS = """\
import sys, time
from llamagen.emit.onnx import data
from llamagen.verify import folder
def wait(*given, **named):
    open(sys.argv[1], "w").close()
    while True:
        time.sleep(1)
data.write_pieces = wait
folder.Comparison.run_onnx = wait
from llamagen.cli import main
sys.exit(main(sys.argv[2:]))
"""
"""The command line, where the long part of a command has begun and does not end."""


@pytest.mark.parametrize("command", ["export", "verify"])
def test_ctrl_c(command: str, tmp_path: Path) -> None:
    """Exit code 130, one word, and everything as it was."""
    place = tmp_path / "place"
    place.mkdir()
    spec = str(SPECS / "reduced/llama-2-70b.yaml")
    words = ["export", spec, "--random-weights", "1", "--out", str(place / "new")]
    if command == "verify":
        api.load(spec).export(place / "out", random_weights=1)
        words = ["verify", str(place / "out")]
    before = sorted(place.rglob("*"))
    begun = tmp_path / "begun"
    child = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(begun), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        while not begun.exists():
            assert child.poll() is None, child.communicate()
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate()
    finally:
        child.kill()
    assert (child.returncode, out, err) == (130, "", "interrupted\n")
    assert sorted(place.rglob("*")) == before
