"""Headless Chromium: a script in it with a folder, or the page of a folder, served from this machine to nobody else."""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.environments import environment

# Threads of WebAssembly want the two headers; what a script prints or raises is sent back.
PAGE = """<!doctype html>
<meta charset="utf-8">
<base href="/model/">
<script type="importmap">{"imports": {"@huggingface/transformers": "/lib/transformers.js"}}</script>
<script type="module">
let last = Promise.resolve();  // one after the other, or the end may arrive before a line does
const say = (kind, words) =>
  last = last.then(() => fetch("/said", {method: "POST", body: kind + " " + words.map(String).join(" ")}));
window.onerror = (message) => say("error", [message]);
window.onunhandledrejection = (event) => say("error", [event.reason?.stack ?? event.reason]);
console.log = (...words) => say("log", words);
const { env } = await import("@huggingface/transformers");
env.allowLocalModels = true;
env.useBrowserCache = false;
env.backends.onnx.wasm.wasmPaths = "/lib/";
await import("/script.js");
await say("end", []);
</script>
"""


def in_browser(folder: Path, script: str) -> list[str]:
    """What ``script``, a module that may import transformers.js, logs; its model is ``folder``, as ``./``.

    Raises FileNotFoundError without Chromium, RuntimeError with what the page raised.
    """
    modules = environment("transformers.js") / "node_modules"
    said: queue.Queue[str] = queue.Queue()
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as name:
        site = Path(name) / "site"
        (site / "lib").mkdir(parents=True)
        for package in ("@huggingface/transformers", "onnxruntime-web"):
            for file in (modules / package / "dist").iterdir():
                if file.name == "transformers.js" or file.name.startswith("ort-wasm"):
                    (site / "lib" / file.name).unlink(missing_ok=True)
                    (site / "lib" / file.name).symlink_to(file)
        (site / "model").symlink_to(folder.resolve())
        (site / "index.html").write_text(PAGE, encoding="utf-8")
        (site / "script.js").write_text(script, encoding="utf-8")
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, said, str(site)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = f"http://127.0.0.1:{server.server_port}/index.html"
        browser = subprocess.Popen(
            [*_chromium(Path(name)), page],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return _lines(said)
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()


def _chromium(folder: Path) -> list[str]:
    """The command, with a profile of its own in ``folder``."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("chromium is not installed (Debian: apt-get install chromium)")
    flags = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run")
    return [
        chromium,
        *flags,
        "--disable-background-networking",
        f"--user-data-dir={folder}/profile",
    ]


SOFTWARE_GPU = (
    *("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
    *("--enable-features=Vulkan", "--use-vulkan=swiftshader", "--ignore-gpu-blocklist"),
)
"""A GPU by Chromium's own SwiftShader, without float16."""
_OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


class Page:
    """A page that is open, driven by Chromium's DevTools protocol."""

    def __init__(self, sent: int, received: int, address: str) -> None:
        self.sent, self.received, self.address = sent, received, address
        self.count, self.rest, self.session = 0, b"", {}
        targets = self.call("Target.getTargets")["targetInfos"]
        (target,) = (one["targetId"] for one in targets if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        self.call("Page.enable")

    session: dict[str, str]

    def call(self, method: str, **params: Any) -> Any:
        """What the protocol answers; events on the way are left out."""
        self.count += 1
        asked = {"id": self.count, "method": method, "params": params, **self.session}
        os.write(self.sent, json.dumps(asked).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                self.rest += os.read(self.received, 1 << 20)
            message, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(message)
            if answer.get("id") == self.count:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def open(self, query: str = "") -> None:
        self.call("Page.navigate", url=self.address + query)
        self.until("document.getElementById('status')")

    def value(self, script: str) -> Any:
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Waits for ``script`` to become true; whoever runs the tests bounds the wait.

        Raises RuntimeError with what the page says went wrong.
        """
        wait = (
            "new Promise((resolve) => { const look = () => { const bad = document.querySelector('#status.bad');"
            f" if (bad || ({script})) resolve(bad?.textContent ?? ''); else setTimeout(look, 50); }}; look(); }})"
        )
        wrong = self.value(wait)
        if wrong:
            raise RuntimeError(wrong)

    def ask(self, words: str) -> None:
        """Type and send, by the keyboard."""
        self.value("document.getElementById('words').focus()")
        self.call("Input.insertText", text=words)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", windowsVirtualKeyCode=13)

    def picture(self, path: Path, width: int, height: int, *, dark: bool = False) -> None:
        """A PNG of the page at that size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def page_of(folder: Path, flags: Sequence[str] = ()) -> Iterator[Page]:
    """The page of ``folder``, served as any static server does, in a browser that knows no other machine."""
    handler = partial(_Silent, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as name:
        theirs_in, sent = os.pipe()
        received, theirs_out = os.pipe()
        start = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'  # the numbers that Chromium expects
        command = [
            *_chromium(Path(name)),
            "--remote-debugging-pipe",
            _OFFLINE,
            *flags,
            "about:blank",
        ]
        browser = subprocess.Popen(
            ["bash", "-c", start, "-", *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Page(sent, received, f"http://127.0.0.1:{server.server_port}/")
        finally:
            browser.terminate()
            browser.wait()
            os.close(sent)
            os.close(received)
            server.shutdown()


def _lines(said: queue.Queue[str]) -> list[str]:
    lines: list[str] = []
    while True:
        kind, _, words = said.get().partition(" ")
        if kind == "error":
            raise RuntimeError(words)
        if kind == "end":
            return lines
        lines.append(words)


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


class _Handler(_Silent):
    extensions_map = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".wasm": "application/wasm",
        ".mjs": "text/javascript",
    }

    def __init__(self, said: queue.Queue[str], site: str, *rest: object) -> None:
        self.said = said
        super().__init__(*rest, directory=site)  # type: ignore[arg-type]

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.said.put(self.rfile.read(length).decode("utf-8"))
        self.send_response(204)
        self.end_headers()
