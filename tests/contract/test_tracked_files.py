"""Rules about the files of the repository themselves."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

# written in pieces, so that this file does not contain what it looks for
_PLACES = ("/wor" + "k/", "/op" + "t/lg", "/ho" + "me/", "/roo" + "t/", "/Use" + "rs/")
_HOSTS = ("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "proxy.golang" + ".org")
_FORBIDDEN = re.compile("|".join(map(re.escape, (*_PLACES, *_HOSTS))))


def files() -> list[Path]:
    """Tracked files and those that would be added."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = [REPOSITORY / name for name in listed.split("\n") if name]
    return [path for path in found if path.is_file()]


def test_no_machine_paths_and_no_registry_hosts() -> None:
    found: list[str] = []
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.split("\n"), 1):
            if _FORBIDDEN.search(line):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:80]}")
    assert found == []
