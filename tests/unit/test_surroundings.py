"""Commands in bad surroundings, as processes of their own: no traceback, the right exit code, nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TINY = Path(__file__).resolve().parents[1] / "cases/common/tiny.yaml"
LLAMAGEN = f"{sys.executable} -m llamagen"


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In bash; ``$L`` is the program, ``$S`` a small spec."""
    found = {**os.environ, "L": LLAMAGEN, "S": str(TINY)}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=found, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("$L list > /dev/full", 3, "LG632"),
        ("$L explain ops > /dev/full", 3, "LG632"),
        ("$L --help > /dev/full", 3, "LG632"),
        ("$L list >&-", 0, ""),
        ("$L check nope.yaml 2>&-", 3, ""),
        ("$L check nope.yaml 2> /dev/full", 3, ""),
        ("$L list <&- > /dev/null", 0, ""),
        ("mkdir gone && cd gone && rmdir ../gone && $L list", 3, "the working folder is gone"),
        ("ln -s loop loop; $L export $S --random-weights 1 --out loop/x/out", 3, "LG634"),
        ("$L export $S --random-weights 1 --out /proc/x/out", 3, "LG634"),
        ("$L export $S --random-weights -1 --out out", 2, "seed is -1"),
        ("$L random-checkpoint $S --seed -1 --out out", 2, "seed is -1"),
        ("$L verify . --prompt-tokens 1000000000", 2, "--prompt-tokens"),
        ("$L verify . --steps 1000000000", 2, "--steps"),
        ("$L run . --ids 1 --threads 100000", 2, "--threads"),
        (
            "mkfifo f; $L export $S --checkpoint f --out out",
            3,
            "it is a named pipe, not a regular file",
        ),
    ],
)
def test_what_is_wrong_is_said(line: str, code: int, said: str, tmp_path: Path) -> None:
    done = shell(line, tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr and "LG999" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_export_without_streams_is_whole(tmp_path: Path) -> None:
    """Its data files are not its stdout, though they are the first that it opens."""
    assert shell("$L export $S --random-weights 1 --out out <&- >&- 2>&-", tmp_path).returncode == 0
    assert shell("$L verify out --integrity", tmp_path).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_end_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """In the middle of an export, which waits there for the signal."""
    code = """
import sys, threading
from llamagen.cli import main
from llamagen.emit import export
def wait(*given):
    print("writing", flush=True)
    while True:  # only the signal ends it
        threading.Event().wait(1)
export.write_client_files = wait
sys.exit(main(sys.argv[1:]))
"""
    words = [sys.executable, "-c", code, "export", str(TINY), "--random-weights", "1", "--out"]
    child = subprocess.Popen([*words, "out"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "writing\n"
    assert [path.name for path in tmp_path.iterdir()] == [".out.llamagen"]
    with child:
        try:
            child.send_signal(number)
            assert child.wait() == 128 + number
        finally:
            child.kill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("thread", [False, True])
def test_a_mapped_file_that_shrinks_is_named(thread: bool, tmp_path: Path) -> None:
    """Read by Python, and by a thread of a library that does not hold Python's lock, as ONNX Runtime's."""
    code = f"""
import ctypes, mmap, os, threading
from llamagen.cli.surroundings import endings
path = {str(tmp_path / "file")!r}
with open(path, "wb") as file:
    file.write(bytes(1 << 20))
with endings(), open(path, "r+b") as file:
    pages = mmap.mmap(file.fileno(), 0)
    os.truncate(path, 0)
    place = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    if {thread}:
        target = ctypes.create_string_buffer(100)
        reader = threading.Thread(target=ctypes.CDLL(None).memcpy, args=(target, ctypes.c_void_p(place), 100))
        reader.start()
        reader.join()
    else:
        pages[5000]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "LG622" in done.stderr, done
