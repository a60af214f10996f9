"""Models of the Hugging Face Hub, by name and only where one is asked for by `hf:`; and folders of the Hub's cache.

`huggingface_hub` finds, fetches and resumes, with the token of its own store; `HF_ENDPOINT`, `HF_HOME` and
`HF_HUB_OFFLINE` are its own too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llamagen.diagnostics import LlamagenError, quoted
from llamagen.files import TEXT, exists, is_folder, read_text

PREFIX = "hf:"
_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_WEIGHTS = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
    ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"),
)
"""In the order in which they are looked for."""


def located(checkpoint: str, beside: Sequence[str]) -> Path:
    """Where a checkpoint is: a path, a repository's folder in the Hub's cache, or ``hf:ORG/NAME[@REVISION]``.

    Of the Hub only weights and the small files ``beside`` them are fetched. Raises LG652 to LG655.
    """
    if not checkpoint.startswith(PREFIX):
        return _snapshot(Path(checkpoint))
    named = _NAME.fullmatch(checkpoint)
    if named is None:
        help = "as in hf:meta-llama/Llama-3.2-1B or hf:meta-llama/Llama-3.2-1B@main"
        raise LlamagenError.of(
            "LG655", f"{quoted(checkpoint)} names no model of the Hub", help=help
        )
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        help = "pip install 'llamagen[hub]', or give the folder of a download"
        raise LlamagenError.of(
            "LG652", "models of the Hub take the package huggingface_hub", help=help
        ) from None
    repo, revision = named["repo"], named["revision"]
    shown = quoted(checkpoint)
    try:
        folder = Path()
        for weights in _WEIGHTS:
            patterns = [*weights, *beside]
            folder = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))
            if any(list(folder.glob(pattern)) for pattern in weights):
                return folder
    except errors.GatedRepoError:
        help = f"ask for access on the page of {repo}, then `hf auth login`"
        raise LlamagenError.of(
            "LG653", f"{shown} is gated, and this account has no access", help=help
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        what = (
            "no such revision"
            if isinstance(error, errors.RevisionNotFoundError)
            else "no such model"
        )
        help = "check the name; a private one needs `hf auth login`"
        raise LlamagenError.of("LG655", f"the Hub has {what}: {shown}", help=help) from None
    except (errors.LocalEntryNotFoundError, OSError) as error:
        help = "connect, or give a folder; with HF_HUB_OFFLINE=1 only what is in the cache is read"
        first = str(error).strip().splitlines()[:1]
        message = f"{shown} cannot be fetched, and is not in the cache: {' '.join(first)[:200]}"
        raise LlamagenError.of("LG654", message, help=help) from None
    help = "safetensors and pytorch_model.bin are fetched; download another file and give its path"
    raise LlamagenError.of("LG655", f"{shown} has no weights of a name that is known", help=help)


def _snapshot(path: Path) -> Path:
    """Of a repository's folder in the cache, what `main` is there, or its only snapshot."""
    if not path.name.startswith("models--") or not is_folder(path / "snapshots"):
        return path
    main = path / "refs" / "main"
    snapshots = sorted((path / "snapshots").iterdir())
    wanted = read_text(main, TEXT, within=path).strip() if exists(main) else None
    for one in snapshots:
        if one.name == wanted or (wanted is None and len(snapshots) == 1):
            return one
    listed = ", ".join(quoted(one.name) for one in snapshots[:4]) or "none"
    which = "has no `refs/main`" if wanted is None else "lacks what its `refs/main` names"
    message = f"{quoted(str(path))} {which}; its snapshots: {listed}"
    raise LlamagenError.of("LG655", message, help="give one of them")
