"""Text where a boolean or a number is wanted: an error at its place, in every way of writing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamagen import api
from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.spec.expr import ExpressionError, evaluate, parse
from llamagen.spec.registry import Registry
from llamagen.spec.schema import Hyperparameters

LLAMA = (Path(__file__).parent / "llama.yaml").read_text()
OPTION = "DecoderLayer(reach=reach[layer])", "DecoderLayer(reach=reach[layer], rotated=ROTATED)"
TAKEN = "options: {reach: far}", "options: {reach: far, rotated: true}"
PASSED = (
    "Attention(window=sliding_window if reach == 'near' else none)",
    "Attention(window=sliding_window if reach == 'near' else none, rotated=rotated)",
)
ASKED = "options: {window: null}", "options: {window: null, rotated: true}"
ROTATION = "rope(split_heads(q_proj(x), num_heads), positions, rope)"


def edited(declared: str, given: str, use: str) -> str:
    """The small LLaMA whose attention asks whether it is ``rotated``."""
    text = LLAMA
    for before, after in (OPTION, TAKEN, PASSED, ASKED):
        assert before in text
        text = text.replace(before, after)
    assert ROTATION in text
    text = text.replace(ROTATION, use)
    return text.replace("patterns:\n", f"{declared}patterns:\n").replace("ROTATED", given)


def findings(text: str) -> tuple[Diagnostic, ...]:
    try:
        Registry().load_text(text)
        api.Model(Registry().load_text(text), Registry()).graph  # noqa: B018
    except LlamagenError as error:
        return error.diagnostics
    return ()


USES = {
    "conditional": f"({ROTATION} if rotated else split_heads(q_proj(x), num_heads))",
    "not": f"(split_heads(q_proj(x), num_heads) if not rotated else {ROTATION})",
    "and": f"({ROTATION} if rotated and num_heads > 1 else split_heads(q_proj(x), num_heads))",
    "or": f"({ROTATION} if rotated or num_heads > 99 else split_heads(q_proj(x), num_heads))",
    "second": f"({ROTATION} if num_heads > 1 and rotated else split_heads(q_proj(x), num_heads))",
    "equal": f"({ROTATION} if rotated == true else split_heads(q_proj(x), num_heads))",
    "unequal": f"({ROTATION} if false != rotated else split_heads(q_proj(x), num_heads))",
}
WAYS = {
    "cycle": ("  rotated: {cycle: ['false', 'true']}\n", "rotated[layer]"),
    "list": ("  rotated: {list: ['true', 'true', 'false', 'true']}\n", "rotated[layer]"),
    "every": ("  rotated: {every: 2, value: 'true', otherwise: 'false'}\n", "rotated[layer]"),
    "at": ("  rotated: {default: 'true', at: {'false': [1]}}\n", "rotated[layer]"),
    "at none": ("  rotated: {default: null, at: {'true': [1]}}\n", "rotated[layer]"),
    "literal": ("", "'false'"),
    "empty": ("", "''"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("way", WAYS)
def test_text_is_no_truth_value(way: str, use: str) -> None:
    pattern, given = WAYS[way]
    text = edited("", given, USES[use]).replace("patterns:\n", f"patterns:\n{pattern}")
    found = findings(text)
    assert found and all(one.span is not None for one in found)
    assert all("text '" in one.message for one in found), found
    assert all("rotated" in text.split("\n")[one.span.line - 1] for one in found if one.span)
    assert all("without quotes" in (one.help or "") for one in found)


@pytest.mark.parametrize("use", USES)
def test_booleans_are(use: str) -> None:
    pattern = "patterns:\n  rotated: {cycle: [false, true]}\n"
    assert findings(edited("", "rotated[layer]", USES[use]).replace("patterns:\n", pattern)) == ()


@pytest.mark.parametrize("value", ["'false'", "'true'", "'0'", "''"])
def test_a_constant_of_text_is_no_truth_value(value: str) -> None:
    text = edited(f"constants: {{turns: {value}}}\n", "turns", USES["conditional"])
    (found, *_) = findings(text)
    assert "needs true or false" in found.message and found.span is not None


@pytest.mark.parametrize("default", ["true", "false", "1", "0.5"])
@pytest.mark.parametrize("key", ["'false'", "'true'", "'1'", "far"])
def test_a_pattern_does_not_mix_text_and_others(default: str, key: str) -> None:
    pattern = f"  rotated: {{default: {default}, at: {{{key}: [1]}}}}\n"
    text = edited("", "rotated[layer]", ROTATION).replace("patterns:\n", f"patterns:\n{pattern}")
    found = next(one for one in findings(text) if one.code == "LG103")
    assert "below `at` is text" in found.message and "at: [{layers: [1], value: " in (
        found.help or ""
    )
    assert found.span is not None
    line = text.split("\n")[found.span.line - 1]
    assert line[found.span.col - 1 :].startswith(key)


@pytest.mark.parametrize("value", ["false", "1", "null"])
def test_at_takes_values_that_are_no_text(value: str) -> None:
    at = f"[{{layers: [1, 2], value: {value}}}]"
    text = edited("", "rotated[layer]", USES["conditional"])
    text = text.replace("patterns:\n", f"patterns:\n  rotated: {{default: true, at: {at}}}\n")
    graph = api.Model(Registry().load_text(text), Registry()).graph
    layers = [
        one.block.options["rotated"]
        for one in graph.instances
        if one.path.rpartition(".")[2].isdecimal()
    ]
    given = {"false": False, "1": 1, "null": None}[value]
    assert layers == [True, given, given, True]


def test_a_layer_has_one_value() -> None:
    at = "[{layers: [1], value: false}, {layers: [1, 9], value: null}]"
    text = LLAMA.replace("patterns:\n", f"patterns:\n  rotated: {{default: true, at: {at}}}\n")
    messages = [one.message for one in findings(text) if one.code == "LG303"]
    assert len(messages) == 2 and "it is `false` too" in messages[0], messages


@pytest.mark.parametrize("word", ["true", "false"])
def test_the_help_for_a_key_that_is_no_text_suggests_no_text(word: str) -> None:
    pattern = f"patterns:\n  rotated: {{default: true, at: {{{word}: [1]}}}}\n"
    (found,) = findings(LLAMA.replace("patterns:\n", pattern))
    assert found.code == "LG020"
    assert f"'{word}'" not in (found.help or "") and "at: [{layers: " in (found.help or "")


@pytest.mark.parametrize("value", ["'false'", "'true'", "'8'", "'1.0'", "''"])
@pytest.mark.parametrize("name", [n for n in Hyperparameters.model_fields if n != "hidden_act"])
def test_no_hyperparameter_takes_text(name: str, value: str) -> None:
    known = f"  {name}:"
    lines = [line for line in LLAMA.split("\n") if not line.startswith(known)]
    text = "\n".join(lines).replace("hyperparameters:\n", f"hyperparameters:\n  {name}: {value}\n")
    found = [one for one in findings(text) if f"hyperparameters.{name}" in one.message]
    assert [one.code for one in found] == ["LG103"], findings(text)
    assert (
        found[0].span is not None and f"{name}: {value}" in text.split("\n")[found[0].span.line - 1]
    )


@pytest.mark.parametrize(
    ("argument", "wish"),
    [
        ("bias='true'", "true or false"),
        ("bias='false'", "true or false"),
        ("bias=1", "true or false"),
        ("bias=none", "given"),
    ],
)
def test_an_argument_says_that_it_got_text(argument: str, wish: str) -> None:
    before = "q_proj: linear(hidden_size, num_heads * head_dim)"
    assert before in LLAMA
    quoted = f'q_proj: "linear(hidden_size, num_heads * head_dim, {argument})"'
    (found,) = findings(LLAMA.replace(before, quoted))
    assert f"must be {wish}" in found.message and found.span is not None
    if "'" in argument:
        assert f"it is the text {argument.split('=')[1]}" in found.message


@pytest.mark.parametrize("test", ["0", "1", "none", "[]", "[1]", "2.5", "true"])
def test_numbers_lists_and_none_still_are_tests(test: str) -> None:
    assert evaluate(parse(f"1 if {test} else 2"), {}) in (1, 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true and 'a'", "a"), ("false or 'b'", "b"), ("'a' == 'b'", False), ("none == 'b'", False)],
)
def test_text_may_be_chosen_and_compared(text: str, value: object) -> None:
    assert evaluate(parse(text), {}) == value


@pytest.mark.parametrize(
    "text", ["'a' and true", "'a' or 1", "not ''", "1 if (true and 'a') else 2"]
)
def test_text_may_not_decide(text: str) -> None:
    with pytest.raises(ExpressionError, match="needs true or false, found the text"):
        evaluate(parse(text), {})
