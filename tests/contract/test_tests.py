"""Rules about the tests themselves: no exception becomes a skip, whatever is skipped names what is missing, and no
clock decides: what passes on an idle machine passes on a busy one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
SKIPS = ("skip", "skipif", "xfail", "importorskip", "SkipTest", "skipTest")
ALLOWED = {
    "tests/bench/test_gpu.py": "what is said without a GPU is not said where there is one",
    "tests/field/test_field.py": "witnesses are installed from a registry",
    "tests/real.py": "a trained model comes from a registry",
    "tests/test_python.py": "not every machine has several versions of Python",
    "tests/unit/export/test_errors.py": "mounting a file system needs rights that not every machine gives",
    "tests/unit/runtime/test_session.py": "what a build of onnxruntime for the CPU refuses, one for CUDA starts",
    "tests/unit/test_staged_folder.py": "only Linux has /proc",
    "tests/unit/weights/test_values.py": "a format without an infinity cannot hold one",
}
"""Files that may skip, and why."""


def files() -> list[Path]:
    return sorted(p for p in TESTS.rglob("*.py") if "corpus" not in p.parts)


def name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def skips(tree: ast.AST) -> Iterator[ast.expr]:
    """Every mention of a way to skip."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in SKIPS:
            yield node
        elif isinstance(node, ast.ImportFrom) and {a.name for a in node.names} & {*SKIPS}:
            raise AssertionError(f"line {node.lineno}: write `pytest.skip`, so that it is found")


def skips_in_handlers(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            yield from skips(node)


def swallowed(tree: ast.AST) -> Iterator[int]:
    """Lines where a test function catches everything and goes on."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or not function.name.startswith("test_"):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or name_of(node.type) in ("Exception", "BaseException")
            ):
                yield node.lineno


@pytest.mark.parametrize("path", files(), ids=lambda p: p.relative_to(TESTS).as_posix())
def test_no_exception_becomes_a_skip(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.lineno for node in skips_in_handlers(tree)] == []
    assert list(swallowed(tree)) == []
    name = path.relative_to(TESTS.parent).as_posix()
    if path.name != Path(__file__).name and name not in ALLOWED:
        assert [node.lineno for node in skips(tree)] == [], "say here why a test may be skipped"


CLOCKS = ("monotonic", "perf_counter", "perf_counter_ns", "process_time", "deadline", "timeout")
CLOCKED = {
    "tests/conftest.py": "turns the deadlines of hypothesis off",
    "tests/fuzz/engine.py": "goes on for as long as it is told",
    "tests/fuzz/test_fuzz.py": "a slow test has more time than the others",
    "tests/clients/test_vllm.py": "a slow test has more time than the others",
    "tests/hardness/__main__.py": "goes on for as long as it is told",
    "tests/hardness/attacks.py": "sends signals at random moments of a run",
    "tests/hardness/test_hardness.py": "a slow test has more time than the others",
    "tests/parity/test_parallel.py": "several processes that wait for each other end, and a slow test has more time",
    "tests/parity/test_generations.py": "a slow test has more time than the others",
    "tests/test_python.py": "a slow test has more time than the others",
    "tests/mutants/__main__.py": "tells how long is left",
    "tests/unit/test_staged_folder.py": "stands in for a lock, whose parameter is called so",
    "tests/mutants/runner.py": "a mutant that never ends is found",
}
"""Files that look at a clock, and why; the time limit of every test ends those that hang."""


def clocks(tree: ast.AST) -> set[str]:
    """Names of clocks and of limits of time that are mentioned."""
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg}
    found |= {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    return found & {*CLOCKS}


@pytest.mark.parametrize("path", files(), ids=lambda p: p.relative_to(TESTS).as_posix())
def test_no_clock_decides(path: Path) -> None:
    name = path.relative_to(TESTS.parent).as_posix()
    used = clocks(ast.parse(path.read_text(encoding="utf-8")))
    assert used == set() or name in CLOCKED, "count work (tests/counting.py), not seconds"
    assert used or name not in CLOCKED, "it looks at no clock any more"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("time.perf_counter() < 3", "perf_counter"),
        ("from time import monotonic", "monotonic"),
        ("run(x, timeout=30)", "timeout"),
        ("@pytest.mark.timeout(10)\ndef test(): ...", "timeout"),
        ("settings(deadline=2000)", "deadline"),
    ],
)
def test_a_clock_is_found(code: str, name: str) -> None:
    assert clocks(ast.parse(code)) == {name}


def test_those_that_may_skip_do() -> None:
    for name in ALLOWED:
        assert list(skips(ast.parse((TESTS.parent / name).read_text(encoding="utf-8")))), name


BAD = """
def test_a():
    try:
        import torch
    except ImportError:
        pytest.skip("no torch")

def test_b():
    try:
        compare()
    except Exception:
        pass
"""


def test_the_rules_fire() -> None:
    tree = ast.parse(BAD)
    assert len(list(skips_in_handlers(tree))) == 1 and list(swallowed(tree)) == [11]
