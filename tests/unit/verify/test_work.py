"""How much work a verification is: nothing is opened, read or computed twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from llamagen.api import load
from llamagen.emit.onnx.session import AS_IT_IS, open_session
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.verify import exact, graph_copies, stored, witnesses
from llamagen.verify.folder import verify_folder
from llamagen.verify.graph_copies import in_eight_bits, open_graph
from llamagen.verify.limits import difference
from llamagen.verify.scenarios import scenarios
from tests.unit.verify.test_oracles import MODEL

STEPS = 8
"""Of decode: more calls than are few."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("work")
    (home / "my.yaml").write_text(MODEL)
    model = load(home / "my.yaml")
    model.export(home / "plain", random_weights=1)
    model.export(
        home / "coded",
        ExportOptions(quantize=QuantizeOptions("int8", 16, asymmetric=True)),
        random_weights=1,
    )
    return home


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    seen: Counter[str] = Counter()

    def count(what: str, of: Any, name: str) -> None:
        plain: Callable[..., Any] = getattr(of, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            seen[what] += 1
            return plain(*arguments, **named)

        monkeypatch.setattr(of, name, counted)

    count("sessions", graph_copies, "open_session")
    count("reference", witnesses, "evaluate_graph")
    count("torch", witnesses._OpenTorch, "run")
    count("onnxruntime", witnesses.OpenOnnx, "run")
    count("decoded", exact, "_decoded")
    return seen


def test_cases_share_what_they_can(home: Path, work: Counter[str]) -> None:
    """The reference: the text and three padded batches at once, what jumps, what is around the context; each exactly
    and rounded. torch: prefill, decode, the padded batches at once, a text that jumps."""
    report = verify_folder(home / "plain", ["torch"], steps=STEPS)
    assert report.passed
    texts = 2 + sum(case.before > 0 for case in report.facts.cases)
    calls = sum(len(case.splits) for case in report.facts.cases)
    around = sum(len(case.splits) for case in report.facts.cases if case.before)
    decode = 1 + STEPS
    assert dict(work) == {
        "sessions": 1,
        "reference": 2 * texts,
        "torch": 1 + decode + decode + 2 + around,
        "onnxruntime": calls,
    }


def test_the_reference_as_a_witness_computes_nothing_more(home: Path, work: Counter[str]) -> None:
    verify_folder(home / "plain", ["torch"], steps=STEPS)
    alone = work["reference"]
    work.clear()
    verify_folder(home / "plain", ["torch", "reference"], steps=STEPS)
    assert work["reference"] == alone


def test_codes_are_decoded_once(home: Path, work: Counter[str]) -> None:
    """By the exact graph, as often as it has products; a table's rows are decoded as they are picked."""
    report = verify_folder(home / "coded", ["reference"], steps=STEPS)
    assert report.passed
    nodes = onnx.load(home / "coded" / "model.onnx", load_external_data=False).graph.node
    kinds = Counter(node.op_type for node in nodes)
    exactly = [
        case
        for case in report.facts.cases
        if f"{case.name}, exactly" in {r.case for r in report.rows}
    ]
    calls = sum(len(case.splits) for case in exactly)
    assert kinds["MatMulNBits"] > 5
    assert work["decoded"] == kinds["MatMulNBits"] + kinds["GatherBlockQuantized"] * calls
    assert work["sessions"] == 2


def test_decoded_products_are_those_of_the_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = home / "coded" / "model.onnx"
    products = [n for n in stored.graph_of(file).graph.node if n.op_type == "MatMulNBits"]
    sizes = [{a.name: a.i for a in node.attribute} for node in products]
    assert {size["K"] % 16 for size in sizes} == {0, 8}
    assert in_eight_bits(file) == sum(size["K"] * size["N"] for size in sizes)
    assert in_eight_bits(home / "plain" / "model.onnx") == 0
    opened: list[onnx.ModelProto] = []

    def open_and_keep(model: bytes, *rest: Any) -> Any:
        opened.append(onnx.load_model_from_string(model))
        return open_session(model, *rest)

    monkeypatch.setattr(graph_copies, "open_session", open_and_keep)
    plain, decoded = (open_graph(file, AS_IT_IS, decoded=one)[0] for one in (False, True))
    kinds = [Counter(node.op_type for node in model.graph.node) for model in opened]
    assert [of["MatMulNBits"] for of in kinds] == [len(products), 0]
    for case in scenarios(60, 5, 3):
        away = difference(case.logits(decoded), case.logits(plain))
        assert away.rms_over_std < 1e-5
