"""Reader of `torch.save` files without torch: names, shapes and the place of every tensor's bytes.

A `.pth` file of torch >= 1.6 is a zip whose records are stored uncompressed, with one pickle
(`data.pkl`) that describes the tensors. The unpickler below knows five names and builds inert
records only, as `torch.load(weights_only=True)` does; nothing of the file is ever executed. The
result has the same form as a safetensors header, so both are streamed by the same code.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from llamagen.files import WEIGHTS, open_file
from llamagen.weights.dtypes import ITEM_SIZES, element_count
from llamagen.weights.problems import problem, quoted, shape_text
from llamagen.weights.safetensors_file import TensorEntry

_PICKLE_LIMIT = 8 << 20
"""Bytes; 1,200 tensors take 0.3 MB."""
_LOCAL_HEADER = 30
"""Bytes of a zip local file header before its name (PKWARE APPNOTE 4.3.7)."""

_STORAGES: Mapping[str, str] = MappingProxyType(
    {
        "FloatStorage": "F32",
        "HalfStorage": "F16",
        "BFloat16Storage": "BF16",
        "DoubleStorage": "F64",
        "LongStorage": "I64",
        "IntStorage": "I32",
        "ShortStorage": "I16",
        "CharStorage": "I8",
        "ByteStorage": "U8",
        "BoolStorage": "BOOL",
        "ComplexFloatStorage": "C64",
    }
)


_OPCODES = frozenset(
    {
        *(
            "PROTO",
            "FRAME",
            "STOP",
            "MARK",
            "MEMOIZE",
            "BINPUT",
            "LONG_BINPUT",
            "BINGET",
            "LONG_BINGET",
        ),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID", "NONE", "NEWTRUE", "NEWFALSE"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS"),
        "NEWOBJ",  # what it would make is refused by name
    }
)
"""What `torch.save` writes, in any protocol."""


class _StorageType(NamedTuple):
    dtype: str


class _Storage(NamedTuple):
    dtype: str
    key: str
    elements: int


class _Tensor(NamedTuple):
    storage: _Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(Exception):
    """The text says what the pickle asked for."""


def _integers(value: object, what: str) -> tuple[int, ...]:
    if isinstance(value, tuple) and all(type(item) is int and item >= 0 for item in value):
        return value
    raise _Refused(f"a tensor with an impossible {what}")


def _rebuild_tensor(*arguments: object) -> _Tensor:
    # torch/_utils.py: _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, ...)
    if len(arguments) < 4 or not isinstance(arguments[0], _Storage):
        raise _Refused("a tensor without a storage")
    (first,) = _integers((arguments[1],), "offset")
    shape, strides = _integers(arguments[2], "shape"), _integers(arguments[3], "stride")
    if len(shape) != len(strides):
        raise _Refused("a tensor whose shape and stride have different lengths")
    return _Tensor(arguments[0], first, shape, strides)


def _rebuild_parameter(*arguments: object) -> _Tensor:
    if arguments and isinstance(arguments[0], _Tensor):
        return arguments[0]
    raise _Refused("a parameter that is not a tensor")


class _Unpickler(pickle.Unpickler):
    """Builds the closed set of records above; everything else is refused by name."""

    def find_class(self, module: str, name: str) -> object:
        match module, name:
            case "torch._utils", "_rebuild_tensor_v2":
                return _rebuild_tensor
            case "torch._utils", "_rebuild_parameter":
                return _rebuild_parameter
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch", storage if storage in _STORAGES:
                return _StorageType(_STORAGES[storage])
            case _:
                raise _Refused(f"{module}.{name}, which is not a plain tensor")

    def persistent_load(self, pid: object) -> _Storage:
        match pid:
            case ("storage", _StorageType(dtype), str(key), str(), int(elements)):
                return _Storage(dtype, key, elements)
            case _:
                raise _Refused("an object outside the file")


def read_pth(path: Path, within: Path | None = None) -> tuple[TensorEntry, ...]:
    """The tensors of a torch zip file, found `within` a folder, in the order of its state dict; no weights are read.

    Raises LG601 (cannot open) or LG605 (not such a file, or more than plain tensors in it).
    """
    with open_file(path, WEIGHTS, within=within) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                return _entries(path, stream, archive)
        # zipfile lets these through for records that are damaged, encrypted or compressed in other ways
        except (
            zipfile.BadZipFile,
            OSError,
            EOFError,
            RuntimeError,
            ValueError,
            zlib.error,
        ) as error:
            raise problem(
                "LG605",
                f"{quoted(str(path))} is not a torch zip file: {error}",
                help="the download may be incomplete; files older than torch 1.6 must be saved "
                "again with a current torch.save",
            ) from error


def _entries(path: Path, stream: BinaryIO, archive: zipfile.ZipFile) -> tuple[TensorEntry, ...]:
    records = {info.filename: info for info in archive.infolist()}
    if len(records) != len(archive.infolist()):
        raise problem("LG605", f"{quoted(str(path))} has two records of one name")
    pickles = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1 or records[pickles[0]].file_size > _PICKLE_LIMIT:
        raise problem("LG605", f"{quoted(str(path))} has no usable data.pkl inside")
    prefix = pickles[0].removesuffix("data.pkl")
    order = records.get(prefix + "byteorder")
    if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
        raise problem("LG605", f"{quoted(str(path))} was written on a big-endian machine")
    state = _state_dict(path, archive.read(pickles[0]))
    size = os.fstat(stream.fileno()).st_size
    entries: list[TensorEntry] = []
    for name, tensor in state.items():
        info = records.get(f"{prefix}data/{tensor.storage.key}")
        if info is None:
            raise problem("LG605", f"{quoted(str(path))} lacks the bytes of tensor {quoted(name)}")
        entries.append(_entry(path, stream, name, tensor, info, size))
    return tuple(entries)


def _check_opcodes(text: bytes) -> None:
    """Only what a state dict needs, nothing after it, the memo in order: a far index takes memory for all before."""
    stored, end = 0, 0
    for opcode, argument, place in pickletools.genops(text):
        if opcode.name not in _OPCODES:
            raise _Refused(f"the pickle operation {opcode.name}, which no state dict needs")
        if opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            if opcode.name != "MEMOIZE" and argument != stored:
                raise _Refused(f"a memo entry {argument} where {stored} is next")
            stored += 1
        end = (place or 0) + 1
    if end != len(text):
        raise _Refused(f"{len(text) - end:,} bytes after the end of its pickle")


def _state_dict(path: Path, text: bytes) -> dict[str, _Tensor]:
    try:
        _check_opcodes(text)
        state = _Unpickler(io.BytesIO(text)).load()
    except _Refused as error:
        raise problem(
            "LG605",
            f"{quoted(str(path))} contains {error}",
            help="save the bare state dict: torch.save(model.state_dict(), path)",
        ) from error
    except Exception as error:  # a damaged pickle may raise almost anything
        raise problem(
            "LG605", f"the pickle in {quoted(str(path))} is damaged: {str(error)!a}"
        ) from error
    if not isinstance(state, dict):
        raise problem("LG605", f"{quoted(str(path))} holds no state dict")
    tensors: dict[str, _Tensor] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise problem(
                "LG605",
                f"{quoted(str(path))} is not a flat state dict: {name!a} is no tensor",
                help="save the bare state dict: torch.save(model.state_dict(), path)",
            )
        tensors[name] = value
    return tensors


def _entry(
    path: Path,
    stream: BinaryIO,
    name: str,
    tensor: _Tensor,
    info: zipfile.ZipInfo,
    size: int,
) -> TensorEntry:
    where = f"tensor {quoted(name)} in {quoted(str(path))}"
    item = ITEM_SIZES[tensor.storage.dtype]
    count = element_count(tensor.shape)
    if not _contiguous(tensor):
        raise problem(
            "LG605",
            f"{where} is a strided view: shape {shape_text(tensor.shape)}, stride "
            f"{shape_text(tensor.strides)}",
            help="save it again after tensor.contiguous()",
        )
    if info.compress_type != zipfile.ZIP_STORED:
        raise problem("LG605", f"{where} is compressed; torch.save stores tensors uncompressed")
    nbytes = count * item
    if tensor.first * item + nbytes > info.file_size:
        raise problem(
            "LG605", f"{where} needs {nbytes:,} bytes, its storage has {info.file_size:,}"
        )
    offset = _data_offset(stream, info) + tensor.first * item
    if offset + nbytes > size:
        raise problem(
            "LG605",
            f"{where} needs bytes up to {offset + nbytes:,}, the file has {size:,}",
            help="the download may be incomplete",
        )
    return TensorEntry(name, tensor.storage.dtype, tensor.shape, path, offset, nbytes)


def _contiguous(tensor: _Tensor) -> bool:
    expected = 1
    for length, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if length > 1 and stride != expected:
            return False
        expected *= max(length, 1)
    return True


def _data_offset(stream: BinaryIO, info: zipfile.ZipInfo) -> int:
    stream.seek(info.header_offset)
    header = stream.read(_LOCAL_HEADER)
    if len(header) != _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("a record is not where the directory says")
    # the local header has its own name and extra lengths: torch pads there for alignment
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + _LOCAL_HEADER + name + extra
