"""Where a checkpoint is that is no path: the Hugging Face Hub, by `hf:`, the folders of its cache, or an address.

`huggingface_hub` finds, fetches and resumes, with the token of its own store; `HF_ENDPOINT`, `HF_HOME` and
`HF_HUB_OFFLINE` are its own too. `hf:` fetches into its cache; `hf://`, as any address, is read by ranges.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llamagen.diagnostics import LlamagenError, quoted
from llamagen.files import TEXT, exists, is_folder, read_text
from llamagen.weights.remote import standing_for

PREFIX = "hf:"
_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_ADDRESS = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(?P<file>/[\w./-]+)?"
)
_WEIGHTS = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
    ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"),
)
"""In the order in which they are looked for."""


def located(checkpoint: str, beside: Sequence[str]) -> Path:
    """Where a checkpoint is: a path, a repository's folder in the Hub's cache, ``hf:ORG/NAME[@REVISION]``, an address.

    Only weights and the small files ``beside`` them are fetched; of an address (https://, s3://, hf://) the weights are
    not, a folder stands for it while this process runs. Raises LG622 and LG652 to LG656.
    """
    if not checkpoint.startswith(PREFIX):
        return (
            standing_for(checkpoint, beside) if "://" in checkpoint else _snapshot(Path(checkpoint))
        )
    by_ranges = checkpoint.startswith(f"{PREFIX}//")
    named = (_ADDRESS if by_ranges else _NAME).fullmatch(checkpoint)
    if named is None:
        help = "as in hf:meta-llama/Llama-3.2-1B, hf:meta-llama/Llama-3.2-1B@main, hf://meta-llama/Llama-3.2-1B"
        raise LlamagenError.of(
            "LG655", f"{quoted(checkpoint)} names no model of the Hub", help=help
        )
    try:
        import huggingface_hub as hub
    except ImportError:
        help = "pip install 'llamagen[hub]', or give the folder of a download"
        raise LlamagenError.of(
            "LG652", "models of the Hub take the package huggingface_hub", help=help
        ) from None
    repo, revision = named["repo"], named["revision"]
    if by_ranges:
        with _refusals(checkpoint, repo):
            # another commit may become `main` meanwhile
            commit = hub.HfApi().model_info(repo, revision=revision).sha
        return standing_for(f"hf://{repo}@{commit}{named['file'] or ''}", beside)
    with _refusals(checkpoint, repo):
        for weights in _WEIGHTS:
            patterns = [*weights, *beside]
            folder = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))
            if any(list(folder.glob(pattern)) for pattern in weights):
                return folder
    help = "safetensors and pytorch_model.bin are fetched; of another file give the address, hf://ORG/NAME/FILE"
    message = f"{quoted(checkpoint)} has no weights of a name that is known"
    raise LlamagenError.of("LG655", message, help=help)


@contextmanager
def _refusals(checkpoint: str, repo: str) -> Iterator[None]:
    from huggingface_hub import errors

    shown = quoted(checkpoint)
    try:
        yield
    except errors.GatedRepoError:
        help = f"ask for access on the page of {repo}, then `hf auth login`"
        raise LlamagenError.of(
            "LG653", f"{shown} is gated, and this account has no access", help=help
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        of = "revision" if isinstance(error, errors.RevisionNotFoundError) else "model"
        help = "check the name; a private one needs `hf auth login`"
        raise LlamagenError.of("LG655", f"the Hub has no such {of}: {shown}", help=help) from None
    except Exception as error:  # of the system, of the cache, of whichever httpx it is
        help = "connect, or give a folder; with HF_HUB_OFFLINE=1 only what is in the cache is read"
        if getattr(error, "errno", None) == errno.ENOSPC:
            help = f"the Hub's cache has no room; hf://{repo} is read by ranges, without a copy"
        first = str(error).strip().splitlines()[:1]
        lacks = "" if checkpoint.startswith(f"{PREFIX}//") else ", and is not in the cache"
        message = f"{shown} cannot be fetched{lacks}: {' '.join(first)[:200]}"
        raise LlamagenError.of("LG654", message, help=help) from None


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
