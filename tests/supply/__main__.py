"""``python -m tests.supply``: write requirements.lock, requirements-dev.lock and sbom.cdx.json.

Locks are made by ``uv pip compile`` with hashes, of the versions that are installed where this runs: those that were
tested. PyTorch and what only its CUDA builds need are left out, because which build is right depends on the machine;
it is installed first, as the README says. The bill of materials is made by ``cyclonedx-py`` from the runtime lock;
licences and who needs whom are those of the installed distributions.
Needs ``pip install -e '.[release]'``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from importlib.metadata import distributions, metadata, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    """CycloneDX 1.6 without time, its serial number made of its content, PyTorch included."""
    plain = re.sub(r"^#.*\n", "", locked, flags=re.M) + f"{TORCH}\n"
    words = ["cyclonedx-py", "requirements", "-", "--output-reproducible", "--of", "JSON"]
    words += ["--pyproject", str(ROOT / "pyproject.toml"), "--sv", "1.6"]
    done = subprocess.run(words, input=plain, check=True, capture_output=True, text=True)
    found = with_facts(without_index(json.loads(done.stdout)))
    found["serialNumber"] = serial(found)
    return text_of(found)


def text_of(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=2, sort_keys=True) + "\n"


def serial(found: dict[str, Any]) -> str:
    """Another for every other content, and the same for the same."""
    content = text_of({k: v for k, v in found.items() if k != "serialNumber"})
    return uuid.uuid5(uuid.NAMESPACE_URL, content).urn


def with_facts(found: dict[str, Any]) -> dict[str, Any]:
    """Licences of the components, and which of them each needs on some machine, as their metadata say."""
    refs: dict[str, str] = {
        canonicalize_name(one["name"]): one["bom-ref"] for one in found["components"]
    }
    for one in found["components"]:
        one["licenses"] = licences(one["name"])
    root = found["metadata"]["component"]["bom-ref"]
    names: dict[str, str] = {"llamagen": root, **refs}
    found["dependencies"] = [
        {"ref": ref, "dependsOn": sorted({refs[n] for n in needs(name) if n in refs})}
        for name, ref in sorted(names.items(), key=lambda pair: str(pair[1]))
    ]
    return found


ELSEWHERE: Mapping[str, dict[str, Any]] = {
    "colorama": {"license": {"name": "BSD License"}},
    "httpx2-jsfetch": {"expression": "BSD-3-Clause"},
}
"""What other systems alone install, and the licence that its metadata state; none needs another distribution."""


def licences(name: str) -> list[dict[str, Any]]:
    """The SPDX expression; without one what the author wrote instead, or the classifiers."""
    if name in ELSEWHERE:
        return [ELSEWHERE[name]]
    about = metadata(name)
    if about["License-Expression"]:
        return [{"expression": about["License-Expression"]}]
    marks = [c for c in about.get_all("Classifier", ()) if c.startswith("License :: ")]
    words = [mark.rpartition(" :: ")[2] for mark in marks]
    stated = about["License"] or ""
    if not words and stated:
        words = [stated.strip().splitlines()[0]]
    return [{"license": {"name": word}} for word in words]


def needs(name: str) -> set[str]:
    """Dependencies without extras, whatever the machine."""
    lines = map(Requirement, () if name in ELSEWHERE else requires(name) or ())
    return {canonicalize_name(one.name) for one in lines if "extra" not in str(one.marker or "")}


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
