"""What a reviewer has decided about differences: which are of no interest, how bad a rule is, what was known before.

ignore:
- {rule: D901}                      # the licence
- {rule: D902, path: 'release.*'}
levels: {D404: compatible}
"""

from __future__ import annotations

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ValidationError

from llamagen import files
from llamagen.analysis.diff.document import DiffDocument
from llamagen.analysis.diff.judge import Change, Diff, DiffRuleId, Verdict, diff_rules
from llamagen.analysis.tables import chosen
from llamagen.diagnostics import LlamagenError
from llamagen.spec.schema import Closed, first_fault
from llamagen.spec.source import load_source, to_plain


class Ignored(Closed):
    rule: DiffRuleId
    path: str = "*"
    """As in a shell: `release.*`."""


class Policy(Closed):
    ignore: tuple[Ignored, ...] = ()
    levels: dict[DiffRuleId, Verdict] = {}


def read_policy(path: Path) -> Policy:
    """Raises LG001 for a file that cannot be read, LG103 for one of another form, LG901 for a rule that is unknown."""
    text = json.dumps(to_plain(load_source(path).root))
    try:
        policy = Policy.model_validate_json(text)
    except ValidationError as error:
        raise LlamagenError.of("LG103", f"{path}: {first_fault(error)}") from None
    for rule in (*(one.rule for one in policy.ignore), *policy.levels):
        chosen(diff_rules(), rule, "a rule of the diff (`spec/rules/diff.yaml`)")
    return policy


def read_baseline(path: Path) -> DiffDocument:
    """A diff that `--format json` wrote. Raises LG001 for a file that cannot be read, LG103 for one of another form."""
    try:
        return DiffDocument.model_validate_json(files.read_text(path, files.BASELINE))
    except ValidationError as error:
        help = "write it with `llamagen diff A B --format json`"
        raise LlamagenError.of("LG103", f"{path}: {first_fault(error)}", help=help) from None


def applied(result: Diff, policy: Policy, baseline: DiffDocument | None = None) -> Diff:
    """``result`` without what is ignored or known, and with the levels of ``policy``."""
    known = {_key(change) for change in baseline.changes} if baseline is not None else set()
    kept = [
        change
        for change in result.changes
        if _key(change) not in known
        and not any(
            one.rule == change.rule and fnmatchcase(change.path, one.path) for one in policy.ignore
        )
    ]
    levelled = tuple(
        change.model_copy(
            update={
                "effects": tuple(
                    e.model_copy(update={"verdict": policy.levels[change.rule]})
                    for e in change.effects
                )
            }
        )
        if change.rule in policy.levels
        else change
        for change in kept
    )
    left_out = len(result.changes) - len(kept)
    return replace(result, changes=levelled, ignored=result.ignored + left_out)


def _key(change: Change) -> tuple[object, ...]:
    ends = (change.before.text, change.after.text)
    return change.rule, change.path, change.times, change.layers, *ends
