"""A checkpoint of a model's exact shape with random weights, so that the main job can be tried without the real one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal

from llamagen.emit.written import Progress, Written, sizes_of
from llamagen.ir.graph import Graph
from llamagen.spec.resolve import ResolvedSpec
from llamagen.weights.safetensors import TargetDType

FLOAT8_NAME = "float8"


def _config(resolved: ResolvedSpec, dtype: str) -> dict[str, object] | None:
    from llamagen.emit.config import CONFIG_FILE, config_files

    text = config_files(resolved).get(CONFIG_FILE)
    if text is None:
        return None
    config: dict[str, object] = json.loads(text)
    if dtype != FLOAT8_NAME:
        return {**config, "torch_dtype": dtype}
    how = {
        "quant_method": "fbgemm_fp8",
        "activation_scale_ub": 1200.0,
        "modules_to_not_convert": ["lm_head"],
    }
    return {**config, "torch_dtype": "bfloat16", "quantization_config": how}


def random_checkpoint(
    resolved: ResolvedSpec,
    graph: Graph,
    out: Path,
    *,
    seed: int,
    dtype: str,
    shard_bytes: int | None,
    overwrite: bool,
    progress: Progress,
    reads: tuple[Path, ...],
) -> Written:
    """Write ``out`` in the Hub's format under the model's own names; equal seeds give equal bytes.

    ``progress`` is called with (bytes written, bytes in all).

    ``float8`` is what Meta's FP8 releases are: projections as float8 with a scale for each output, the rest bfloat16.

    Raises LG630 to LG634 for the output, LG702 for an unknown dtype, LG901 for a negative seed.
    """
    from llamagen.emit.onnx.profile import dtype_named
    from llamagen.emit.weight_types import STORED
    from llamagen.weights.names import wanted_by
    from llamagen.weights.random import RandomTensor, require_seed, write_random_checkpoint

    started = time.monotonic()
    require_seed(seed)
    tensors = [
        RandomTensor(path, p.shape, p.kind) for path, p in wanted_by(resolved, graph).items()
    ]
    stored: TargetDType | Literal["F8_E4M3"] = (
        "F8_E4M3" if dtype == FLOAT8_NAME else STORED[dtype_named(dtype)]
    )
    config = _config(resolved, dtype)
    write_random_checkpoint(
        out, tensors, seed, stored, shard_bytes, config, overwrite, progress, reads
    )
    return Written(out, sizes_of(out), time.monotonic() - started)
