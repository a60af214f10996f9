"""Other people's code agrees with exports of every generation; slow, as each is installed first."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from bench.environments import environment
from llamagen import api
from llamagen.emit.options import ExportOptions
from tests.field import browser, cuda, engines, table
from tests.field.__main__ import FILE, GOOD, ROOT, WITNESSES, compared, missing
from tests.field.cuda_stub import build, site_of
from tests.field.providers import PROVIDERS as ALL_PROVIDERS
from tests.field.providers import compared as compared_by
from tests.parity.models import SPECS

ROWS = [(name, model) for name, witness in WITNESSES.items() for model in witness.models]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), ROWS, ids=lambda one: getattr(one, "id", one))
def test_agrees(name: str, model: object) -> None:
    if why := missing(name):
        pytest.skip(why)
    found = compared(name, model)  # type: ignore[arg-type]
    assert found["result"] == "equal" and found["cases"] >= 8, found


def test_what_was_recorded_is_of_these_witnesses_and_models() -> None:
    """And good news, in an order of its own."""
    text = FILE.read_text()
    found = json.loads(text)
    assert text == json.dumps(found, indent=2, sort_keys=True) + "\n"
    asked = {name: sorted(model.id for model in of.models) for name, of in WITNESSES.items()}
    asked |= {"cuda": sorted(cuda.NAMES), "vllm": sorted(engines.NAMES)}
    asked |= {"browser": sorted(browser.ROWS)}
    asked |= {name: sorted(map(str, of.folders)) for name, of in ALL_PROVIDERS.items()}
    assert {name: list(one["models"]) for name, one in found.items()} == asked, (
        "run `python -m tests.field`"
    )
    for one in found.values():
        assert one["versions"] and all(row["result"] in GOOD for row in one["models"].values())


def test_the_tables_are_of_that_record() -> None:
    assert table.FILE.read_text() == table.text(), "run `python -m tests.field.table`"
    readme = (ROOT / "README.md").read_text()
    assert table.summary() in readme, "`python -m tests.field.table` prints README's table"


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_PROVIDERS)
def test_a_provider_agrees(name: str) -> None:
    if why := missing(name):
        pytest.skip(why)
    found = compared_by(name, ALL_PROVIDERS[name].folders[0])
    assert found["result"] == "equal" and found["cases"] >= 8, found


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["reduced/llama-3.2-1b", "reduced/llama-3.2-11b-vision", "resized/mixtral"]
)
def test_the_cuda_provider_takes_every_graph_and_captures_it(name: str) -> None:
    if why := missing("cuda"):
        pytest.skip(why)
    provider = cuda.Provider()
    try:
        said = cuda.summary(cuda.probed(provider, name))
    finally:
        provider.close()
    assert said["result"] == "accepted" and said["graphs"] >= 9, said
    assert "no_cuda_graph" not in said and not said["copied_tensors"], said


GENAI = """
import sys
import onnxruntime, onnxruntime_genai as genai  # the first has the libraries of the second
model = genai.Model(sys.argv[1])
assert model.device_type.upper() == "CUDA", model.device_type
params = genai.GeneratorParams(model)
params.set_search_options(max_length=8, do_sample=False)
generator = genai.Generator(model, params)
generator.append_tokens([1, 2, 3])
while not generator.is_done():
    generator.generate_next_token()
print(len(generator.get_sequence(0)))
"""


@pytest.mark.slow
def test_runners_come_to_an_end_on_the_cuda_provider(tmp_path: Path) -> None:
    """What they say is not looked at: no kernel computes."""
    if why := missing("cuda"):
        pytest.skip(why)
    out = tmp_path / "out"
    api.load(SPECS / "reduced" / "llama-3.2-1b.yaml").export(
        out, ExportOptions("ort-cuda", "float16"), random_weights=1
    )
    python = environment("cuda")
    site = site_of(python)
    libraries = build(site, python.parents[1] / "stub"), site / "onnxruntime" / "capi"
    env = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PYTHONPATH": str(ROOT),
    }
    run = ("run", str(out), "--provider", "cuda", "--ids", "1,2,3", "--max-new-tokens", "4")
    for words, said in (
        (("-m", "llamagen", *run), "4 written"),
        (("-c", GENAI, str(out)), "8"),
    ):
        done = subprocess.run([python, *words], env=env, capture_output=True, text=True)
        assert done.returncode == 0 and said in done.stdout + done.stderr, done.stderr[-2000:]
