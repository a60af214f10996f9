"""``convert``: a checkpoint of A written as one of B gives A's logits; what is not exact is refused before writing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

from llamagen import api
from llamagen.analysis.diff.weights import Transform
from llamagen.diagnostics import LlamagenError
from llamagen.ir.flatten import flatten
from llamagen.ir.reference import evaluate
from tests.unit.analysis.test_conversion import CASES, IDS, SMALL
from tests.unit.export.checkpoints import REDUCED, ROUTES, Reduced


def specs(before: str, after: str, folder: Path) -> tuple[Path, Path]:
    (folder / "base.yaml").write_text(SMALL, encoding="utf-8")
    made = []
    for name, overlay in (("one", before), ("two", after)):
        path = folder / f"{name}.yaml"
        path.write_text(f"spec: 1\nid: t/{name}\nextends: base.yaml\n{overlay}\n", encoding="utf-8")
        made.append(path)
    return made[0], made[1]


def logits(spec: Path, folder: Path) -> NDArray[np.float64]:
    weights = {
        name: value.astype(np.float64)
        for file in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }
    return evaluate(flatten(api.load(spec).graph), weights, IDS).logits


@pytest.mark.parametrize("shard", [None, 1024])
@pytest.mark.parametrize(("before", "after", "transforms"), CASES)
def test_the_converted_checkpoint_gives_the_same_logits(
    before: str, after: str, transforms: set[Transform], shard: int | None, tmp_path: Path
) -> None:
    a, b = specs(before, after, tmp_path)
    api.random_checkpoint(a, tmp_path / "a", dtype="float32", seed=5)
    done = api.convert(tmp_path / "a", a, b, tmp_path / "b", shard_bytes=shard)
    assert {name for name, _ in done.transforms} == {t.value for t in transforms}
    wanted, found = logits(a, tmp_path / "a"), logits(b, tmp_path / "b")
    vocab = wanted.shape[-1]
    np.testing.assert_allclose(found[..., :vocab], wanted, rtol=0, atol=1e-12 * wanted.std())
    assert not found[..., vocab:].any()
    # it is a checkpoint of B for every other command
    report = api.check_checkpoint(tmp_path / "b", b)
    assert report.clean, report
    record = json.loads((tmp_path / "b" / "conversion.json").read_text())
    assert record["to"]["id"] == "t/two"
    assert sum(record["transforms"].values()) + done.unchanged == len(api.load(b).parameters)


@pytest.mark.parametrize("route", ["meta_single", "meta_double", "hub_sharded"])
@pytest.mark.parametrize("model", REDUCED, ids=lambda model: model.name)
def test_any_dialect_becomes_the_hubs(model: Reduced, route: str, tmp_path: Path) -> None:
    ROUTES[route](model, tmp_path / route)
    done = api.convert(tmp_path / route, model.spec, model.spec, tmp_path / "hub")
    assert done.transforms == ()
    wanted = model.state if "meta" in route else model.peer.state_dict()
    with safe_open(tmp_path / "hub" / "model.safetensors", "pt") as stored:
        assert set(stored.keys()) == set(wanted)
        for name in stored.keys():  # noqa: SIM118 - no mapping
            assert stored.get_tensor(name).equal(wanted[name]), name


@pytest.mark.parametrize(
    ("after", "code"),
    [
        ("hyperparameters: {num_kv_heads: 1}", "LG902"),
        ("hyperparameters: {vocab_size: 16}", "LG902"),
        ("hyperparameters: {rope: {theta: 500000.0}}", "LG903"),
        ("hyperparameters: {norm_eps: 1.0e-3, num_kv_heads: 4}", "LG903"),
    ],
)
def test_what_is_not_exact_is_refused(after: str, code: str, tmp_path: Path) -> None:
    a, b = specs("title: a", after, tmp_path)
    api.random_checkpoint(a, tmp_path / "a")
    with pytest.raises(LlamagenError) as caught:
        api.convert(tmp_path / "a", a, b, tmp_path / "b")
    assert caught.value.diagnostics[0].code == code
    assert not (tmp_path / "b").exists()


def test_a_checkpoint_with_another_configuration_is_refused(tmp_path: Path) -> None:
    model = REDUCED[0]
    ROUTES["hub_sharded"](model, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    with pytest.raises(LlamagenError) as caught:
        api.convert(tmp_path / "a", model.spec, model.spec, tmp_path / "b")
    assert [one.code for one in caught.value.diagnostics] == ["LG607"]
    api.convert(tmp_path / "a", model.spec, model.spec, tmp_path / "b", ignore_config=True)


def test_other_logits_can_be_meant(tmp_path: Path) -> None:
    a, b = specs("title: a", "hyperparameters: {rope: {theta: 500000.0}}", tmp_path)
    api.random_checkpoint(a, tmp_path / "a")
    done = api.convert(tmp_path / "a", a, b, tmp_path / "b", other_logits=True)
    assert done.transforms == ()
    assert np.abs(logits(a, tmp_path / "a") - logits(b, tmp_path / "b")).max() > 0.01


def test_a_folder_that_is_not_ours_stays(tmp_path: Path) -> None:
    a, b = specs("title: a", "hyperparameters: {num_kv_heads: 4}", tmp_path)
    api.random_checkpoint(a, tmp_path / "a")
    before = (tmp_path / "a" / "model.safetensors").read_bytes()
    with pytest.raises(LlamagenError) as caught:
        api.convert(tmp_path / "a", a, b, tmp_path / "a", overwrite=True)
    assert caught.value.diagnostics[0].code == "LG634"
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == before
    api.convert(tmp_path / "a", a, b, tmp_path / "b")
    api.convert(tmp_path / "a", a, b, tmp_path / "b", overwrite=True)
