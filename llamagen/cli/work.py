"""Commands that move weights or run models."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llamagen import api
from llamagen.cli import console
from llamagen.cli.options import spread
from llamagen.cli.progress import byte_progress
from llamagen.cli.read import Id, known_ids
from llamagen.cli.verify import Folder
from llamagen.diagnostics import LlamagenError, quoted
from llamagen.emit.options import DEFAULTS, ExportOptions
from llamagen.files import PROMPTS, is_folder, read_text
from llamagen.units import parse_bytes
from llamagen.weights.checkpoint import WEIGHTS_FILES

if TYPE_CHECKING:
    from llamagen.runtime.text import Message


@spread
def export(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="ID|CHECKPOINT",
            help="An id such as llama/3.2/1b, a YAML file, or a checkpoint that says itself what it is: a folder with "
            "config.json or its file of weights, a .gguf file, hf:ORG/NAME[@REVISION] on the Hugging "
            "Face Hub, an address (https://, s3://, hf://).",
            autocompletion=known_ids,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="DIR",
            help="Hub folder, Meta folder, a .safetensors or a .gguf file, hf:ORG/NAME, an address (read by ranges).",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="[NAME=]DIR",
            help="A LoRA of PEFT to merge into the checkpoint's weights; with a name it stays apart, to be switched at "
            "run time: repeat it for more.",
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
    """Write a folder with weights, for ONNX Runtime or for transformers, whole or not at all."""
    lora = _adapters(adapter or [])
    stored = None if checkpoint is None else api.located(checkpoint)
    elsewhere = spec.startswith("hf:") or "://" in spec
    says_itself = elsewhere or spec.endswith((".gguf", *WEIGHTS_FILES)) or is_folder(Path(spec))
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


def _adapters(texts: Sequence[str]) -> Path | dict[str, Path] | None:
    """One to merge, or those that stay apart by name."""
    named = [re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", text) for text in texts]
    apart = {match[1]: match[2] for match in named if match}
    if not apart and len(texts) < 2:
        return api.located(texts[0]) if texts else None
    if len(apart) < len(texts):
        raise typer.BadParameter(
            "--adapter DIR merges one; more stay apart, each --adapter NAME=DIR"
        )
    return {name: api.located(place) for name, place in apart.items()}


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
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="With a chat: its first message, of `system`."),
    ] = None,
    messages: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A chat so far: a JSON list of {role, content}; - is stdin."
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A prompt on each line, answered in turn; - is stdin."),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, metavar="N", help="So many of --prompts side by side.")
    ] = 1,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End before this text; repeat it for more."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among so many; 0 for all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample among the likeliest with this mass.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="One of the adapters that lie beside the model."),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="0 lets ONNX Runtime choose.")] = 0,
    provider: Annotated[
        str,
        typer.Option(
            metavar="cpu|cuda|webgpu|PATH",
            help="cuda needs onnxruntime-gpu, webgpu onnxruntime-ep-webgpu; PATH is the library of another.",
        ),
    ] = "cpu",
    format: Annotated[
        Literal["text", "json"],
        typer.Option(help="As text comes, or for each prompt a line of JSON, with its times."),
    ] = "text",
) -> None:
    """Generate with ONNX Runtime from an exported folder; tokens go to stdout as they come."""
    if sum(one is not None for one in (prompt, ids, messages, prompts)) != 1:
        raise typer.BadParameter(
            "give one of --prompt TEXT, --ids 1,2,3, --messages FILE and --prompts FILE"
        )
    if chat and ids is not None:
        raise typer.BadParameter("--chat needs --prompt TEXT")
    if system is not None and not chat and messages is None:
        raise typer.BadParameter("--system needs --chat or --messages FILE")
    if batch > 1 and prompts is None:
        raise typer.BadParameter("--batch goes with --prompts FILE")
    if image and prompts is not None:
        raise typer.BadParameter("--image goes with one prompt")
    asked: list[str | Sequence[int] | Sequence[Message]]
    if prompts is not None:
        asked = [line for line in _text(prompts).splitlines() if line]
        if not asked:
            raise LlamagenError.of("LG769", f"{_place(prompts)} has no prompt")
    elif messages is not None:
        asked = [api.messages_of(_text(messages), _place(messages))]
    else:
        asked = [prompt if prompt is not None else _ids(ids or "")]
    runner = api.Runner(folder, threads=threads, provider=provider, adapter=adapter)
    how: dict[str, Any] = {
        "chat": chat,
        "system": system,
        "stop": stop or (),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
    }
    if batch > 1:
        lines = [words for words in asked if isinstance(words, str)]
        for start in range(0, len(lines), batch):
            answers = runner.run_batch(lines[start : start + batch], **how)
            for number, (one, text) in enumerate(answers, start):
                if format == "json":
                    console.out(json.dumps(one.record(text), ensure_ascii=False) + "\n")
                else:
                    if number:
                        console.line()
                    console.line(text)
                    console.note(one.summary())
        return
    for number, words in enumerate(asked):
        stream = runner.run(words, images=image or (), **how)
        if format == "json":
            about = stream.record("".join(piece.text for piece in stream))
            console.out(json.dumps(about, ensure_ascii=False) + "\n")
            continue
        if number:
            console.line()
        for piece in stream:
            console.piece(piece.text)
        console.line()
        console.note(stream.summary())


def _place(file: str) -> str:
    return "stdin" if file == "-" else quoted(file)


def _text(file: str) -> str:
    """Of a file, or of stdin where it is ``-``. Raises LG769."""
    if file != "-":
        return read_text(Path(file), PROMPTS)
    data = sys.stdin.buffer.read((PROMPTS.limit or 0) + 1)
    if len(data) > (PROMPTS.limit or 0):
        raise LlamagenError.of("LG769", "stdin has more bytes than prompts may have")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"stdin is not UTF-8 text: byte {error.start:,} is wrong"
        raise LlamagenError.of("LG769", message, help=PROMPTS.help) from None


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
