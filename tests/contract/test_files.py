"""Every file that is read passes one door, llamagen/files.py: no other code opens one, or lets a library do so."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "llamagen"
DOOR = "files.py"
DOORS = frozenset({"llamagen", "llamagen.files", "llamagen.spec.source_text"})
"""What is imported from here has passed the door; `llamagen` is where `files` comes from."""

OPENERS = frozenset(
    {
        *("open", "open_code", "fdopen", "FileIO", "read_text", "read_bytes", "readlines", "openfile"),
        *("memmap", "open_memmap", "fromfile", "loadtxt", "genfromtxt", "mmap", "copyfile", "copy2", "copytree"),
        *("ZipFile", "TarFile", "FileSystemLoader", "FileType", "read_file", "run_path", "runpath"),
        *("from_file", "from_pretrained", "from_json_file", "safe_open", "load_file", "load_model"),
        *("InferenceSession", "imread", "read_csv", "getlines", "execfile", "load_module_from_file", "parse_file"),
    }
)  # fmt: skip
"""Names of functions and methods that open a file by its path, here or in a library."""
LOADERS = frozenset(
    {
        "json",
        "pickle",
        "marshal",
        "tomllib",
        "yaml",
        "np",
        "numpy",
        "torch",
        "onnx",
        "ir",
        "onnx_ir",
    }
)
"""Modules whose ``load`` reads a file."""
CONNECTORS = frozenset({"sqlite3"})
FUNCTIONS_OF_MODULES = frozenset(
    {"os", "io", "shutil", "codecs", "gzip", "bz2", "lzma", "mmap", "dbm", "shelve", "runpy"}
)
"""Modules from which nothing that opens a file is imported by name: it would have another one then."""

SHIPPED = "files of this installation"
OURS = "a new file of ours, in a folder that is written"
HANDLE = "gets the handle that the door gave"
LOOKED_AT = "takes nothing but a path, which the door has looked at"
NO_FILE = "opens a session, a checkpoint or a script: what these read passes the door"

ALLOWED: dict[tuple[str, str], str] = {
    ("resources.py", "(data_folder(folder) / name).read_text"): SHIPPED,
    ("resources.py", "FileSystemLoader"): SHIPPED,
    ("spec/naming.py", "file.read_text"): SHIPPED,
    ("analysis/site.py", "shutil.copytree"): SHIPPED,
    ("diagnostics/codes.py", "yaml.load"): "of a text",
    ("analysis/statement.py", "sqlite3.connect"): "of a database in memory",
    ("confined/child.py", "open"): "a script of ours",
    ("confined/child.py", "os.open"): "the null device",
    ("confined/child.py", "os.fdopen"): "the pipe of answers",
    ("cli/entry.py", "os.open"): "the null device",
    ("cli/surroundings.py", "os.open"): "the null device",
    ("cli/surroundings.py", "open"): "the number of a stream",
    ("emit/clients/web.py", "tarfile.open"): "of bytes that the door gave",
    ("images/decoder.py", "Image.open"): HANDLE,
    ("verify/stored.py", "np.memmap"): HANDLE,
    ("weights/meta_pth.py", "zipfile.ZipFile"): HANDLE,
    ("emit/onnx/session.py", "ort.InferenceSession"): LOOKED_AT,
    ("verify/folder.py", "codes.open"): NO_FILE,
    ("verify/folder.py", "floats.open"): NO_FILE,
    ("verify/witnesses.py", "library.AutoConfig.from_pretrained"): LOOKED_AT,
    ("verify/engine.py", "kind.from_pretrained"): LOOKED_AT,
    ("verify/witnesses.py", "kind.from_pretrained"): "gets the weights, and no folder",
    ("emit/onnx/data.py", "path.open"): OURS,
    ("weights/link.py", "target.open"): OURS,
    ("weights/remote.py", "system.open"): "asks a server",
    ("weights/safetensors.py", "path.open"): OURS,
    ("emit/onnx/stages.py", "onnx.load"): OURS,
    ("verify/witnesses.py", "stage.open"): NO_FILE,
    ("emit/supply.py", "(folder / file.name).open"): OURS,
    ("writing.py", "path.open"): OURS,
    ("writing.py", "(home / _LOCK).open"): OURS,
    ("writing.py", "os.open"): "syncs a folder that is written",
    ("writing.py", "Path('/proc/self/mountinfo').read_bytes"): "of the system",
    (
        "writing.py",
        "path.read_bytes",
    ): "a regular file that may be replaced; one that is not is left alone",
    ("verify/oracle_process.py", "np.load"): "of the bytes of a question",
    ("verify/oracles.py", "np.load"): HANDLE,
    ("verify/oracles.py", "new.open"): OURS,
    ("verify/oracles.py", "zipfile.ZipFile"): HANDLE,
    ("emit/config/checkpoint.py", "Checkpoint.open"): NO_FILE,
    ("emit/config/drafting.py", "Checkpoint.open"): NO_FILE,
    ("emit/supply.py", "Adapter.open"): NO_FILE,
    ("weights/adapter.py", "Checkpoint.open"): NO_FILE,
    ("verify/witnesses.py", "graphs[name].open"): NO_FILE,
    ("verify/witnesses.py", "self.graphs[MAIN].open"): NO_FILE,
    ("verify/witnesses.py", "self.open"): NO_FILE,
    ("verify/witnesses.py", "witness.routers.open"): NO_FILE,
    ("ir/elaborate.py", "self.open"): "a set of names",
    ("emit/torch/library.py", "index.read_text"): "of the generated file, which has torch alone",
    ("emit/torch/library.py", "load_file"): "of the generated file, which has torch alone",
    (
        "emit/torch/parallel.py",
        "Path(__file__).with_name('parallel_library.py').read_text",
    ): SHIPPED,
    ("emit/torch/place.py", "Path(__file__).with_name('library.py').read_text"): SHIPPED,
}
"""(File, what stands there) -> why it is no file of others, or how it is looked at first."""


def mentions(tree: ast.AST) -> list[str]:
    """Whatever opens a file: called, or handed on to be called elsewhere. Annotations only name types."""
    ours = {
        one.asname or one.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in DOORS
        for one in node.names
    }
    through = tuple(ours) + tuple(f"{name}.{opener}" for name in ours for opener in OPENERS)
    return [text for text in _below(tree) if text not in through]


def _below(tree: ast.AST) -> Iterator[str]:
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST):
                yield from _of(node)
                yield from _below(node)


def _of(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Attribute(value=ast.Name(id=module), attr="load" | "Load") if module in LOADERS:
            yield ast.unparse(node)
        case ast.Attribute(value=ast.Name(id=module), attr="connect") if module in CONNECTORS:
            yield ast.unparse(node)
        case ast.Attribute(attr=name) if name in OPENERS:
            yield ast.unparse(node)
        case ast.Name(id=name, ctx=ast.Load()) if name in OPENERS:
            yield name
        case ast.ImportFrom(module=module, names=names) if module in FUNCTIONS_OF_MODULES:
            yield from (f"from {module} import {one.name}" for one in names)
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
            if name in OPENERS:
                yield ast.unparse(node)


def found() -> dict[tuple[str, str], int]:
    every: Counter[tuple[str, str]] = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name != DOOR:
            every.update((name, text) for text in mentions(ast.parse(path.read_text("utf-8"))))
    return every


def test_only_the_door_opens_files() -> None:
    assert sorted(set(found()) - set(ALLOWED)) == [], "use llamagen.files, or say here why not"


def test_what_is_allowed_is_there() -> None:
    assert sorted(set(ALLOWED) - set(found())) == []


@pytest.mark.parametrize(
    "text",
    [
        *("open(p)", "open(p, 'wb')", "p.open()", "p.open('rb')", "p.read_text()", "p.read_bytes()"),
        *("os.open(p, 0)", "io.open(p)", "from os import open", "from io import open as o", "f = p.open"),
        *("map(open, ps)", "Image.open(p)", "json.load(f)", "pickle.load(f)", "np.load(p)", "np.memmap(p)"),
        *("np.fromfile(p)", "onnx.load(p)", "onnx.load_model(p)", "ir.load(p)", "torch.load(p)", "mmap.mmap(n, 0)"),
        *("ort.InferenceSession(p)", "Tokenizer.from_file(p)", "AutoConfig.from_pretrained(p)", "safe_open(p)"),
        *("sqlite3.connect(p)", "shutil.copyfile(p, q)", "zipfile.ZipFile(p)", "tarfile.open(p)", "tomllib.load(f)"),
        *("yaml.load(f)", "getattr(p, 'read_text')()", "getattr(os, 'open')", "FileSystemLoader(p)"),
        *("def f():\n    with p.open() as g: pass", "class A:\n    x = open", "lambda p: p.read_text()"),
    ],
)  # fmt: skip
def test_the_rule_fires(text: str) -> None:
    assert mentions(ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "from llamagen import files\nfiles.read_text(p, k)",
        "from llamagen.files import read_bytes\nread_bytes(p, k)",
        *("read_file = 1", "files.open_file(p, k)", "x: ort.InferenceSession", "def f(s: mmap) -> FileIO: ..."),
        *("json.loads(t)", "onnx.load_model_from_string(b)", "Tokenizer.from_buffer(b)", "'open(p)'"),
    ],
)  # fmt: skip
def test_the_rule_lets_other_things_be(text: str) -> None:
    assert mentions(ast.parse(text)) == []
