"""The files on disk: places of the weights, equal bytes for equal models, the text, and what is refused."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import hashed
from llamagen.emit.onnx.data import ALIGNMENT, attach_arrays, plan, serialize, write_models
from llamagen.emit.onnx.emit import OnnxModel, emit_onnx
from llamagen.emit.onnx.initializers import Initializer, Placement
from llamagen.emit.onnx.profile import OnnxDType, dtype_named, profile_named
from llamagen.emit.onnx.session import OpenOptions, open_session
from llamagen.emit.onnx.text import render, uncollapsed
from llamagen.emit.options import ExportOptions
from llamagen.ir.elaborate import build
from llamagen.ir.flatten import flatten
from llamagen.spec.registry import Registry
from llamagen.weights.pieces import Piece

from .single import Array, feed, random_weights
from .specs import SPECS

GRAPH = build(Registry().load_text(SPECS["llama"], "llama.yaml"))
WEIGHTS = random_weights(GRAPH)


def copy(spots: Sequence[Placement]) -> Iterator[Piece]:
    """Stands for a checkpoint: the tensor in two pieces."""
    (spot,) = spots
    assert spot.initializer.dtype == "float32"
    data = WEIGHTS[spot.initializer.name].astype("<f4").reshape(-1).view(np.uint8)
    yield Piece(10, lambda: [(spot.offset, data[:10])])
    yield Piece(len(data) - 10, lambda: [(spot.offset + 10, data[10:])])


def emitted(dtype: OnnxDType = "float32") -> OnnxModel:
    return emit_onnx(GRAPH, ExportOptions(dtype=dtype))


def logits(model: Path | bytes) -> Array:
    running = open_session(model, OpenOptions(threads=1))
    ids = np.array([[1, 2, 3]])
    arrays: dict[str, Array] = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(3)[None],
    }
    for slot in flatten(GRAPH).slots:
        arrays[slot.past] = np.zeros([d.evaluate({"B": 1, "P": 0}) for d in slot.found.shape])
    found: Array = running.run(["logits"], feed(running.get_inputs(), arrays))[0]
    return found


def in_memory() -> bytes:
    model = emitted()
    attach_arrays(model, WEIGHTS.__getitem__)
    return serialize(model)


@pytest.mark.parametrize("limit", [1 << 40, 40_000])
def test_written_model_runs_and_equals_the_one_in_memory(tmp_path: Path, limit: int) -> None:
    written = write_models({"model": emitted()}, tmp_path, copy, limit)
    plain = {name: record.model_copy(update={"tensors": ()}) for name, record in written.items()}
    assert {p.name: hashed(p) for p in tmp_path.iterdir()} == plain
    assert all(record.tensors for name, record in written.items() if "_data" in name)
    data = [name for name in written if "_data" in name]
    if limit > 1 << 30:
        assert data == ["model.onnx_data"]
    else:
        assert len(data) > 2
        assert data[:2] == ["model.onnx_data", "model.onnx_data_1"]
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    assert np.array_equal(logits(tmp_path / "model.onnx"), logits(in_memory()))


def test_every_weight_lies_on_a_page_and_is_what_the_checkpoint_has(tmp_path: Path) -> None:
    write_models({"model": emitted()}, tmp_path, copy)
    data = (tmp_path / "model.onnx_data").read_bytes()
    proto = onnx.load_model(tmp_path / "model.onnx", load_external_data=False)
    external = {t.name: t for t in proto.graph.initializer if t.external_data}
    assert set(external) == set(WEIGHTS)
    for name, tensor in external.items():
        place = {e.key: e.value for e in tensor.external_data}
        assert place["location"] == "model.onnx_data"
        offset, length = int(place["offset"]), int(place["length"])
        assert offset % ALIGNMENT == 0
        stored = np.frombuffer(data[offset : offset + length], "<f4").reshape(tensor.dims)
        assert np.array_equal(stored, WEIGHTS[name])


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_models({"model": emitted()}, tmp_path / name, copy)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_hash_seed_and_folder_do_not_matter(tmp_path: Path) -> None:
    program = (
        "import hashlib, sys\n"
        "from llamagen.emit.onnx.data import attach_external, plan, serialize\n"
        "from llamagen.emit.onnx.emit import emit_onnx\n"
        "from llamagen.emit.onnx.text import render\n"
        "from llamagen.ir.elaborate import build\n"
        "from llamagen.spec.registry import Registry\n"
        "model = emit_onnx(build(Registry().load_text(sys.stdin.read(), 'x.yaml')))\n"
        "attach_external(model, plan(model.initializers))\n"
        "data = serialize(model) + render(model).encode()\n"
        "print(hashlib.sha256(data).hexdigest())\n"
    )
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    digests = set()
    for seed in ("0", "1"):
        environment = dict(os.environ, PYTHONHASHSEED=seed, PYTHONPATH=path)
        run = subprocess.run(
            [sys.executable, "-c", program],
            input=SPECS["mixtral"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(run.stdout)
    assert len(digests) == 1


def test_plan_keeps_order_and_never_overlaps() -> None:
    table = [
        Initializer.of(f"w{i}", (n,), "float16") for i, n in enumerate((3, 5000, 1, 70_000, 2))
    ]
    spots = plan(table, limit=30_000)
    assert [s.initializer.name for s in spots] == [t.name for t in table]
    files = [spot.location.removeprefix("model.onnx_data") for spot in spots]
    assert files == ["", "", "", "_1", "_2"]
    assert [s.offset for s in spots] == [0, 4096, 16384, 0, 0]
    assert spots[3].length == 140_000  # larger than the limit: a file of its own


def test_a_short_weight_is_refused(tmp_path: Path) -> None:
    def short(spots: Sequence[Placement]) -> Iterator[Piece]:
        yield Piece(4, lambda: [(spots[0].offset, np.zeros(4, np.uint8))])

    with pytest.raises(LlamagenError) as caught:
        write_models({"model": emitted()}, tmp_path, short)
    assert caught.value.diagnostics[0].code == "LG710"
    assert "came as 4 bytes" in caught.value.diagnostics[0].message


def test_a_missing_data_file_is_a_finding(tmp_path: Path) -> None:
    write_models({"model": emitted()}, tmp_path, copy)
    (tmp_path / "model.onnx_data").unlink()
    with pytest.raises(LlamagenError) as caught:
        open_session(tmp_path / "model.onnx")
    assert caught.value.diagnostics[0].code == "LG713"


def test_an_operator_that_the_provider_lacks_is_a_finding() -> None:
    helper = onnx.helper
    kind = onnx.TensorProto.BFLOAT16
    x, y = (helper.make_tensor_value_info(n, kind, [2]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    with pytest.raises(LlamagenError) as caught:
        open_session(model.SerializeToString())
    assert caught.value.diagnostics[0].code == "LG712"
    assert "Mul" in caught.value.diagnostics[0].message


@pytest.mark.parametrize("name", list(SPECS))
def test_text_written_out_has_every_line(name: str) -> None:
    """Expanding the layers of the text gives the lines of all nodes in order."""
    model = emit_onnx(build(Registry().load_text(SPECS[name], "x.yaml")))
    text = render(model)
    assert expanded(text.splitlines()) == list(uncollapsed(model))
    assert len(text.splitlines()) < 0.9 * len(list(uncollapsed(model)))


def expanded(lines: list[str]) -> list[str]:
    result: list[str] = []
    at = 0
    while at < len(lines):
        head = re.fullmatch(r"layers (\d+)\.\.(\d+)(?: by (\d+))?, i:", lines[at])
        at += 1
        if head is None:
            result.append(lines[at - 1])
            continue
        body = []
        while at < len(lines) and lines[at].startswith("  "):
            body.append(lines[at][2:])
            at += 1
        for i in range(int(head[1]), int(head[2]) + 1, int(head[3] or 1)):
            put = lambda m, i=i: str(i + int(m[1] or 0))  # noqa: E731
            result += [re.sub(r"\{i([+-]\d+)?\}", put, line) for line in body]
    return result


def test_text_names_neither_version_nor_data_file() -> None:
    model = emitted()
    before = render(model)
    attach_arrays(model, WEIGHTS.__getitem__)
    assert render(model) == before
    assert (
        hashlib.sha256(before.encode()).digest() == hashlib.sha256(render(model).encode()).digest()
    )


@pytest.mark.parametrize(
    ("ask", "code", "hint"),
    [
        (lambda: profile_named("portabel"), "LG701", "portable"),
        (lambda: dtype_named("bfloat"), "LG702", "bfloat16"),
    ],
)
def test_unknown_names_are_findings(ask: object, code: str, hint: str) -> None:
    assert callable(ask)
    with pytest.raises(LlamagenError) as caught:
        ask()
    found = caught.value.diagnostics[0]
    assert found.code == code
    assert hint in (found.help or "")
