"""Hostile inputs for the engines of others that read a model's files, each with its oracle.

An oracle is the code that refuses the input, or None where it must be accepted: beside each bound stands what is just
inside of it. Plain data: the unit tests and ``python -m tests.hardness`` run them.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


class Case(NamedTuple):
    name: str
    data: bytes
    oracle: str | None


class Engine(NamedTuple):
    """``run`` gives the input to the engine, in an empty folder; it raises LlamagenError or returns."""

    cases: Callable[[], Iterator[Case]]
    run: Callable[[bytes, Path], None]


# Meta's .pth


def zipped(pickle: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A torch zip file around a pickle, with two storages of 48 bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle, compression)
        archive.writestr("archive/byteorder", b"little")
        for key in ("0", "1"):
            archive.writestr(f"archive/data/{key}", bytes(48))
    return out.getvalue()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def storage(elements: bytes = b"K\x0c") -> bytes:
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + elements + b"tQ"  # fmt: skip


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED = b"ccollections\nOrderedDict\n)R"
HOOKS = b"\x89" + ORDERED


def tensor(shape: bytes = b"K\x03K\x04\x86", strides: bytes = b"K\x04K\x01\x86") -> bytes:
    return REBUILD + b"(" + storage() + b"K\x00" + shape + strides + HOOKS + b"tR"


def state(*entries: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(entries) + b"u."


PLAIN = text("a") + tensor()


def nested(opening: bytes, closing: bytes, depth: int, inner: bytes) -> bytes:
    return opening * depth + inner + closing * depth


def pickles() -> Iterator[Case]:
    def case(name: str, pickle: bytes, oracle: str | None = "LG605") -> Case:
        return Case(name, zipped(pickle), oracle)

    yield case("a state dict", state(PLAIN), None)
    yield case("an empty state dict", state(), None)
    yield case("an OrderedDict", b"\x80\x02" + ORDERED + b"(" + PLAIN + b"u.", None)
    metadata = b"}" + text("_metadata") + ORDERED + b"sb"
    yield case("metadata", b"\x80\x02" + ORDERED + b"(" + PLAIN + b"u" + metadata + b".", None)
    for name, value in (("items", b"K\x01"), ("keys", b"N"), ("__class__", b"N"), ("update", b"}")):
        what = b"\x80\x02" + ORDERED + b"(" + PLAIN + b"u}" + text(name) + value + b"sb."
        yield case(f"an attribute `{name}`", what, None)
    yield case("attributes of a tensor", state(PLAIN[:-1] + b"R}b"))
    yield case("attributes of a function", b"\x80\x02" + REBUILD + b"}b.")
    deep = b")" + b"\x85" * 500_000
    yield case("a tuple nested 500,000 deep as a key", b"\x80\x02}" + deep + b"Ns.")
    yield case("a tuple nested 500,000 deep as a value", b"\x80\x02}" + text("a") + deep + b"s.")
    yield case("a tuple nested 500,000 deep as a pid", b"\x80\x02" + deep + b"Q.")
    yield case("a tuple as a key", b"\x80\x02}K\x01\x85Ns.")
    lists = nested(b"]", b"a", 200_000, b"K\x01")
    yield case("lists nested 200,000 deep", b"\x80\x02}" + text("a") + lists + b"s.")
    dicts = b"}" + (text("a") + b"}") * 100_000 + b"s" * 100_000
    yield case("dicts nested 100,000 deep", b"\x80\x02" + dicts + b".")
    mersenne = (1 << 61) - 1  # integers that differ by it have one hash
    numbers = (i * mersenne for i in range(1, 40_000))
    keys = b"".join(
        b"\x8a" + bytes([len(d)]) + d + b"N" for n in numbers for d in [n.to_bytes(11, "little")]
    )
    yield case("integers with one hash as keys", b"\x80\x02}(" + keys + b"u.")
    yield case("one integer as a key", b"\x80\x02}K\x01" + tensor() + b"s.")
    yield case("True as a key", b"\x80\x02}\x88" + tensor() + b"s.")
    yield case("None as a key", b"\x80\x02}N" + tensor() + b"s.")
    yield case("a float as a key", b"\x80\x02}G" + bytes(8) + tensor() + b"s.")
    yield case("a list as a key", b"\x80\x02}]" + tensor() + b"s.")
    yield case("a tensor as a key", b"\x80\x02}" + tensor() + tensor() + b"s.")
    yield case("one key twice", state(PLAIN, PLAIN))
    yield case("a key without a value", b"\x80\x02}(" + text("a") + b"u.")
    yield case("a dict in itself", b"\x80\x02}q\x00" + text("a") + b"h\x00s.")
    yield case("a list in itself", b"\x80\x02]q\x00h\x00a.")
    laughs = b"".join(b"]q%c(" % i + b"h%c" % (i - 1) * 9 + b"e" for i in range(1, 60))
    yield case("lists that double", b"\x80\x02]q\x00" + laughs + b".")
    yield case("lists that double, as a name", b"\x80\x04]q\x00" + laughs + text("x") + b"\x93.")
    yield case("1,100,000 operations", b"\x80\x02" + b"N" * 1_100_000 + b".")
    yield case("1,100,000 marks", b"\x80\x02" + b"(" * 1_100_000 + b".")
    yield case("a tuple of 65 items", b"\x80\x02(" + b"N" * 65 + b"t.")
    ones = b"(" + b"K\x01" * 64 + b"t"
    yield case("64 dimensions", state(text("a") + tensor(ones, ones)), None)
    large = b"\x8a\xff" + b"\xff" * 254 + b"\x7f"
    yield case("a size of 2,000 bits", state(text("a") + tensor(large + b"\x85", b"K\x01\x85")))
    minus = b"J\xff\xff\xff\xff"
    yield case("a negative size", state(text("a") + tensor(minus + b"\x85", b"K\x01\x85")))
    yield case(
        "sizes beyond the storage", state(text("a") + tensor(b"M\xff\xff\x85", b"K\x01\x85"))
    )
    yield case("sizes and strides", state(text("a") + tensor(b"K\x01\x85", b"K\x01K\x01\x86")))
    yield case("a size that is True", state(text("a") + tensor(b"\x88\x85", b"K\x01\x85")))
    yield case("a tensor of no storage", state(text("a") + REBUILD + b"(K\x00K\x00))tR"))
    yield case("a call of a text", b"\x80\x02" + text("x") + b")R.")
    yield case("a call without a tuple", b"\x80\x02" + REBUILD + b"]R.")
    yield case("an OrderedDict of items", b"\x80\x02ccollections\nOrderedDict\n]\x85R.")
    yield case("a name that is a number", b"\x80\x04K\x01K\x01\x93.")
    yield case("an empty stack", b"\x80\x02s.")
    yield case("no mark", b"\x80\x02}u.")
    yield case("a mark as a key", b"\x80\x02}(Ns.")
    yield case("no memo", b"\x80\x02h\x07.")
    yield case("memo of nothing", b"\x80\x02q\x00.")
    yield case("a number of 10,000 digits", b"I" + b"9" * 10_000 + b"\n.")
    yield case("a text that is not UTF-8", b"\x80\x02X\x01\x00\x00\x00\xff.")
    yield case("a surrogate as a key", b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80Ns.")
    yield case("a text longer than the file", b"\x80\x02X\xff\xff\xff\x7fa.")
    for name, kind in (("deflated", 8), ("bzip2", 12), ("LZMA", 14)):
        yield Case(f"a pickle that is {name}", zipped(state(PLAIN), kind), "LG605")


def read_pth(data: bytes, folder: Path) -> None:
    from llamagen.weights.meta_pth import read_pth

    path = folder / "consolidated.00.pth"
    path.write_bytes(data)
    read_pth(path)


ENGINES: Mapping[str, Engine] = {
    "pth": Engine(pickles, read_pth),
}
