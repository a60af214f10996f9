"""``python -m tests.field.cuda_kernels``: writes tests/data/cuda_kernels.yaml as the published provider has them."""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from pathlib import Path

import yaml

from bench.environments import environment
from tests.field.cuda_stub import build, build_beside, site_of

FILE = Path(__file__).parents[1] / "data" / "cuda_kernels.yaml"
OPSETS = {"": 24, "com.microsoft": 1}
"""Of exported graphs."""
KINDS = ("float", "double", "float16", "bfloat16", "bool", "int32", "int64", "uint8")
LIST = """
import json
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def as kernels
cuda = (one for one in kernels() if one.provider == "CUDAExecutionProvider")
print(json.dumps([
    [one.domain, one.op_name, one.version_range, sorted(set().union(*one.type_constraints.values()))] for one in cuda
]))
"""


def registered() -> dict[str, set[str]]:
    """Operator -> element types of any of its inputs, in the opsets of exported graphs."""
    python = environment("cuda")
    stub = build(site_of(python), python.parents[1] / "stub-beside")
    build_beside(stub)
    asked = [str(python), "-c", LIST]
    env = {**os.environ, "LD_LIBRARY_PATH": str(stub)}
    answer = subprocess.run(asked, check=True, env=env, stdout=subprocess.PIPE, text=True)
    found: dict[str, set[str]] = defaultdict(set)
    for domain, name, (first, last), types in json.loads(answer.stdout):
        if domain in OPSETS and first <= OPSETS[domain] <= last:
            found[name] |= {one.removeprefix("tensor(").removesuffix(")") for one in types}
    return found


def main() -> None:
    text, kernels = FILE.read_text(), registered()
    known = yaml.safe_load(text)
    head = text[: text.index("cuda:")]
    lines = ["cuda:"]
    for name in known["cuda"]:
        kinds = [kind for kind in KINDS if kind in kernels[name]]
        lines.append(f"  {name}: [{', '.join(kinds)}]")
    FILE.write_text(head + "\n".join(lines) + "\n" + text[text.index("cpu:") :])


if __name__ == "__main__":
    main()
