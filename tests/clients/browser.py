"""A script in headless Chromium: a page with it and a folder, served from this machine to nobody else."""

from __future__ import annotations

import queue
import shutil
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.environments import environment

# Threads of WebAssembly want the two headers; what a script prints or raises is sent back.
PAGE = """<!doctype html>
<meta charset="utf-8">
<base href="/model/">
<script type="importmap">{"imports": {"@huggingface/transformers": "/lib/transformers.js"}}</script>
<script type="module">
const say = (kind, words) => fetch("/said", {method: "POST", body: kind + " " + words.map(String).join(" ")});
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
    chromium = shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("chromium is not installed (Debian: apt-get install chromium)")
    modules = environment("transformers.js") / "node_modules"
    said: queue.Queue[str] = queue.Queue()
    with tempfile.TemporaryDirectory(prefix="browser-") as name:
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
        flags = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run")
        own = f"--user-data-dir={name}/profile"
        page = f"http://127.0.0.1:{server.server_port}/index.html"
        browser = subprocess.Popen(
            [chromium, *flags, "--disable-background-networking", own, page],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return _lines(said)
        finally:
            browser.terminate()
            browser.wait()
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


class _Handler(SimpleHTTPRequestHandler):
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

    def log_message(self, *_: object) -> None:
        """Says nothing."""
