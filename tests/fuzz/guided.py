"""``python -m tests.fuzz.guided TARGET SECONDS``: one target under coverage guidance (atheris, libFuzzer).

A process of its own, because the code under test must be imported after the instrumentation is on, and because
libFuzzer ends the process: with status 0 after the time without a finding.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(name: str, seconds: int) -> None:
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["llamagen"]):
        target = importlib.import_module("tests.fuzz.targets").TARGETS[name]
    reached, broken = HERE / ".atheris" / name, HERE / "corpus" / name
    for folder in (reached, broken):
        folder.mkdir(parents=True, exist_ok=True)
    for data in target.seeds():
        (reached / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

    def once(data: bytes) -> None:
        target.run(data)

    limits = [f"-max_total_time={seconds}", "-rss_limit_mb=2048", "-timeout=10", "-max_len=65536"]
    places = [f"-artifact_prefix={broken}/", str(reached), str(broken)]
    atheris.Setup([sys.argv[0], *places, *limits], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
