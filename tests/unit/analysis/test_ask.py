"""Targets at a revision of git, with the bases they had then; overlays between shipped models."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from llamagen import api
from llamagen.analysis.diff.judge import diff
from llamagen.analysis.diff.overlay import lasting, overlay, plain_of
from llamagen.diagnostics import LlamagenError
from llamagen.emit.options import Target
from llamagen.spec.registry import Registry
from tests.unit.analysis import models


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    spec = tmp_path / "spec" / "t"
    spec.mkdir(parents=True)
    (spec / "base.yaml").write_text(models.TINY, encoding="utf-8")
    (spec / "small.yaml").write_text(
        "spec: 1\nid: t/small\nextends: t/base\ntitle: Small\n", encoding="utf-8"
    )
    git("add", ".")
    git("commit", "-qm", "one")
    (spec / "base.yaml").write_text(
        models.TINY.replace("theta: 10000.0", "theta: 500000.0"), encoding="utf-8"
    )
    git("commit", "-qam", "two")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_revision_has_the_bases_of_its_time(repository: Path) -> None:
    old, new = (
        models.model_of("HEAD~1:spec/t/small.yaml"),
        models.model_of("HEAD:spec/t/small.yaml"),
    )
    (theta,) = [c for c in diff(old, new).changes if c.kind == "value"]
    assert (theta.before.text, theta.after.text) == ("10000.0", "500000.0")
    assert str(theta.before.place).startswith("HEAD~1:spec/t/base.yaml:")


def test_a_base_that_the_revision_lacks_is_not_that_of_today(repository: Path) -> None:
    child = "spec: 1\nid: t/heir\nextends: t/gone\ntitle: Heir\n"
    (repository / "spec/t/heir.yaml").write_text(child, encoding="utf-8")
    words = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run([*words, "add", "."], cwd=repository, check=True)
    subprocess.run([*words, "commit", "-qm", "three"], cwd=repository, check=True)
    with pytest.raises(LlamagenError) as caught:
        models.model_of("HEAD:spec/t/heir.yaml")
    assert caught.value.diagnostics[0].code == "LG202"


@pytest.mark.parametrize(
    "target",
    ["nosuchrev:spec/t/small.yaml", "HEAD:spec/t/none.yaml", "HEAD:../x.yaml", "--all:x.yaml"],
)
def test_revisions_that_are_not_there(repository: Path, target: str) -> None:
    with pytest.raises(LlamagenError) as caught:
        models.model_of(target)
    assert caught.value.diagnostics[0].code == "LG901"


def test_overlays_between_neighbours_of_the_family() -> None:
    registry = Registry()
    ids = registry.ids(abstract=False)
    for one, two in pairwise(ids):
        a, b = registry.load(one), registry.load(two)
        again = Registry().load_text(overlay(a, b))
        plain_a, plain_b = a.plain, b.plain
        assert isinstance(plain_a, dict)
        assert isinstance(plain_b, dict)
        stays = {p.split(".", 1)[0] for p in lasting(plain_a, plain_b)}
        found = {k: v for k, v in plain_of(again).items() if k not in stays}
        assert found == {k: v for k, v in plain_of(b).items() if k not in stays}, (one, two)
        assert again.digest == b.digest or "blocks" in stays


def test_every_question_takes_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = api.load("llama/3.2/1b").files(Target.CONFIG)["config.json"]
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    for target in ("config.json", str(tmp_path)):
        assert api.cost(target).parameters.total == 1_235_814_400
        assert "DecoderLayer ×16" in api.graph_tower(target)
        assert "500000.0" in api.explain(target, "rope.theta")
        assert api.show(target)[0].title == "model"
        assert api.plot([target]).startswith("<svg")


@pytest.mark.parametrize(
    ("target", "help"),
    [
        ("meta-llama/Llama-4-Scout-17B-16E", "did you mean `llama/4/scout`?"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "did you mean `llama/3/8b-instruct`?"),
        ("Llama-3.2-1B", "did you mean `llama/3.2/1b`?"),
        ("mine/config", "`llamagen list` shows the ids that are known"),
        ("no.json.yaml", None),
    ],
)
def test_unknown_targets_have_a_next_step(target: str, help: str | None) -> None:
    with pytest.raises(LlamagenError) as caught:
        api.cost(target)
    found = caught.value.diagnostics[0]
    assert (found.code, found.help) == ("LG201", help)


def test_an_unknown_generation_is_no_empty_list() -> None:
    with pytest.raises(LlamagenError) as caught:
        api.list_models(generation="3.20")
    assert caught.value.diagnostics[0].help == "did you mean `3.2`?"


def test_a_record_without_wiring_has_no_verdict() -> None:
    with pytest.raises(LlamagenError) as caught:
        api.compat("llama/2/7b", "llama/4/behemoth")
    assert caught.value.diagnostics[0].code == "LG401"
