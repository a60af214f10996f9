"""The classes of input: a function each, and a row of ``CLASSES``."""

# ruff: noqa: E501  one case a line

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np

from llamagen import api
from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.foreign import foreign_of
from llamagen.emit.config.importing import import_foreign
from llamagen.emit.config.json_source import parse_json
from llamagen.emit.manifest import MANIFEST, read_manifest
from llamagen.ir.elaborate import build
from llamagen.spec.registry import Registry
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.safetensors import ITEM_SIZES, read_header
from tests.fuzz import hostile, targets_files
from tests.fuzz.scratch import ROOT, scratch
from tests.hardness.inputs_engines import ENGINES, Engine
from tests.hardness.jobs import TINY
from tests.hardness.oracles import Case, Cases
from tests.unit.weights.files import raw, save

Table = dict[str, Any]


def changed(table: Table, *path: str, to: object) -> Table:
    """A copy with one value replaced, or a key added."""
    copy = deepcopy(table)
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return copy


def without(table: Table, *path: str) -> Table:
    copy = deepcopy(table)
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return copy


def as_bytes(value: Table | str | bytes) -> bytes:
    text = json.dumps(value) if isinstance(value, dict) else value
    return text.encode() if isinstance(text, str) else text


def twice(table: Table, key: str) -> str:
    """JSON that says ``key``, which holds no object, a second time: the same again."""
    text = json.dumps(table)
    pair = f"{json.dumps(key)}: {json.dumps(table[key])}"
    assert pair in text
    return text.replace(pair, f"{pair}, {pair}", 1)


def name(generator: random.Random) -> str:
    return "n" + "".join(generator.choices("abcdefgh._0123", k=9)) + "x"


# Weights


def safetensors(generator: random.Random, folder: Path) -> Iterator[Case]:
    """Two tensors of one dtype and shape, and more."""
    path = folder / "m.safetensors"
    shape = [generator.randint(1, 4) for _ in range(generator.randint(0, 3))]
    kind = generator.choice(sorted(ITEM_SIZES))
    kinds = [(kind, shape), (kind, shape)]
    for _ in range(generator.randint(0, 3)):
        kinds.append((generator.choice(sorted(ITEM_SIZES)), [generator.randint(0, 4), 2]))
    table: Table = {}
    end = 0
    for i, (dtype, dims) in enumerate(kinds):
        size = ITEM_SIZES[dtype]
        for one in dims:
            size *= one
        table[f"{name(generator)}{i}"] = {
            "dtype": dtype,
            "shape": dims,
            "data_offsets": [end, end + size],
        }
        end += size
    first, second, *_ = table
    last = list(table)[-1]
    step = table[first]["data_offsets"][1]

    def file(what: str, code: str | None, header: Table | str | bytes, data: int = end) -> Case:
        return whole(what, code, raw(as_bytes(header), bytes(data)))

    def whole(what: str, code: str | None, content: bytes) -> Case:
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        return Case(what, code, lambda: read_header(path))

    def shifted(by: int, *, span: int = 0) -> Table:
        """Everything from the second tensor on ``by`` bytes later, the second ``span`` bytes longer."""
        copy = deepcopy(table)
        for one in list(copy)[1:]:
            begin, stop = copy[one]["data_offsets"]
            late = by if one == second else by + span
            copy[one]["data_offsets"] = [begin + late, stop + by + span]
        return copy

    yield file("as it is", None, table)
    yield file("with metadata", None, {"__metadata__": {"format": "pt"}, **table})
    yield file("with spaces after the header", None, json.dumps(table) + "   ")
    yield file("in another order of names", None, dict(reversed(table.items())))
    overlap = changed(shifted(-step), second, "data_offsets", to=[0, step])
    yield file("tensors that share bytes", "LG603", overlap, end - step)
    yield file("tensors that share a part", "LG603", shifted(-1), end - 1)
    yield file("bytes between tensors", "LG603", shifted(3), end + 3)
    yield file("bytes after the last tensor", "LG603", table, end + 1)
    yield file("bytes that are not there", "LG603", table, step)
    yield file("more bytes than the shape", "LG603", shifted(0, span=2), end + 2)
    reverse = changed(table, first, "data_offsets", to=[step, 0])
    yield file("offsets in reverse", "LG603", reverse)
    pair = json.dumps(table)[1:-1]
    yield file("every tensor twice", "LG602", f"{{{pair}, {pair}}}")
    dtype = f'"dtype": "{kind}"'
    yield file("a dtype twice", "LG602", json.dumps(table).replace(dtype, f"{dtype}, {dtype}", 1))
    yield file("a further key", "LG602", changed(table, first, "device", to="cpu"))
    yield file("no shape", "LG602", without(table, first, "shape"))
    yield file("an unknown dtype", "LG602", changed(table, first, "dtype", to="F4"))
    yield file("a dtype that is a number", "LG602", changed(table, first, "dtype", to=4))
    yield file("a size that is true", "LG602", changed(table, first, "shape", to=[*shape, True]))
    yield file("a size of 1.0", "LG602", changed(table, first, "shape", to=[*shape, 1.0]))
    yield file("a shape that is a text", "LG602", changed(table, first, "shape", to="1"))
    minus = changed(table, first, "shape", to=[*(-1 for _ in shape), -1, -1])
    yield file("negative sizes", "LG602", minus)
    yield file("17 dimensions", "LG602", changed(table, first, "shape", to=[*shape, *[1] * 17]))
    huge = changed(
        table, last + "e", to={"dtype": "U8", "shape": [0, 1 << 48], "data_offsets": [end, end]}
    )
    yield file("a size of 2^48", "LG602", huge)
    yield file("an offset that is text", "LG603", changed(table, first, "data_offsets", to=["0", step]))  # fmt: skip
    yield file("three offsets", "LG603", changed(table, first, "data_offsets", to=[0, step, step]))
    yield file("metadata that is a number", "LG602", {"__metadata__": {"n": 1}, **table})
    yield file("metadata that is a list", "LG602", {"__metadata__": [], **table})
    yield file("a space before the header", "LG602", " " + json.dumps(table))
    yield file("a list", "LG602", json.dumps([table]))
    yield file("text after the header", "LG602", json.dumps(table) + "{}")
    yield file("a name that is not UTF-8", "LG602", json.dumps(table).encode().replace(b"x", b"\xff", 1))  # fmt: skip
    deep = json.dumps(table)[:-1] + ', "d": ' + "[" * 100_000 + "]" * 100_000 + "}"
    yield file("100,000 lists in each other", "LG602", deep)
    header = json.dumps(table).encode()
    yield whole("a header beyond the file", "LG602", (len(header) + end + 1).to_bytes(8, "little") + header + bytes(end))  # fmt: skip
    yield whole("a header of 2^60 bytes", "LG602", (1 << 60).to_bytes(8, "little") + header)
    yield whole("a Git LFS pointer", "LG602", b"version https://git-lfs.github.com/spec/v1\n")
    yield whole("five bytes", "LG602", b"12345")
    for what in _no_file(path):
        yield Case(what, "LG601", lambda: read_header(path))


def _no_file(path: Path) -> Iterator[str]:
    """``path`` as everything that is no regular file."""
    path.unlink(missing_ok=True)
    yield "nothing"
    path.symlink_to(path.with_name("nowhere"))
    yield "a link to nothing"
    path.unlink()
    path.symlink_to("/dev/zero")
    yield "a link to a device"
    path.unlink()
    os.mkfifo(path)
    yield "a pipe"
    path.unlink()
    path.mkdir()
    yield "a folder"
    path.rmdir()


def index(generator: random.Random, folder: Path) -> Iterator[Case]:
    """Shards of some tensors each. A shard that must not be read lies where the index says, and is sound."""
    inside = folder / "checkpoint"
    (inside / "deep").mkdir(parents=True)
    path = inside / "model.safetensors.index.json"
    shards = [f"{name(generator)}.safetensors" for _ in range(generator.randint(2, 4))]
    table: Table = {"metadata": {"total_size": generator.randint(1, 99)}, "weight_map": {}}
    for i, shard in enumerate(shards):
        names = [f"{name(generator)}{i}{j}" for j in range(generator.randint(1, 3))]
        save(inside / shard, {one: np.zeros(2, np.float32) for one in names})
        table["weight_map"] |= dict.fromkeys(names, shard)
    content = (inside / shards[0]).read_bytes()
    strange = ["../x.safetensors", str(folder / "x.safetensors"), "deep/x.safetensors"]
    strange += ["./x.safetensors", ".x.safetensors", "x.bin", "deep/../x.safetensors"]
    for one in strange:
        (inside / one).write_bytes(content)
    first = next(iter(table["weight_map"]))
    moved = [one for one in table["weight_map"] if table["weight_map"][one] == shards[0]]

    def file(what: str, code: str | None, text: Table | str, place: Path = path) -> Case:
        path.write_bytes(as_bytes(text))
        return Case(what, code, lambda: Checkpoint.open(place))

    def elsewhere(shard: object) -> Table:
        return {"weight_map": {**table["weight_map"], **dict.fromkeys(moved, shard)}}

    yield file("as it is", None, table)
    yield file("found in its folder", None, table, inside)
    yield file("without metadata", None, without(table, "metadata"))
    for shard in strange:
        yield file(f"a shard named {shard.replace(str(folder), '')}", "LG604", elsewhere(shard))
    yield file("a shard named by a number", "LG604", elsewhere(1))
    yield file("a shard that is not there", "LG601", elsewhere("y.safetensors"))
    yield file("a tensor in another shard", "LG604", changed(table, "weight_map", first, to=shards[1]))  # fmt: skip
    yield file("a tensor that is not there", "LG604", changed(table, "weight_map", "more", to=shards[0]))  # fmt: skip
    fewer = {one: shard for one, shard in table["weight_map"].items() if one != first}
    yield file("a tensor that is not named", "LG604" if len(moved) > 1 else None, {"weight_map": fewer})  # fmt: skip
    yield file("no tensors", "LG604", {"weight_map": {}})
    yield file("a list of tensors", "LG604", {"weight_map": list(table["weight_map"])})
    yield file("no map", "LG604", without(table, "weight_map"))
    pair = f"{json.dumps(first)}: {json.dumps(shards[0])}"
    yield file("a tensor twice", "LG604", json.dumps(table).replace(pair, f"{pair}, {pair}"))
    yield file("NaN", "LG604", changed(table, "metadata", "total_size", to=float("nan")))
    yield file("no JSON", "LG604", json.dumps(table) + "}")
    save(inside / "model.safetensors", {"a": np.zeros(2, np.float32)})
    yield file("another model beside it", "LG604", table, inside)
    for what in _no_file(path):
        yield Case(what, "LG601", lambda: Checkpoint.open(path))


def pth(generator: random.Random, folder: Path) -> Iterator[Case]:
    """A state dict of one storage, with a tensor that has two rows at least."""
    path = folder / "consolidated.00.pth"
    rows, columns = generator.randint(2, 3), generator.randint(2, 4)
    size = rows * columns
    storage = targets_files._Storage("0", "FloatStorage", size)
    key = name(generator)
    tensor = targets_files._Tensor(storage, (rows, columns), (columns, 1))
    kind = generator.choice((dict, OrderedDict))
    plain = targets_files._pickled(
        kind({key: tensor, "b": targets_files._Tensor(storage, (2,), (1,))})
    )

    def zipped(
        what: str, code: str | None, records: Mapping[str, bytes], how: int = ZIP_STORED
    ) -> Case:
        with ZipFile(path, "w") as archive:
            for record, data in records.items():
                archive.writestr(f"a/{record}", data, how if record == "data/0" else ZIP_STORED)
        return Case(what, code, lambda: Checkpoint.open(path))

    sound = {"data.pkl": plain, "byteorder": b"little", "data/0": bytes(4 * size), "version": b"3"}

    def state(what: str, code: str | None, text: bytes) -> Case:
        return zipped(what, code, {**sound, "data.pkl": text})

    def other(what: str, value: object, beside: object = key) -> Case:
        return state(what, "LG605", targets_files._pickled(kind({beside: value})))

    yield zipped("as it is", None, sound)
    yield zipped("without the order of bytes", None, {k: sound[k] for k in sound if k != "byteorder"})  # fmt: skip
    yield state("no tensors", None, targets_files._pickled(kind()))
    body = plain[:-1]
    yield state("an operation that no state dict needs", "LG605", body + b"N0.")  # NONE, POP
    yield state("an operation that copies", "LG605", body[:2] + b"N20" + body[2:] + b"0.")
    yield state("bytes after the pickle", "LG605", plain + b"N.")
    yield state("an end within the pickle", "LG605", body)
    yield state("a far entry of the memo", "LG605", body + b"r\xff\xff\xff\x00.")
    yield other("a number as a name", tensor, 7)
    yield other("a text as a tensor", "x")
    yield other("a dict as a tensor", {"a": tensor})
    yield state("a list of tensors", "LG605", targets_files._pickled([tensor]))
    yield state("a call of another function", "LG605", pickle.dumps({key: targets_files._Bomb()}, 2))  # fmt: skip
    for shape, strides in (
        ((columns, rows), (1, columns)),
        ((rows, columns), (columns,)),
        ((rows, columns + 1), (columns + 1, 1)),
        ((-rows, -columns), (-columns, 1)),
        ((float(rows), columns), (columns, 1)),
    ):
        broken = targets_files._Tensor(storage, shape, strides)  # type: ignore[arg-type]
        yield other(f"shape {shape} of {rows} x {columns}, strides {strides}", broken)
    yield zipped("no bytes", "LG605", {k: sound[k] for k in sound if k != "data/0"})
    yield zipped("too few bytes", "LG605", {**sound, "data/0": bytes(4 * size - 4)})
    yield zipped("two pickles", "LG605", {**sound, "b/data.pkl": plain})
    yield zipped("no pickle", "LG605", {k: sound[k] for k in sound if k != "data.pkl"})
    yield zipped("the other order of bytes", "LG605", {**sound, "byteorder": b"big"})
    yield zipped("compressed bytes", "LG605", sound, ZIP_DEFLATED)
    path.write_bytes(plain)
    yield Case("a pickle alone", "LG605", lambda: Checkpoint.open(path))
    for what in _no_file(path):
        yield Case(what, "LG601", lambda: Checkpoint.open(path))


# What llamagen wrote, and others may have changed


@cache
def _exported() -> Path:
    """A folder of the tiny model."""
    folder = scratch() / "hardness-exported"
    api.load(TINY).export(folder, random_weights=1)
    return folder


def manifest(generator: random.Random, folder: Path) -> Iterator[Case]:
    path = folder / MANIFEST
    table: Table = json.loads((_exported() / MANIFEST).read_text())
    table["files"][f"{name(generator)}/{name(generator)}"] = {
        "size": generator.randint(0, 1 << 40),
        "sha256": f"{generator.getrandbits(256):064x}",
    }
    table["quality"] = generator.choice(
        [
            None,
            {"inputs": "x", "positions": 3, "kl_mean": 0.1, "kl_max": 1.5, "top1_agreement": 1.0},
        ]
    )
    one = generator.choice(sorted(table["files"]))

    def file(what: str, code: str | None, text: Table | str | bytes) -> Case:
        path.write_bytes(as_bytes(text))
        return Case(what, code, lambda: read_manifest(folder))

    def named(what: str) -> Table:
        return changed(table, "files", what, to={"size": 1, "sha256": "0" * 64})

    yield file("as it is", None, table)
    yield file("a session without prepacking", None, changed(table, "session", to={"session.disable_prepacking": "1"}))  # fmt: skip
    yield file("a file with dots in its name", None, named("a..b/..c"))
    for what in ("../x", "a/../../x", "/etc/passwd", "..", "a/.."):
        yield file(f"a file {what}", "LG775", named(what))
    for key in (
        "session.model_external_initializers_file_folder_path",
        "session.load_model_format",
        "ep.context_file_path",
        "session.disable_prepacking2",
        "session_disable_prepacking",
        name(generator),
    ):
        yield file("a session key of " + key[:20], "LG775", changed(table, "session", to={key: "1"}))  # fmt: skip
    two = changed(table, "session", to={"session.disable_prepacking": "2"})
    yield file("a session value of 2", "LG775", two)
    for graph in (
        "../model.onnx",
        "/model.onnx",
        "other.onnx",
        "onnx/other.onnx",
        "web/model.onnx",
        "model.bin",
    ):
        yield file(f"a graph in {graph}", "LG775", changed(table, "graphs", "model", "file", to=graph))  # fmt: skip
    strange = {**table["graphs"]["model"], "file": "../x.onnx"}
    yield file("a graph named ../x", "LG775", changed(table, "graphs", "../x", to=strange))
    yield file("format 2", "LG775", changed(table, "format", to=2))
    yield file("a further key", "LG775", changed(table, "more", to=1))
    for key in ("spec", "files", "graphs", "weights", "dtype"):
        yield file(f"no {key}", "LG775", without(table, key))
    yield file("a negative size", "LG775", changed(table, "files", one, "size", to=-1))
    yield file("a size of 1.5", "LG775", changed(table, "files", one, "size", to=1.5))
    yield file("a size as text", "LG775", changed(table, "files", one, "size", to="1"))
    for digest in ("0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n", 0):
        yield file(f"a hash {str(digest)[-3:]!r}", "LG775", changed(table, "files", one, "sha256", to=digest))  # fmt: skip
    yield file("no hash at all", "LG775", changed(table, "files", one, to={"size": 1, "sha256": None}))  # fmt: skip
    yield file("a dtype that is none", "LG775", changed(table, "dtype", to="float64"))
    quality = {
        "inputs": "x",
        "positions": 3,
        "kl_mean": 0.1,
        "kl_max": float("inf"),
        "top1_agreement": 1.0,
    }
    yield file("infinity", "LG775", changed(table, "quality", to=quality))
    yield file("no JSON", "LG775", json.dumps(table)[:-1])
    yield file("a list", "LG775", json.dumps([table]))
    yield file("not UTF-8", "LG775", json.dumps(table).encode().replace(b"spec", b"\xffpec", 1))
    yield file("100,000 lists in each other", "LG775", "[" * 100_000)
    path.unlink()
    yield Case("nothing", "LG775", lambda: read_manifest(folder))


def damage(generator: random.Random, folder: Path) -> Iterator[Case]:
    """An exported folder against its manifest; the code stands for any finding."""
    copy = folder / "copy"

    def read() -> None:
        if not api.check_integrity(copy).whole:
            raise LlamagenError.of("LG775", "damaged")

    def again(what: str, code: str | None) -> tuple[Case, Path]:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(_exported(), copy)
        files = sorted(p for p in copy.rglob("*") if p.is_file() and p.name != MANIFEST)
        return Case(what, code, read), generator.choice([p for p in files if p.stat().st_size])

    case, _ = again("as it is", None)
    yield case
    case, one = again("one bit", "LG775")
    content = bytearray(one.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    one.write_bytes(content)
    yield case
    case, one = again("a byte less", "LG775")
    os.truncate(one, one.stat().st_size - 1)
    yield case
    case, one = again("a byte more", "LG775")
    one.write_bytes(one.read_bytes() + b"\0")
    yield case
    case, one = again("a file less", "LG775")
    one.unlink()
    yield case
    case, one = again("a file more", "LG775")
    one.with_name(name(generator)).touch()
    yield case
    case, one = again("a link to the same bytes", "LG775")
    one.rename(folder / "moved")
    one.symlink_to(folder / "moved")
    yield case
    case, one = again("no manifest", "LG775")
    (copy / MANIFEST).unlink()
    yield case


def running(generator: random.Random, folder: Path) -> Iterator[Case]:
    copy = shutil.copytree(_exported(), folder / "copy")
    ids = [generator.randrange(96) for _ in range(generator.randint(1, 5))]

    def run(what: str, code: str | None, ids: list[int] = ids, **options: Any) -> Case:
        return Case(what, code, lambda: list(api.run(copy, ids, max_new_tokens=2, **options)))

    yield run("as it is", None)
    yield run("to the end of the context", None, [1] * 126)
    yield run("a token beyond the vocabulary", "LG763", [*ids, 96])
    yield run("a negative token", "LG763", [*ids, -1])
    yield run("no token", "LG763", [])
    yield run("more than the context", "LG764", [1] * 129)
    yield run("a negative temperature", "LG901", temperature=-1.0)
    yield run("an image for a model of text", "LG783", images=[copy / "model.onnx"])
    yield run("an unknown provider", "LG711", provider=name(generator))
    table = json.loads((copy / MANIFEST).read_text())
    outside = {"session.model_external_initializers_file_folder_path": "/etc"}
    (copy / MANIFEST).write_text(json.dumps(changed(table, "session", to=outside)))
    yield run("weights from elsewhere", "LG775")
    (copy / MANIFEST).write_text(json.dumps(table))
    data = max(copy.iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(data, data.stat().st_size // 2)
    yield run("half of the weights", "LG713")
    data.unlink()
    yield run("no weights", "LG713")
    model = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(model[: generator.randrange(1, len(model) // 2)])
    yield run("a part of the graph", "LG713")
    (copy / "model.onnx").unlink()
    yield run("no graph", "LG760")


def targets(generator: random.Random, folder: Path) -> Iterator[Case]:
    """Where a folder is written."""
    there, words = folder / "there", b"of somebody"

    def write(what: str, code: str | None, place: Path = there, overwrite: bool = False) -> Case:
        return Case(what, code, lambda: api.random_checkpoint(TINY, place, overwrite=overwrite))

    def export() -> None:
        try:
            api.load(TINY).export(there, random_weights=1, overwrite=True)
        finally:
            assert [p.read_bytes() for p in there.iterdir()] == [words], "it is gone"

    yield write("where nothing is", None)
    yield write("where something is", "LG630")
    yield write("where its own is, to be replaced", None, overwrite=True)
    yield write("a part of the name is a file", "LG634", there / "config.json" / "x")
    yield write("the root", "LG634", Path("/"), overwrite=True)
    shutil.rmtree(there)
    there.write_bytes(words)
    yield write("a file", "LG634", overwrite=True)
    there.unlink()
    other = folder / name(generator)
    other.mkdir()
    (other / name(generator)).write_bytes(words)
    there.symlink_to(other)
    yield write("a link to a folder", "LG634", overwrite=True)
    there.unlink()
    other.rename(there)
    yield Case("a folder of somebody", "LG634", export)


# Texts


def spec(generator: random.Random, folder: Path) -> Iterator[Case]:
    """The hostile changes of one small model, whose other sizes are random."""

    def sizes(text: str) -> str:
        text = text.replace(
            "intermediate_size: 6", f"intermediate_size: {generator.randint(1, 99)}"
        )
        return text.replace("max_positions: 64", f"max_positions: {generator.randint(1, 9999)}")

    def read(text: str) -> Callable[[], object]:
        return lambda: build(Registry().load_text(text))

    yield Case("as it is", None, read(sizes(hostile.TINY)))
    for what, (before, after, code) in hostile.REFUSED.items():
        assert hostile.TINY.count(before) == 1, before
        yield Case(what, code, read(sizes(hostile.TINY.replace(before, after))))


def expression(generator: random.Random, folder: Path) -> Iterator[Case]:
    """The size of a part, as an expression over the hyperparameters."""

    def term(depth: int) -> str:
        if depth == 0:
            return generator.choice(["hidden_size", "vocab_size", "num_heads", "3", "7"])
        a, b = term(depth - 1), term(depth - 1)
        forms = [
            f"({a} + {b})",
            f"max({a}, {b})",
            f"({a} if {b} > 2 else {b})",
            f"{a} * 2",
            f"ceil_to({a}, 4)",
        ]
        return generator.choice(forms)

    def size(what: str, code: str | None, text: str) -> Case:
        where = "linear(hidden_size, vocab_size)"
        whole = hostile.TINY.replace(where, json.dumps(f"linear(hidden_size, {text})"))
        return Case(what, code, lambda: build(Registry().load_text(whole)))

    one = term(generator.randint(1, 3))
    yield size("as it is", None, one)
    for what, broken in {
        "an unknown name": f"{one} + {name(generator).replace('.', '_')}",
        "an unknown function": f"{one} + eval('1')",
        "a call of a number": f"{one} + (1)(2)",
        "an attribute": f"({one}).real",
        "an item of a number": f"({one})[0]",
        "an open parenthesis": f"({one}",
        "an operator at the end": f"{one} +",
        "two values": f"{one} {one}",
        "an assignment": f"(a := {one})",
        "a lambda": f"(lambda: {one})()",
        "a star": f"*[{one}]",
        "a comprehension": f"[{one} for i in [1]][0]",
        "an operator of bits": f"{one} | 1",
        "a text": "'x'",
        "none": "none",
        "a truth": f"{one} > 0",
        "a fraction": f"{one} / 3",
        "a negative size": f"-({one})",
        "no size": f"0 * ({one})",
        "a division by nothing": f"{one} // 0",
        "a list": f"[{one}]",
        "a text and a number": f"{one} + 'x'",
        "an order of texts": f"{one} if 'a' < 1 else 2",
        "a number of 400 digits": f"{one} + {'9' * 400}",
    }.items():
        yield size(what, "LG410", broken)
    yield size("a size of 2^62", "LG420", f"{one} + 2 ** 62")


def config(generator: random.Random, folder: Path) -> Iterator[Case]:
    """A published config.json in other sizes."""
    registry, models = targets_files._known()
    kinds = tuple(sorted({one.mapping.kind for one in models}))
    published = json.loads((ROOT / "tests/data/hf_configs.json").read_text())
    table: Table = published["llama-3.2-1b"]
    heads = generator.choice([8, 16, 32])
    table["num_attention_heads"] = heads
    table["hidden_size"] = generator.randint(1, 9) * 64
    table["vocab_size"] = generator.randint(128_300, 200_000)
    table["intermediate_size"] = generator.randint(1, 9999)
    table["num_hidden_layers"] = generator.randint(1, 64)

    def file(what: str, code: str | None, text: Table | str | bytes) -> Case:
        data = as_bytes(text)

        def read() -> None:
            wanted = foreign_of(parse_json(data, "config.json"), kinds)
            import_foreign(wanted, "imported/model", models, registry)

        return Case(what, code, read)

    yield file("as it is", None, table)
    yield file("in other order", None, dict(sorted(table.items(), reverse=True)))
    wrong: tuple[tuple[str, str, list[object]], ...] = (
        ("LG103", "hidden_size", [-1, 0, True, "64", 64.5, 1 << 62, [64]]),
        ("LG103", "num_hidden_layers", [0, -1, 10**9]),
        ("LG103", "rms_norm_eps", [-1e-5, 0, "x"]),
        ("LG103", "tie_word_embeddings", ["false", 1]),
        ("LG103", "rope_theta", [0, -1.0]),
        ("LG108", "num_key_value_heads", [heads - 1, heads + 1]),
        ("LG108", "hidden_act", ["swoosh", 1]),
        ("LG108", "rope_scaling", [{"rope_type": "new", "factor": 2}, [1]]),
        ("LG103", "attention_bias", ["true", 1]),
        ("LG108", "eos_token_id", ["x"]),
        ("LG109", "model_type", ["gru", 3]),
        ("LG107", "nobody_knows", [1]),
    )
    for code, key, values in wrong:
        for value in values:
            yield file(f"`{key}` = {value}", code, changed(table, key, to=value))
    for key in ("hidden_size", "model_type", "vocab_size", "num_attention_heads"):
        yield file(f"no `{key}`", "LG102", without(table, key))
    text = json.dumps(table)
    yield file("a key twice", "LG106", twice(table, "vocab_size"))
    yield file("NaN", "LG106", changed(table, "initializer_range", to=float("nan")))
    yield file("beyond float64", "LG106", text.replace("0.02", "1e999"))
    yield file("a number of 70 digits", "LG106", text.replace("0.02", "9" * 70))
    yield file("not UTF-8", "LG106", text.encode().replace(b"silu", b"sil\xff"))
    yield file("40 lists in each other", "LG106", text[:-1] + ', "x": ' + "[" * 40 + "]" * 40 + "}")
    yield file("a list", "LG106", f"[{text}]")
    yield file("more after its end", "LG106", text + "}")
    yield file("nothing", "LG106", "")
    yield file("a mark of the order of bytes", "LG106", "\ufeff" + text)
    yield file("more than a megabyte", "LG106", text + " " * (1 << 20))


CLASSES: Mapping[str, tuple[Cases, int]] = {
    "safetensors": (safetensors, 8),
    "index": (index, 6),
    "pth": (pth, 6),
    "manifest": (manifest, 4),
    "damage": (damage, 4),
    "running": (running, 1),
    "targets": (targets, 1),
    "spec": (spec, 1),
    "expression": (expression, 2),
    "config": (config, 2),
}
"""Name -> the class, and how many rounds a test takes."""


def engine(one: Engine) -> Cases:
    """Hostile files for an engine of others; tests/unit/test_engines.py runs each of them by itself."""

    def cases(generator: random.Random, folder: Path) -> Iterator[Case]:
        for number, case in enumerate(one.cases()):
            (place := folder / str(number)).mkdir()
            yield Case(case.name, case.oracle, partial(one.run, case.data, place))

    return cases


OF_ENGINES: Mapping[str, tuple[Cases, int]] = {
    f"{name} (engine)": (engine(one), 1) for name, one in ENGINES.items()
}
