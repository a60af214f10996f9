"""What a reviewer has decided about a diff: rules and paths of no interest, levels, and what was known before."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamagen.analysis.diff.document import json_text
from llamagen.analysis.diff.judge import Surface, Verdict, diff
from llamagen.analysis.diff.policy import Policy, applied, read_baseline, read_policy
from llamagen.analysis.targets import built
from llamagen.cli import main
from llamagen.diagnostics import LlamagenError
from llamagen.spec.registry import Registry

A, B = (built(Registry().load(i)) for i in ("llama/3.1/70b", "llama/3.3/70b-instruct"))


def policy(tmp_path: Path, text: str) -> Policy:
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return read_policy(path)


def test_a_licence_that_is_ignored_breaks_nothing(tmp_path: Path) -> None:
    result = diff(A, B)
    assert result.verdict(Surface.RECORD) is Verdict.BREAKING
    kept = applied(result, policy(tmp_path, "ignore:\n- {rule: D901}\n"))
    assert kept.verdict(Surface.RECORD) is Verdict.COMPATIBLE
    assert (len(kept.changes), kept.ignored) == (len(result.changes) - 1, 1)


def test_a_path_is_ignored_by_its_pattern_alone(tmp_path: Path) -> None:
    result = diff(A, B)
    kept = applied(result, policy(tmp_path, "ignore:\n- {rule: D902, path: 'lineage.*'}\n"))
    gone = {c.path for c in result.changes} - {c.path for c in kept.changes}
    assert gone == {"lineage.derived_from", "lineage.how"}


def test_a_rule_has_the_level_that_it_is_given(tmp_path: Path) -> None:
    kept = applied(diff(A, B), policy(tmp_path, "levels: {D901: compatible, D151: breaking}\n"))
    assert kept.verdict(Surface.RECORD) is Verdict.COMPATIBLE
    assert kept.verdict(Surface.TOKENS) is Verdict.BREAKING


def test_what_a_baseline_has_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    path.write_text(json_text(diff(A, B)), encoding="utf-8")
    assert applied(diff(A, B), Policy(), read_baseline(path)).changes == ()
    other = built(Registry().load("llama/3.1/405b"))
    result = diff(A, other)
    left = applied(result, Policy(), read_baseline(path)).changes
    assert {c.path for c in result.changes} - {c.path for c in left} <= {"config.omits"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("ignore:\n- {rule: D999}\n", "LG901"),
        ("ignore:\n- {rule: licence}\n", "LG103"),
        ("levels: {D901: harmless}\n", "LG103"),
        ("ignored: []\n", "LG103"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(tmp_path: Path, text: str, code: str) -> None:
    with pytest.raises(LlamagenError) as caught:
        policy(tmp_path, text)
    assert caught.value.diagnostics[0].code == code


def test_the_command_line_takes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = tmp_path / "known.json"
    known.write_text(json_text(diff(A, B)), encoding="utf-8")
    (tmp_path / "policy.yaml").write_text("ignore:\n- {rule: D901}\n", encoding="utf-8")
    pair = ["diff", A.id, B.id, "--fail-on", "breaking"]
    assert main(pair) == 1
    assert main([*pair, "--policy", str(tmp_path / "policy.yaml")]) == 0
    assert main([*pair, "--baseline", str(known)]) == 0
    assert main([*pair, "--baseline", str(tmp_path / "policy.yaml")]) != 0
    assert "LG103" in capsys.readouterr().err
