"""A real client of the Model Context Protocol asks `llamagen mcp` over stdio, as an assistant's program does."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters

from llamagen.analysis.sources import claims, known_sources

Answer = dict[str, Any]


def asked(questions: Callable[[Client], Awaitable[Any]]) -> Any:
    async def session() -> Any:
        server = StdioServerParameters(
            command=sys.executable, args=["-m", "llamagen", "mcp"], cwd=Path(__file__).parents[2]
        )
        async with Client(server) as client:
            return await questions(client)

    return asyncio.run(session())


def called(*calls: tuple[str, Answer]) -> list[Any]:
    async def questions(client: Client) -> list[Any]:
        return [await client.call_tool(name, arguments) for name, arguments in calls]

    found: list[Any] = asked(questions)
    return found


def test_every_reader_is_a_tool_with_a_schema() -> None:
    async def questions(client: Client) -> Any:
        return await client.list_tools()

    tools = {tool.name: tool for tool in asked(questions).tools}
    assert set(tools) == {
        "list_models", "show", "explain", "diff", "cost", "query", "timeline", "releases", "sql", "check",
    }  # fmt: skip
    for tool in tools.values():
        assert tool.description
        assert tool.output_schema
    assert tools["cost"].input_schema["properties"]["context"] == {
        "default": 4096, "title": "Context", "type": "integer",
    }  # fmt: skip
    assert tools["cost"].input_schema["required"] == ["id"]


def test_the_wide_spread_claims_are_answered_with_their_sources() -> None:
    (answer,) = called(("releases", {}))
    content = answer.structured_content["content"]
    found = {c["number"]: c for r in content["releases"] for c in r["claims"]}
    assert sorted(found) == list(range(1, 19))
    for number, claim in found.items():
        assert claim["fact"] == claims()[str(number)].fact
        for source in claim["sources"]:
            assert answer.structured_content["sources"][source] == known_sources()[source]


def test_tools_answer_as_the_commands_do() -> None:
    explained, compared, cost, rows, query, checked = called(
        ("explain", {"subject": "llama/3/8b", "path": "rope.theta"}),
        ("diff", {"before": "llama/2/7b", "after": "llama/3/8b"}),
        ("cost", {"id": "llama/3.1/405b", "context": 8192, "tensor_parallel": 8}),
        ("sql", {"statement": "SELECT source FROM sources WHERE model = 'llama/3/8b' AND path LIKE '%theta'"}),
        ("query", {"where": "num_experts != none", "select": ["id", "num_experts"]}),
        ("check", {"target": "llama/3.2/1b"}),
    )  # fmt: skip
    assert "source: sku" in explained.structured_content["text"]
    assert "RoPE theta 10,000 → 500,000" in compared.structured_content["summary"]
    assert {c["kind"] for c in compared.structured_content["changes"]} & {
        "record",
        "naming",
    } == set()
    assert cost.structured_content["content"]["workload"]["tensor_parallel"] == 8
    assert rows.structured_content["rows"] == [["sku"]]
    assert list(rows.structured_content["sources"]) == ["sku"]
    assert ["llama/4/scout", 16] in query.structured_content["rows"]
    assert checked.structured_content == {"clean": True, "findings": []}
    assert json.loads(compared.content[0].text)["before"] == "llama/2/7b"


def test_a_mistake_is_answered_with_the_next_step() -> None:
    unknown, column = called(
        ("show", {"id": "llama/3.2/2b"}), ("query", {"where": "num_expert > 1"})
    )
    assert unknown.is_error
    assert "LG201" in unknown.content[0].text
    assert column.is_error
    assert "num_experts" in column.content[0].text
