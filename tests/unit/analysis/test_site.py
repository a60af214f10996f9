"""The atlas' data: what it says is what the commands say, and its folder is safe to open and to replace."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import reduce
from operator import mul
from pathlib import Path
from typing import Any

import pytest

from llamagen import api
from llamagen.diagnostics import LlamagenError

MODELS = ("llama/2/7b", "llama/3.1/8b", "llama/3.2/11b-vision", "llama/4/scout")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "atlas"
    api.site(folder, only=MODELS)
    return folder


def registered(path: Path) -> Any:
    """What a data script hands over."""
    (body,) = re.findall(r"^ATLAS\.\w+\((.*)\);\n$", path.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(body)


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def evaluate(terms: list[list[Any]], sizes: Mapping[str, int]) -> int:
    return sum(reduce(mul, (sizes[n] for n in names), count) for count, *names in terms)


def test_the_same_bytes_every_time(site: Path, tmp_path: Path) -> None:
    api.site(tmp_path / "again", only=MODELS)
    assert files(site) == files(tmp_path / "again")


def test_it_opens_from_disk_and_asks_nobody(site: Path) -> None:
    """Classic scripts beside the page; no address, module, fetch or worker in what we wrote."""
    ours = (
        (site / "index.html").read_text()
        + (site / "atlas.js").read_text()
        + (site / "atlas.css").read_text()
    )
    for word in (
        "http://",
        "https://",
        "fetch(",
        "import(",
        'type="module"',
        "Worker(",
        "XMLHttpRequest",
        "@import",
    ):
        assert word not in ours, word
    for file in re.findall(r'(?:src|href)="((?!#|data:)[^"]+)"', (site / "index.html").read_text()):
        assert (site / file).is_file(), file
    assert (site / "vendor" / "uPlot.LICENSE").read_text().startswith("The MIT License")


@pytest.mark.parametrize("id", MODELS)
@pytest.mark.parametrize(
    ("context", "batch", "dtype"), [(4096, 1, "bfloat16"), (131072, 3, "int4"), (1, 1, "float32")]
)
def test_the_calculator_has_what_cost_counts(
    site: Path, id: str, context: int, batch: int, dtype: str
) -> None:
    atlas = registered(site / "data" / "atlas.js")
    wiring = next(m["wiring"] for m in atlas["models"] if m["id"] == id)
    one = atlas["wirings"][wiring]
    report = api.cost(id, context=context, batch=batch, dtype=dtype)
    assert one["weights"][dtype] == report.weight_bytes
    wide = 4 if dtype == "float32" else 2
    assert batch * context * one["cache_values"] * wide == report.cache_bytes

    def flops(new: int, past: int) -> int:
        sizes = {"B": batch, "S": new, "P": past}
        return sum(evaluate(one["work"][kind], sizes) for kind in ("matmul", "attention", "head"))

    assert flops(context, 0) == report.prefill.flops.total
    assert flops(1, context) == report.decode.flops.total
    assert sum(count for _, count, _ in one["components"]) == report.parameters.total
    assert tuple(one["degrees"]) == report.tensor_parallel


def test_every_pair_of_wirings_has_what_diff_says_first(site: Path) -> None:
    atlas, said = registered(site / "data" / "atlas.js"), registered(site / "data" / "diffs.js")
    wirings = {m["id"]: m["wiring"] for m in atlas["models"]}
    for a in MODELS:
        for b in MODELS:
            if a != b:
                indices = said["pairs"][f"{wirings[a]} {wirings[b]}"]
                assert [said["sentences"][i] for i in indices] == list(api.diff(a, b).summary)


def test_a_text_cannot_end_its_script(tmp_path: Path) -> None:
    from llamagen.analysis.site import _write

    _write(tmp_path / "x.js", "ATLAS.add", {"title": "</script><script>alert(1)</script>\u2028"})
    text = (tmp_path / "x.js").read_text(encoding="utf-8")
    assert "</script" not in text
    assert "\u2028" not in text
    assert registered(tmp_path / "x.js") == {"title": "</script><script>alert(1)</script>\u2028"}


def test_only_a_site_of_ours_is_replaced(site: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(LlamagenError) as caught:
        api.site(mine, only=MODELS[:1], overwrite=True)
    assert caught.value.diagnostics[0].code == "LG634"
    assert (mine / "notes.txt").read_text() == "mine"
    with pytest.raises(LlamagenError) as caught:
        api.site(site, only=MODELS[:1])
    assert caught.value.diagnostics[0].code == "LG630"
    out = tmp_path / "out"
    api.site(out, only=MODELS[:1])
    api.site(out, only=MODELS[:2], overwrite=True)
    assert len(registered(out / "data" / "atlas.js")["models"]) == 2


def test_an_unknown_model_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(LlamagenError) as caught:
        api.site(tmp_path / "out", only=["llama/3.2/2b"])
    assert caught.value.diagnostics[0].code == "LG201"
    assert not (tmp_path / "out").exists()
