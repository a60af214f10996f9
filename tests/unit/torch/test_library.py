"""What files get of library.py does what library.py does, whatever the model fixes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llamagen.emit.torch import library
from llamagen.emit.torch.check import load_module
from llamagen.emit.torch.module import formatted
from llamagen.emit.torch.place import Library, statements_of
from llamagen.emit.torch.place import library as source
from llamagen.ops.code import (
    Code,
    Fixed,
    Stay,
    Template,
    Text,
    Tuple,
    call,
    literal,
    method,
    statement,
)
from llamagen.ops.rope import ROPE_KINDS

HEAD = """
import math
from collections.abc import Callable
import torch
import torch.nn.functional as F
from torch import Tensor, nn
Rope = tuple[Tensor, Tensor]
"""
Values = Mapping[str, Any]


def placed(name: str, fixed: Mapping[str, Fixed], more: str = "", globals: str = "") -> Any:
    """The definition as a file has it; ``more`` are others that it calls."""
    text = f"{HEAD}{globals}\n\n{more}\n\n{source().place(name, fixed)}\n"
    return getattr(load_module(text), name)


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def every(**choices: tuple[object, ...]) -> list[dict[str, Any]]:
    return [dict(zip(choices, c, strict=True)) for c in itertools.product(*choices.values())]


ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_positions": 32,
    },
    "yarn": {"factor": 4.0, "ramp_start": 1.5, "ramp_width": 2.0},
    "dynamic": {"factor": 4.0, "original_max_positions": 32},
    "longrope": {
        "short_factor": (1.0,) * 8,
        "long_factor": tuple(map(float, range(1, 9))),
        "original_max_positions": 32,
    },
}


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("factor", [1.0, 1.25])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_rope_table(kind: str, factor: float, dtype: torch.dtype | None) -> None:
    """The statements of a kind are those of the function in its row."""
    numbers: dict[str, Any] = {"dim": 16, "theta": 100.0, "attention_factor": factor}
    function: Any = ROPE_KINDS[kind].torch
    positions = torch.arange(50).view(2, 25)
    scaled = partial(function, **ROPES[kind])
    expected = library.rope_table(positions, dtype, scaled=scaled, **numbers)
    fixed: dict[str, Fixed] = {**numbers, "dtype": Stay.PRESENT if dtype else None}
    fixed |= {"theta": Text("THETA"), "dim": Text("DIM")}
    texts = {n: Text(repr(v)) if isinstance(v, tuple) else v for n, v in ROPES[kind].items()}
    fixed["scaled"] = statements_of(function, texts)
    table = placed("rope_table", fixed, globals="THETA = 100.0\nDIM = 16\n")
    found = table(positions, dtype) if dtype else table(positions)
    assert all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("kind", "truncate"), [("linear", True), ("llama3", True), ("yarn", True), ("yarn", False)]
)
def test_a_kind_scales_as_its_float32_steps_do(kind: str, truncate: bool) -> None:
    """Over pairs that are kept, mixed and divided."""
    row, dim, theta = ROPE_KINDS[kind], 32, 1000.0
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    attrs = {**numbers, "dim": dim, "theta": theta, "beta_fast": 4.0, "beta_slow": 1.0}
    attrs |= {"original_max_positions": 256, "attention_factor": 1.0, "truncate": truncate}
    wavelengths = np.float32(theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    plain = np.float32(1) / wavelengths
    function: Any = row.torch
    names = signature(function).parameters
    given = {n: v for n, v in {**attrs, **row.torch_numbers(attrs)}.items() if n in names}
    found = function(torch.from_numpy(plain), torch.arange(5), **given)
    expected = torch.from_numpy(row.float32(attrs, plain, wavelengths))
    assert torch.allclose(found, expected, rtol=1e-5, atol=0)
    kept = int((found == torch.from_numpy(plain)).sum())
    assert kept < dim // 2 and (kept > 0 or kind == "linear")


def test_every_kind_of_rope_is_tried() -> None:
    assert set(ROPES) == set(ROPE_KINDS)


MASKED = every(
    scale=(None, 0.3),
    cap=(None, 1.5),
    sinks=(None, tensor(4)),
    slopes=(None, [0.5, 0.25, 0.1, 0.0]),
)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("extras", MASKED)
def test_eager(grouped: bool, masked: bool, extras: Values) -> None:
    q, k, v = (
        tensor(2, 4, 3, 8),
        tensor(2, 2 if grouped else 4, 5, 8),
        tensor(2, 2 if grouped else 4, 5, 6),
    )
    mask = library.causal_mask(3, 2, None, q.device) if masked else None
    expected = library.eager(q, k, v, mask, grouped=grouped, **extras)
    given = {name: value for name, value in extras.items() if value is not None}
    for stays in (Stay.PRESENT, Stay.KEPT):
        fixed: dict[str, Fixed] = dict.fromkeys(given, stays)
        fixed |= {"grouped": grouped, "mask": Stay.PRESENT if masked else Stay.KEPT}
        function = placed("eager", fixed)
        assert torch.equal(function(q, k, v, mask, **given), expected)
    assert len(placed("eager", fixed).__annotations__) == 5 + len(given)


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize(
    "choice", every(grouped=(True, False), causal=(True, False), scale=(None, 0.3))
)
def test_sdpa_is_eager(new: int, choice: dict[str, Any]) -> None:
    heads = 2 if choice["grouped"] else 4
    q, k, v = tensor(2, 4, new, 8), tensor(2, heads, 3, 8, seed=1), tensor(2, heads, 3, 8, seed=2)
    mask = library.causal_mask(new, 3 - new, None, q.device)
    scale = {} if choice["scale"] is None else {"scale": choice["scale"]}
    expected = library.eager(q, k, v, mask, grouped=choice["grouped"], **scale)
    for given in (mask, None) if choice["causal"] else (mask,):
        found = library.sdpa(q, k, v, given, **choice)
        assert torch.allclose(found, expected, atol=1e-6)
        fixed = {**choice, **dict.fromkeys(scale, Stay.PRESENT)}
        fixed["mask"] = Stay.KEPT if choice["causal"] else Stay.PRESENT
        assert torch.equal(placed("sdpa", fixed)(q, k, v, given, **scale), found)
    seen = library.full_attention(q, k, v, grouped=choice["grouped"], **scale)
    fixed = {"grouped": choice["grouped"], **dict.fromkeys(scale, Stay.PRESENT)}
    assert torch.equal(placed("full_attention", fixed)(q, k, v, **scale), seen)
    assert torch.allclose(
        seen, library.eager(q, k, v, None, grouped=choice["grouped"], **scale), atol=1e-6
    )


def test_a_query_that_sees_no_key_is_no_nan_in_float64() -> None:
    """Scores are float64 and the softmax is not: the least float64 would be minus infinity to it."""
    x = tensor(1, 2, 3, 4).double()
    mask = torch.tensor([[False, False, False], [False, True, False], [False, True, True]])
    assert library.eager(x, x, x, mask[None, None], cap=2.0).isfinite().all()


@pytest.mark.parametrize("function", ["rotate", "rotate_interleaved"])
@pytest.mark.parametrize("some", [True, False])
def test_rotations(function: str, some: bool) -> None:
    x, positions = tensor(2, 3, 5, 16), torch.arange(5)[None]
    dtype = torch.float32 if function == "rotate" else None
    width = 8 if some else 16
    rope = library.rope_table(positions, dtype, dim=width, theta=100.0, scaled=lambda f, _: f)
    expected = getattr(library, function)(x, rope, partial=some)
    assert torch.equal(placed(function, {"partial": some})(x, rope), expected)
    assert torch.allclose(expected.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.equal(expected[..., 8:], x[..., 8:]) is some


@pytest.mark.parametrize("function", ["causal_mask", "sliding_causal_mask", "chunked_causal_mask"])
@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_masks(function: str, bounded: bool, padded: bool) -> None:
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    arguments = (3, 6, mask if padded else None, torch.device("cpu"))
    fixed: dict[str, Fixed]
    limits: tuple[int, ...]
    if function == "causal_mask":
        fixed, more, limits = {"bounded": bounded}, "", ()
    else:
        fixed = {"keep": Stay.PRESENT if bounded else None}
        more = source().place("causal_mask", {"bounded": bounded})
        limits = (4, 3) if bounded else (4,)
    expected = getattr(library, function)(*arguments, *limits)
    assert torch.equal(placed(function, fixed, more)(*arguments, *limits), expected)
    keys = 6 if bounded and limits else 9
    whole = getattr(library, function)(*arguments, *limits[:1])
    assert torch.equal(expected, whole[..., -keys:])


@pytest.mark.parametrize("choice", every(offset=(0.0, 1.0), late=(True, False)))
def test_norms(choice: dict[str, Any]) -> None:
    x = tensor(3, 8).bfloat16()
    made, expected = placed("RMSNorm", choice)(8, eps=1e-5), library.RMSNorm(8, eps=1e-5, **choice)
    for norm in (made, expected):
        norm.weight.data = tensor(8, seed=3).bfloat16()
    assert torch.equal(made(x), expected(x))
    assert "offset" not in vars(made)


ACTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F.silu({})": F.silu,
    "F.relu({}).square()": lambda x: F.relu(x).square(),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("choice", every(in_out=(True, False), scale_input=(True, False)))
def test_experts(act: str, choice: dict[str, Any]) -> None:
    experts = library.Experts(3, 4, 5, act=ACTS[act], **choice)
    made = placed("Experts", {"act": Template(act), **choice}, source().place("INITIALIZER_RANGE"))(
        3, 4, 5
    )
    for name, weight in experts.named_parameters():
        weight.data = tensor(*weight.shape, seed=len(name))
    made.load_state_dict(experts.state_dict())
    x, indices, weights = tensor(2, 6, 4), torch.randint(0, 3, (2, 6, 2)), tensor(2, 6, 2).sigmoid()
    assert torch.equal(made(x, indices, weights), experts(x, indices, weights))
    assert made.down_proj.shape == ((3, 5, 4) if choice["in_out"] else (3, 4, 5))


def test_a_bounded_cache_hands_on_the_last_tokens() -> None:
    made, expected = (
        placed("KVCache", {"keep": Stay.KEPT, "CROSS": False, **KEYS_ALONE}, globals=CACHE),
        library.KVCache,
    )
    k, v = tensor(1, 2, 5, 4), tensor(1, 2, 5, 4, seed=1)
    for cache in (made(), expected()):
        assert cache.start(5) == 0
        assert torch.equal(cache.append(k, v, 3)[0], k)
        cache.finish()
        assert cache.start(1) == 5
        assert torch.equal(cache.append(k[:, :, :1], v[:, :, :1], 3)[1][:, :, :3], v[:, :, 2:])
        assert [slot.shape[2] for slot in cache.slots] == [3, 3]
    assert "keep" not in source().place("KVCache", {"keep": None})
    for cross in (True, False):
        assert ("self.cross" in source().place("KVCache", {"CROSS": cross})) == cross
    for keys in (True, False):
        text = source().place("KVCache", {"KEYS": keys, "STATES": not keys})
        assert ("def append" in text) == ("def find" not in text) == keys


KEYS_ALONE: dict[str, Fixed] = {"KEYS": True, "STATES": False}
CACHE = "KeyValue = tuple[Tensor, Tensor]\n"


def test_comments_stay_and_decided_branches_go() -> None:
    text = """
def f(x: int, *, kind: str = "a", y: int | None = None, more: bool = False) -> int:
    \"\"\"Doc of f.\"\"\"
    # Above.
    if kind == "a":
        # Inside.
        x += 1  # beside
    elif kind == "b":
        x += 2
    if y is not None and x > 1:
        return (x if y else -x) * 2
    if more:
        return x
    return g(x, option=more)
"""
    library = Library(text.lstrip())
    assert library.place("f", to="h", words={"Doc": "Word"}) == (
        'def h(x: int) -> int:\n    """Word of f."""\n        # Inside.\n'.replace(
            "        #", "    #"
        )
        + "    x += 1  # beside\n    return g(x)"
    )
    assert library.place("f", {"kind": "b", "y": Text("Y"), "more": True}) == (
        'def f(x: int) -> int:\n    """Doc of f."""\n    x += 2\n'
        "    if x > 1:\n        return x * 2\n    return x"
    )


NAMES = ("q_proj", "another_rather_long_projection", "k")


def test_lists_stay_lists_at_every_width() -> None:
    """Also where a line is too short for them."""
    texts: dict[str, str] = {}
    for width in range(60):
        names = [f"{name}{'_' * width}" for name in NAMES]
        x, *others = map(Text, names)
        parts = Tuple((x, *others))
        codes: dict[str, Code] = {
            "cat": call("torch.cat", parts, dim=literal(-1)),
            "split": method(x, "split", parts, dim=literal(-1)),
            "both": call("f", x, method(x, "g", parts), Tuple((parts, x)), pads=parts),
        }
        lines = [statement(f"{name} = ", code, 1) for name, code in codes.items()]
        head = f"def use(torch, f, {', '.join(names)}):"
        texts[str(width)] = "\n".join([head, *lines, "    return cat, split, both\n"])
    for text in formatted(texts).values():
        space: dict[str, Any] = {}
        exec(text, space)
        called: list[Any] = space["use"](Calls, Calls.f, *(given := (Calls, "b", "c")))
        assert called[0] == called[1] == ((given,), {"dim": -1})
        assert called[2] == ((Calls, ((given,), {}), (given, Calls)), {"pads": given})
    assert max(text.count("\n") for text in formatted(texts).values()) > 15


class Calls:
    """Functions that return what they are called with."""

    @staticmethod
    def f(*arguments: object, **keywords: object) -> object:
        return arguments, keywords

    cat = split = g = f


def test_settings_of_the_user_count_for_nothing(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "x = f(aaaaaaaaaaaaaaa, bbbbbbbbbbbbbbbbbbbbbbb, 'c',)\n"
    (tmp_path / "ruff.toml").write_text("line-length = 20\nformat.quote-style = 'single'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert formatted({"a": text})["a"] == 'x = f(aaaaaaaaaaaaaaa, bbbbbbbbbbbbbbbbbbbbbbb, "c")\n'
