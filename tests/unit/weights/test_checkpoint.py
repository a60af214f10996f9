"""Folders: which files make a checkpoint, and which are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.weights.checkpoint import Checkpoint
from tests.unit.weights.files import noise, save


def failure_of(path: Path) -> str:
    with pytest.raises(LlamagenError) as failure:
        Checkpoint.open(path)
    text = "\n".join(map(str, failure.value.diagnostics))
    return text.replace(str(path), "")  # the folder is named after the test


def sharded(folder: Path, weight_map: dict[str, object]) -> Path:
    save(folder / "one.safetensors", {"a": noise(1, 2)})
    save(folder / "two.safetensors", {"b": noise(2, 3), "c": noise(3, 4)})
    index = {"metadata": {"total_size": 36}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


GOOD: dict[str, object] = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}


def test_single_file_and_folder(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", {"a": noise(1, 2, dtype="BF16")})
    (tmp_path / "config.json").write_text("{}")
    for place in (path, tmp_path):
        found = Checkpoint.open(place)
        assert found.tensors["a"].dtype == "BF16" and found.tensors["a"].shape == (2,)
        assert found.config_file == tmp_path / "config.json" and list(found.stamps) == [path]


def test_shards_through_the_links_of_the_hub_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir(), snapshot.mkdir(parents=True)
    sharded(blobs, GOOD)
    for number, file in enumerate(list(blobs.iterdir())):
        file.rename(blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    found = Checkpoint.open(snapshot)
    assert sorted(found.tensors) == ["a", "b", "c"]
    assert [file.name for file in found.stamps] == ["one.safetensors", "two.safetensors"]


def test_an_index_of_any_name(tmp_path: Path) -> None:
    index = sharded(tmp_path, GOOD) / "model.safetensors.index.json"
    renamed = index.rename(tmp_path / "model.fp16.safetensors.index.json")
    assert sorted(Checkpoint.open(renamed).tensors) == ["a", "b", "c"]


def test_an_index_that_is_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").symlink_to("gone")
    assert "LG601" in failure_of(tmp_path)


@pytest.mark.parametrize(
    "shard",
    ["../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors", "..", ".one.safetensors",
     "one.bin", "one.safetensors\n", "", "..\\one.safetensors", 3, None, ["one.safetensors"]],
)  # fmt: skip
def test_only_bare_names_in_the_index(tmp_path: Path, shard: object) -> None:
    text = failure_of(sharded(tmp_path, {**GOOD, "a": shard}))
    assert "LG604" in text and "'a'" in text


@pytest.mark.parametrize(
    ("weight_map", "code", "words"),
    [
        ({**GOOD, "d": "two.safetensors"}, "LG604", "lacks 'd'"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, "LG604", "has 'c'"),
        ({**GOOD, "b": "one.safetensors"}, "LG604", "one.safetensors"),
        ({**GOOD, "d": "three.safetensors"}, "LG601", "three.safetensors"),
        ({}, "LG604", "weight_map"),
    ],
)
def test_index_and_shards_disagree(
    tmp_path: Path, weight_map: dict[str, object], code: str, words: str
) -> None:
    text = failure_of(sharded(tmp_path, weight_map))
    assert code in text and words in text


def test_all_bad_shards_are_named_at_once(tmp_path: Path) -> None:
    sharded(tmp_path, GOOD)
    for name in ("one", "two"):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    text = failure_of(tmp_path)
    assert "one.safetensors" in text and "two.safetensors" in text and text.count("LG603") == 2


def test_index_with_duplicate_keys(tmp_path: Path) -> None:
    sharded(tmp_path, GOOD)
    text = '{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "'a' twice" in failure_of(tmp_path)


def test_single_and_index_are_ambiguous(tmp_path: Path) -> None:
    save(sharded(tmp_path, GOOD) / "model.safetensors", {"a": noise(1, 2)})
    assert "both" in failure_of(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    assert "does not exist" in failure_of(tmp_path / "no")
    save(tmp_path / "other.safetensors", {"a": noise(1, 2)})
    with pytest.raises(LlamagenError) as failure:
        Checkpoint.open(tmp_path)
    (found,) = failure.value.diagnostics
    assert found.code == "LG601" and found.help is not None and "other.safetensors" in found.help


def test_headers_and_names_need_neither_torch_nor_numpy(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"a": noise(1, 2)})
    program = (
        "import sys; from llamagen.weights.checkpoint import Checkpoint\n"
        "from llamagen.weights.names import dialects_for, resolve_names\n"
        f"c = Checkpoint.open({str(tmp_path)!r})\n"
        "r = resolve_names({'a': (2,)}, c, dialects_for({'num_heads': 2, 'num_kv_heads': 1}))\n"
        "assert len(r.require()) == 1\n"
        "bad = {'torch', 'numpy', 'onnx', 'safetensors'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
