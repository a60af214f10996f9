"""``verify``: an exported folder against witnesses, against its manifest, or against the model before quantisation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamagen.cli import console
from llamagen.cli.exit_codes import FINDINGS

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `export` wrote.")]


def verify(
    folder: Folder,
    against: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Witnesses, comma-separated: torch, reference, transformers."
        ),
    ] = "torch,reference",
    steps: Annotated[
        int, typer.Option(min=1, max=65_536, help="Decode steps that are compared.")
    ] = 16,
    prompt_tokens: Annotated[
        int, typer.Option(min=2, max=1_048_576, help="More cross longer windows and chunks.")
    ] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Of the token ids.")] = 0,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Write the evidence, errors of every layer included: FILE.html or FILE.json.",
        ),
    ] = None,
    integrity: Annotated[
        bool,
        typer.Option(
            "--integrity", help="Only compare every file with MANIFEST.json; run nothing."
        ),
    ] = False,
    provider: Annotated[
        str, typer.Option(metavar="cpu|cuda", help="cuda needs onnxruntime-gpu.")
    ] = "cpu",
    quality: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|random",
            help="Only measure what quantising cost, against this checkpoint or the folder's seed.",
        ),
    ] = None,
) -> None:
    """Compare an exported folder with independent implementations; exit 1 beyond tolerance."""
    from llamagen import api_verify as api
    from llamagen.cli.progress import case_progress

    if integrity:
        _integrity(folder)
        return
    if quality is not None:
        _quality(folder, None if quality == "random" else Path(quality))
        return
    files = report or []
    api.check_report_names(files)
    witnesses = tuple(w.strip() for w in against.split(",") if w.strip())
    with case_progress("comparing") as progress:
        found = api.verify_folder(
            folder,
            witnesses,
            steps,
            prompt_tokens=prompt_tokens,
            seed=seed,
            layers=bool(files),
            provider=provider,
            progress=progress,
        )
    console.table(api.VERIFY_COLUMNS, [row.cells() for row in found.rows])
    for row in found.rows:
        if row.note and row.difference is not None:
            console.line(f"{row.witness}, {row.case}: {row.note}")
    for file in files:
        api.write_verify_report(found, file)
        console.line(f"wrote {file}")
    if not found.passed:
        raise typer.Exit(FINDINGS)


def _quality(folder: Path, checkpoint: Path | None) -> None:
    from llamagen import api_verify as api

    found = api.measure_quality(folder, checkpoint)
    console.line(f"KL divergence: mean {found.kl_mean:g} nats, largest {found.kl_max:g}")
    console.line(f"same likeliest token: {found.top1_agreement:.1%} of {found.positions}")
    console.line(f"inputs: {found.inputs}")


def _integrity(folder: Path) -> None:
    from llamagen import api_verify as api
    from llamagen.cli.progress import byte_progress
    from llamagen.units import bytes_text

    with byte_progress("reading") as progress:
        found = api.check_integrity(folder, progress)
    if found.findings:
        console.table(api.INTEGRITY_COLUMNS, [one.cells() for one in found.findings])
    for name in found.unread:
        console.line(f"{name}: its values were never read, only its size and header are known")
    verdict = f"{len(found.findings)} findings" if found.findings else "as they were written"
    if found.unread:
        unread = f"{len(found.unread)} of them, {bytes_text(found.unread_bytes)}, were never read"
        verdict += f"; {unread} (`export --scan` reads all, and refuses NaN)"
    console.line(f"{found.files} files, {bytes_text(found.bytes)}: {verdict}")
    console.line(f"sha256 of MANIFEST.json: {found.manifest_sha256}")
    if not found.whole:
        raise typer.Exit(FINDINGS)
