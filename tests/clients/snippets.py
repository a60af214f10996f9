"""The code blocks of a folder's README, to be run as a reader would."""

from __future__ import annotations

import re
from pathlib import Path


def snippets(folder: Path) -> dict[str, str]:
    """Heading -> the code below it."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    found = {}
    for section in sections:
        heading, _, body = section.partition("\n")
        blocks = re.findall(r"^```\w+\n(.*?)^```", body, flags=re.MULTILINE | re.DOTALL)
        if blocks:
            (found[heading],) = blocks
    return found
