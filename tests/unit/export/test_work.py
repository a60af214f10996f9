"""How much work an export is: nothing is built, opened or resolved twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamagen import api
from llamagen.emit.config.table import known_tables
from llamagen.ir import elaborate
from llamagen.spec import registry
from llamagen.spec.registry import Registry
from llamagen.weights.checkpoint import Checkpoint

SPEC = Path(__file__).parents[2] / "specs" / "reduced" / "llama-4-scout.yaml"
GRAPHS = 4
"""Of Scout: the text, and three for images."""


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Graphs by spec and name, checkpoints by path, specs by their last file: how often each was made."""
    seen: Counter[str] = Counter()
    build, resolve, opened = elaborate._Model.run, vars(registry)["resolve"], Checkpoint.open

    def count_graph(model: Any) -> Any:
        seen[f"graph {model.spec.id} {model.name}"] += 1
        return build(model)

    def count_spec(chain: Any, *arguments: Any) -> Any:
        seen[f"spec {chain[-1].file}"] += 1
        return resolve(chain, *arguments)

    def count_checkpoint(path: Any, *adapter: Any) -> Any:
        seen[f"checkpoint {path}"] += 1
        return opened(path, *adapter)

    monkeypatch.setattr(elaborate._Model, "run", count_graph)
    monkeypatch.setattr(registry, "resolve", count_spec)
    monkeypatch.setattr(Checkpoint, "open", staticmethod(count_checkpoint))
    return seen


def counted(seen: Counter[str], kind: str) -> list[int]:
    return [count for name, count in seen.items() if name.startswith(f"{kind} ")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "checkpoint"
    api.random_checkpoint(SPEC, folder)
    known_tables(Registry())  # which bases the tables stand on is asked once a process
    return folder


def export(spec: str | Path, checkpoint: Path, out: Path) -> None:
    api.load(spec).export(out, checkpoint=checkpoint)


def check(spec: str | Path, checkpoint: Path, out: Path) -> None:
    assert api.check_checkpoint(checkpoint, spec).clean


def convert(spec: str | Path, checkpoint: Path, out: Path) -> None:
    api.convert(checkpoint, spec, spec, out)


@pytest.mark.parametrize(
    ("command", "spec", "graphs"),
    [
        (export, SPEC, GRAPHS),
        (check, SPEC, GRAPHS),
        (convert, SPEC, GRAPHS),  # both sides are one model
        (export, "llama/4/scout", 2 * GRAPHS),  # in the checkpoint's own sizes
        (check, "llama/4/scout", 2 * GRAPHS),
    ],
)
def test_nothing_is_done_twice(
    command: Callable[[str | Path, Path, Path], None],
    spec: str | Path,
    graphs: int,
    checkpoint: Path,
    tmp_path: Path,
    work: Counter[str],
) -> None:
    command(spec, checkpoint, tmp_path / "out")
    assert counted(work, "checkpoint") == [1]
    assert sum(counted(work, "graph")) == graphs
    assert set(counted(work, "graph")) == {1}
    del work["spec <imported>"]  # drafts of the spec in other sizes
    assert set(counted(work, "spec")) == {1}


def test_random_weights_need_each_graph_once(tmp_path: Path, work: Counter[str]) -> None:
    api.load(SPEC).export(tmp_path / "out", random_weights=1)
    assert counted(work, "graph") == [1] * GRAPHS
    assert counted(work, "spec") == [1], "no other model is looked at"


def test_every_target_is_made_of_the_same_graphs(work: Counter[str]) -> None:
    assert api.load(SPEC).files()
    assert counted(work, "graph") == [1] * GRAPHS
