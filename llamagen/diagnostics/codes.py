"""What every code means: spec/rules/diagnostics.yaml, read when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from llamagen.diagnostics import LlamagenError, Severity, did_you_mean
from llamagen.resources import data_text

_FIELDS = frozenset({"title", "severity", "explanation", "bad", "good"})
_SEVERITIES: Mapping[str, Severity] = {"error": "error", "warning": "warning", "note": "note"}


@dataclass(frozen=True, slots=True)
class CodeDoc:
    """One row of the table. `bad` is input that gets the code, `good` the same input put right."""

    code: str
    title: str
    severity: Severity
    explanation: str
    bad: str
    good: str


def explain(code: str) -> CodeDoc:
    """The row of `code`, in any case. Raises LG901 with the nearest code for an unknown one."""
    table = load_codes()
    doc = table.get(code.upper())
    if doc is None:
        raise LlamagenError.of(
            "LG901",
            f"there is no diagnostic code {code!r}",
            help=did_you_mean(code.upper(), table, "codes look like LG021"),
        )
    return doc


def code_text(code: str) -> str:
    """The row of `code` as a page. Raises LG901."""
    doc = explain(code)
    lines = [f"{doc.code} ({doc.severity}): {doc.title}", "", doc.explanation]
    for title, text in (("For example", doc.bad), ("Put right", doc.good)):
        lines += ["", f"{title}:", *(f"    {line}".rstrip() for line in text.rstrip().split("\n"))]
    return "".join(f"{line}\n" for line in lines)


@cache
def load_codes() -> Mapping[str, CodeDoc]:
    """All rows by code, in the order of the codes: those of the table, and the lint rules, which explain themselves."""
    rows = {
        **parse_codes(data_text("spec", "rules/diagnostics.yaml")),
        **parse_lint_rules(data_text("spec", "rules/lint.yaml")),
    }
    return MappingProxyType({code: rows[code] for code in sorted(rows)})


def parse_lint_rules(text: str) -> Mapping[str, CodeDoc]:
    """Rows of the lint rules (spec/rules/lint.yaml): the case that fires is the bad one."""
    import yaml

    document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    rules: Mapping[str, Mapping[str, str]] = document["rules"]
    cases: Mapping[str, Mapping[str, str]] = {
        code: document["rules"][code]["case"] for code in rules
    }
    return {
        code: _row(
            code,
            {
                **{field: rule[field] for field in ("title", "severity", "explanation")},
                "bad": cases[code]["fires"],
                "good": cases[code]["silent"],
            },
        )
        for code, rule in rules.items()
    }


def parse_codes(text: str) -> Mapping[str, CodeDoc]:
    """The rows of a table's text. Raises ValueError for a row that is not complete.

    This floor may not import the strict loader (`llamagen.spec.source`); a test reads the file
    with it and compares.
    """
    import yaml

    document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return MappingProxyType(
        {code: _row(code, fields) for code, fields in document["codes"].items()}
    )


def _row(code: str, fields: Mapping[str, str]) -> CodeDoc:
    if set(fields) != _FIELDS or not all(isinstance(text, str) for text in fields.values()):
        raise ValueError(f"{code}: a row has exactly the texts {', '.join(sorted(_FIELDS))}")
    if fields["severity"] not in _SEVERITIES:
        raise ValueError(f"{code}: severity is one of {', '.join(_SEVERITIES)}")
    return CodeDoc(
        code=code,
        title=fields["title"],
        severity=_SEVERITIES[fields["severity"]],
        explanation=" ".join(fields["explanation"].split()),
        bad=fields["bad"],
        good=fields["good"],
    )
