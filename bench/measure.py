"""Measuring a command from outside: wall time, peak resident and anonymous memory; and the machine's own limits."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds and bytes of one finished command. Anonymous memory leaves out mapped files."""

    wall_s: float
    peak_rss: int
    peak_anonymous: int
    returncode: int
    output: str


def run(command: Sequence[str], *, interval_s: float = 0.02) -> Measured:
    """Run ``command`` to its end while sampling its memory."""
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True)
        peak_rss = peak_anonymous = 0
        while process.poll() is None:
            resident, anonymous = memory(process.pid)
            peak_rss, peak_anonymous = max(peak_rss, resident), max(peak_anonymous, anonymous)
            time.sleep(interval_s)
        wall = time.perf_counter() - start
        output.seek(0)
        return Measured(wall, peak_rss, peak_anonymous, process.returncode, output.read())


def memory(pid: int) -> tuple[int, int]:
    """Peak resident and present anonymous memory of a process, bytes; zeros when it is gone."""
    found = {"VmHWM": 0, "RssAnon": 0}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) * 1024
    except (OSError, IndexError):
        pass
    return found["VmHWM"], found["RssAnon"]


def machine() -> str:
    """Processor, cores and memory, for the heading of a table."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{model}, {os.cpu_count()} cores, {memory / 2**30:.0f} GiB"


def peak_flops(threads: int = 2, repeats: int = 5) -> float:
    """Float32 FLOP/s of a matrix product that fits no cache but the last."""
    import torch

    torch.set_num_threads(threads)
    size = 2048
    left, right = torch.ones(size, size), torch.ones(size, size)
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / median(times)


def bandwidth(threads: int = 2, repeats: int = 5, width: int = 16384) -> float:
    """Read bandwidth of main memory, bytes/s: a float32 matrix-vector product far larger than the caches."""
    import torch

    torch.set_num_threads(threads)
    matrix = torch.ones(width, width)
    vector = torch.ones(width)
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mv(matrix, vector)
        times.append(time.perf_counter() - start)
    return matrix.numel() * 4 / median(times)
