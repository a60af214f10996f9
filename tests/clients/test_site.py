"""The atlas in headless Chromium, opened from disk: every page and control, as a reader has it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llamagen import api

pytestmark = pytest.mark.slow

MODELS = (
    "llama/2/7b",
    "llama/3/8b",
    "llama/3.1/405b",
    "llama/3.2/11b-vision",
    "llama/4/scout",
    "llama/4/behemoth",
    "llama/guard/prompt-2-86m",
)

# Errors are listened for before the atlas' own scripts run; the results become the page.
WATCH = """<script>
const said = { errors: [], pages: {} };
addEventListener("error", (e) => said.errors.push(String(e.message || e.target.src || e.target.href)), true);
addEventListener("unhandledrejection", (e) => said.errors.push(String(e.reason)));
console.error = (...words) => said.errors.push(words.join(" "));
</script>"""


LOADS = [
    ("llama/3.1/405b", {"context": 8192, "batch": 1, "dtype": "bfloat16"}),
    ("llama/4/scout", {"context": 131072, "batch": 4, "dtype": "int4"}),
    ("llama/3.2/11b-vision", {"context": 4096, "batch": 2, "dtype": "float32"}),
]

ROUTES = (
    "#/", "#/models", "#/compare", "#/compare/llama/2/7b..llama/3/8b", "#/compare/llama/3/8b..llama/4/behemoth",
    "#/cost", "#/cost/llama/3.1/405b?context=8192&batch=1&dtype=bfloat16&device=h100-sxm&count=16", "#/lineage",
    "#/claims", "#/ops", "#/op/rms_norm", "#/rules", "#/rule/LG404", "#/nowhere", *(f"#/model/{id}" for id in MODELS),
)  # fmt: skip


@pytest.fixture(scope="module", params=[(1280, 900), (412, 900)], ids=["desk", "phone"])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is not installed (Debian: apt-get install chromium)"
    folder = tmp_path_factory.mktemp("atlas") / "site"
    api.site(folder, only=MODELS)
    page = (folder / "index.html").read_text(encoding="utf-8")
    visit = Path(__file__).with_name("visit_site.js").read_text(encoding="utf-8")
    data = f"<script>const ROUTES = {json.dumps(ROUTES)}, LOADS = {json.dumps(LOADS)};</script>"
    page = page.replace("<head>", f"<head>{WATCH}{data}").replace(
        "</body>", f"<script>{visit}</script></body>"
    )
    (folder / "visit.html").write_text(page, encoding="utf-8")
    width, height = request.param
    done = subprocess.run(
        [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         f"--user-data-dir={tmp_path_factory.mktemp('profile')}", f"--window-size={width},{height}",
         "--virtual-time-budget=60000", "--dump-dom", (folder / "visit.html").as_uri()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (text,) = re.findall(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    return json.loads(html.unescape(text))


def test_no_page_has_an_error_or_asks_the_network(said: Any) -> None:
    assert said["errors"] == []
    assert said["network"] == []
    assert list(said["pages"]) == list(ROUTES)
    assert {route: page["faults"] for route, page in said["pages"].items() if page["faults"]} == {}


def test_no_page_is_wider_than_the_screen(said: Any) -> None:
    assert [route for route, page in said["pages"].items() if page["wide"]] == []


def test_questions_of_a_newcomer_are_answered(said: Any) -> None:
    text = {route: page["text"] for route, page in said["pages"].items()}
    home = text["#/"]
    assert home.index("LLaMA 2") < home.index("grouped-query attention (GQA)")
    for news in (
        "a vocabulary of 128,256",
        "global layers without positions (NoPE)",
        "mixture of experts",
    ):
        assert news in home
    cost = text[ROUTES[6]]
    assert "756 GiB" in cost
    assert "fits" in cost
    assert "RoPE theta 10,000 → 500,000" in text["#/compare/llama/2/7b..llama/3/8b"]
    assert "No wiring is recorded of one of them." in text["#/compare/llama/3/8b..llama/4/behemoth"]
    assert "Nothing here" in text["#/nowhere"]
    assert re.search(r"MMLU\s+85.2\s+5\s+macro_avg/acc_char", text["#/model/llama/3.1/405b"])
    guard = text["#/model/llama/guard/prompt-2-86m"]
    assert (
        "86M backbone" in guard and "mDeBERTa-v3-base" in guard and "No wiring is recorded" in guard
    )
    assert said["pages"]["#/model/llama/4/scout"]["title"].startswith("Llama 4 Scout")


def test_controls_do_what_they_say(said: Any) -> None:
    assert said["search"] == ["llama/4/scout"]
    assert said["permalink"] == "#/models/?search=scout"
    assert said["linked"] == ["llama/4/scout", "llama/4/behemoth"]
    assert said["sorted"][0] == "llama/3.1/405b"
    assert said["sorted"][-2:] == ["llama/4/behemoth", "llama/guard/prompt-2-86m"]
    assert sorted(said["themes"]) == ["dark", "light"]


def test_the_calculator_equals_the_command(said: Any) -> None:
    for (id, load), found in zip(LOADS, said["cost"], strict=True):
        report = api.cost(id, context=load["context"], batch=load["batch"], dtype=load["dtype"])  # type: ignore[arg-type]
        expected = [
            report.weight_bytes,
            report.cache_bytes,
            report.prefill.flops.total,
            report.decode.flops.total,
        ]
        # a double holds 53 bits: sums of products beyond 2^53 are rounded
        assert found == pytest.approx(expected, rel=1e-15)
        assert found[:2] == expected[:2]
