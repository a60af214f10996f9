"""Witnesses of one's own: a Python file, another export, recorded logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from llamagen.api import load, random_checkpoint
from llamagen.diagnostics import LlamagenError
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.verify import oracles
from llamagen.verify.folder import COUNTS_ITSELF, NO_PAST, ROUNDS_ACTIVATIONS, verify_folder
from llamagen.verify.report import EXACTLY, document

MODEL = """
spec: 1
id: my/model
extends: llama/3.2/1b
hyperparameters: {hidden_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 1, head_dim: 16, intermediate_size: 24,
  vocab_size: 60}
tokenizer: {bos_id: 1, eos_ids: [2], special_tokens: null}
invariants: null
"""
ORACLE = """
import os
from pathlib import Path

from llamagen.verify.folder import subject_of
from llamagen.verify.witnesses import ReferenceWitness

print("this goes nowhere")


def load(folder):
    global model
    subject = subject_of(Path(folder), "CPUExecutionProvider")
    model = ReferenceWitness.of_graph(subject.graphs["model"], subject.stored.read)


def logits(input_ids, position_ids, attention_mask, past):
    print("and this")
    os.write(1, b"and what a library in C prints")
    session = past or model.start()
    answer = session.step(input_ids, attention_mask, position_ids)
    return RESULT
"""
CACHED = ORACLE.replace("RESULT", "answer, session")
WHOLE = ORACLE.replace("RESULT", "answer")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("oracles")
    (home / "my.yaml").write_text(MODEL)
    random_checkpoint(home / "my.yaml", home / "checkpoint")
    for profile in ("portable", "ort-cpu"):
        options = ExportOptions(profile=profile)
        load(home / "my.yaml").export(home / profile, options, checkpoint=home / "checkpoint")
    return home


def written(folder: Path, text: str, name: str = "oracle.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def verdicts(folder: Path, against: str, **options: object) -> set[str]:
    report = verify_folder(folder, [against], steps=3, **options)  # type: ignore[arg-type]
    return {row.verdict for row in report.rows if row.note not in (COUNTS_ITSELF, NO_PAST)}


def test_a_function_is_a_witness_with_a_past_and_without(home: Path, tmp_path: Path) -> None:
    """Recorded, the logits are one as well; of a wrong graph all of them are different."""
    recorded = tmp_path / "logits.npz"
    assert verdicts(home / "portable", written(tmp_path, CACHED), save_oracle=recorded) == {"equal"}
    assert verdicts(home / "portable", written(tmp_path, WHOLE, "whole.py")) == {"equal"}
    assert verdicts(home / "ort-cpu", str(recorded)) <= {"equal", "skipped"}
    wrong = shutil.copytree(home / "portable", tmp_path / "wrong")
    model = onnx.load(str(wrong / "model.onnx"), load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f *= 1.001
    (wrong / "model.onnx").write_bytes(model.SerializeToString())
    for witness in (str(recorded), written(tmp_path, WHOLE), str(home / "portable")):
        rows = verify_folder(wrong, [witness], steps=3).rows
        different = {row.case for row in rows if row.verdict == "different"}
        exactly = {f"prefill{EXACTLY}", f"around 8,192{EXACTLY}"}
        assert different == exactly, "no logit shows it"
    for attribute in (a for node in model.graph.node for a in node.attribute):
        if attribute.name == "epsilon":
            attribute.f = 1e-3
    (wrong / "model.onnx").write_bytes(model.SerializeToString())
    for witness in (str(recorded), str(home / "portable")):
        found = verify_folder(wrong, [witness], steps=3).rows
        assert "different" in {row.verdict for row in found if row.witness != "spec"}
    with pytest.raises(LlamagenError, match="recorded of other inputs") as caught:
        verify_folder(home / "portable", [str(recorded)], steps=3, seed=1)
    assert (
        caught.value.diagnostics[0].help == "ask as it did: --prompt-tokens 12 --steps 3 --seed 0"
    )


def test_another_export_is_a_witness(home: Path) -> None:
    """One gives all logits, the other the last of a call; those are compared."""
    for one, other in (("portable", "ort-cpu"), ("ort-cpu", "portable"), ("ort-cpu", "ort-cpu")):
        report = verify_folder(home / one, [str(home / other)], steps=3)
        assert report.passed and {row.witness for row in report.rows} - {"spec"} == {other}


NUMBERS = "import numpy as np\ndef logits(input_ids, position_ids, attention_mask, past):\n    "


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "it defines no function `logits`"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module', line 1"),
        (f"{NUMBERS}return past[0]", "TypeError: 'NoneType' object is not subscriptable, line 3"),
        (f"{NUMBERS}return np.zeros((*input_ids.shape, 61))", "logits of the shape [1, 15, 61]"),
        (f"{NUMBERS}return np.zeros(3)", "logits of the shape [3] for ids of [1, 15]"),
        (f"{NUMBERS}return np.full((*input_ids.shape, 60), np.nan)", "no finite numbers"),
        (f"{NUMBERS}return 'words'", "its logits are <U5, not real numbers"),
        (f"{NUMBERS}return np.zeros((*input_ids.shape, 60)) * 1j", "complex128, not real numbers"),
        (f"{NUMBERS}raise SystemExit", "SystemExit, line 3"),
        (f"{NUMBERS}import os; os._exit(7)", "its process ended with 7"),
        (
            f"{NUMBERS}z = np.random.rand(*input_ids.shape, 60); return (z, 1) if past is None else z",
            "returns a past after some calls and none after others",
        ),
    ],
)
def test_what_an_oracle_does_wrong_is_said(
    text: str, words: str, home: Path, tmp_path: Path
) -> None:
    """In its rows: a file that cannot be run has one, a call that fails that of its case."""
    report = verify_folder(home / "portable", [written(tmp_path, text), "torch"], steps=3)
    rows = [row for row in report.rows if row.witness == "oracle.py"]
    failed = [row for row in rows if row.verdict == "not compared"]
    assert all(row.note.startswith("LG774: ") for row in failed)
    assert words in failed[0].note and not report.passed
    assert (failed[0].case == "all") == ("def logits" not in text)
    assert {row.verdict for row in report.rows if row.witness == "torch"} == {"equal"}


def test_a_case_that_fails_leaves_the_others(home: Path, tmp_path: Path) -> None:
    """They are compared, nothing passes, and half a record is not kept."""
    text = WHOLE.replace(
        "session = past", "if not attention_mask.all(): raise OSError\n    session = past"
    )
    recorded = tmp_path / "logits.npz"
    file = written(tmp_path, text)
    report = verify_folder(home / "portable", [file], steps=3, save_oracle=recorded)
    rows = {row.case: row for row in report.rows if row.witness == "oracle.py"}
    assert rows["prefill"].verdict == "equal" and not report.passed
    assert rows["left padding"].verdict == "not compared"
    assert "OSError" in rows["left padding"].note
    assert not recorded.exists()
    assert " were not compared." in document(report).sentence


@pytest.mark.parametrize(
    ("against", "words"),
    [
        (["./nowhere.py"], "nowhere.py"),
        (["./nowhere.npz"], "nowhere.npz"),
        (["nowhere"], "there is no witness `nowhere`"),
        (["spec"], "there is no witness `spec`"),
        ([], "no witness is named"),
        (["a/oracle.py", "b/oracle.py"], "would both be called `oracle.py`"),
    ],
)
def test_what_is_not_there_is_said(against: list[str], words: str, home: Path) -> None:
    with pytest.raises(LlamagenError) as caught:
        verify_folder(home / "portable", against, steps=1)
    assert words in caught.value.diagnostics[0].message


def test_files_of_others_are_neither_read_nor_replaced(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros(3))
    with pytest.raises(LlamagenError, match="no file of recorded logits"):
        verify_folder(home / "portable", [str(other)], steps=1)
    with pytest.raises(LlamagenError, match="holds no recorded logits"):
        verify_folder(home / "portable", ["torch"], steps=1, save_oracle=other)
    narrow = tmp_path / "narrow.npz"
    verify_folder(home / "portable", ["torch"], steps=1, save_oracle=narrow)
    with np.load(narrow) as arrays:
        kept = dict(arrays)
    np.savez(narrow, **{**kept, "decode/logits": kept["decode/logits"][:, 1:]})
    with pytest.raises(LlamagenError, match=r"of `decode` it has \[13, 59\] in float32, not"):
        verify_folder(home / "portable", [str(narrow)], steps=1)
    with pytest.raises(LlamagenError, match=r"named .npz"):
        verify_folder(home / "portable", ["torch"], steps=1, save_oracle=tmp_path / "logits.bin")


def test_code_of_a_checkpoint_runs_only_when_told_so(home: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(home / "checkpoint", tmp_path / "checkpoint")
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": classes}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    folder = shutil.copytree(home / "portable", tmp_path / "out")
    shutil.copy(checkpoint / "config.json", folder / "config.json")
    (row,) = [r for r in verify_folder(folder, ["transformers"], steps=2).rows if r.case == "all"]
    assert "transformers cannot build the model" in row.note
    assert verify_folder(folder, ["transformers"], steps=2, trust_code=checkpoint).passed
    with (checkpoint / "own.py").open("a") as code:
        code.write("    def forward(self, *given, **named):\n        raise OSError('no')\n")
    report = verify_folder(folder, ["transformers", "torch"], steps=2, trust_code=checkpoint)
    assert report.rows[-1].verdict == "equal" and not report.passed
    notes = {row.note for row in report.rows if row.witness == "transformers"}
    assert "LG774: transformers cannot run its model: OSError: no" in notes


def test_a_reader_that_is_not_installed_is_told_and_nothing_passes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracles, "find_spec", lambda name: None)
    report = verify_folder(home / "portable", ["openvino", "torch"], 2)
    (row,) = (row for row in report.rows if row.witness == "openvino")
    assert row.verdict == "not compared" and not report.passed
    assert row.note.startswith("LG774: openvino is not installed; `pip install openvino`")
    assert any(one.witness == "torch" and one.verdict == "equal" for one in report.rows)


FAKE = """
from llamagen.verify.folder import subject_of
from llamagen.verify.witnesses import ReferenceWitness
from pathlib import Path


def load(file):
    global model
    assert file.endswith("/portable/model.onnx"), file
    subject = subject_of(Path(file).parent, "CPUExecutionProvider")
    model = ReferenceWitness.of_graph(subject.graphs["model"], subject.stored.read)


def logits(input_ids, position_ids, attention_mask, past):
    session = past or model.start()
    return session.step(input_ids, attention_mask, position_ids), session
"""


def test_a_reader_gets_the_graph_of_the_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = tmp_path / "reader.py"
    reader.write_text(FAKE)
    monkeypatch.setattr(oracles, "find_spec", lambda name: True)
    monkeypatch.setattr(oracles, "READERS", {"openvino": reader})
    report = verify_folder(home / "portable", ["openvino"], 2)
    assert report.passed
    assert sum(row.witness == "openvino" and row.verdict == "equal" for row in report.rows) >= 8


def test_a_graph_that_rounds_activations_itself_is_not_compared_with_its_reader(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`verify` runs products of w8a8 without that."""
    options = ExportOptions(quantize=QuantizeOptions("w8a8", sensitive="w8a8"))
    load(home / "my.yaml").export(tmp_path / "portable", options, random_weights=1)
    reader = tmp_path / "reader.py"
    reader.write_text(FAKE)
    monkeypatch.setattr(oracles, "find_spec", lambda name: True)
    monkeypatch.setattr(oracles, "READERS", {"openvino": reader})
    report = verify_folder(tmp_path / "portable", ["openvino"], 2)
    rows = [row for row in report.rows if row.witness == "openvino"]
    assert {row.note for row in rows} == {ROUNDS_ACTIVATIONS}
    assert not report.passed
