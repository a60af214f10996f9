"""Finding specs: by id in spec roots, by path, and along ``extends``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from llamagen.diagnostics import Diagnostic, LlamagenError, Related, did_you_mean, nearest
from llamagen.resources import data_folder
from llamagen.spec.checks import resolve
from llamagen.spec.resolve import Merged, ResolvedSpec
from llamagen.spec.source import Scalar, SourceMap, load_source

MAX_CHAIN = 32
_NOT_MODELS = frozenset({"rules", "dialects"})


def is_sketch(spec_id: str) -> bool:
    """Whether a spec is assumed, dimensions and all: those below ``sketch/`` are."""
    return spec_id.startswith("sketch/")


@dataclass
class Registry:
    """Specs of one or more roots; files read once. The installed ``spec/`` folder is the last root if ``shipped``."""

    roots: Sequence[Path] = ()
    shipped: bool = True
    _sources: dict[Path, SourceMap] = field(default_factory=dict, repr=False)
    _resolved: dict[Path, ResolvedSpec] = field(default_factory=dict, repr=False)
    _merged: Merged = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        last = (data_folder("spec"),) if self.shipped else ()
        self.roots = (*(Path(r) for r in self.roots), *last)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that was read."""
        return tuple(self._sources)

    def ids(self, *, abstract: bool = True, sketches: bool = False) -> list[str]:
        """Every id, sorted. Names that begin with ``_`` are abstract by convention.

        ``sketches`` are no records of models: what goes over the family leaves them out, an id alone reaches them.
        """
        ids = {i for root in self.roots for i in _ids_below(root)}
        kept = (i for i in ids if abstract or not i.rsplit("/", 1)[-1].startswith("_"))
        return sorted(i for i in kept if sketches or not is_sketch(i))

    def path_of(self, spec_id: str) -> Path | None:
        for root in self.roots:
            path = root / f"{spec_id}.yaml"
            if _is_file(path) and _inside(path, root):
                return path
        return None

    def load(self, target: str | Path) -> ResolvedSpec:
        """Resolve a spec by id or by path of a YAML file. Raises LlamagenError."""
        path = self.locate(target)
        if path not in self._resolved:
            self._resolved[path] = resolve(self.chain(path), self._merged)
        return self._resolved[path]

    def load_text(self, text: str, name: str = "<text>") -> ResolvedSpec:
        """Resolve a spec that is given as YAML text; ``name`` stands for the file in findings."""
        source = load_source(text, name)
        return resolve(self._chain_of(source, Path(name)))

    def locate(self, target: str | Path) -> Path:
        """The file of an id or path. Raises LlamagenError LG201 with the nearest known id."""
        text = str(target)
        if isinstance(target, Path) or text.endswith((".yaml", ".yml")):
            path = Path(target)
            if not _is_file(path):
                raise LlamagenError.of("LG201", f"there is no spec file `{text}`")
            return path
        if (known := self.path_of(text)) is not None:
            return known
        known_ids = self.ids(sketches=True)
        hint = self._of_repository(text) or nearest(text, known_ids)
        help = f"did you mean `{hint}`?" if hint else "`llamagen list` shows the ids that are known"
        if text.endswith(".json"):
            help = f"`llamagen import {text} --to spec.yaml` makes a spec of a configuration"
        raise LlamagenError.of("LG201", f"there is no spec with the id `{text}`", help=help)

    def _of_repository(self, name: str) -> str | None:
        """The id of the model in the Hub's repository ``name``, an owner and a name."""
        if name.count("/") != 1:
            return None
        for spec_id in self.ids(abstract=False):
            try:
                release = self.load(spec_id).spec.release
            except LlamagenError:
                continue
            if release is not None and (release.repo or "").casefold() == name.casefold():
                return spec_id
        return nearest(name.rpartition("/")[2], self.ids())

    def source(self, path: Path) -> SourceMap:
        if path not in self._sources:
            self._sources[path] = load_source(path, _display(path))
        return self._sources[path]

    def chain(self, path: Path) -> list[SourceMap]:
        """Files from the first base to ``path``. Raises LlamagenError for cycles and unknown bases."""
        source = self.source(path)
        findings = list(self._wrong_id(source, path))
        if findings:
            raise LlamagenError(*findings)
        return self._chain_of(source, path)

    def _chain_of(self, source: SourceMap, path: Path) -> list[SourceMap]:
        chain: list[tuple[Path, SourceMap]] = [(path, source)]
        while (base := _extends(chain[-1][1])) is not None:
            here = self._base(base, *chain[-1])
            seen = [_real(p) for p, _ in chain]
            if _real(here) in seen or len(chain) >= MAX_CHAIN:
                raise LlamagenError(_cycle(chain, base))
            chain.append((here, self.source(here)))
        return [source for _, source in reversed(chain)]

    def _base(self, base: Scalar, child: Path, source: SourceMap) -> Path:
        """By path beside the child; by id in the roots, in the folder that the child's own id counts from, or below any
        folder that the child is in, the nearest first, if the file there has that id."""
        if base.text.endswith((".yaml", ".yml")):
            path = child.parent / base.text
            if _is_file(path):
                return path
            message = f"`extends` names the file `{base.text}`, which is not there"
            raise LlamagenError.of("LG202", message, span=base.span)
        known = self.path_of(base.text)
        if known is not None:
            return known
        root = _own_root(child, source)
        if (
            root is not None
            and _is_file(path := root / f"{base.text}.yaml")
            and _inside(path, root)
        ):
            return path
        for folder in child.resolve().parents:
            path = folder / f"{base.text}.yaml"
            if _is_file(path) and _inside(path, folder):
                node = self.source(path).root.get("id")
                if isinstance(node, Scalar) and node.text == base.text:
                    return path
        message = f"`extends` names `{base.text}`, which is not known"
        beside = "name an id, or a file beside this one: `extends: base.yaml`; ids are found in folders above, too"
        help = did_you_mean(base.text, self.ids(), beside)
        raise LlamagenError.of("LG202", message, span=base.span, help=help)

    def _wrong_id(self, source: SourceMap, path: Path) -> Iterator[Diagnostic]:
        for root in self.roots:
            if not _inside(path, root):
                continue
            expected = _real(path).relative_to(_real(root)).with_suffix("").as_posix()
            node = source.root.get("id")
            if isinstance(node, Scalar) and node.text != expected:
                message = f"the id `{node.text}` does not match the file, which is `{expected}`"
                yield Diagnostic(
                    "LG205", "error", message, node.span, (), f"write `id: {expected}`"
                )
            return


def _extends(source: SourceMap) -> Scalar | None:
    node = source.root.get("extends")
    return node if isinstance(node, Scalar) and isinstance(node.value, str) else None


def _own_root(path: Path, source: SourceMap) -> Path | None:
    """The folder that the id counts from: `a/b` in x/a/b.yaml counts from x."""
    node = source.root.get("id")
    parts = Path(node.text).parts if isinstance(node, Scalar) else ()
    if not parts or path.resolve().with_suffix("").parts[-len(parts) :] != parts:
        return None
    return path.resolve().parents[len(parts) - 1]


def _cycle(chain: Sequence[tuple[Path, SourceMap]], base: Scalar) -> Diagnostic:
    steps = tuple(
        Related(f"`{source.file}` extends `{node.text}`", node.span)
        for _, source in chain[:-1]
        if (node := _extends(source)) is not None
    )
    message = f"`extends: {base.text}` closes a cycle of {len(chain)} specs"
    return Diagnostic(
        "LG203", "error", message, base.span, steps, "a base must not extend its heirs"
    )


def _ids_below(root: Path) -> Iterator[str]:
    for path in root.rglob("*.yaml"):
        relative = path.relative_to(root)
        if len(relative.parts) > 1 and relative.parts[0] not in _NOT_MODELS:
            yield relative.with_suffix("").as_posix()


def _is_file(path: Path) -> bool:
    """A name that the file system cannot even look up (too long, a null character) is no file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _inside(path: Path, root: Path) -> bool:
    return _real(path).is_relative_to(_real(root))


def _real(path: Path) -> Path:
    return _without_links(path.absolute())


@cache
def _without_links(path: Path) -> Path:
    """Asking the file system once for each path matters with many specs."""
    return path.resolve()


def _display(path: Path) -> str:
    """The path as findings show it: relative to the working folder when it lies below it."""
    try:
        return _real(path).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)
