"""Targets of questions, as typed models: an id, a YAML file, or a spec at a revision of git (``REVISION:PATH``).

A spec at a revision has the bases it had then. Nothing is checked out or run.

The configuration of a repository names programs: filters, hooks, pagers, monitors, transports. Blobs are read with
``git cat-file --batch``, which uses none of them, and what it could start by itself (a partial clone fetches what it
lacks) is forbidden. Names go in by its input, where none of them is an option.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from llamagen import files
from llamagen.diagnostics import LlamagenError, quoted
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import Graph
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.source import Scalar, SourceMap, load_source


@dataclass(frozen=True, slots=True)
class Model:
    """A spec and all its graphs by name, the text model (``model``) first; none where no wiring is published."""

    resolved: ResolvedSpec
    graphs: Mapping[str, Graph]

    @property
    def id(self) -> str:
        return self.resolved.spec.id


def resolved_of(target: str | Path, registry: Registry | None = None) -> ResolvedSpec:
    """The spec of an id, of a YAML file, or (where ``target`` is text) of ``rev:path``. Raises LlamagenError."""
    known = registry or Registry()
    if isinstance(target, str) and _is_revision(target):
        return _spec_at(target, known)
    return known.load(target)


def built(resolved: ResolvedSpec) -> Model:
    """A spec with its graphs, if its wiring is published."""
    return Model(resolved, {} if resolved.spec.root is None else build_all(resolved))


# git

_SECONDS = 20
_TARGET = re.compile(r"((?:[^:{}]|\{[^{}]*\})+):(.+)")
"""A revision may have a colon in braces: ``HEAD^{/fix: typo}``."""
_OBJECT = re.compile(rb"([0-9a-f]{40}|[0-9a-f]{64}) (blob|tree|commit|tag) ([0-9]+)")
_YAML = (".yaml", ".yml")

_WHERE = frozenset(
    {
        "GIT_DIR",
        "GIT_COMMON_DIR",
        "GIT_WORK_TREE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_CEILING_DIRECTORIES",
        "GIT_DISCOVERY_ACROSS_FILESYSTEM",
    }
)
"""Variables that say where a repository is: git sets them for hooks. Of the others only those of the user's own
configuration are kept (GIT_CONFIG_*, which can hold `safe.directory`): they trace, rename or start something."""
_FORBID: Mapping[str, str] = {
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}
"""git before 2.45 does not know GIT_NO_LAZY_FETCH; it gets no transport to fetch with."""
_OPTIONS = ("--no-pager", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")


def _is_revision(target: str) -> bool:
    """Whether it is meant as ``REVISION:PATH``: no file has this name."""
    return ":" in target and not files.exists(Path(target))


def _spec_at(target: str, registry: Registry) -> ResolvedSpec:
    """The spec at ``REVISION:PATH``; what it extends is of the same revision, or else known to ``registry``.

    A path counts from the top of the repository, or from the working folder where it begins with ``./`` or ``../``.
    Raises LG901 where git finds no such file, and as ``Registry.load``.
    """
    matched = _TARGET.fullmatch(target)
    if matched is None or re.search(r"[\0-\x1f\ud800-\udc7f\udd00-\udfff]", target):
        raise LlamagenError.of("LG901", f"{quoted(target)} is not REVISION:PATH of a spec")
    revision, name = matched[1], matched[2]
    top = _Tree(target, revision)
    with tempfile.TemporaryDirectory() as folder:
        # its real path: the registry compares paths without links
        there = _AtRevision(registry.roots, shipped=False, folder=Path(folder).resolve(), tree=top)
        path = there.fetched(top.path_of(name))
        if path is None:
            help = (
                f"`git ls-tree -r --full-tree --name-only {revision}` lists the files; `git show` fetches one that a "
                "partial clone lacks"
            )
            message = f"`{name}` is not a file at {revision}"
            raise LlamagenError.of("LG901", message, help=help)
        return there.load(path)


@dataclass
class _AtRevision(Registry):
    """Specs of a revision, put into ``folder`` as they are asked for; then those of the roots."""

    folder: Path = Path()
    tree: _Tree = field(kw_only=True)
    below: tuple[PurePosixPath, ...] = ()
    """Folders that the ids of the files so far count from."""

    def source(self, path: Path) -> SourceMap:
        inside = Path(os.path.normpath(path))
        if not inside.is_relative_to(self.folder):
            if not any(path.is_relative_to(root) for root in self.roots):
                message = f"a spec extends {quoted(str(path))}, which is not in the repository"
                raise LlamagenError.of("LG202", message, help="extend an id, or a file beside it")
            self.below = ()  # what is shipped extends what is shipped
            return super().source(path)
        name = PurePosixPath(inside.relative_to(self.folder).as_posix())
        source = load_source(inside, f"{self.tree.revision}:{name}")
        self._look_around(source, name)
        return source

    def path_of(self, spec_id: str) -> Path | None:
        for root in self.below:
            known = self.fetched(str(root / f"{spec_id}.yaml"))
            if known is not None:
                return known
            if self.tree.is_folder(str(root / spec_id.split("/")[0])):
                return None  # a family that the revision has is not completed with today's specs
        return super().path_of(spec_id)

    def _look_around(self, source: SourceMap, name: PurePosixPath) -> None:
        """Fetch the base that is named by its path; remember the folder from which the id counts."""
        base, own = source.root.get("extends"), source.root.get("id")
        if isinstance(base, Scalar) and base.text.endswith(_YAML):
            self.fetched(posixpath.join(str(name.parent), base.text))
        parts = PurePosixPath(own.text).parts if isinstance(own, Scalar) else ()
        if parts and name.with_suffix("").parts[-len(parts) :] == parts:
            root = name.parents[len(parts) - 1]
            self.below = tuple(dict.fromkeys((*self.below, root)))

    def fetched(self, name: str) -> Path | None:
        """A file of the revision, in ``folder``; None where there is none."""
        inside = posixpath.normpath(name)
        if inside.startswith(("/", "../")) or inside == "..":
            return None
        data = self.tree.read(inside)
        if data is None:
            return None
        path = self.folder / inside
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            message = f"`{inside}` has no name that this system can hold: {error.strerror}"
            raise LlamagenError.of("LG901", message) from error
        return path


class _Tree:
    """The files of a revision."""

    def __init__(self, target: str, revision: str) -> None:
        """Raises LG901 for what is no revision here."""
        self.target = target
        self.revision = revision
        tree = _OBJECT.fullmatch(self._git("--batch-check", f"{revision}^{{tree}}").rstrip(b"\n"))
        if tree is None:
            message = f"`{target}` cannot be read from git: there is no revision `{revision}`"
            help = "write REVISION:PATH, for example HEAD~1:spec/llama/3/8b.yaml"
            raise LlamagenError.of("LG901", message, help=help)
        self.id = tree[1].decode()

    def path_of(self, name: str) -> str:
        """A path as the user wrote it, from the top of the repository. Raises LG901."""
        name = name.replace(os.sep, "/")
        if name.startswith(("./", "../")):
            before = os.fsdecode(_git(("rev-parse", "--show-prefix"), b"", self.target))
            name = posixpath.normpath(before.removesuffix("\n") + name)
            outside = name.startswith("../")
        else:
            outside = name.startswith("/") or ".." in name.split("/")
        if outside:
            help = "write the path as git does, relative to the top of the repository"
            raise LlamagenError.of("LG901", f"`{name}` is not a path of the repository", help=help)
        return name

    def read(self, path: str) -> bytes | None:
        """The bytes of a file; None where there is none. Links in the tree are followed.

        Raises LG901 for a link that leaves the tree, LG002 for a file that is too large to be a spec.
        """
        head, _, rest = self._look(path).partition(b"\n")
        if head.startswith(b"symlink "):
            there = quoted(os.fsdecode(rest.removesuffix(b"\n")))
            message = f"`{path}` is a link out of the repository at {self.revision}, to {there}"
            raise LlamagenError.of("LG901", message, help="name the file itself")
        blob = _OBJECT.fullmatch(head)
        if blob is None or blob[2] != b"blob":
            return None
        assert files.SPEC.limit is not None
        if int(blob[3]) > files.SPEC.limit:
            message = f"`{path}` at {self.revision} is larger than {files.SPEC.limit:,} bytes, which no spec is"
            raise LlamagenError.of("LG002", message)
        return self._git("--batch", blob[1].decode()).partition(b"\n")[2][: int(blob[3])]

    def is_folder(self, path: str) -> bool:
        folder = _OBJECT.match(self._look(path))
        return folder is not None and folder[2] == b"tree"

    def _look(self, path: str) -> bytes:
        return self._git("--batch-check", f"{self.id}:{path}", "--follow-symlinks")

    def _git(self, how: str, name: str, *options: str) -> bytes:
        return _git(("cat-file", how, *options), os.fsencode(name) + b"\n", self.target)


def _git(arguments: tuple[str, ...], names: bytes, target: str) -> bytes:
    program = shutil.which("git")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _WHERE or not name.startswith("GIT_") or name.startswith("GIT_CONFIG_")
    }
    try:
        if program is None or not os.path.isabs(program):  # not one that lies in the repository
            raise FileNotFoundError("git is not installed")
        done = subprocess.run(
            [program, *_OPTIONS, *arguments],
            input=names,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
            env={**kept, **_FORBID},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        late = isinstance(error, subprocess.TimeoutExpired)
        reason = f"git did not answer within {_SECONDS} seconds" if late else str(error)
        raise LlamagenError.of("LG901", f"`{target}` cannot be read from git: {reason}") from None
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().split("\n", 1)[0]
        help = "write REVISION:PATH, for example HEAD~1:spec/llama/3/8b.yaml"
        if "dubious ownership" in reason:
            help = "if you trust its owner: `git config --global --add safe.directory FOLDER`"
        raise LlamagenError.of("LG901", f"`{target}` cannot be read from git: {reason}", help=help)
    return done.stdout
