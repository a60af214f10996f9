"""What readers print with ``--format json``: closed models, whose schemas are spec/<command>.schema.json.

A document has a version, or is a list of rows; a further key is a new version. `llamagen schema COMMAND` prints one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date as Date
from functools import cache
from typing import Any, Final, Literal, TypeAlias

from pydantic import Field, JsonValue, TypeAdapter

from llamagen.analysis.diff.document import DiffDocument
from llamagen.analysis.diff.judge import Verdict
from llamagen.analysis.explain import Explanation
from llamagen.analysis.records import Row
from llamagen.diagnostics import Severity
from llamagen.spec.schema import Closed


class _Document(Closed):
    version: Literal[1] = 1

    def json_text(self) -> str:
        return self.model_dump_json(indent=2) + "\n"


class ShowDocument(_Document):
    sections: dict[str, tuple[tuple[str, str], ...]] = Field(
        description="By title: names and texts, in order."
    )


class ExplainDocument(_Document):
    subject: str
    path: str | None
    text: str = Field(description="As people read it.")
    value: Explanation | None = Field(description="With an id and a path: the same as data.")


class ResolveDocument(_Document):
    spec: Mapping[str, Any] = Field(description="As spec/schema.json says, nothing inherited.")


class Origin(Closed):
    path: str
    text: str
    place: str = Field(description="file:line:col of who wrote it last.")
    spec: str


class OriginsDocument(_Document):
    values: tuple[Origin, ...]


class Held(Closed):
    value: JsonValue
    ids: tuple[str, ...]
    first: bool = Field(description="No earlier model had it.")


class Step(Closed):
    date: Date = Field(description="Of a release that changed it.")
    held: tuple[Held, ...]


class History(Closed):
    path: str = Field(description="The expression.")
    steps: tuple[Step, ...]
    releases: int = Field(description="Dates that were looked at.")
    where: str
    left_out: tuple[str, ...] = Field(description="Models with a date that do not match `where`.")


class TimelineDocument(_Document):
    timelines: tuple[History, ...]


class Claim(Closed):
    number: int
    about: tuple[str, ...] = Field(description="Generations.")
    claim: str
    verdict: Literal["wrong", "imprecise", "right"]
    fact: str
    sources: tuple[str, ...]
    see: str = Field(description="A command that shows it.")


class ReleaseRow(Closed):
    family: str
    generation: str
    date: Date | None
    ids: tuple[str, ...]
    sizes: tuple[str, ...]
    architecture: str
    context: str
    techniques: tuple[str, ...] = Field(description="What no earlier release had.")
    claims: tuple[Claim, ...]


class ReleasesDocument(_Document):
    releases: tuple[ReleaseRow, ...]


class Difference(Closed):
    key: str
    here: JsonValue
    known: JsonValue


class Nearest(Closed):
    id: str
    differences: tuple[Difference, ...]


class ImportDocument(_Document):
    spec: Mapping[str, Any] = Field(description="As spec/schema.json says, nothing inherited.")
    exact: tuple[str, ...] = Field(
        description="Ids whose configuration is this one, value for value."
    )
    alike: tuple[str, ...] = Field(description="Ids whose architecture is this one.")
    nearest: Nearest
    handled: tuple[str, ...]
    ignored: dict[str, str] = Field(description="Key -> why nothing is lost.")
    dropped: tuple[str, ...] = Field(
        description="Formulas of the nearest model that do not hold here."
    )
    notes: tuple[str, ...]


class Place(Closed):
    file: str
    line: int
    col: int
    end_line: int
    end_col: int


class RelatedFinding(Closed):
    message: str
    span: Place


class FindingRow(Closed):
    code: str
    severity: Severity
    message: str
    span: Place | None
    related: tuple[RelatedFinding, ...]
    help: str | None


class CheckDocument(_Document):
    """Findings; every command that refuses its input with ``--format json`` prints these as `check` does."""

    diagnostics: tuple[FindingRow, ...]
    counts: dict[Severity, int]


class FmtDocument(CheckDocument):
    changed: tuple[str, ...] = Field(description="Files that were not canonical.")
    written: bool = Field(description="Whether they are now.")


class CostWorkload(Closed):
    context: int
    batch: int
    weights: str
    cache_bytes_per_value: int
    activation_bytes_per_value: int
    tensor_parallel: int
    pipeline_parallel: int
    expert_parallel: int


class Counted(Closed):
    count: int
    active: int


class CostParameters(Closed):
    total: int
    active: int
    active_without_embedding: int
    components: dict[str, Counted]


class CostPhase(Closed):
    new_tokens: int
    flops: int
    flops_matmul: int
    flops_attention: int
    flops_attention_visible: int
    flops_head: int
    weight_bytes_read: int
    cache_bytes_read: int
    cache_bytes_written: int
    activation_bytes_peak: int


class OfAGpu(Closed):
    weights: int
    kv: int
    activations: int
    total: int


class CostImages(Closed):
    count: int
    inputs: tuple[str, ...]
    encoder_flops: int
    encoder_flops_attention: int
    tokens: int
    kept_bytes: int
    activation_bytes_peak: int
    prefill_flops: int
    decode_flops: int


class CostRoofline(Closed):
    seconds: float
    bound: Literal["compute", "memory"]
    tokens_per_second: float


class CostDevice(Closed):
    name: str
    title: str
    source: str
    prefill: CostRoofline
    decode: CostRoofline
    fits: bool | None
    max_batch: int | None
    max_context: int | None


class CostDocument(_Document):
    """Bytes, FLOPs and tokens are whole numbers, times are seconds."""

    id: str
    sketch: bool = Field(description="Its dimensions are assumed.")
    workload: CostWorkload
    parameters: CostParameters
    weight_bytes: int
    kv_bytes_per_token: int
    kv_cache: Literal["full", "bounded"]
    kv_bytes: int
    kv_bytes_visible: int
    prefill: CostPhase
    decode: CostPhase
    tensor_parallel_degrees: tuple[int, ...]
    bytes_of_a_gpu: tuple[OfAGpu, ...]
    own_context: int | None = Field(
        description="Tokens that the model is made for; the workload may go beyond them."
    )
    notes: tuple[str, ...]
    images: CostImages | None = None
    device: CostDevice | None = None


class Blocking(Closed):
    rule: str
    path: str
    times: int
    change: str


class RuntimeFact(Closed):
    status: str
    note: str
    source: str


class OnRuntime(Closed):
    name: str
    title: str
    status: str | None
    facts: tuple[RuntimeFact, ...]


class CompatDocument(_Document):
    before: str
    after: str
    verdict: Verdict
    weights: Verdict
    numerics: Verdict
    transforms: tuple[str, ...]
    blocking: tuple[Blocking, ...]
    runtimes: tuple[OnRuntime, ...]


Rows: TypeAlias = tuple[dict[str, JsonValue], ...]

DOCUMENTS: Final[Mapping[str, tuple[Any, str]]] = {
    "list": (tuple[Row, ...], "Models, a row each; counts are exact."),
    "show": (ShowDocument, "One model as a page of sections."),
    "check": (CheckDocument, "Findings."),
    "resolve": (ResolveDocument | OriginsDocument, "A spec, or with --origins who wrote its values."),
    "explain": (ExplainDocument, "A value and what is known of it, or words about something else."),
    "diff": (DiffDocument, "Two models compared."),
    "compat": (CompatDocument, "Whether the weights of one model run in another."),
    "cost": (CostDocument, "What a workload takes."),
    "query": (Rows, "Rows by the expressions of --select, or of --share."),
    "timeline": (TimelineDocument | ReleasesDocument, "Histories, or with --releases the releases."),
    "sql": (Rows, "Rows by the names of the statement's columns."),
    "import": (ImportDocument, "The spec of a configuration, and the known model nearest to it."),
    "fmt": (FmtDocument, "Files that were not canonical, and findings."),
}  # fmt: skip
"""By command: what it prints as JSON, and a line about that."""


@cache
def document_schema(command: str) -> str:
    """The JSON schema of what ``command`` prints, as text: spec/<command>.schema.json."""
    kind, doc = DOCUMENTS[command]
    schema = TypeAdapter(kind).json_schema(by_alias=True, mode="serialization")
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"llamagen {command}",
        "description": doc,
    }
    return json.dumps(head | {k: v for k, v in schema.items() if k not in head}, indent=2) + "\n"
