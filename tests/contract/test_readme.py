"""The README starts with two commands, and CI runs exactly the second."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from llamagen.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = re.findall(r"```bash\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(commands) == 2, "one command runs the main job, one the tests"
    main, tests = commands
    assert "llamagen export" in main
    assert "pytest" in tests
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == tests


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_questions_of_the_readme_have_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    section = (ROOT / "README.md").read_text().split("## Ask the family", 1)[1]
    asked = re.findall(r"^\$ llamagen (.*)$", section.split("```console\n", 1)[1], re.M)
    assert len(asked) > 5
    for line in asked:
        words = shlex.split(line.partition(">")[0] if " > " in line else line, comments=True)
        code = main(words)
        out, err = capsys.readouterr()
        assert (code, err) == (1 if "--fail-on" in words else 0, ""), line
        assert out, line


def test_the_python_of_the_readme_runs() -> None:
    section = (ROOT / "README.md").read_text().split("## Ask the family", 1)[1]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert code.count("assert ") == 2
    exec(compile(code, "README.md", "exec"), {})
