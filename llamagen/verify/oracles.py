"""Witnesses that the user brings: a function in a Python file, another export, logits that were recorded.

A bare word in ``--against`` is a witness of this house; what has a ``/`` or ends with .py or .npz is one of these.
The contract of a Python file is in docs/verify.md.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagen import files
from llamagen.confined import Companion, Limits, Stopped
from llamagen.diagnostics import LlamagenError
from llamagen.verify.scenarios import NOTHING, FloatArray, IntArray, Scenario, Session, Values
from llamagen.writing import require_writable, translated

_PROCESS = Path(__file__).with_name("oracle_process.py")

OPENVINO = "openvino"
READERS: Mapping[str, Path] = {OPENVINO: Path(__file__).with_name("openvino_reader.py")}
"""Engines of others that read the graph of the folder themselves, by the package that each of them is."""
_LIMITS = Limits(seconds=3600, memory=1 << 47, answer=1 << 42, file=1 << 47)
"""Of each call. The file is the user's own: it may take what the machine has, but not hang or crash `verify`."""

READS_TEXT = "an oracle of one's own reads text alone"
NOT_RECORDED = "it was not recorded"


def is_path(name: str) -> bool:
    return "/" in name or Path(name).suffix in (".py", ".npz")


@dataclass(frozen=True, slots=True)
class Script:
    """The function ``logits`` of a Python file, in a process of its own."""

    file: Path
    width: int
    """Of the logits."""
    child: Companion

    @staticmethod
    def of(file: Path, folder: Path, width: int) -> Script:
        """Raises LG774 for a file that is not there."""
        files.checked(file, files.ORACLE)
        words = [str(file.resolve()), str(folder.resolve())]
        return Script(file, width, Companion(_PROCESS, words, _LIMITS))

    @staticmethod
    def of_reader(package: str, graph: Path, width: int) -> Script:
        """One of ``READERS``. Raises LG774 where it is not installed."""
        if find_spec(package) is None:
            help = f"`pip install {package}` beside llamagen, or leave this witness out"
            raise LlamagenError.of("LG774", f"{package} is not installed", help=help)
        words = [str(READERS[package]), str(graph.resolve())]
        return Script(Path(package), width, Companion(_PROCESS, words, _LIMITS))

    @property
    def name(self) -> str:
        return self.file.name

    def start(self, images: Values = NOTHING, past: Values = NOTHING) -> Session:
        assert not images and not past, READS_TEXT
        return _ScriptSession(self)

    def load(self) -> None:
        """Run the file and its function ``load``, unless that was done. Raises LG774."""
        self.answer(b"")

    def ask(self, ids: IntArray, positions: IntArray, mask: IntArray, first: bool) -> Answer:
        question = io.BytesIO()
        arguments: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": positions,
            "attention_mask": mask,
        }
        np.savez(question, first=np.array(first), **arguments)
        answered = self.answer(question.getvalue())
        with np.load(io.BytesIO(answered), allow_pickle=False) as found:
            logits, keeps = found["logits"], bool(found["keeps"])
        wanted = [*ids.shape, self.width]
        if list(logits.shape) != wanted:
            message = f"{self.file} gives logits of the shape {list(logits.shape)} for ids of {list(ids.shape)}"
            help = f"give one row a token and one number an id of the vocabulary: {wanted}"
            raise LlamagenError.of("LG774", message, help=help)
        if not np.isfinite(logits[mask[:, -ids.shape[1] :] > 0]).all():
            message = f"{self.file} gives logits of real tokens that are no finite numbers"
            raise LlamagenError.of(
                "LG774", message, help="what it gives for padding is not looked at"
            )
        return logits, keeps

    def answer(self, question: bytes) -> bytes:
        try:
            return self.child.ask(question)
        except Stopped as error:
            help = "docs/verify.md says what it reads"
            if self.name not in READERS:
                help = "docs/verify.md says what the function gets and returns"
            message = f"{self.file} cannot be asked: {error}"
            raise LlamagenError.of("LG774", message, help=help) from None


Answer = tuple[FloatArray, bool]
"""Logits, and whether the function gave a past with them."""


class _ScriptSession:
    """Call by call where the function returns a past, else with the whole text so far."""

    def __init__(self, oracle: Script) -> None:
        self.oracle = oracle
        self.keeps: bool | None = None
        self.text: list[tuple[IntArray, IntArray]] = []

    def step(
        self, input_ids: IntArray, mask: IntArray, positions: IntArray, beside: Values = NOTHING
    ) -> FloatArray:
        first = self.keeps is None
        self.text.append((input_ids, positions))
        if not self.keeps:
            input_ids, positions = (
                np.concatenate(parts, axis=1) for parts in zip(*self.text, strict=True)
            )
        logits, keeps = self.oracle.ask(input_ids, positions, mask, first or not self.keeps)
        if self.keeps not in (None, keeps):
            message = f"{self.oracle.file} returns a past after some calls and none after others"
            raise LlamagenError.of("LG774", message, help="return (logits, past), or logits alone")
        self.keeps = keeps
        return logits[:, -self.text[-1][0].shape[1] :]


# Recorded logits

_FORMAT = "llamagen-oracle-1"


@dataclass(frozen=True, slots=True)
class Recorded:
    """Logits of a witness, case by case, from another place or time."""

    file: Path
    of: str
    """Who gave them."""
    logits: Mapping[str, FloatArray]

    @property
    def name(self) -> str:
        return self.file.name

    def of_case(self, case: Scenario) -> FloatArray:
        """[tokens, V]"""
        return self.logits[case.name]

    @staticmethod
    def read(
        file: Path, cases: Sequence[Scenario], width: int, asked: Mapping[str, int]
    ) -> Recorded:
        """Raises LG774 for what is no such file, or was recorded of other inputs."""
        found: dict[str, FloatArray] = {}
        try:
            with (
                files.open_file(file, files.ORACLE) as stream,
                np.load(stream, allow_pickle=False) as arrays,
            ):
                about = json.loads(str(arrays["about"]))
                if about["format"] != _FORMAT:
                    raise ValueError(f"its format is {about['format']}")
                for case in cases:
                    if f"{case.name}/logits" in arrays:
                        if not _same_inputs(case, arrays):
                            options = " ".join(f"--{k} {v}" for k, v in about["asked"].items())
                            message = f"{file} was recorded of other inputs than `{case.name}`"
                            raise LlamagenError.of(
                                "LG774", message, help=f"ask as it did: {options}"
                            )
                        logits = arrays[f"{case.name}/logits"]
                        if logits.shape != (case.tokens, width) or logits.dtype.kind != "f":
                            wanted = f"{[case.tokens, width]} in float"
                            held = f"{list(logits.shape)} in {logits.dtype}"
                            raise ValueError(f"of `{case.name}` it has {held}, not {wanted}")
                        found[case.name] = logits.astype(np.float64)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            help = "`verify DIR --against WITNESS --save-oracle FILE.npz` writes one"
            message = f"{file} is no file of recorded logits: {error}"
            raise LlamagenError.of("LG774", message, help=help) from None
        return Recorded(file, str(about["of"]), found)


def _same_inputs(case: Scenario, arrays: Mapping[str, NDArray[np.generic]]) -> bool:
    return all(
        np.array_equal(arrays[f"{case.name}/{name}"], value)
        for name, value in _inputs(case).items()
    )


def _inputs(case: Scenario) -> dict[str, NDArray[np.generic]]:
    positions = np.concatenate([call[2] for call in case.calls()], axis=1)
    splits = np.array(case.splits)
    return {"ids": case.input_ids, "mask": case.mask, "positions": positions, "splits": splits}


def save(
    file: Path,
    of: str,
    logits: Mapping[str, FloatArray],
    cases: Sequence[Scenario],
    asked: Mapping[str, int],
) -> None:
    """Logits in float32 beside the inputs that they are of, as plain arrays: 4 bytes a token and id of the vocabulary.

    Raises LG632 to LG634 for the place.
    """
    about = {"format": _FORMAT, "of": of, "asked": dict(asked)}
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about))}
    for case in cases:
        if case.name in logits:
            arrays |= {f"{case.name}/{name}": value for name, value in _inputs(case).items()}
            arrays[f"{case.name}/logits"] = logits[case.name].astype(np.float32)
    new = file.with_name(f".{file.name}.llamagen")
    with translated(file):
        try:
            with new.open("wb") as stream:
                np.savez(stream, **arrays)
            new.replace(file)
        finally:
            new.unlink(missing_ok=True)


def require_recordable(file: Path) -> None:
    """Raises LG774 for a name that is not .npz, LG634 where something else than recorded logits is there."""
    if file.suffix != ".npz":
        raise LlamagenError.of("LG774", f"{str(file)!r}: recorded logits are in a file named .npz")
    if files.exists(file) and not _has_logits(file):
        message = f"{str(file)!r} is there already, and holds no recorded logits"
        raise LlamagenError.of("LG634", message, help="choose another name")
    require_writable(file.parent)


def _has_logits(file: Path) -> bool:
    with files.open_file(file, files.ORACLE) as stream:
        return zipfile.is_zipfile(stream) and "about.npy" in zipfile.ZipFile(stream).namelist()
