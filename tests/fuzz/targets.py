"""What is fuzzed: functions from bytes that end in a result or in the error of their contract."""

# ruff: noqa: E501  lists of words

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from llamagen.diagnostics import LlamagenError
from llamagen.ir.elaborate import build
from llamagen.spec.expr import ExpressionError, Static, evaluate, parse_statements, unparse
from llamagen.spec.expr import parse as parse_expression
from llamagen.spec.registry import Registry
from llamagen.spec.source import load_source, to_plain
from llamagen.weights.safetensors import read_header
from tests.fuzz import targets_files as files
from tests.fuzz.scratch import ROOT, scratch

CORPUS = Path(__file__).with_name("corpus")


@dataclass(frozen=True)
class Target:
    """``run`` returns whether the input was accepted; any other exception than its own is a finding."""

    name: str
    run: Callable[[bytes], bool]
    seeds: Callable[[], list[bytes]]
    words: tuple[str, ...] = ()


def _specs() -> list[bytes]:
    shipped = sorted((ROOT / "spec").rglob("*.yaml"))
    return [p.read_bytes() for p in [*shipped, *sorted((ROOT / "tests/specs").rglob("*.yaml"))]]


def yaml(data: bytes) -> bool:
    try:
        to_plain(load_source(data).root)
    except LlamagenError:
        return False
    return True


@cache
def _registry() -> Registry:
    return Registry((ROOT / "tests/specs",))


def spec(data: bytes) -> bool:
    text = data.decode("utf-8", "surrogateescape")
    try:
        build(_registry().load_text(text))
    except LlamagenError:
        return False
    return True


SCOPE: dict[str, Static] = {
    "a": 7, "b": 2.5, "name": "moe", "flag": True, "items": (3, 5, 8), "nothing": None, "big": 2**62,
    "record": {"field": 4, "kind": "yarn"},
}  # fmt: skip


def expression(data: bytes) -> bool:
    """Whatever parses is printed and parsed again to the same meaning, and evaluates or says why not."""
    text = data.decode("utf-8", "surrogateescape")
    with suppress(ExpressionError):
        parse_statements(text)
    try:
        found = parse_expression(text)
    except ExpressionError:
        return False
    printed = unparse(found)
    assert unparse(parse_expression(printed)) == printed
    try:
        evaluate(found, SCOPE)
    except ExpressionError:
        return False
    return True


def _expressions() -> list[bytes]:
    given = [
        "a * (b + 3) ** 2 // items[1] - -a % 5",
        "'dense' if name == 'moe' and not flag or a in items else record.field",
        "[a, b, 'x', none, true]",
        "min(a, 3) + max(len(items), 2) * ceil_to(a, 256) + round(b) + int(b) + sum(items)",
        "linear(hidden_size, 2 * intermediate_size, bias=attention_bias)",
        "stack(num_layers, Layer(kind=kinds[layer]) if layer % 2 else Other)",
        "h = x + self_attn(input_layernorm(x))\nq, k = split(h, [4, 4])\nreturn h @ q * k",
        "a not in [1, 2] or b >= 2.5e3 and a != -0x10",
        "((((((a))))))",
        "-" * 20 + "a",
    ]
    return [g.encode() for g in given]


def safetensors(data: bytes) -> bool:
    path = scratch() / "model.safetensors"
    path.write_bytes(data)
    try:
        header = read_header(path)
    except LlamagenError:
        return False
    assert sum(t.nbytes for t in header) <= len(data)
    return True


def _files() -> list[bytes]:
    tensors: dict[str, NDArray[Any]] = {
        "a": np.zeros((2, 3), np.float32),
        "b.c": np.ones(5, np.float16),
    }
    plain = save(tensors, metadata={"format": "pt"})
    seeds = [plain, save({}), save({"x": np.zeros((0, 4), np.float32)})]
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for changed in (
        {"shape": [2**62, 2**62]},
        {"data_offsets": [8, 0]},
        {"shape": [True]},
        {"dtype": "I4"},
        {"shape": [-2]},
    ):
        text = json.dumps({"x": entry | changed}).encode()
        seeds.append(len(text).to_bytes(8, "little") + text + bytes(8))
    nested = b'{"x":' + b"[" * 3000 + b"]" * 3000 + b"}"
    return [*seeds, len(nested).to_bytes(8, "little") + nested]


YAML_WORDS = (
    "&a", "*a", "!!python/object/apply:os.system", "<<: *a", "? [x]", "no", "010", "1e5", "1:30", "~", "null", "2024-01-01",
    "|", ">-", "---", "...", "%YAML 1.1", "{", "}", "[", "]", "\t", "\r", "\u202e", "\x00", "'", '"', "extends: ../../x",
    "num_layers: 1000000000", "hidden_size: 4611686018427387904", "constants:", "patterns:", "parts:", "forward: |",
    "stack(1000000000, DecoderLayer())", "linear(2 ** 62, 2 ** 62)", "experts(99999999, 9, 9)", "reshape(x, [B, S, -1])",
    "__import__('os').system('x')", "x.__class__", "return", "if", "none", "none: none", ".nan", ".inf", "-0", "1" * 400,
)  # fmt: skip
EXPRESSION_WORDS = (
    "if", "else", "not", "in", "and", "or", "none", "true", "lambda", "__class__", "**", "//", "@", "[", "]", "(", ")", "'",
    "9" * 60, "1e308", "1e999", "0x", "1_0", "items", "record.", "record['kind']", "len(", "range(", "sum(", "\n", "return",
    "=", ",", "\\", "#", "²", "٣", "\ud800", "((" * 200, "[" * 300, "-" * 300, "not " * 300, "1+" * 500, "a**" * 60,
)  # fmt: skip

TARGETS: Mapping[str, Target] = {
    t.name: t
    for t in (
        Target("yaml", yaml, _specs, YAML_WORDS),
        Target("expression", expression, _expressions, EXPRESSION_WORDS),
        Target("spec", spec, _specs, YAML_WORDS),
        Target("config", files.config, files.configs, files.CONFIG_WORDS),
        Target("index", files.index, files.indices, files.INDEX_WORDS),
        Target("gguf", files.gguf_file, files.gguf_files, files.GGUF_WORDS),
        Target("packed", files.packed, files.packed_files, files.PACKED_WORDS),
        Target("manifest", files.manifest, files.manifests, files.MANIFEST_WORDS),
        Target("pth", files.pth, files.zips, files.PICKLE_WORDS),
        Target("pth_pickle", files.pth_pickle, files.pickles, files.PICKLE_WORDS),
        Target("safetensors", safetensors, _files, ('"', "{", "}", "[", "]", "NaN", "1e9", "-1", "null", "__metadata__")),
    )
}  # fmt: skip


def corpus(target: Target) -> list[bytes]:
    """Seeds, and the inputs that once broke something."""
    return [*target.seeds(), *kept(target)]


def kept(target: Target) -> list[bytes]:
    return [p.read_bytes() for p in sorted((CORPUS / target.name).glob("*"))]


NUMBERS = (  # values at the edges of types
    b"0", b"-1", b"1", b"2", b"3", b"0.0", b"1e308", b"65535", b"2147483647", b"2147483648", b"9223372036854775807",
    b"18446744073709551616", b"null", b"true",
)  # fmt: skip


def mutated(generator: random.Random, inputs: list[bytes], words: tuple[str, ...]) -> bytes:
    """One input with a few changes: flips, words, numbers, moved, repeated and dropped pieces."""
    data = bytearray(generator.choice(inputs))
    for _ in range(generator.choice((1, 1, 2, 3, 6))):
        at = generator.randrange(len(data) + 1)
        to = min(len(data), at + int(generator.expovariate(1 / 12)) + 1)
        match generator.randrange(9):
            case 0 if data:
                data[min(at, len(data) - 1)] = generator.randrange(256)
            case 1:
                data[at:at] = generator.choice(words).encode("utf-8", "surrogatepass")
            case 2:
                data[at:to] = generator.choice(words).encode("utf-8", "surrogatepass")
            case 3:
                del data[at:to]
            case 4:
                data[at:at] = data[at:to] * generator.choice((1, 2, 50, 2000))
            case 5:
                _replace_number(generator, data)
            case 6:
                _move_line(generator, data)
            case 7:
                other = generator.choice(inputs)
                start = generator.randrange(len(other) + 1)
                data[at:to] = other[start : start + generator.randrange(200)]
            case _:
                _replace_word(generator, data)
    return bytes(data)


def _spans(data: bytearray, accept: Callable[[int], bool]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    start = None
    for i, byte in enumerate([*data, 10]):
        if accept(byte):
            start = i if start is None else start
        elif start is not None:
            found.append((start, i))
            start = None
    return found


def _replace_number(generator: random.Random, data: bytearray) -> None:
    if spans := _spans(data, lambda c: 48 <= c <= 57):
        start, end = generator.choice(spans)
        data[start:end] = generator.choice(NUMBERS)


def _replace_word(generator: random.Random, data: bytearray) -> None:
    """One identifier by another of the same input: what a confused author writes."""
    if spans := _spans(data, lambda c: c == 95 or (chr(c).isalpha() and c < 128)):
        start, end = generator.choice(spans)
        from_, to = generator.choice(spans)
        data[start:end] = data[from_:to]


def _move_line(generator: random.Random, data: bytearray) -> None:
    lines = bytes(data).split(b"\n")
    line = generator.choice(lines)
    lines.insert(generator.randrange(len(lines) + 1), generator.choice((b"", b"  ")) + line)
    data[:] = b"\n".join(lines)
