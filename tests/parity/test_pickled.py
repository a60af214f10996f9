"""`pytorch_model.bin`, whole and in shards, as transformers reads it; `tokenizer.model` without tokenizer.json."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from llamagen import api
from llamagen.diagnostics import LlamagenError
from llamagen.emit.calibrate import built_in_text
from llamagen.emit.options import ExportOptions
from llamagen.emit.written import Written
from tests.parity.published import SIZES, exported, llama, pieces_of, require_equal
from tests.unit.weights.test_byte_bpe import RANKS, file_of


def pickled(folder: Path, shards: int = 1, **changes: Any) -> torch.nn.Module:
    """A model's folder as transformers wrote it before safetensors."""
    model = llama(**changes)
    model.config.save_pretrained(folder)
    state = model.state_dict()
    names = [f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin" for i in range(shards)]
    weight_map = {name: names[i % shards] for i, name in enumerate(state)}
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return model
    for file in names:
        part = {name: tensor for name, tensor in state.items() if weight_map[name] == file}
        torch.save(part, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return model


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_pickles_are_read_as_transformers_reads_them(
    shards: int, tied: bool, tmp_path: Path
) -> None:
    pickled(tmp_path / "model", shards, tie_word_embeddings=tied)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "model", use_safetensors=False)
    require_equal(exported(tmp_path / "model", tmp_path / "out"), peer.float())


def test_safetensors_come_first_as_in_transformers(tmp_path: Path) -> None:
    pickled(tmp_path / "model")
    model = llama(seed=1)
    model.save_pretrained(tmp_path / "model")
    require_equal(exported(tmp_path / "model", tmp_path / "out"), model)


def refused(folder: Path, weights: str = "copy") -> str:
    with pytest.raises(LlamagenError) as caught:
        exported(folder, folder.parent / "out", ExportOptions(weights=weights))
    assert not (folder.parent / "out").exists()
    (found,) = caught.value.diagnostics
    return f"{found.code} {found.message} {found.help}"


class Wants:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("run",)


def test_a_pickle_that_wants_more_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled(tmp_path / "model")
    file = tmp_path / "model" / "pytorch_model.bin"
    torch.save({"a": Wants()}, file)
    said = refused(tmp_path / "model")
    assert "LG605" in said and file.name in said and "print" in said and "torch.save(" in said
    assert not capsys.readouterr().out
    torch.save({"state_dict": llama().state_dict()}, file)
    assert "LG605" in refused(tmp_path / "model")
    torch.save(llama().state_dict(), file, _use_new_zipfile_serialization=False)
    assert "current torch.save" in refused(tmp_path / "model")


def test_a_graph_does_not_point_into_a_pickle(tmp_path: Path) -> None:
    pickled(tmp_path / "model")
    assert "LG640" in refused(tmp_path / "model", weights="reference")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of the kind that LLaMA and Llama 2 have."""
    return pieces_of(tmp_path_factory.mktemp("pieces"))


def written(folder: Path, tokenizer: bytes, **settings: object) -> Written:
    model = llama(vocab_size=501)
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return api.imported(folder).export(folder.parent / "out", checkpoint=folder)


def test_a_tokenizer_model_becomes_a_tokenizer_json(pieces: Path, tmp_path: Path) -> None:
    added = {"500": {"content": "<|im_end|>", "special": True}}
    done = written(tmp_path / "model", pieces.read_bytes(), added_tokens_decoder=added)
    assert not [note for note in done.notes if note.code == "LG650"]
    ours = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    theirs = SentencePieceProcessor(model_file=str(pieces))
    text = built_in_text()
    for start in range(0, 4000, 61):
        part = text[start : start + 60 + start % 50]
        ids = ours.encode(part, add_special_tokens=False).ids
        assert ids == theirs.encode(part) and ours.decode(ids) == theirs.decode(ids)
    assert ours.encode("Hi").ids[0] == theirs.bos_id()
    assert ours.encode("a<FILL><|im_end|>").ids[-2:] == [theirs.piece_to_id("<FILL>"), 500]


def test_no_first_token_where_the_settings_say_so(pieces: Path, tmp_path: Path) -> None:
    written(tmp_path / "model", pieces.read_bytes(), add_bos_token=False)
    ours = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert ours.encode("Hi").ids == SentencePieceProcessor(model_file=str(pieces)).encode("Hi")


def test_ranks_become_a_tokenizer_json(tmp_path: Path) -> None:
    """What stands behind the ranks is what the spec says; an imported model says nothing of it."""
    folder = tmp_path / "model"
    (note,) = (one for one in written(folder, file_of(RANKS)).notes if one.code == "LG650")
    assert "tokenizer.model" in note.message
    llama(vocab_size=128_256).save_pretrained(folder)
    sizes = {**SIZES, "vocab_size": 128_256}
    names = {
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
    }
    known = ("vocab_size", "hidden_size", "intermediate_size", *names)
    own = {names.get(name, name): sizes[name] for name in known}
    own |= {"head_dim": own["hidden_size"] // own["num_heads"]}
    spec = tmp_path / "three.yaml"
    spec.write_text(
        "spec: 1\nid: my/three\nextends: llama/3/8b\ninvariants: null\n"
        f"hyperparameters: {json.dumps(own)}\n"
    )
    shutil.rmtree(tmp_path / "out")
    done = api.load(spec).export(tmp_path / "out", checkpoint=folder, ignore_config=True)
    assert not [note for note in done.notes if note.code == "LG650"]
    ours = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert ours.encode("the").ids == [128_000, RANKS[b"the"]]
    assert ours.token_to_id("<|reserved_special_token_4|>") == 128_008


FEW = b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256))


@pytest.mark.parametrize("what", ["unigram", "normaliser", "ranks", "no package"])
def test_what_is_no_such_model_is_said(
    what: str, pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    match what:
        case "unigram":
            data = pieces_of(tmp_path, "unigram").read_bytes()
        case "normaliser":
            data = pieces_of(tmp_path, normaliser="nmt_nfkc").read_bytes()
        case "ranks":
            data = FEW
        case _:
            data = pieces.read_bytes()
            (tmp_path / "sentencepiece.py").write_text("import gone")
            monkeypatch.syspath_prepend(tmp_path)
    (note,) = (n for n in written(tmp_path / "model", data).notes if n.code == "LG650")
    said = f"{note.message} {note.help}"
    assert {"unigram": "no BPE", "normaliser": "splits", "ranks": "256 tokens"}.get(
        what, "pip install"
    ) in said
    assert not (tmp_path / "out" / "tokenizer.json").exists()
