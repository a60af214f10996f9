"""The locks and the bill of materials are those of pyproject.toml: python -m tests.supply."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.supply.__main__ import ACCELERATOR, LOCKS, SBOM, TORCH, licences, needs, serial

ROOT = Path(__file__).resolve().parents[2]
FIX = "run `python -m tests.supply`"
ENTRY = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", re.M)


def wanted(extras: tuple[str, ...]) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def locked(name: str) -> dict[str, str]:
    return dict(ENTRY.findall((ROOT / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_a_fitting_version_of_every_dependency(name: str) -> None:
    found = locked(name)
    for one in wanted(LOCKS[name]):
        package = canonicalize_name(one.name)
        if package != "torch":
            assert package in found, f"{package}: {FIX}"
            assert one.specifier.contains(found[package]), f"{package} {found[package]}: {FIX}"


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_has_hashes_and_no_place(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[a-z0-9])", text.split("\n", 3)[3])
    assert len(blocks) == len(locked(name)) > 30
    for block in blocks:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block
    assert "://" not in text and not ACCELERATOR.search(text.split("\n", 3)[3])


def test_the_runtime_lock_is_part_of_the_other() -> None:
    runtime, dev = map(locked, LOCKS)
    assert runtime.items() <= dev.items(), FIX


def test_the_bill_of_materials_is_the_runtime_lock() -> None:
    found = json.loads(SBOM.read_text(encoding="utf-8"))
    assert found["bomFormat"] == "CycloneDX" and found["specVersion"] == "1.6"
    listed = {one["name"]: one["version"] for one in found["components"]}
    torch, version = TORCH.split("==")
    assert listed == {**locked("requirements.lock"), torch: version}, FIX
    assert found["metadata"]["component"]["name"] == "llamagen"
    assert "timestamp" not in found["metadata"] and found["serialNumber"] == serial(found)
    for one in found["components"]:
        assert one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}"


def test_every_component_has_a_licence_and_its_edges() -> None:
    """Those that its metadata names, where it is installed."""
    found = json.loads(SBOM.read_text(encoding="utf-8"))
    refs = {one["bom-ref"]: one["name"] for one in found["components"]}
    for one in found["components"]:
        assert one["licenses"] == licences(one["name"]) != [], f"{one['name']}: {FIX}"
    edges = {one["ref"]: one["dependsOn"] for one in found["dependencies"]}
    root = found["metadata"]["component"]["bom-ref"]
    assert set(edges) == {root, *refs}
    names = {root: "llamagen", **refs}
    for ref, below in edges.items():
        own = {canonicalize_name(one.name) for one in wanted(())}
        needed = own if ref == root else needs(names[ref])
        assert {canonicalize_name(refs[one]) for one in below} == needed & {
            canonicalize_name(name) for name in refs.values()
        }, f"{names[ref]}: {FIX}"
    reached, todo = set(), [root]
    while todo:
        here = todo.pop()
        reached.add(here)
        todo += [ref for ref in edges[here] if ref not in reached]
    assert reached == set(edges), "a component that nobody needs"


def test_the_readme_installs_the_locked_torch() -> None:
    assert f"pip install {TORCH}" in (ROOT / "README.md").read_text(encoding="utf-8")
    (torch,) = (one for one in wanted(()) if one.name == "torch")
    assert torch.specifier.contains(TORCH.split("==")[1])


def test_the_source_distribution_has_everything_that_the_repository_has(tmp_path: Path) -> None:
    """The tests too: whoever packages it runs them."""
    words = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    missing = {name for name in listed if name and (ROOT / name).is_file()} - inside
    assert missing <= {".gitignore"}
