"""The model card: every published value with its source, and text that cannot leave its cell."""

from __future__ import annotations

from llamagen.analysis.show import SOURCED, card_text
from llamagen.spec.registry import Registry

HOSTILE = """\
spec: 1
id: my/model
extends: llama/2/7b
title: "A | B <script>alert(1)</script> `x`"
"""


def test_values_stand_beside_their_sources() -> None:
    text = card_text(Registry().load("llama/3.2/1b"))
    assert text.startswith("# Llama 3.2 1B\n")
    assert "| num_kv_heads | 8 | " in text
    assert "| date | 2024-09-25 | l32card |" in text
    assert "1,235,814,400" in text


def test_every_leaf_of_the_record_has_a_source() -> None:
    parts = card_text(Registry().load("llama/3.1/405b")).split("\n## ")[1:]
    tables = {title: rows for title, *rows in (part.strip().split("\n") for part in parts)}
    assert len(SOURCED & tables.keys()) >= 4
    for title in SOURCED & tables.keys():
        rows = [row for row in tables[title] if row.startswith("| ") and row[2] != "|"]
        assert rows and all(row.split(" | ")[2].removesuffix(" |") for row in rows), title


def test_text_stays_in_its_cell() -> None:
    text = card_text(Registry().load_text(HOSTILE, "hostile.yaml"))
    heading = text.splitlines()[0]
    assert heading == "# A \\| B &lt;script&gt;alert(1)&lt;/script&gt; \\`x\\`"
