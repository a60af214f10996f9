"""`llamagen lsp` as an editor drives it: over stdio, by the client of pygls."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from lsprotocol import types as lsp
from pygls.lsp.client import LanguageClient

from llamagen.cli import main

SPEC = """\
spec: 1
id: my/model
extends: llama/3.2/1b
hyperparameters: {num_layers: 2}
tokenizer: null
invariants: null
blocks:
  Attention:
    forward: |
      # 𝒳 is two units of UTF-16 long
      q = rope(split_heads(q_proj(x), num_heads), positions, rope)  # 𝒳
      k = rope(split_heads(k_proj(x), num_kv_heads), positions, rope)
      k, v = cache(k, split_heads(v_proj(x), num_kv_heads))
      return o_proj(merge_heads(attention(q, k, v, mask='causal')))
"""


class Editor:
    """A document that is open, and what the server says of it."""

    def __init__(self, client: LanguageClient, uri: str, text: str) -> None:
        self.client, self.uri, self.text, self.version = client, uri, text, 1
        self.said: asyncio.Queue[lsp.PublishDiagnosticsParams] = asyncio.Queue()

        @client.feature(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def told(said: lsp.PublishDiagnosticsParams) -> None:
            self.said.put_nowait(said)

    async def open(self) -> list[lsp.Diagnostic]:
        item = lsp.TextDocumentItem(self.uri, "yaml", self.version, self.text)
        self.client.text_document_did_open(lsp.DidOpenTextDocumentParams(item))
        return await self.findings()

    async def write(self, text: str) -> list[lsp.Diagnostic]:
        self.text, self.version = text, self.version + 1
        name = lsp.VersionedTextDocumentIdentifier(self.version, self.uri)
        change = lsp.TextDocumentContentChangeWholeDocument(text)
        self.client.text_document_did_change(lsp.DidChangeTextDocumentParams(name, [change]))
        return await self.findings()

    async def findings(self) -> list[lsp.Diagnostic]:
        """Without notes, which are no findings."""
        said = (await self.said.get()).diagnostics
        return [one for one in said if one.severity is not lsp.DiagnosticSeverity.Information]

    def at(self, line: str, word: str) -> tuple[lsp.TextDocumentIdentifier, lsp.Position]:
        """Inside the last ``word`` of the line that has ``line``, in units of UTF-16."""
        lines = self.text.splitlines()
        (number,) = (i for i, one in enumerate(lines) if line in one)
        before = lines[number][: lines[number].rindex(word) + 1]
        place = lsp.Position(number, len(before.encode("utf-16-le")) // 2)
        return lsp.TextDocumentIdentifier(self.uri), place

    async def hover(self, line: str, word: str) -> str:
        hover = await self.client.text_document_hover_async(lsp.HoverParams(*self.at(line, word)))
        if hover is None:
            return ""
        assert isinstance(hover.contents, lsp.MarkupContent)
        return hover.contents.value

    async def definition(self, line: str, word: str) -> tuple[str, int]:
        asked = lsp.DefinitionParams(*self.at(line, word))
        place = await self.client.text_document_definition_async(asked)
        assert isinstance(place, lsp.Location)
        return Path(place.uri).name, place.range.start.line

    async def completion(self, line: str, word: str) -> dict[str, lsp.CompletionItem]:
        asked = lsp.CompletionParams(*self.at(line, word))
        items = await self.client.text_document_completion_async(asked)
        assert isinstance(items, list)
        return {item.label: item for item in items}


def drive(tmp_path: Path, work: Callable[[Editor], Awaitable[None]]) -> None:
    async def session() -> None:
        client = LanguageClient("editor", "1")
        await client.start_io(sys.executable, "-m", "llamagen", "lsp")
        await client.initialize_async(lsp.InitializeParams(lsp.ClientCapabilities()))
        client.initialized(lsp.InitializedParams())
        await work(Editor(client, (tmp_path / "my.yaml").as_uri(), SPEC))
        await client.shutdown_async(None)
        client.exit(None)
        await client.stop()

    asyncio.run(session())


def test_findings_come_while_one_writes(tmp_path: Path) -> None:
    async def work(editor: Editor) -> None:
        assert await editor.open() == []
        (found,) = await editor.write(SPEC.replace("v_proj(x), num_kv_heads", "v_proj(x), 3"))
        assert (found.code, found.range.start.line) == ("LG411", 12)
        assert found.severity is lsp.DiagnosticSeverity.Error
        (found,) = await editor.write(SPEC.replace("# 𝒳\n", "# 𝒳\n      𝒳 = q_prj(x)\n"))
        assert found.code is not None
        (found,) = await editor.write(SPEC.replace("{num_layers: 2}", "{num_layers: 2"))
        assert found.code == "LG010" and "num_layers" in await editor.hover("num_layers", "num_lay")
        assert await editor.write(SPEC) == []

    drive(tmp_path, work)


def test_words_are_explained_completed_and_found(tmp_path: Path) -> None:
    async def work(editor: Editor) -> None:
        await editor.open()
        assert "[B, 32, S, 64]" in await editor.hover("q = rope", "q = "), "a value has its shape"
        assert "weight [512, 2048]" in await editor.hover("k = rope", "k_proj")
        assert "Key/value heads" in await editor.hover("k = rope", "num_kv_heads")
        assert "= 2" in await editor.hover("num_layers", "num_layers")
        assert (await editor.hover("q = rope", "split_heads")).startswith("split_heads(")
        assert await editor.definition("extends", "llama") == ("1b.yaml", 0)
        assert await editor.definition("num_layers", "num_layers") == ("my.yaml", 3)
        file, _ = await editor.definition("q = rope", "q_proj")
        assert file == "_base.yaml", "where it is inherited from"
        ids = await editor.completion("extends", "llama")
        assert {"llama/3.2/1b", "llama/4/scout"} <= set(ids)
        words = await editor.completion("return", "o_proj")
        assert {"rope", "o_proj", "num_heads", "Attention"} <= set(words)
        assert words["attention"].detail == "attention(q, k, v, [mask], [sinks])"

    drive(tmp_path, work)


def test_without_pygls_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pygls.lsp.server", None)
    monkeypatch.delitem(sys.modules, "llamagen.cli.lsp", raising=False)
    assert main(["lsp"]) == 2
    assert "pip install 'llamagen[lsp]'" in capsys.readouterr().err
