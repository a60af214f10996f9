"""``verify``: an exported folder against witnesses, against its manifest, or against the model before quantisation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamagen import api
from llamagen.cli import console
from llamagen.cli.exit_codes import FINDINGS
from llamagen.cli.progress import byte_progress, case_progress
from llamagen.units import bytes_text

if TYPE_CHECKING:
    from llamagen.verify.report import VerifyReport

VERIFY_COLUMNS = ("against", "case", "max/std", "rms/std", "tolerance", "result")
MUTATION_COLUMNS = ("caught by", "mutants")
INTEGRITY_COLUMNS = ("file", "damage", "detail")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `export` wrote.")]


def verify(
    folder: Folder,
    against: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Witnesses, comma-separated: torch, reference, transformers, openvino; or your own: "
            "./oracle.py, ./logits.npz, ./another-export. vllm alone, of a folder for transformers.",
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
    save_oracle: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz", help="Keep the first witness's logits, to compare elsewhere."
        ),
    ] = None,
    trust_code: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Let transformers run the model code in DIR, beside its config.json.",
        ),
    ] = None,
    leave_out: Annotated[
        str,
        typer.Option(metavar="GRAPHS", help="Graphs beside the text that need not be compared."),
    ] = "",
    provider: Annotated[
        str,
        typer.Option(
            metavar="cpu|cuda|webgpu|PATH",
            help="cuda needs onnxruntime-gpu, webgpu onnxruntime-ep-webgpu; PATH is the library of another.",
        ),
    ] = "cpu",
    vllm_python: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="With vllm: the interpreter that has it; this one."),
    ] = None,
    tp: Annotated[
        int, typer.Option(min=1, help="With vllm: devices that each layer is cut over.")
    ] = 1,
    pp: Annotated[int, typer.Option(min=1, help="With vllm: stages of layers.")] = 1,
    mutants: Annotated[
        bool,
        typer.Option(
            "--mutants",
            help="Only make the graph wrong, place by place, and say what would be seen.",
        ),
    ] = False,
    quality: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|random",
            help="Only measure what quantising cost, against this checkpoint or the folder's seed.",
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What both models read for --quality, in place of a text of ours."
        ),
    ] = None,
) -> None:
    """Compare an exported folder with independent implementations; exit 1 beyond tolerance."""
    if text is not None and quality is None:
        raise typer.BadParameter("--text goes with --quality DIR|random")
    if integrity:
        _integrity(folder)
        return
    if mutants:
        _mutants(folder, seed)
        return
    if quality is not None:
        _quality(folder, None if quality == "random" else api.located(quality), text)
        return
    files = report or []
    api.check_report_names(files)
    witnesses = _words(against)
    if "vllm" in witnesses:
        if witnesses != ("vllm",):
            raise typer.BadParameter("vllm looks at folders for transformers, the others at ONNX")
        served = api.verify_engine(folder, python=vllm_python, tensor=tp, pipeline=pp, seed=seed)
        _rows(served, files)
        return
    if (tp, pp) != (1, 1) or vllm_python is not None:
        raise typer.BadParameter("--tp, --pp and --vllm-python go with --against vllm")
    with case_progress("comparing") as progress:
        verified = api.verify_folder(
            folder,
            witnesses,
            steps,
            prompt_tokens=prompt_tokens,
            seed=seed,
            layers=bool(files),
            provider=provider,
            leave_out=_words(leave_out),
            trust_code=trust_code,
            save_oracle=save_oracle,
            encode=api.ids_of,
            progress=progress,
        )
    _rows(verified, files)


def _rows(verified: VerifyReport, files: Sequence[Path] = ()) -> None:
    console.table(VERIFY_COLUMNS, [row.cells() for row in verified.rows])
    for row in verified.rows:
        if row.note and row.difference is not None:
            console.line(f"{row.witness}, {row.case}: {row.note}")
    for limit in verified.facts.limits:
        console.line(str(limit))
    for file in files:
        api.write_verify_report(verified, file)
        console.line(f"wrote {file}")
    if not verified.passed:
        raise typer.Exit(FINDINGS)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _quality(folder: Path, checkpoint: Path | None, text: Path | None) -> None:
    with case_progress("measuring", "tokens") as progress:
        quality = api.measure_quality(folder, checkpoint, text=text, progress=progress)
    own, exact = quality.perplexity, quality.float32_perplexity
    if own is not None and exact is not None:
        over = f"{own / exact - 1:+.1%}"
        console.line(f"perplexity: {own:g}, of the float32 model {exact:g} ({over})")
    console.line(f"KL divergence: mean {quality.kl_mean:g} nats, largest {quality.kl_max:g}")
    console.line(f"same likeliest token: {quality.top1_agreement:.1%} of {quality.positions:,}")
    console.line(
        f"greedy: the same {quality.greedy_tokens} tokens behind {quality.greedy_same} of {quality.prompts} prompts, "
        f"{quality.greedy_until:g} on average before the first that differs"
    )
    console.line(f"inputs: {quality.inputs}")
    if own is None:
        console.line(
            "random ids say little of texts: the order of two quantisations can be reversed"
        )


def _mutants(folder: Path, seed: int) -> None:
    with case_progress("mutants") as progress:
        mutation = api.mutate(folder, seed=seed, progress=progress)
    console.table(MUTATION_COLUMNS, [(how, f"{count:,}") for how, count in mutation.caught])
    for survivor in mutation.survivors:
        console.line(f"survived: {survivor}")
    tried = f"{mutation.killed:,} of {mutation.tried:,} mutants caught"
    sample = f", a sample of {mutation.possible:,}" if mutation.tried < mutation.possible else ""
    console.line(f"{tried}{sample}")


def _integrity(folder: Path) -> None:
    with byte_progress("reading") as progress:
        integrity = api.check_integrity(folder, progress)
    if integrity.findings:
        console.table(INTEGRITY_COLUMNS, [one.cells() for one in integrity.findings])
    for name in integrity.unread:
        console.line(f"{name}: its values were never read, only its size and header are known")
    verdict = (
        f"{len(integrity.findings)} findings" if integrity.findings else "as they were written"
    )
    if integrity.unread:
        unread = f"{len(integrity.unread)} of them, {bytes_text(integrity.unread_bytes)}, were never read"
        verdict += f"; {unread} (`export --scan` reads all, and refuses NaN)"
    console.line(f"{integrity.files} files, {bytes_text(integrity.bytes)}: {verdict}")
    console.line(f"sha256 of MANIFEST.json: {integrity.manifest_sha256}")
    if not integrity.whole:
        raise typer.Exit(FINDINGS)
