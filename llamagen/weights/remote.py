"""Checkpoints by address, such as https://HOST/NAME/model.safetensors: read by ranges as they are needed.

`fsspec` speaks to the servers. A folder of this machine stands for one of theirs while the process runs: small files
are fetched into it, those of weights stand there by their names, and who opens one (`files.open_file`) reads here.
"""

from __future__ import annotations

import errno
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from threading import Lock
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from llamagen.diagnostics import LlamagenError, quoted
from llamagen.files import COMPANION, stand_for
from llamagen.weights.checkpoint import WEIGHTS_FILES, read_index
from llamagen.writing import translated

SCHEMES = ("https", "http", "s3", "hf")

_BLOCK = 8 << 20
_KEPT = 24
"""Bytes of a request at most, and how many such blocks of all files stay in memory: who reads columns comes again."""
_WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before a request that failed is made again."""

_WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
_FILES = (*WEIGHTS_FILES, ".gguf")
"""How the name of an address of a file ends; others are folders."""

_places: list[TemporaryDirectory[str]] = []
"""They last as long as the process."""
_addresses: dict[Path, str] = {}
_T = TypeVar("_T")


def standing_for(address: str, beside: Sequence[str]) -> Path:
    """A file or folder of this machine for one of a server; ``beside`` are the small files that belong to weights.

    Raises LG622, LG632 to LG634 and LG652 to LG656.
    """
    parts = urlsplit(address)
    if parts.scheme not in SCHEMES or not parts.netloc:
        help = f"these are: {', '.join(f'{one}://' for one in SCHEMES)}"
        message = f"{_shown(address)} is no address that is read"
        raise LlamagenError.of("LG655", message, help=help)
    path, _, query = address.partition("?")
    file = path.rpartition("/")[2] if path.endswith(_FILES) else ""
    above = path.removesuffix(file).rstrip("/")
    server = _Server(address, above, f"?{query}" if query else "")
    with translated(Path(gettempdir()) / "llamagen"):
        kept = TemporaryDirectory(prefix="llamagen-")
    _places.append(kept)
    # messages name files by where they stand, and a model without a name has its folder's
    steps = (one.partition("@")[0] for one in above.split("/")[3:])
    host = (parts.hostname or "").strip(".")
    place = Path(kept.name).joinpath(host, *(one for one in steps if one.strip(".")))
    with translated(place):
        place.mkdir(parents=True)
    for name in (file,) if file else _WEIGHTS:
        server.put(name, place, small=name.endswith(".json"))
    if not file:
        for number in count():
            if not server.put(f"consolidated.{number:02d}.pth", place):
                break
    if not any(place.iterdir()):
        assert server.nothing is not None
        if file or server.nothing.diagnostics[0].code == "LG653":
            raise server.nothing
        looked = ", ".join(_WEIGHTS[:4])
        help = f"{looked} are looked for; give the address of the file itself"
        message = f"{_shown(address)} has no weights of a name that is known"
        raise LlamagenError.of("LG655", message, help=help)
    for index in place.glob("*.index.json"):
        for shard in read_index(index):
            if not server.put(shard.name, place):
                where = _shown(server.address_of(shard.name))
                message = f"{where}, which its index names, is not there"
                raise LlamagenError.of("LG655", message, help="is the upload complete?")
    if not file.endswith(".gguf"):
        for name in (*beside, "params.json", "adapter_config.json"):
            server.put(name, place, small=True)
    _addresses[place / file] = address
    return place / file


def named(checkpoint: Path) -> str:
    """What a user called a checkpoint: its path, or the address that it stands for."""
    return _addresses.get(checkpoint, str(checkpoint))


class _Server:
    """What is asked of one: files in one folder."""

    def __init__(self, address: str, above: str, query: str) -> None:
        try:
            import fsspec

            options: dict[str, Any] = {}
            if address.startswith("http"):
                hooks = {"raise_for_status": _require_what_was_asked, "trust_env": True}
                options = {"client_kwargs": hooks}
            self.system = fsspec.filesystem(address.partition("://")[0], **options)
        except ImportError as error:
            help = "pip install 'llamagen[remote]', or download it and give its path"
            message = f"addresses take packages that are not installed: {error}"
            raise LlamagenError.of("LG652", message, help=help) from None
        self.above = above
        self.query = query
        self.nothing: LlamagenError | None = None
        """Why the first file that was not there is not."""

    def address_of(self, name: str) -> str:
        return f"{self.above}/{name}{self.query}"

    def put(self, name: str, place: Path, small: bool = False) -> bool:
        """Whether the server has a file; it then stands in ``place``, or is there if it is small."""
        try:
            file = _File(self.system, self.address_of(name))
        except LlamagenError as error:
            # stores of objects refuse (403) names that they do not have
            if error.diagnostics[0].code not in ("LG653", "LG655"):
                raise
            self.nothing = self.nothing or error
            return False
        if not small:
            with translated(place / name):
                stand_for(place / name, file)
            return True
        if file.size > (COMPANION.limit or 0):
            message = f"{_shown(file.address)} has {file.size:,} bytes, which no such file has"
            raise LlamagenError.of(COMPANION.code, message, help=COMPANION.help)
        data = file.read(0, file.size)
        with translated(place / name):
            (place / name).write_bytes(data)
        return True


_blocks: OrderedDict[tuple[_File, int], bytes] = OrderedDict()
_lock = Lock()


class _File:
    """A file of a server in the version that it had when it was first asked for. Raises what ``standing_for`` does."""

    def __init__(self, system: Any, address: str) -> None:
        self.address = address
        about = _patiently(address, lambda: system.info(address))
        size = about.get("size")
        pinned: dict[str, Any] = {}
        if address.startswith("http"):
            pinned = {"headers": {"Accept-Encoding": "identity", **_version(about)}, "size": size}
            if len(pinned["headers"]) == 1 or size is None or not about.get("partial", True):
                raise _no_ranges(address, "its server does not say its size, version or ranges")
        self.size = int(size)
        if self.size:
            opened = lambda: system.open(address, "rb", cache_type="none", **pinned)  # noqa: E731
            self.handle: BinaryIO = _patiently(address, opened)

    def read(self, start: int, stop: int) -> bytes:
        with _lock:
            return b"".join(self.parts(start, stop))

    def parts(self, start: int, stop: int) -> Iterator[bytes]:
        for number in range(start // _BLOCK, -(-stop // _BLOCK)):
            first, end = number * _BLOCK, min((number + 1) * _BLOCK, self.size)
            block = _blocks.pop((self, number), None)
            if block is None:
                block = _patiently(self.address, partial(self.asked, first, end))
            _blocks[self, number] = block
            while len(_blocks) > _KEPT:
                _blocks.popitem(last=False)
            yield block[max(start - first, 0) : stop - first]

    def asked(self, start: int, stop: int) -> bytes:
        self.handle.seek(start)
        data = self.handle.read(stop - start)
        if len(data) != stop - start:
            raise OSError(f"{len(data):,} bytes came, {stop - start:,} were asked for")
        return data


def _version(about: dict[str, Any]) -> dict[str, str]:
    """The condition under which a server may answer: that the file is the one that was seen."""
    if (tag := about.get("ETag")) and not tag.startswith("W/"):
        return {"If-Match": tag}
    return {"If-Unmodified-Since": seen} if (seen := about.get("Last-Modified")) else {}


class _NotAsked(Exception):
    """An answer that is none to the question: ``changed`` for another version, else all of a file for a part."""

    def __init__(self, changed: bool) -> None:
        super().__init__()
        self.changed = changed


async def _require_what_was_asked(answer: Any) -> None:
    """Of aiohttp, before a body is read: servers may ignore ranges and conditions."""
    asked, told = answer.request_info.headers, answer.headers
    if "Range" not in asked or answer.status >= 400:
        return
    same = asked.get("If-Match") in (None, told.get("ETag")) and asked.get(
        "If-Unmodified-Since"
    ) in (None, told.get("Last-Modified"))
    if not same or answer.status != 206:
        answer.close()
        raise _NotAsked(changed=not same)


def _patiently(address: str, ask: Callable[[], _T]) -> _T:
    """The answer, asked for again after what may pass: a lost connection, a server that is busy."""
    for wait in (*_WAITS, None):
        try:
            return ask()
        except Exception as error:  # the systems behind fsspec have no common type of error
            if (refusal := _refusal(address, error)) is not None:
                raise refusal from error
            if wait is None:
                behind = error.__cause__ or error
                reason = (str(behind).splitlines() or [type(behind).__name__])[0][:200]
                message = (
                    f"{_shown(address)} cannot be read, asked {len(_WAITS) + 1} times: {reason}"
                )
                help = "try again later; nothing was written"
                raise LlamagenError.of("LG654", message, help=help) from error
            time.sleep(wait)
    raise AssertionError("the last time raises")


def _refusal(address: str, error: BaseException) -> LlamagenError | None:
    """What asking again does not change."""
    behind = error.__cause__ or error
    status = getattr(behind, "status", None) or getattr(
        getattr(behind, "response", None), "status_code", None
    )
    if isinstance(error, _NotAsked) and not error.changed:
        return _no_ranges(address, "its server sends all of it where a part is asked for")
    # s3fs says EBUSY of a file whose tag is not what it was
    if isinstance(error, _NotAsked) or status == 412 or getattr(error, "errno", 0) == errno.EBUSY:
        message = f"{_shown(address)} was changed while it was read; what came of it was discarded"
        help = "wait until the upload is complete, then run the command again"
        return LlamagenError.of("LG622", message, help=help)
    if status in (401, 403) or isinstance(error, PermissionError):
        help = "ask its owner for access (of the Hub, then `hf auth login`); an address may carry a token, `?token=...`"
        message = f"{_shown(address)} is not given to this account"
        return LlamagenError.of("LG653", message, help=help)
    # of http:// a lost connection is a FileNotFoundError too
    unknown = isinstance(error, FileNotFoundError) and not address.startswith("http")
    if status in (404, 410) or (status is None and unknown):
        return LlamagenError.of("LG655", f"there is no {_shown(address)}", help="check the address")
    return None


def _no_ranges(address: str, why: str) -> LlamagenError:
    help = "download it and give its path"
    return LlamagenError.of("LG656", f"{_shown(address)} cannot be read by parts: {why}", help=help)


def _shown(address: str) -> str:
    """Without what may be secret: a query, a password."""
    scheme, _, rest = address.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return quoted(f"{scheme}://{host.rpartition('@')[2]}{slash}{path}")
