"""Commands that move weights or run models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamagen import api
from llamagen.cli import console
from llamagen.cli.options import spread
from llamagen.cli.progress import byte_progress
from llamagen.cli.read import Id
from llamagen.cli.verify import Folder
from llamagen.emit.options import DEFAULTS, ExportOptions
from llamagen.files import is_folder
from llamagen.units import parse_bytes


@spread
def export(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="ID|CHECKPOINT",
            help="An id such as llama/3.2/1b, a YAML file, or a checkpoint that says itself what it is: a folder with "
            "config.json, a .gguf file, hf:ORG/NAME[@REVISION] on the Hugging Face Hub.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="DIR",
            help="Hub folder, Meta folder, a .safetensors or a .gguf file, or hf:ORG/NAME.",
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="DIR",
            help="A LoRA of PEFT to merge into the checkpoint's weights.",
        ),
    ] = None,
    random_weights: Annotated[
        int | None,
        typer.Option("--random-weights", metavar="SEED", help="Unit-scale random weights instead."),
    ] = None,
    options: ExportOptions = DEFAULTS,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder that an earlier export wrote.")
    ] = False,
    ignore_config: Annotated[
        bool,
        typer.Option(
            "--ignore-config", help="The spec counts, whatever the checkpoint's config.json says."
        ),
    ] = False,
) -> None:
    """Write an ONNX folder with weights, streamed or linked from the checkpoint, whole or not at all."""
    lora = None if adapter is None else api.located(adapter)
    stored = None if checkpoint is None else api.located(checkpoint)
    says_itself = spec.endswith(".gguf") or spec.startswith("hf:") or is_folder(Path(spec))
    if stored is None and random_weights is None and says_itself:
        stored = api.located(spec)
        model = api.imported(stored, lora)
        console.note(f"{spec} is of the architecture {model.spec.extends}, as {model.id}")
    elif (stored is None) == (random_weights is None):
        raise typer.BadParameter("give either --checkpoint DIR or --random-weights SEED")
    elif lora is not None and stored is None:
        raise typer.BadParameter("--adapter changes the weights of a checkpoint")
    else:
        model = api.load(spec)
    with byte_progress("writing weights") as progress:
        written = model.export(
            out,
            options,
            checkpoint=stored,
            random_weights=random_weights,
            overwrite=overwrite,
            ignore_config=ignore_config,
            adapter=lora,
            progress=progress,
        )
    console.files(written.folder, written.files, written.seconds)
    console.diagnostics(written.notes)


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="Hub folder, Meta folder or a .safetensors file of A.")
    ],
    before: Annotated[str, typer.Option("--from", metavar="A", help="What the checkpoint is.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    after: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="B", help="What it becomes; A, in the Hub's names, by default."
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Largest file, e.g. '5 GB'; one file by default."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder that an earlier conversion wrote.")
    ] = False,
    ignore_config: Annotated[
        bool,
        typer.Option("--ignore-config", help="A counts, whatever the checkpoint's config says."),
    ] = False,
    other_logits: Annotated[
        bool,
        typer.Option("--other-logits", help="Convert although B computes other logits than A."),
    ] = False,
) -> None:
    """Write A's checkpoint as one of B: rows reordered, repeated, split or joined, where that is exact."""
    limit = None if shards is None else _size(shards)
    with byte_progress("writing weights") as progress:
        done = api.convert(
            checkpoint,
            before,
            after or before,
            out,
            shard_bytes=limit,
            overwrite=overwrite,
            ignore_config=ignore_config,
            other_logits=other_logits,
            progress=progress,
        )
    console.files(done.written.folder, done.written.files, done.written.seconds)
    for name, count in done.transforms:
        console.line(f"{name}: {count} tensor{'s' * (count != 1)}")
    console.line(f"as they were: {done.unchanged} tensor{'s' * (done.unchanged != 1)}")


def random_checkpoint(
    spec: Id,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    seed: Annotated[int, typer.Option(help="Equal seeds give equal bytes.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16 or float8.")] = "bfloat16",
    shards: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Largest file, e.g. '5 GB'; one file by default."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Write a checkpoint of a model's exact shape with random weights, to try things without the real one."""
    limit = None if shards is None else _size(shards)
    with byte_progress("writing weights") as progress:
        written = api.random_checkpoint(
            spec,
            out,
            seed=seed,
            dtype=dtype,
            shard_bytes=limit,
            overwrite=overwrite,
            progress=progress,
        )
    console.files(written.folder, written.files, written.seconds)


def run(
    folder: Folder,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Text; the folder must hold tokenizer.json.")
    ] = None,
    ids: Annotated[
        str | None, typer.Option(metavar="LIST", help="Token ids instead, comma-separated.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="An image; repeat it for more. They stand where the prompt says `<|image|>`, or in front.",
        ),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="The prompt is a message; use the folder's chat template."),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among so many; 0 for all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample among the likeliest with this mass.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="0 lets ONNX Runtime choose.")] = 0,
    provider: Annotated[
        str, typer.Option(metavar="cpu|cuda", help="cuda needs onnxruntime-gpu.")
    ] = "cpu",
) -> None:
    """Generate with ONNX Runtime from an exported folder; tokens go to stdout as they come."""
    if (prompt is None) == (ids is None):
        raise typer.BadParameter("give either --prompt TEXT or --ids 1,2,3")
    if chat and prompt is None:
        raise typer.BadParameter("--chat needs --prompt TEXT")
    words = prompt if ids is None else _ids(ids)
    stream = api.run(
        folder,
        words if words is not None else "",
        images=image or (),
        chat=chat,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        threads=threads,
        provider=provider,
    )
    for piece in stream:
        console.piece(piece.text)
    console.line()
    console.note(stream.summary())


def _ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of token ids such as 1,2,3") from None


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
