"""`llamagen mcp`: the family for a language model's tools, over stdio, by the SDK of the Model Context Protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

from pydantic import BaseModel, Field

from llamagen import api
from llamagen.analysis.cost import json_text as cost_text
from llamagen.analysis.diff.document import DiffDocument, document
from llamagen.analysis.explain import explanation_text
from llamagen.analysis.queries import Answer as Rows
from llamagen.analysis.releases import json_text as releases_text
from llamagen.analysis.sources import known_sources
from llamagen.analysis.tables import jsonable
from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.diagnostics.render import render
from llamagen.spec.families import FAMILY

P = ParamSpec("P")
T = TypeVar("T")

INSTRUCTIONS = (
    "Facts about the LLaMA family, from specs whose every value names its source. Ids look like `llama/3.2/1b`; "
    "`list_models` has them. Numbers of parameters, bytes and FLOPs are counted on the model's graph. `releases` also "
    "corrects what is often said wrongly; `explain` proves a value."
)


class Table(BaseModel):
    columns: list[str]
    rows: list[list[Any]]
    sources: dict[str, str] = Field(
        default={}, description="What the source keys in the rows stand for."
    )


class Text(BaseModel):
    text: str
    sources: dict[str, str] = Field(
        default={}, description="What the source keys in the text stand for."
    )


class Document(BaseModel):
    content: dict[str, Any]
    sources: dict[str, str] = Field(
        default={}, description="What the source keys in the content stand for."
    )


class Finding(BaseModel):
    code: str
    severity: str
    message: str
    place: str | None
    help: str | None


class Findings(BaseModel):
    clean: bool
    findings: list[Finding]


def serve() -> None:
    """Serve the readers (list, show, explain, diff, cost, query, ...) to a program that speaks MCP, over stdio."""
    server().run("stdio")


def server() -> Any:
    """The server, with a tool a reader. Raises LG901 without the SDK."""
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError:
        help = "`pip install 'llamagen[mcp]'`"
        raise LlamagenError.of("LG901", "`llamagen mcp` needs the MCP SDK", help=help) from None

    def answering(function: Callable[P, T]) -> Callable[P, T]:
        """A finding is what the caller can mend: it is told whole, not as a crash of the server."""

        @wraps(function)
        def called(*arguments: P.args, **named: P.kwargs) -> T:
            try:
                return function(*arguments, **named)
            except LlamagenError as error:
                raise ToolError(render(error.diagnostics)) from None

        return called

    result = MCPServer("llamagen", instructions=INSTRUCTIONS)
    for tool in (
        list_models, show, explain, diff, cost, query, timeline, releases, sql, check,
    ):  # fmt: skip
        result.tool(tool.__name__)(answering(tool))
    return result


def list_models(
    generation: str | None = None,
    modality: Literal["text", "vision"] | None = None,
    family: str = FAMILY,
) -> Table:
    """Every model of a family with date, status, exact parameters, layers, attention, context and licence.

    generation: 1, 2, 3, 3.1, 3.2, 3.3, 4, code or guard of LLaMA. family: the first word of an id (`qwen`), or `all`.
    """
    rows = api.list_models(generation=generation, modality=modality, family=family)
    return _table(list(asdict(rows[0])) if rows else [], (asdict(r).values() for r in rows))


def show(id: str) -> Document:
    """One model: sizes, parameters, memory, training, history, what is disputed or uncertain about it."""
    return Document(content={s.title: [list(row) for row in s.rows] for s in api.show(id)})


def explain(subject: str, path: str | None = None) -> Text:
    """Why a model has a value: who wrote it, the source that proves it, who disagrees, who else has it.

    With a path (`rope.theta`, `training.tokens`) subject is an id; alone it is an op, or a diagnostic code (LG404).
    """
    if path is None:
        return Text(text=api.explain(subject))
    value = api.explanation(subject, path)
    cited = [value.source, *(source for one in value.disputes for _, source in one.claims)]
    return Text(
        text=explanation_text(value), sources=_sources([key for key in cited if key is not None])
    )


def diff(before: str, after: str, everything: bool = False) -> DiffDocument:
    """What changed between two models (ids, or paths of a config.json): `summary` says it in at most ten lines.

    Changes have a verdict for weights, tokens, numerics, interface, memory and more, and their causes. Those of the
    record (dates, notes) and of names in files are left out unless everything is asked for.
    """
    whole = document(api.diff(before, after))
    if everything:
        return whole
    kept = tuple(c for c in whole.changes if c.kind not in ("record", "naming"))
    return whole.model_copy(update={"changes": kept})


def cost(
    id: str,
    context: int = 4096,
    batch: int = 1,
    dtype: str = "bfloat16",
    device: str | None = None,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    cache_dtype: str | None = None,
) -> Document:
    """Parameters, bytes and FLOPs of a workload, counted on the graph; what fits a device, such as `h100-sxm`.

    cache_dtype is that of keys and values, 16 bit by default. A device is one of `SELECT name FROM devices`.
    """
    report = api.cost(
        id,
        context=context,
        batch=batch,
        dtype=dtype,
        device=device,
        tp=tensor_parallel,
        pp=pipeline_parallel,
        cache_dtype=cache_dtype,
    )
    return Document(content=json.loads(cost_text(report)))


def query(
    where: str = "true",
    select: list[str] | None = None,
    sort: str | None = None,
    family: str = FAMILY,
) -> Table:
    """Models for which an expression is true: where=`num_experts != none`, select=[`id`, `params`], sort=`-params`.

    Names: id, generation, released, params, active_params, context, vocab_size, num_kv_heads, attention, rope_theta ...
    An unknown name is answered with the nearest one. family: the first word of an id (`qwen`), or `all`.
    """
    columns = select or ["id", "released", "params"]
    answer: Rows = api.query(where, select=columns, sort=sort, family=family)
    return _table(list(answer.columns), answer.rows)


def timeline(expression: str, family: str = FAMILY) -> Document:
    """When a value (`num_kv_heads`, `vocab_size`, `context`) first appeared in the releases, and when it changed.

    family: the first word of an id (`qwen`), or `all`.
    """
    history = api.timeline(expression, family=family)
    return Document(content=json.loads(json.dumps(asdict(history), default=jsonable)))


def releases(family: str = FAMILY) -> Document:
    """The seven releases: date, sizes, context, what was new, and wide-spread claims about them with what is right.

    family: of another one instead (`qwen`), or of `all`.
    """
    content = json.loads(releases_text(api.releases(family=family)))
    return Document(content=content, sources=_sources(content))


def sql(statement: str, family: str = FAMILY) -> Table:
    """One SELECT over models, layers, parameters, changes, sources, conflicts, uncertain, lineage, benchmarks ...

    `SELECT * FROM sources WHERE model = 'llama/3/8b'` has each value with its source. family: whose models the tables
    have, the first word of an id (`qwen`), or `all`.
    """
    answer = api.sql(statement, family=family)
    return _table(list(answer.columns), answer.rows)


def check(target: str) -> Findings:
    """Findings about a spec: an id, or a path of a YAML file."""
    report = api.check([target])
    return Findings(clean=report.clean, findings=[_finding(f) for f in report.findings])


def _finding(one: Diagnostic) -> Finding:
    place = str(one.span) if one.span is not None else None
    return Finding(
        code=one.code, severity=one.severity, message=one.message, place=place, help=one.help
    )


def _table(columns: list[str], rows: Iterable[Iterable[object]]) -> Table:
    plain = [[json.loads(json.dumps(v, default=jsonable)) for v in row] for row in rows]
    return Table(columns=columns, rows=plain, sources=_sources(plain))


def _sources(content: object) -> dict[str, str]:
    """The source keys that stand in ``content``, with what they are."""
    known = known_sources()

    def texts(value: object) -> Iterable[str]:
        match value:
            case str():
                yield value
            case list():
                for one in value:
                    yield from texts(one)
            case dict():
                for one in value.values():
                    yield from texts(one)

    keys = dict.fromkeys(text.split("#", 1)[0] for text in texts(content))
    return {key: known[key] for key in keys if key in known}
