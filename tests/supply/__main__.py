"""``python -m tests.supply``: write requirements.lock, requirements-dev.lock and sbom.cdx.json.

Locks are made by ``uv pip compile`` with hashes, of the versions that are installed where this runs: those that were
tested. PyTorch and what only its CUDA builds need are left out, because which build is right depends on the machine;
it is installed first, as the README says. The bill of materials is made by ``cyclonedx-py`` from the runtime lock.
Needs ``pip install -e '.[release]'``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {"requirements.lock": (), "requirements-dev.lock": ("dev",)}
SBOM = ROOT / "sbom.cdx.json"
TORCH = "torch==2.13.0"
ACCELERATOR = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")
HEAD = """\
# Written by `python -m tests.supply`; {made}.
# Install PyTorch first ({torch}, the build for your machine), then:
# pip install --require-hashes -r {name} && pip install --no-deps .
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="supply-") as folder:
        tested = Path(folder) / "tested.txt"
        tested.write_text("".join(f"{name}=={version}\n" for name, version in installed().items()))
        for name, extras in LOCKS.items():
            (ROOT / name).write_text(lock(name, extras, tested), encoding="utf-8")
    SBOM.write_text(
        bill((ROOT / "requirements.lock").read_text(encoding="utf-8")), encoding="utf-8"
    )
    return 0


def installed() -> dict[str, str]:
    """Versions without the local part that names a build."""
    found = {d.metadata["Name"].lower(): d.version.partition("+")[0] for d in distributions()}
    return dict(sorted((n, v) for n, v in found.items() if n != "llamagen"))


def lock(name: str, extras: tuple[str, ...], tested: Path) -> str:
    """Blocks of `name==version` with hashes, by name."""
    words = [
        "uv",
        "pip",
        "compile",
        "pyproject.toml",
        "--generate-hashes",
        "--no-header",
        "--universal",
    ]
    words += ["--no-emit-index-url", "--no-annotate", "--python-version", "3.11", "--quiet"]
    words += [word for extra in extras for word in ("--extra", extra)]
    done = subprocess.run(
        [*words, "--constraint", str(tested)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    made = "versions that were tested, hashes of every distribution"
    kept = [block for block in blocks(done.stdout) if not ACCELERATOR.match(block)]
    return HEAD.format(made=made, torch=TORCH, name=name) + "".join(kept)


def blocks(text: str) -> list[str]:
    """A requirement and its hashes each."""
    return [f"{block}\n" for block in re.split(r"\n(?=\S)", text.strip()) if block]


def bill(locked: str) -> str:
    """CycloneDX 1.6 without time or random serial, PyTorch included."""
    plain = re.sub(r"^#.*\n", "", locked, flags=re.M) + f"{TORCH}\n"
    words = ["cyclonedx-py", "requirements", "-", "--output-reproducible", "--of", "JSON"]
    words += ["--pyproject", str(ROOT / "pyproject.toml"), "--sv", "1.6"]
    done = subprocess.run(words, input=plain, check=True, capture_output=True, text=True)
    return json.dumps(without_index(json.loads(done.stdout)), indent=2, sort_keys=True) + "\n"


def without_index(found: dict[str, Any]) -> dict[str, Any]:
    """Components are named by their package URLs: where they were fetched from is the reader's choice."""
    names = {}
    for tool in found["metadata"]["tools"]["components"]:
        tool.pop("externalReferences", None)
    for one in found["components"]:
        names[one["bom-ref"]] = one["bom-ref"] = one["purl"]
        one.pop("description", None)
        for reference in one.get("externalReferences", ()):
            reference |= {"url": one["purl"], "comment": "hashes of its distributions"}
    for one in found["dependencies"]:
        one["ref"] = names.get(one["ref"], one["ref"])
        one["dependsOn"] = sorted(names.get(ref, ref) for ref in one.get("dependsOn", ()))
    found["components"].sort(key=lambda one: str(one["purl"]))
    found["dependencies"].sort(key=lambda one: str(one["ref"]))
    return found


if __name__ == "__main__":
    sys.exit(main())
