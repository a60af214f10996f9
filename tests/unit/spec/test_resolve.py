"""Inheritance: path-wise overrides with origins, what is refused, what is only a lint."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec

BASE = """\
spec: 1
id: my/base
abstract: true
hyperparameters:
  hidden_size: 64
  norm_eps: 1.0e-5
  sliding_window: 16
  rope:
    {kind: llama3, theta: 10000.0, factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 64}
constants: {gain: 2.0}
blocks:
  Block:
    parts: {norm: "rms_norm(hidden_size, eps=norm_eps)", extra: "rms_norm(hidden_size, eps=norm_eps)"}
    forward: |
      return extra(norm(x)) * gain
"""
CHILD = """\
spec: 1
id: my/child
extends: my/base
hyperparameters:
  hidden_size: 128
  sliding_window: null
  rope: {kind: default, theta: 500000.0}
blocks:
  Block:
    parts: {extra: none}
    forward: |
      return norm(x) * gain
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "base.yaml").write_text(BASE)
    (tmp_path / "my" / "child.yaml").write_text(CHILD)
    return tmp_path


def load(root: Path, spec_id: str = "my/child") -> ResolvedSpec:
    return Registry((root,)).load(spec_id)


def refused(root: Path, spec_id: str = "my/child") -> tuple[Diagnostic, ...]:
    with pytest.raises(LlamagenError) as caught:
        load(root, spec_id)
    return caught.value.diagnostics


def test_values_override_path_by_path(root: Path) -> None:
    spec = load(root).spec
    assert spec.hyperparameters.hidden_size == 128
    assert spec.hyperparameters.norm_eps == 1e-5
    assert spec.hyperparameters.sliding_window is None
    assert spec.constants == {"gain": 2.0}
    assert spec.abstract is False


def test_another_kind_replaces_the_whole_mapping(root: Path) -> None:
    rope = load(root).spec.hyperparameters.rope
    assert rope is not None
    assert rope.model_dump() == {
        "kind": "default",
        "theta": 500000.0,
        "layout": "half",
        "partial": 1.0,
    }


def test_a_part_is_removed_by_none(root: Path) -> None:
    assert set(load(root).spec.blocks["Block"].parts) == {"norm"}


def test_every_leaf_knows_its_chain_of_origins(root: Path) -> None:
    resolved = load(root)
    leaves = dict(resolved.leaves)
    width = leaves["hyperparameters.hidden_size"]
    assert [(o.spec_id, o.text, o.span.line) for o in width.origins] == [
        ("my/base", "64", 5),
        ("my/child", "128", 5),
    ]
    inherited = leaves["hyperparameters.norm_eps"]
    assert [(o.spec_id, o.span.line, o.span.col) for o in inherited.origins] == [("my/base", 6, 13)]
    assert resolved.chain == ("my/base", "my/child")


def test_an_override_that_changes_nothing_is_a_lint(root: Path) -> None:
    assert load(root).warnings == ()
    (root / "my/child.yaml").write_text(CHILD.replace("hidden_size: 128", "hidden_size: 64"))
    (warning,) = load(root).warnings
    assert (warning.code, warning.severity) == ("LG501", "note")
    assert warning.span is not None
    assert warning.span.line == 5
    assert warning.related[0].span.line == 5
    assert "my/base" in warning.related[0].message


def test_a_mapping_cannot_become_a_number(root: Path) -> None:
    (root / "my/child.yaml").write_text(
        CHILD.replace("rope: {kind: default, theta: 500000.0}", "rope: 3")
    )
    (finding,) = refused(root)
    assert finding.code == "LG204"
    assert finding.related, "the other end of the conflict is shown"


def test_cycles_are_shown_step_by_step(root: Path) -> None:
    (root / "my/base.yaml").write_text(BASE.replace("abstract: true", "extends: my/child"))
    (finding,) = refused(root)
    assert finding.code == "LG203"
    assert "cycle" in finding.message
    assert [r.message for r in finding.related]


def test_unknown_ids_name_the_nearest(root: Path) -> None:
    (finding,) = refused(root, "my/chlid")
    assert (finding.code, finding.help) == ("LG201", "did you mean `my/child`?")
    (root / "my/child.yaml").write_text(CHILD.replace("extends: my/base", "extends: my/bass"))
    (finding,) = refused(root)
    assert (finding.code, finding.help) == ("LG202", "did you mean `my/base`?")
    assert finding.span is not None
    assert finding.span.line == 3


def test_an_id_must_match_its_file(root: Path) -> None:
    (root / "my/child.yaml").write_text(CHILD.replace("id: my/child", "id: my/kid"))
    assert [f.code for f in refused(root)] == ["LG205"]


def test_all_schema_faults_at_once(root: Path) -> None:
    text = CHILD.replace("hidden_size: 128", "hidden_size: wide\n  n_heads: 4").replace(
        "spec: 1", "spec: 2"
    )
    (root / "my/child.yaml").write_text(text)
    found = refused(root)
    assert sorted(f.code for f in found) == ["LG101", "LG103", "LG103"]
    assert all(f.span is not None and f.span.file.endswith("child.yaml") for f in found)
    help = next(f.help for f in found if f.code == "LG101")
    assert help == "did you mean `num_heads`?"


def test_the_digest_is_of_the_architecture_alone(root: Path) -> None:
    before = load(root).digest
    (root / "my/child.yaml").write_text(CHILD + "title: another title\n")
    assert load(root).digest == before
    (root / "my/child.yaml").write_text(CHILD.replace("theta: 500000.0", "theta: 500001.0"))
    assert load(root).digest != before


def test_a_file_finds_its_base_in_the_folder_its_id_counts_from(root: Path) -> None:
    resolved = Registry().load(root / "my" / "child.yaml")
    assert resolved.chain == ("my/base", "my/child")


GATED = """\
spec: 1
id: my/base
abstract: true
hyperparameters: {hidden_size: 64}
blocks:
  Block:
    parts: {up: "linear(hidden_size, hidden_size)", gate: "linear(hidden_size, hidden_size)"}
    forward: |
      h = up(x)  # wide
      a, b = split(h, [8, 56])
      return concat(a,
        b), gate(x)
"""


def overridden(root: Path, equations: str) -> ResolvedSpec:
    (root / "my/base.yaml").write_text(GATED)
    text = "spec: 1\nid: my/child\nextends: my/base\nblocks:\n  Block:\n    forward:\n"
    text += "".join(f"      {line}\n" for line in equations.splitlines())
    (root / "my/child.yaml").write_text(text)
    return load(root)


@pytest.mark.parametrize(
    ("equations", "lines"),
    [
        ("h: silu(up(x))", ["h = silu(up(x))  # wide", "a, b = split(h, [8, 56])"]),
        ("a, b: split(h, [9, 55])", ["h = up(x)  # wide", "a, b = split(h, [9, 55])"]),
        ("g: gate(x)\nh: up(x) * g", ["g = gate(x)", "h = up(x) * g  # wide", "a, b = split(h, [8, 56])"]),
        ("c: square(b)", ["h = up(x)  # wide", "a, b = split(h, [8, 56])", "c = square(b)"]),
        ("a, b: null\nreturn: h, h", ["h = up(x)  # wide", "", "return h, h"]),
    ],
)  # fmt: skip
def test_single_equations_are_replaced(root: Path, equations: str, lines: list[str]) -> None:
    forward = overridden(root, equations).spec.blocks["Block"].forward.splitlines()
    assert forward[: len(lines)] == lines
    rest = [] if lines[-1].startswith("return") else ["return concat(a,", "  b), gate(x)"]
    assert forward[len(lines) :] == rest


def test_a_replaced_equation_stands_where_it_was_written(root: Path) -> None:
    resolved = overridden(root, "h: silu(up(x))\nc: square(b)")
    node = resolved.scalar("blocks", "Block", "forward")
    assert node is not None

    def place(words: str) -> tuple[str, int, int]:
        start = node.text.index(words)
        span = node.slice_span(start, start + len(words))
        return Path(span.file).name, span.line, span.end_col - span.col

    assert place("silu(up(x))") == ("child.yaml", 7, 11)
    assert place("square(b)") == ("child.yaml", 8, 9)
    assert place("split(h") == ("base.yaml", 10, 7)
    assert place("b), gate(x)") == ("base.yaml", 12, 11)


def test_an_equation_replaced_by_itself_is_a_lint(root: Path) -> None:
    (note,) = overridden(root, "h: up(x)").warnings
    assert (note.code, note.severity) == ("LG501", "note") and "forward.h" in note.message


@pytest.mark.parametrize(
    ("equations", "message"),
    [
        ("h: up(x", "never closed"),
        ("h: 'up(x), x'", "several values"),
        ("z: null", "no equation `z`"),
        ("return: null", "no equation `return`"),
        ("h: 3", "is a text"),
        ("h: [up(x)]", "is a text"),
        ("h: |\n  up(x)\n  y = x", "one equation for each name"),
    ],
)
def test_an_equation_that_is_none_is_refused(root: Path, equations: str, message: str) -> None:
    with pytest.raises(LlamagenError) as caught:
        overridden(root, equations)
    (finding,) = caught.value.diagnostics
    assert finding.code == "LG206" and message in finding.message, finding
    assert finding.span is not None and Path(finding.span.file).name == "child.yaml"


def test_a_name_given_twice_is_not_one_equation(root: Path) -> None:
    (root / "my/base.yaml").write_text(GATED)
    text = "spec: 1\nid: my/child\nextends: my/base\nblocks:\n  Block:\n    forward: {{{}}}\n"
    twice = "'a, b': 'split(h, [9, 55])', h: up(x)"
    (root / "my/child.yaml").write_text(text.format(twice))
    assert load(root).spec.blocks["Block"].forward.count("h = up(x)") == 1
    (root / "my/base.yaml").write_text(GATED.replace("a, b =", "h = square(h)\n      a, b ="))
    with pytest.raises(LlamagenError, match="given 2 times"):
        load(root)


def test_equations_need_a_base(root: Path) -> None:
    (root / "my/child.yaml").write_text(CHILD.replace("  Block:", "  Other:").replace(
        "forward: |\n      return norm(x) * gain", "forward: {return: x}"
    ))  # fmt: skip
    (finding, *_) = refused(root)
    assert "no base has this block" in (finding.help or "")


def test_a_base_is_found_by_its_id_below_a_folder_above(tmp_path: Path) -> None:
    folder = tmp_path / "work" / "trials" / "today"
    folder.mkdir(parents=True)
    (tmp_path / "work" / "my").mkdir()
    (tmp_path / "work" / "my" / "base.yaml").write_text(BASE)
    path = folder / "first.yaml"
    path.write_text(CHILD.replace("id: my/child", "id: trial"))
    assert Registry().load(path).chain == ("my/base", "trial")
    (folder / "my").mkdir()
    other = BASE.replace("gain: 2.0", "gain: 3.0")
    (folder / "my" / "base.yaml").write_text(other.replace("id: my/base", "id: base"))
    assert Registry().load(path).spec.constants["gain"] == 2.0, "another id is another spec"
    (folder / "my" / "base.yaml").write_text(other)
    assert Registry().load(path).spec.constants["gain"] == 3.0, "the nearest counts"
    path.write_text(CHILD.replace("my/base", "my/bass").replace("id: my/child", "id: trial"))
    with pytest.raises(LlamagenError, match="LG202"):
        Registry().load(path)
