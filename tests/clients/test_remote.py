"""Checkpoints by address, read by ranges from servers of ours: good ones, and some that are not."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from llamagen import api
from llamagen.diagnostics import LlamagenError
from llamagen.emit.options import ExportOptions
from llamagen.files import WEIGHTS, open_file
from llamagen.weights import remote
from llamagen.weights.checkpoint import Checkpoint
from tests.parity.published import exported, llama, require_equal
from tests.parity.test_packed import FORMS, packed_model


@dataclass
class Behaviour:
    """How a server answers."""

    ranges: bool = True
    conditions: bool = True
    tag: bool = True
    status: int = 0
    """Of every answer, if it is one."""
    drops: int = 0
    """So many answers of parts end in the middle."""
    busy: int = 0
    """So many answers of parts are 503."""
    changes_after: int = 1 << 30
    """So many parts later, files are others."""
    parts: list[tuple[str, int]] = field(default_factory=list)
    """What was sent: names and numbers of bytes."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.folder = folder
        self.behaviour = Behaviour()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def bytes_of(self, name: str) -> int:
        return sum(size for one, size in self.behaviour.parts if one == name)


class Answers(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        how = self.server.behaviour
        name = self.path.partition("?")[0].lstrip("/")
        path = self.server.folder / name
        if how.status:
            return self.send(how.status)
        if not path.is_file():
            return self.send(404)
        data = path.read_bytes()
        tag = f'"{hashlib.sha1(data).hexdigest()}{len(how.parts) > how.changes_after}"'
        said = {"ETag": tag} if how.tag else {}
        asked = self.headers.get("Range")
        if how.conditions and self.headers.get("If-Match") not in (None, tag):
            return self.send(412, said)
        if asked is None or not how.ranges:
            return self.send(200, said, data, head)
        if how.busy:
            how.busy -= 1
            return self.send(503)
        first, last = (int(one) for one in asked.removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        how.parts.append((name, len(part)))
        said["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        cut = len(part) // 2 if how.drops else None
        how.drops = max(0, how.drops - 1)
        return self.send(206, said, part, cut=cut)

    def send(
        self,
        status: int,
        said: dict[str, str] | None = None,
        data: bytes = b"",
        head: bool = False,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (said or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not head:
            self.wfile.write(data[:cut])
        if cut is not None:
            self.close_connection = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In `whole` one file, in `shards` some; `lora` has an adapter too, and `lies` lacks a shard."""
    place = tmp_path_factory.mktemp("server")
    llama().save_pretrained(place / "whole")
    llama().save_pretrained(place / "shards", max_shard_size="50KB")
    assert len(list((place / "shards").glob("*.safetensors"))) > 3
    (place / "lora").mkdir()
    for name in ("config.json", "model.safetensors"):
        (place / "lora" / name).write_bytes((place / "whole" / name).read_bytes())
    (place / "lora" / "adapter_config.json").write_text("{}")
    (place / "lies").mkdir()
    for path in (place / "shards").iterdir():
        if not path.name.startswith("model-00002"):
            (place / "lies" / path.name).write_bytes(path.read_bytes())
    return place


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "_WAITS", (0.01, 0.01))
    server = Server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def require_refused(code: str, said: str, ask: Callable[[], object]) -> None:
    with pytest.raises(LlamagenError) as caught:
        ask()
    first = caught.value.diagnostics[0]
    assert first.code == code and said in first.message and first.help, caught.value.diagnostics


@pytest.mark.parametrize("name", ["whole", "shards", "whole/model.safetensors"])
def test_every_byte_of_the_weights_is_fetched_once(
    name: str, server: Server, folder: Path, tmp_path: Path
) -> None:
    require_equal(exported(api.located(f"{server.address}/{name}"), tmp_path / "out"), llama())
    weights = list((folder / name.partition("/")[0]).glob("*.safetensors"))
    for path in weights:
        fetched = server.bytes_of(str(path.relative_to(folder)))
        assert fetched == path.stat().st_size, path.name
    fetched = sum(size for _, size in server.behaviour.parts)
    assert fetched < sum(path.stat().st_size for path in weights) + 20_000, "and small files"


def test_only_what_is_read_is_fetched_and_memory_is_bounded(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_BLOCK", 1 << 12)
    monkeypatch.setattr(remote, "_KEPT", 3)
    remote._blocks.clear()
    place = api.located(f"{server.address}/whole")
    assert not server.bytes_of("whole/model.safetensors"), (
        "weights are not fetched unless they are read"
    )
    Checkpoint.open(place)
    data = (folder / "whole/model.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    assert server.bytes_of("whole/model.safetensors") <= header + 2 * (1 << 12)
    random = np.random.default_rng(0)
    with open_file(place / "model.safetensors", WEIGHTS) as file:
        for _ in range(40):
            start, length = (int(n) for n in random.integers(0, len(data), 2))
            file.seek(start)
            assert file.read(length) == data[start : start + length]
            assert len(remote._blocks) <= 3


def test_columns_are_not_fetched_again_and_again(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    packed_model(folder / "gptq", *FORMS["gptq, inputs in another order"])
    size = (folder / "gptq" / "model.safetensors").stat().st_size
    out = exported(api.located(f"{server.address}/gptq"), tmp_path / "out")
    here = exported(folder / "gptq", tmp_path / "here")
    assert server.bytes_of("gptq/model.safetensors") == size
    data = "model.onnx_data"
    assert (out / data).read_bytes() == (here / data).read_bytes()


def test_lost_connections_and_busy_servers_are_asked_again(server: Server, tmp_path: Path) -> None:
    server.behaviour.drops, server.behaviour.busy = 1, 1
    require_equal(exported(api.located(f"{server.address}/shards"), tmp_path / "out"), llama())
    server.behaviour.busy = 1 << 30
    remote._blocks.clear()
    require_refused("LG654", "asked 3 times", lambda: api.located(f"{server.address}/whole"))


@pytest.mark.parametrize("conditions", [True, False])
def test_a_file_that_changes_in_the_middle_is_an_error(
    conditions: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the server does not know conditions: then its answer says so."""
    monkeypatch.setattr(remote, "_BLOCK", 1 << 14)
    server.behaviour.conditions = conditions
    place = api.located(f"{server.address}/whole")
    server.behaviour.changes_after = len(server.behaviour.parts) + 3
    require_refused(
        "LG622", "was changed while it was read", lambda: exported(place, tmp_path / "out")
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "behaviour", "code", "said"),
    [
        ("whole", Behaviour(ranges=False), "LG656", "sends all of it where a part is asked for"),
        ("whole", Behaviour(tag=False), "LG656", "size, version or ranges"),
        ("whole", Behaviour(status=401), "LG653", "not given to this account"),
        ("whole", Behaviour(status=403), "LG653", "not given to this account"),
        ("absent/model.safetensors", Behaviour(), "LG655", "there is no"),
        ("absent", Behaviour(), "LG655", "has no weights of a name that is known"),
        ("lies", Behaviour(), "LG655", "which its index names, is not there"),
    ],
)
def test_what_a_server_does_not_give(
    name: str, behaviour: Behaviour, code: str, said: str, server: Server
) -> None:
    server.behaviour = behaviour
    require_refused(code, said, lambda: api.located(f"{server.address}/{name}?token=secret"))
    with pytest.raises(LlamagenError) as caught:
        api.located(f"{server.address}/{name}?token=secret")
    assert "secret" not in str(caught.value.diagnostics)


def test_an_adapter_beside_the_weights_is_not_left_out(server: Server, tmp_path: Path) -> None:
    place = api.located(f"{server.address}/lora")
    require_refused("LG623", "belongs to an adapter", lambda: exported(place, tmp_path / "out"))


def test_weights_elsewhere_cannot_be_referenced(server: Server, tmp_path: Path) -> None:
    place = api.located(f"{server.address}/whole")
    options = ExportOptions(weights="reference")
    require_refused(
        "LG640", "cannot be read in place", lambda: exported(place, tmp_path / "out", options)
    )
    hub = exported(place, tmp_path / "hub", ExportOptions(format="transformers"))
    written = load_file(hub / "model.safetensors")
    assert np.array_equal(written["model.norm.weight"], llama().model.norm.weight.detach().numpy())


def test_addresses_that_are_none(tmp_path: Path) -> None:
    for address in ("ftp://host/model", "https:///model", "file:///etc/passwd"):
        require_refused("LG655", "no address", partial(api.located, address))
    require_refused("LG654", "cannot be read", lambda: api.located("http://127.0.0.1:9/model"))


def test_steps_out_of_the_folder_stay_inside(server: Server) -> None:
    place = api.located(f"{server.address}/../../whole")
    assert (place / "config.json").exists() and ".." not in place.parts


def test_a_full_disk_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    require_refused("LG632", "no space is left", lambda: api.located(f"{server.address}/whole"))


def test_the_command_says_how_to_measure_by_the_address(server: Server, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "llamagen", "export", f"{server.address}/whole", "--out", "out"]
    done = subprocess.run(
        [*words, "--quantize", "int8"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert f"--quality {server.address}/whole" in done.stderr
    words = ["verify", "out", "--quality", f"{server.address}/whole"]
    done = subprocess.run(
        [sys.executable, "-m", "llamagen", *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and "KL divergence" in done.stdout, done.stderr
