"""Targets of questions: an id, a YAML file, or a file at a revision of git (``rev:path``), as typed models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from llamagen.diagnostics import LlamagenError
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import MAIN, Graph
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.source import SourceMap, load_source

_GIT_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Model:
    """A spec and its graphs. ``graph``, the text model, is none for a record without published wiring."""

    resolved: ResolvedSpec
    graph: Graph | None
    beside: Mapping[str, Graph] = field(default_factory=dict)
    """Further graphs by name: encoders, and what joins them to the text."""

    @property
    def id(self) -> str:
        return self.resolved.spec.id

    @property
    def graphs(self) -> dict[str, Graph]:
        """All graphs by name, ``model`` (the text model) first; empty without wiring."""
        return {MAIN: self.graph, **self.beside} if self.graph is not None else {}


def model_of(target: str) -> Model:
    """The model of an id, of a YAML file, or of ``rev:path``. Raises LlamagenError; LG401 never (graph is none)."""
    return built(resolved_of(target))


def resolved_of(target: str) -> ResolvedSpec:
    """The spec of an id, of a YAML file, or of ``rev:path``. Raises LlamagenError."""
    return _at_revision(target) if _is_revision(target) else Registry().load(target)


def built(resolved: ResolvedSpec) -> Model:
    """A spec with its graphs, if its wiring is published."""
    if resolved.spec.root is None:
        return Model(resolved, None)
    graphs = build_all(resolved)
    return Model(resolved, graphs.pop(MAIN), graphs)


def _is_revision(target: str) -> bool:
    return ":" in target and not Path(target).exists()


@dataclass
class _Extracted(Registry):
    """A registry over files of a revision; their places are shown as ``rev:path``."""

    base: Path = Path()
    revision: str = ""

    def source(self, path: Path) -> SourceMap:
        if path.is_relative_to(self.base):
            name = f"{self.revision}:{path.relative_to(self.base).as_posix()}"
            return load_source(path, name)
        return super().source(path)


def _at_revision(target: str) -> ResolvedSpec:
    """A spec as it was at a commit, with the bases it had then. Nothing is checked out."""
    import io
    import tarfile
    import tempfile

    revision, _, name = target.partition(":")
    if not revision or revision.startswith("-") or not name:
        raise LlamagenError.of("LG901", f"`{target}` is not REVISION:PATH of a spec")
    top = Path(_git(["rev-parse", "--show-toplevel"], target).decode().strip())
    inside = PurePosixPath(Path(name).as_posix())
    if not inside.parts or inside.is_absolute() or ".." in inside.parts:
        help = "write the path as git does, relative to the top of the repository"
        raise LlamagenError.of("LG901", f"`{name}` is not a path of the repository", help=help)
    archive = _git(
        ["-C", str(top), "archive", "--format=tar", revision, "--", inside.parts[0]], target
    )
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder).resolve()
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(base, filter="data")
        path = base / inside
        if not path.is_file():
            help = f"`git ls-tree -r --name-only {revision}` lists the files"
            raise LlamagenError.of("LG901", f"`{name}` is not a file at {revision}", help=help)
        # today's specs are no root: a base that the revision lacks is unknown there
        registry = _Extracted((base / "spec",), shipped=False, base=base, revision=revision)
        return registry.load(path)


def _git(arguments: list[str], target: str) -> bytes:
    import subprocess

    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, check=False, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LlamagenError.of("LG901", f"`{target}` cannot be read from git: {error}") from None
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().split("\n", 1)[0]
        help = "write REVISION:PATH, for example HEAD~1:spec/llama/3/8b.yaml"
        raise LlamagenError.of("LG901", f"`{target}` cannot be read from git: {reason}", help=help)
    return done.stdout
