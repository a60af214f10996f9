"""Reader of `torch.save` files without torch: names, shapes and the place of every tensor's bytes.

A `.pth` file of torch >= 1.6 is a zip whose records are stored uncompressed, with one pickle
(`data.pkl`) that describes the tensors. It is read by no unpickler: the operations that
`torch.save` writes are followed below, one by one, and make texts, numbers, tuples, dicts with
texts as keys, and three kinds of records. The result has the same form as a safetensors header,
so both are streamed by the same code.
"""

from __future__ import annotations

import pickletools
import zipfile
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from llamagen.diagnostics import LlamagenError, quoted
from llamagen.files import WEIGHTS, open_file, size_of
from llamagen.weights.safetensors import ITEM_SIZES, TensorEntry, shape_text

_PICKLE_LIMIT = 8 << 20
"""Bytes; 1,200 tensors take 0.3 MB."""
_OPERATIONS = 1 << 20
"""A tensor takes about 40."""
_TUPLE = 64
"""Items; torch has no more dimensions."""
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


class _Global(NamedTuple):
    module: str
    name: str


class _Outer(tuple[object, ...]):
    """A tuple with tuples in it, which is in no other one: arguments of a tensor."""


_MARK = object()


class _Refused(Exception):
    """The text says what the pickle asked for."""


def _integers(value: object, what: str) -> tuple[int, ...]:
    if isinstance(value, tuple) and all(
        type(item) is int and 0 <= item < 1 << 63 for item in value
    ):
        return value
    raise _Refused(f"a tensor with an impossible {what}")


def _rebuilt_tensor(arguments: tuple[object, ...]) -> _Tensor:
    # torch/_utils.py: _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, ...)
    if len(arguments) < 4 or not isinstance(arguments[0], _Storage):
        raise _Refused("a tensor without a storage")
    (first,) = _integers((arguments[1],), "offset")
    shape, strides = _integers(arguments[2], "shape"), _integers(arguments[3], "stride")
    if len(shape) != len(strides):
        raise _Refused("a tensor whose shape and stride have different lengths")
    return _Tensor(arguments[0], first, shape, strides)


def _called(function: object, arguments: object) -> object:
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise _Refused("a call of what is no name")
    match function.name:
        case "_rebuild_tensor_v2":
            return _rebuilt_tensor(arguments)
        case "_rebuild_parameter" if arguments and isinstance(arguments[0], _Tensor):
            return arguments[0]
        case "_rebuild_parameter":
            raise _Refused("a parameter that is not a tensor")
        case "OrderedDict" if not arguments:
            return {}
        case name:
            raise _Refused(f"a call of {name!a} with what no state dict gives it")


def _known(module: str, name: str) -> object:
    """What a name of Python stands for."""
    match module, name:
        case ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_parameter" as function):
            return _Global("torch._utils", function)
        case "collections", "OrderedDict":
            return _Global("collections", "OrderedDict")
        case "torch", storage if storage in _STORAGES:
            return _StorageType(_STORAGES[storage])
        case _:
            raise _Refused(f"{module:.200}.{name:.200}, which is not a plain tensor")


def _stored(pid: object) -> _Storage:
    match pid:
        case ("storage", _StorageType(dtype), str(key), str(), int(elements)):
            return _Storage(dtype, key, elements)
        case _:
            raise _Refused("an object outside the file")


class _Machine:
    """The stack and the memo of a pickle. Every operation takes time and memory for its own items only."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.memo: list[object] = []

    def run(self, text: bytes) -> object:
        """What the pickle makes. Raises _Refused; IndexError or ValueError for one that is damaged."""
        end = 0
        for count, (opcode, argument, place) in enumerate(pickletools.genops(text)):
            if count == _OPERATIONS:
                raise _Refused(f"more than {_OPERATIONS:,} pickle operations")
            self.do(opcode.name, argument)
            end = (place or 0) + 1
        if end != len(text):
            raise _Refused(f"{len(text) - end:,} bytes after the end of its pickle")
        return self.stack.pop()

    def do(self, operation: str, argument: object) -> None:
        stack = self.stack
        match operation:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
            case "MARK":
                stack.append(_MARK)
            case "MEMOIZE" | "BINPUT" | "LONG_BINPUT":
                # in order, as it is written: an unpickler takes memory for all before a far index
                if operation != "MEMOIZE" and argument != len(self.memo):
                    raise _Refused(f"a memo entry {argument} where {len(self.memo)} is next")
                self.memo.append(stack[-1])
            case "BINGET" | "LONG_BINGET":
                assert isinstance(argument, int)
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(_known(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if not isinstance(name, str) or not isinstance(module, str):
                    raise _Refused("a name that is no text")
                stack.append(_known(module, name))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(_tuple(self.since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(operation[-1])
                items = [stack.pop() for _ in range(count)]
                stack.append(_tuple(items[::-1]))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND" | "APPENDS":
                self.append([stack.pop()] if operation == "APPEND" else self.since_mark())
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.set([key, value])
            case "SETITEMS":
                self.set(self.since_mark())
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_called(function, arguments))
            case "BUILD":  # `_metadata`, which torch hangs on a state dict: versions of modules
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise _Refused("attributes of what is no state dict")
            case "BINPERSID":
                stack.append(_stored(stack.pop()))
            case _:
                raise _Refused(f"the pickle operation {operation}, which no state dict needs")

    def since_mark(self) -> list[object]:
        items: list[object] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def append(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise _Refused("items of what is no list")
        target += items

    def set(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise _Refused("entries of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise _Refused(f"a key that is no text but {type(key).__name__.strip('_').lower()}")
            if key in target:
                raise _Refused(f"the key {quoted(key)} twice")
            target[key] = value


def _tuple(items: list[object]) -> tuple[object, ...]:
    if len(items) > _TUPLE:
        raise _Refused(f"a tuple of {len(items):,} items; {_TUPLE} are the most that a tensor has")
    kinds = {type(item) for item in items}
    if _Outer in kinds:
        raise _Refused("tuples that are nested more than two deep")
    return _Outer(items) if tuple in kinds else tuple(items)


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
            raise LlamagenError.of(
                "LG605",
                f"{quoted(str(path))} is not a torch zip file: {error}",
                help="the download may be incomplete; files older than torch 1.6 must be saved "
                "again with a current torch.save",
            ) from error


def _entries(path: Path, stream: BinaryIO, archive: zipfile.ZipFile) -> tuple[TensorEntry, ...]:
    records = {info.filename: info for info in archive.infolist()}
    if len(records) != len(archive.infolist()):
        raise LlamagenError.of("LG605", f"{quoted(str(path))} has two records of one name")
    pickles = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1 or records[pickles[0]].file_size > _PICKLE_LIMIT:
        raise LlamagenError.of("LG605", f"{quoted(str(path))} has no usable data.pkl inside")
    prefix = pickles[0].removesuffix("data.pkl")
    order = records.get(prefix + "byteorder")
    for info in (records[pickles[0]], order):
        if info is not None and info.compress_type != zipfile.ZIP_STORED:
            message = f"{quoted(info.filename)} in {quoted(str(path))} is compressed"
            raise LlamagenError.of("LG605", f"{message}; torch.save stores everything as it is")
    if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
        raise LlamagenError.of("LG605", f"{quoted(str(path))} was written on a big-endian machine")
    state = _state_dict(path, archive.read(pickles[0]))
    size = size_of(stream)
    entries: list[TensorEntry] = []
    for name, tensor in state.items():
        info = records.get(f"{prefix}data/{tensor.storage.key}")
        if info is None:
            raise LlamagenError.of(
                "LG605", f"{quoted(str(path))} lacks the bytes of tensor {quoted(name)}"
            )
        entries.append(_entry(path, stream, name, tensor, info, size))
    return tuple(entries)


def _state_dict(path: Path, text: bytes) -> dict[str, _Tensor]:
    try:
        state = _Machine().run(text)
    except _Refused as error:
        raise LlamagenError.of(
            "LG605",
            f"{quoted(str(path))} contains {error}",
            help="save the bare state dict: torch.save(model.state_dict(), path)",
        ) from error
    except (ValueError, IndexError) as error:  # what pickletools raises, and a stack that is empty
        raise LlamagenError.of(
            "LG605", f"the pickle in {quoted(str(path))} is damaged: {str(error)!a}"
        ) from error
    if not isinstance(state, dict):
        raise LlamagenError.of("LG605", f"{quoted(str(path))} holds no state dict")
    tensors: dict[str, _Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, _Tensor):
            raise LlamagenError.of(
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
    count = prod(tensor.shape)
    if not _contiguous(tensor):
        raise LlamagenError.of(
            "LG605",
            f"{where} is a strided view: shape {shape_text(tensor.shape)}, stride "
            f"{shape_text(tensor.strides)}",
            help="save it again after tensor.contiguous()",
        )
    if info.compress_type != zipfile.ZIP_STORED:
        raise LlamagenError.of(
            "LG605", f"{where} is compressed; torch.save stores tensors uncompressed"
        )
    nbytes = count * item
    if tensor.first * item + nbytes > info.file_size:
        raise LlamagenError.of(
            "LG605", f"{where} needs {nbytes:,} bytes, its storage has {info.file_size:,}"
        )
    offset = _data_offset(stream, info) + tensor.first * item
    if offset + nbytes > size:
        raise LlamagenError.of(
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
