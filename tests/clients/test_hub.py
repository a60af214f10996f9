"""Models by their names on the Hub, from a server of ours that answers as huggingface.co does."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.emit.supply import COMPANIONS
from llamagen.weights.hub import located
from tests.parity.published import llama, require_equal

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories by name: files by name. ``asked`` are the files that were fetched, ``parts`` the bytes of parts."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories = repositories
        self.asked: list[str] = []
        self.parts = 0


def entry(name: str, data: bytes) -> dict[str, object]:
    oid = hashlib.sha1(data).hexdigest()
    return {"type": "file", "path": name, "size": len(data), "oid": oid}


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *words: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def do_POST(self) -> None:
        """`paths-info`: which of some paths there are."""
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        files = self.server.repositories["/".join(self.path.strip("/").split("/")[2:4])]
        found = [n for n in asked["paths"] if n in files]
        self.send(json.dumps([entry(n, files[n]) for n in found]).encode(), head=False)

    def answer(self, head: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        words = path.removeprefix("api/models/").split("/")
        name = "/".join(words[:2])
        files = self.server.repositories.get(name)
        if files is None:
            return self.refuse(404, "RepoNotFound")
        if not files:
            return self.refuse(403, "GatedRepo")
        kind, revision, *rest = words[2:] or ["revision", "main"]
        if revision not in ("main", REVISION):
            return self.refuse(404, "RevisionNotFound")
        if kind == "resolve":
            data = files.get("/".join(rest))
            if data is None:
                return self.refuse(404, "EntryNotFound")
            if not head:
                self.server.asked.append("/".join(rest))
            return self.send(data, head)
        if kind == "tree":
            listed = [entry(n, d) for n, d in files.items()]
            return self.send(json.dumps(listed).encode(), head)
        siblings = [{"rfilename": n} for n in files]
        about = {
            "id": name,
            "modelId": name,
            "sha": REVISION,
            "siblings": siblings,
            "private": False,
            "tags": [],
        }
        return self.send(json.dumps(about).encode(), head)

    def send(self, data: bytes, head: bool) -> None:
        asked = self.headers.get("Range")
        self.send_response(200 if asked is None else 206)
        if asked is not None:
            first, last = (int(one) for one in asked.removeprefix("bytes=").split("-"))
            data = data[first : last + 1]
            self.server.parts += len(data)
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not head:
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    llama().save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    server = Hub(
        {
            "org/model": {**files, "pytorch_model.bin": b"not needed", "README.md": b"", "onnx/model.onnx": b"x"},
            "org/gated": {},
            "org/empty": {"README.md": b""},
        }
    )  # fmt: skip
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def export(name: str, folder: Path, endpoint: str, **variables: str) -> tuple[int, str]:
    words = [sys.executable, "-m", "llamagen", "export", name, "--out", str(folder / "out")]
    here = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, **here, **variables}, cwd=folder
    )
    return done.returncode, done.stderr


def address(hub: Hub) -> str:
    return f"http://127.0.0.1:{hub.server_address[1]}"


def test_a_model_is_fetched_once_and_only_what_it_needs(hub: Hub, tmp_path: Path) -> None:
    hub.asked.clear()
    code, said = export("hf:org/model", tmp_path, address(hub))
    assert code == 0, said
    assert set(hub.asked) <= {"model.safetensors", *COMPANIONS} and "model.safetensors" in hub.asked
    require_equal(tmp_path / "out", llama())
    hub.asked.clear()
    (tmp_path / "out").rename(tmp_path / "first")
    code, said = export("hf:org/model@main", tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert code == 0 and not hub.asked, said
    (tmp_path / "out").rename(tmp_path / "second")
    cached = tmp_path / "home" / "hub" / "models--org--model"
    code, said = export(str(cached), tmp_path, "http://127.0.0.1:9")
    assert code == 0, said


@pytest.mark.parametrize("name", ["hf://org/model", "hf://org/model@main/model.safetensors"])
def test_by_ranges_nothing_is_kept(name: str, hub: Hub, tmp_path: Path) -> None:
    hub.asked.clear()
    hub.parts = 0
    code, said = export(name, tmp_path, address(hub))
    assert code == 0, said
    assert "as imported/model" in said, said
    require_equal(tmp_path / "out", llama())
    weights = len(hub.repositories["org/model"]["model.safetensors"])
    assert set(hub.asked) <= {"model.safetensors", *COMPANIONS}
    assert weights < hub.parts < weights + 10_000
    kept = tmp_path / "home" / "hub"
    assert not any(path.is_file() for path in kept.rglob("*")), "in the Hub's cache"


@pytest.mark.parametrize(
    ("name", "code", "step"),
    [
        ("hf://org/absent", "LG655", "check the name"),
        ("hf://org/model@v9", "LG655", "check the name"),
        ("hf://org", "LG655", "hf:meta-llama"),
        ("hf://org/empty", "LG655", "give the address of the file itself"),
        ("hf://org/gated", "LG653", "ask for access"),
        ("hf:org/absent", "LG655", "check the name"),
        ("hf:org/model@v9", "LG655", "check the name"),
        ("hf:org", "LG655", "hf:meta-llama"),
        ("hf:org/empty", "LG655", "hf://ORG/NAME/FILE"),
        ("hf:org/gated", "LG653", "ask for access"),
    ],
)
def test_what_the_hub_does_not_give(
    name: str, code: str, step: str, hub: Hub, tmp_path: Path
) -> None:
    rc, said = export(name, tmp_path, address(hub))
    assert rc == 3 and code in said and step in said, said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["hf:org/model", "hf://org/model"])
@pytest.mark.parametrize("offline", ["", "1"])
def test_without_a_network_it_is_said(offline: str, name: str, tmp_path: Path) -> None:
    rc, said = export(name, tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE=offline)
    assert rc == 3 and "LG654" in said and "HF_HUB_OFFLINE" in said, said


def test_a_cache_without_room_says_what_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(LlamagenError, match="No space left") as caught:
        located("hf:org/model", ())
    (finding,) = caught.value.diagnostics
    assert finding.code == "LG654" and finding.help is not None and "hf://org/model" in finding.help


def test_ids_of_specs_ask_nobody(hub: Hub, tmp_path: Path) -> None:
    hub.asked.clear()
    rc, said = export("org/model", tmp_path, address(hub))
    assert rc != 0 and not hub.asked and not (tmp_path / "home").exists(), said


def test_a_folder_of_the_cache_leads_to_its_own_snapshots(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name"
    for name in ("snapshots/abc", "refs"):
        (folder / name).mkdir(parents=True)
    assert located(str(folder), ()) == folder / "snapshots" / "abc", "there is one"
    (folder / "snapshots" / "def").mkdir()
    (folder / "refs" / "main").write_text("def\n")
    assert located(str(folder), ()) == folder / "snapshots" / "def"
    (tmp_path / "elsewhere").mkdir()
    for elsewhere in ("../../elsewhere", "", str(tmp_path / "elsewhere")):
        (folder / "refs" / "main").write_text(elsewhere)
        with pytest.raises(LlamagenError, match="its snapshots: 'abc', 'def'"):
            located(str(folder), ())
