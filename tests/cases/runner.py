"""One case is a folder: ``cmd``, input files, and what the real command line must answer.

``cmd`` is one command line of llamagen. Beside it lie input files (copied to an empty folder, with those of
``common/``), ``prepare.py`` if inputs must be made (run there first), and the golden ``stdout``, ``stderr`` (absent:
empty) and ``exit`` (absent: 0). Files under ``wrote/`` must exist afterwards, with these bytes.

``python -m tests.cases.runner --update [NAME...]`` writes the golden files from what is answered now.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
COMMON = HERE / "common"
_GOLDEN = ("stdout", "stderr", "exit")
_NOT_COPIED = (*_GOLDEN, "cmd", "wrote")
_UNSTABLE = (
    # progress: a busy machine needs the seconds after which a line is due
    (re.compile(r"^[a-z ]+: .+ of .+, [\d.e+-]+ ?\w*/s(, .+ left)?\n", re.M), ""),
    (re.compile(r"\bin \d+\.\d s$", re.M), "in <seconds> s"),
    (re.compile(r"\d[\d,.]* tokens/s"), "<rate> tokens/s"),
    (re.compile(r'"seconds": \{[^}]*\}, "tokens_per_second": [\d.e+-]+'), '"seconds": <seconds>'),
    (re.compile(r"\b\d\.\de-0[678]\b"), "<small>"),
    # the serialisers of the installed onnx packages decide how long the graph is
    (
        re.compile(r"^(model\.onnx|MANIFEST\.json|README\.md|genai_config\.json)  .*$", re.M),
        r"\1 <size>",
    ),
    (re.compile(r"^(wrote out): .*$", re.M), r"\1: <size>"),
    (re.compile(r"(opened|seen) in \d+\.\d\d s"), r"\1 in <seconds> s"),
)


@dataclass(frozen=True)
class Answer:
    """What a command said, places of this machine and times taken out."""

    stdout: str
    stderr: str
    exit: str


def names() -> list[str]:
    return sorted(p.parent.name for p in HERE.glob("*/cmd"))


def run_case(name: str, folder: Path) -> Answer:
    """Run the command of a case in ``folder``, which is empty before."""
    case = HERE / name
    for source in (COMMON, case):
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=_ignored)
    if (folder / "prepare.py").is_file():
        subprocess.run([sys.executable, "prepare.py"], cwd=folder, check=True, env=_environment())
    words = shlex.split((case / "cmd").read_text(encoding="utf-8"))
    assert words[0] == "llamagen", "a case runs llamagen"
    done = subprocess.run(
        [sys.executable, "-m", "llamagen", *words[1:]],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        check=False,
    )
    return Answer(
        _stable(done.stdout.decode(), folder),
        _stable(done.stderr.decode(), folder),
        f"{done.returncode}\n",
    )


def golden(name: str) -> Answer:
    """What the case's files say."""
    texts = [
        path.read_text(encoding="utf-8") if (path := HERE / name / kind).is_file() else ""
        for kind in _GOLDEN
    ]
    return Answer(texts[0], texts[1], texts[2] or "0\n")


def update(name: str) -> bool:
    """Write the golden files; whether something changed."""
    with tempfile.TemporaryDirectory() as folder:
        answer = run_case(name, Path(folder).resolve())
    before = golden(name)
    for kind, text, default in (
        ("stdout", answer.stdout, ""),
        ("stderr", answer.stderr, ""),
        ("exit", answer.exit, "0\n"),
    ):
        path = HERE / name / kind
        if text == default:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text, encoding="utf-8")
    return answer != before


def _stable(text: str, folder: Path) -> str:
    text = text.replace(str(folder), "<folder>").replace(str(REPOSITORY), "<repository>")
    for pattern, replacement in _UNSTABLE:
        text = pattern.sub(replacement, text)
    return text


def _ignored(folder: str, names: list[str]) -> set[str]:
    top = Path(folder).parent == HERE
    return {n for n in names if (top and n in _NOT_COPIED) or n == "__pycache__"}


def _environment() -> dict[str, str]:
    """Nothing of the caller's environment but the way to the package."""
    return {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    if sys.argv[1:2] != ["--update"]:
        sys.exit("usage: python -m tests.cases.runner --update [NAME...]")
    for case_name in sys.argv[2:] or names():
        print("changed" if update(case_name) else "same", case_name)
