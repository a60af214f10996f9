"""bench.peers with ourselves alone: what it measures is complete and what it prints a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import peers
from bench.builders import BUILDERS
from bench.contenders import CONTENDERS
from bench.environments import ENVIRONMENTS
from bench.tables import tables
from llamagen.emit.clients.readme import TESTED
from tests.bench.test_gpu import SPEC


def test_names_lead_somewhere() -> None:
    for builder in BUILDERS.values():
        assert builder.environment is None or builder.environment in ENVIRONMENTS
    for contender in CONTENDERS.values():
        assert contender.builder is None or contender.builder in BUILDERS
        assert contender.environment is None or contender.environment in ENVIRONMENTS
    assert {c.bits for c in CONTENDERS.values()} == {c.bits for c in CONTENDERS.values() if c.ours}


def test_versions_in_a_folder_are_those_that_are_tested() -> None:
    pins = {pin for one in ENVIRONMENTS.values() for pin in one.pins}
    for client, version in TESTED.items():
        assert {f"{client}=={version}", f"{client}@{version}"} & pins, client
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert f'"onnxruntime-genai=={TESTED["onnxruntime-genai"]}"' in project.read_text()


def test_tables() -> None:
    speed = {
        "bits": "f32",
        "machine": "m",
        "decode_tokens_per_s": 8.0,
        "prefill_tokens_per_s": 160.0,
        "bytes_per_token": 5e9,
        "flops_per_token": 2e9,
        "bandwidth": 4e10,
        "peak_flops": 4e11,
        "load_seconds": 1.5,
        "anonymous": 2**30,
    }
    against = {**speed, "decode_ratio": 0.5, "prefill_ratio": 0.25, "same_tokens": True}
    export = {"machine": "m", "returncode": 0, "seconds": 2.0, "over_cp": 1.1, "date": "d"}
    made = tables(
        {
            "export": {
                "ours": {**export, "peak_anonymous": 2**20, "bytes": 2**30},
                "theirs": {"machine": "m", "returncode": 1, "message": "no", "date": "d"},
            },
            "speed": {"ours": speed, "theirs": against},
        }
    )
    assert "| ours | 2.0 s | 1.10 | 1 MiB | 1 GiB | d |\n" in made
    assert "| theirs | fails: no |" in made
    assert "| ours | 8.0 | 1.00 | 160 | 0.80 |  | 1.50 s | 1 GiB |  |\n" in made
    assert "| theirs | 8.0 | 1.00 | 160 | 0.80 | 0.50, 0.25 | 1.50 s | 1 GiB | yes |\n" in made


@pytest.mark.slow
def test_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tmp_path / "tiny.yaml"
    spec.write_text(SPEC)
    work = ["--work", str(tmp_path / "work"), "--spec", str(spec)]

    def bench(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["peers", *words, *work])
        peers.main()

    bench("export", "--only", "llamagen portable f32,llamagen ort-cpu f32")
    sizes = ("--rounds", "1", "--past", "8", "--steps", "2", "--probe", "512")
    bench("speed", "--only", "llamagen,llamagen portable,transformers eager", *sizes)
    results = json.loads((tmp_path / "work" / "results.json").read_text())
    assert all(row["returncode"] == 0 for row in results["export"].values())
    speed = results["speed"]
    assert "decode_ratio" not in speed["llamagen"]
    assert speed["llamagen portable"]["same_tokens"] is True
    assert speed["transformers eager"]["same_tokens"] is True
    weights = speed["transformers eager"]["bytes_per_token"]
    for name in ("llamagen", "llamagen portable"):
        # beside the weights a few constants of the graph
        assert weights <= speed[name]["bytes_per_token"] <= weights + 1024
    bench("table")
