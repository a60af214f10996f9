"""Headers of GGUF files: as the package `gguf` reads what it wrote, and nothing else."""

from __future__ import annotations

import struct
from array import array
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamagen.diagnostics import LlamagenError
from llamagen.weights.gguf_file import PACKED, PACKINGS, read_gguf
from llamagen.weights.tensors import unpacked

WRITERS = {
    "uint8": st.integers(0, 255),
    "int8": st.integers(-128, 127),
    "uint32": st.integers(0, 2**32 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float32": st.floats(width=32, allow_nan=False),
    "float64": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "string": st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    "array": st.lists(st.text("abc", min_size=1), min_size=1)
    | st.lists(st.integers(-9, 9), min_size=1)
    | st.lists(st.floats(width=32, allow_nan=False), min_size=1),
}
KEYS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=8),
    st.sampled_from(sorted(WRITERS)).flatmap(lambda k: st.tuples(st.just(k), WRITERS[k])),
    max_size=6,
)
TENSORS = st.dictionaries(
    st.text("xyz.", min_size=1, max_size=8),
    st.tuples(
        st.sampled_from(sorted(p.dtype for p in PACKINGS.values())),
        st.lists(st.integers(1, 3), max_size=2),
        st.integers(1, 2),
    ),
    max_size=5,
)


def write(
    path: Path, keys: dict[str, tuple[str, object]], tensors: dict[str, tuple[str, list[int], int]]
) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for name, (kind, value) in keys.items():
        getattr(writer, f"add_{kind}")(name, value)
    for name, (dtype, outer, blocks) in tensors.items():
        packing = gguf.GGMLQuantizationType[dtype]
        size = gguf.GGML_QUANT_SIZES[packing][1] * blocks
        data = np.zeros((*outer, size), np.uint8)
        writer.add_tensor(name, data, raw_dtype=packing)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@given(KEYS, TENSORS)
def test_as_the_package_reads_what_it_wrote(
    tmp_path_factory: pytest.TempPathFactory,
    keys: dict[str, tuple[str, object]],
    tensors: dict[str, tuple[str, list[int], int]],
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write(path, keys, tensors)
    header, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert {
        t.name: (t.dtype, t.shape, t.offset, t.nbytes) for t in header.tensors
    } == {
        t.name: (t.tensor_type.name, tuple(map(int, t.shape[::-1])), t.data_offset, t.n_bytes)
        for t in theirs.tensors
    }  # fmt: skip
    found = {k: v.tolist() if isinstance(v, array) else v for k, v in header.keys.items()}
    wanted = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert found == wanted


def test_packings_are_those_of_the_package() -> None:
    theirs = {n: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for n, kind in
              ((kind.value, kind) for kind in gguf.GGMLQuantizationType)}  # fmt: skip
    assert {n: tuple(one) for n, one in PACKINGS.items()}.items() <= theirs.items()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "m.gguf"
    keys: dict[str, tuple[str, object]] = {
        "a": ("uint32", 3), "b": ("string", "text"), "c": ("array", ["x", "y"]), "d": ("array", [1, 2]),
        "e": ("bool", True),
    }  # fmt: skip
    write(path, keys, {"t": ("Q4_1", [3], 2), "u": ("F32", [2], 1)})
    return path.read_bytes()


def test_every_cut_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    last = len(whole) - 24  # what pads the last tensor belongs to none
    for length in range(last):
        path.write_bytes(whole[:length])
        with pytest.raises(LlamagenError, match=r"LG60[23]"):
            read_gguf(path)


def codes_of(path: Path) -> set[str]:
    try:
        read_gguf(path)
    except LlamagenError as error:
        return {one.code for one in error.diagnostics}
    return set()


def test_every_changed_byte_is_read_or_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    read = refused = 0
    for at in range(len(whole) - 200):
        for value in (0, 1, 0x7F, 0xFF):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            codes = codes_of(path)
            assert codes <= {"LG602", "LG603"}
            read += not codes
            refused += bool(codes)
    assert read > 50
    assert refused > 50


def header(
    *, tensors: int = 0, keys: bytes = b"", count: int = 0, infos: bytes = b"", version: int = 3
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + keys + infos


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def info(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ONE = text(b"k") + struct.pack("<II", 4, 7)
HOSTILE = {
    "another file": (b"PK\x03\x04" + bytes(40), "does not begin with `GGUF`"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version 1": (header(version=1), "version 1"),
    "a key twice": (header(keys=ONE + ONE, count=2), "twice"),
    "2^60 keys": (header(count=1 << 60), "the most"),
    "2^60 tensors": (header(tensors=1 << 60), "the most"),
    "2^60 texts": (header(keys=text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 60), count=1), "the most"),
    "2^40 numbers": (header(keys=text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 40), count=1), "the most"),
    "numbers past the end": (header(keys=text(b"k") + struct.pack("<IIQ", 9, 4, 1000), count=1), "ends in its header"),
    "a text without end": (header(keys=struct.pack("<Q", 1 << 62), count=1), "ends in its header"),
    "lists of lists": (header(keys=text(b"k") + struct.pack("<IIQ", 9, 9, 1), count=1), "unknown type 9"),
    "no type of value": (header(keys=text(b"k") + struct.pack("<I", 77), count=1), "unknown type 77"),
    "no boolean": (header(keys=text(b"k") + struct.pack("<IB", 7, 2), count=1), "boolean"),
    "no UTF-8": (header(keys=text(b"\xff") + struct.pack("<II", 4, 7), count=1), "UTF-8"),
    "no alignment": (header(keys=text(b"general.alignment") + struct.pack("<II", 4, 0), count=1), "alignment"),
    "no dimensions": (header(tensors=1, infos=info(b"t", (), 0, 0)), "dimensions"),
    "a dimension of 0": (header(tensors=1, infos=info(b"t", (0,), 0, 0)), "impossible shape"),
    "half a block": (header(tensors=1, infos=info(b"t", (33,), 2, 0) + bytes(99)), "impossible shape"),
    "NVFP4": (header(tensors=1, infos=info(b"t", (256,), 40, 0) + bytes(99)), "NVFP4"),
    "type 999": (header(tensors=1, infos=info(b"t", (256,), 999, 0) + bytes(99)), "number 999"),
    "shared bytes": (header(tensors=2, infos=info(b"t", (8,), 0, 0) + info(b"u", (8,), 0, 0) + bytes(64)), "begins"),
    "not aligned": (header(tensors=1, infos=info(b"t", (8,), 0, 8) + bytes(99)), "not aligned"),
    "a tensor twice": (header(tensors=2, infos=info(b"t", (8,), 0, 0) + info(b"t", (8,), 0, 32) + bytes(199)), "twice"),
    "past the end": (header(tensors=1, infos=info(b"t", (8,), 0, 1 << 40)), "truncated"),
    "2^62 elements": (header(tensors=1, infos=info(b"t", (1 << 47, 1 << 15), 0, 0)), "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str, tmp_path: Path) -> None:
    data, said = HOSTILE[name]
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(LlamagenError, match=f"LG60[23].*{said}"):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("dtype", sorted(PACKED))
@settings(max_examples=25)
@given(data=st.data())
def test_a_rectangle_is_that_of_the_whole(
    dtype: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Blocks of random bytes, as the package decodes them whole; scales that are no numbers included."""
    kind = gguf.GGMLQuantizationType[dtype]
    _, size = gguf.GGML_QUANT_SIZES[kind]
    rows, blocks = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    raw = np.frombuffer(data.draw(st.randoms()).randbytes(rows * blocks * size), np.uint8).reshape(
        rows, -1
    )
    path = tmp_path_factory.mktemp("packed") / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("t", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (entry,) = read_gguf(path).tensors
    tensor = unpacked(entry)
    with np.errstate(all="ignore"):
        whole = gguf.dequantize(raw, kind).astype(np.float32)
        region = [
            sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in whole.shape
        ]
        found = tensor.read(tuple((low, high) for low, high in region)).view(np.float32)
    (top, bottom), (left, right) = region
    np.testing.assert_array_equal(found, whole[top:bottom, left:right])
