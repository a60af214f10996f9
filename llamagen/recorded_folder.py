"""Folders that carry a list of what llamagen wrote into them, by which they are known again and may be replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import ValidationError

from llamagen.diagnostics import LlamagenError
from llamagen.files import MANIFEST, read_bytes
from llamagen.spec.schema import Closed
from llamagen.writing import Listing, staged_folder

RECORD = "llamagen.json"
Format: TypeAlias = Literal["llamagen checkpoint 1", "llamagen site 1"]


class FolderRecord(Closed):
    """No other tool reads this file."""

    format: Format
    files: dict[str, int]
    """Bytes of every file but this one, by its path in the folder."""


@contextmanager
def recorded_folder(
    out: Path, format: Format, overwrite: bool = False, reads: Sequence[Path] = ()
) -> Iterator[Path]:
    """A folder to write into, as `staged_folder` gives it; its record is added at the end.

    One of another format is not replaced.
    """

    def files(folder: Path) -> Collection[str]:
        data = read_bytes(folder / RECORD, MANIFEST, within=folder)
        try:
            record = FolderRecord.model_validate_json(data, strict=True)
        except ValidationError as error:
            raise LlamagenError.of("LG634", error.errors(include_url=False)[0]["msg"]) from error
        if record.format != format:
            raise LlamagenError.of("LG634", f"it is a {record.format}, no {format}")
        return record.files

    with staged_folder(out, Listing(RECORD, files), overwrite, reads) as staging:
        yield staging
        written = sorted(path for path in staging.rglob("*") if path.is_file())
        sizes = {path.relative_to(staging).as_posix(): path.stat().st_size for path in written}
        text = FolderRecord(format=format, files=sizes).model_dump_json(indent=2)
        (staging / RECORD).write_text(text + "\n", encoding="utf-8", newline="\n")
