"""LoRA adapters that stay beside the model, switched by ONNX Runtime and onnxruntime-genai as PEFT switches them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime_genai as og
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from llamagen import api
from llamagen.cli import main
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import adapter_file, read_manifest
from llamagen.emit.onnx.session import empty_cache, open_session
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.verify.folder import verify_folder
from llamagen.verify.integrity import check_integrity
from llamagen.verify.stored import stored_weights
from tests.parity.published import exported, gguf_of, llama
from tests.parity.test_lora import EVERY

IDS = [1, 17, 42, 99, 5, 63]
CONFIGS: dict[str, dict[str, Any]] = {
    "one": {"r": 4, "lora_alpha": 16, "target_modules": EVERY, "rank_pattern": {"down_proj": 6}},
    "two": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
}
"""Of other ranks, beside some of the same projections."""


def write_adapter(folder: Path, seed: int, **config: Any) -> Path:
    """As PEFT saves one, with random factors."""
    model = get_peft_model(llama(), LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora" in name or "modules_to_save" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) / 4)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` and the adapters beside it."""
    folder = tmp_path_factory.mktemp("apart")
    llama().save_pretrained(folder / "base")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        write_adapter(folder / name, seed, **config)
    return folder


def apart(place: Path, out: Path, options: ExportOptions, base: str = "base") -> Path:
    adapters = {name: place / name for name in CONFIGS}
    return exported(place / base, out, options, adapter=adapters)


def switched(out: Path, name: str | None) -> ort.RunOptions:
    """How a caller of ONNX Runtime asks for an adapter."""
    chosen = ort.RunOptions()
    if name is not None:
        adapter = ort.LoraAdapter()
        adapter.Load(str(out / adapter_file(name)))
        chosen.add_active_adapter(adapter)
        _ALIVE.append(adapter)
    return chosen


_ALIVE: list[ort.LoraAdapter] = []


def logits(session: ort.InferenceSession, out: Path, name: str | None) -> NDArray[np.float32]:
    feeds = {
        "input_ids": np.array([IDS]),
        "attention_mask": np.ones((1, len(IDS)), np.int64),
        "position_ids": np.arange(len(IDS))[None],
    }
    taken = {one.name for one in session.get_inputs()}
    feeds = {n: v for n, v in feeds.items() if n in taken}
    results = session.run(["logits"], feeds | empty_cache(session, 1), switched(out, name))
    found: NDArray[np.float32] = np.asarray(results[0], np.float32)[0]
    return found


def theirs(place: Path, name: str | None, state: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """transformers with the weights ``state``, and PEFT's adapter beside them."""
    model = llama()
    model.load_state_dict(state)
    if name is None:
        return model.eval()
    adapted: torch.nn.Module = PeftModel.from_pretrained(model, place / name).eval()
    return adapted


def state_of(out: Path) -> dict[str, torch.Tensor]:
    """The weights of the folder as they stand there: those that codes mean."""
    stored = stored_weights(out)
    names = llama().state_dict()
    return {name: torch.tensor(stored.read(name).astype(np.float32)) for name in names}


FLOATS = QuantizeOptions("int4", accuracy_level=1, block_size=32)

FORMS = {
    "portable": (ExportOptions(logits="all"), 2e-5),
    "fused": (ExportOptions(profile="ort-cpu", logits="all"), 2e-5),
    "int4": (ExportOptions(profile="ort-cpu", logits="all", quantize=FLOATS), 2e-5),
    "int8 head": (
        ExportOptions(logits="all", quantize=QuantizeOptions("int8", accuracy_level=1)),
        2e-5,
    ),
    "float16": (ExportOptions(profile="ort-cpu", dtype="float16", logits="all"), 2e-2),
    "bfloat16": (ExportOptions(dtype="bfloat16", logits="all"), 3e-1),
    "by reference": (ExportOptions(weights="reference", logits="all"), 2e-5),
}


@pytest.mark.parametrize("form", FORMS)
def test_onnxruntime_switches_what_peft_switches(form: str, place: Path, tmp_path: Path) -> None:
    options, tolerance = FORMS[form]
    out = apart(place, tmp_path / "out", options)
    state = state_of(out)
    session = open_session(out / "model.onnx")
    seen = []
    for name in (None, "one", "two", None, "one"):
        with torch.no_grad():
            expected = theirs(place, name, state)(torch.tensor([IDS])).logits[0].numpy()
        found = logits(session, out, name)
        assert np.abs(found - expected).max() <= tolerance * expected.std(), name
        seen.append(found)
    assert np.array_equal(seen[0], seen[3]) and np.array_equal(seen[1], seen[4])
    assert min(np.abs(seen[0] - one).max() for one in seen[1:3]) > 0.1


def test_rows_of_a_gguf_are_in_the_order_of_the_adapter(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "place")
    gguf_of(llama(), tmp_path / "place" / "base.gguf")
    out = apart(tmp_path / "place", tmp_path / "out", ExportOptions(logits="all"), "base.gguf")
    with torch.no_grad():
        model = theirs(place, "one", llama().state_dict())
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    found = logits(open_session(out / "model.onnx"), out, "one")
    assert np.abs(found - expected).max() <= 2e-5 * expected.std()


def greedy(
    place: Path,
    name: str | None,
    state: Mapping[str, torch.Tensor],
    new: int,
    prompt: Sequence[int] = IDS,
) -> list[int]:
    model, ids = theirs(place, name, state), list(prompt)
    with torch.no_grad():
        for _ in range(new):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("client", ["onnxruntime", "onnxruntime-genai"])
def test_the_readme_of_the_folder_switches_an_adapter(
    client: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines about the adapter, put where it says that they go."""
    out = apart(place, tmp_path / "out", ExportOptions())
    monkeypatch.chdir(out)
    section = Path("README.md").read_text().partition(f"## {client}\n")[2].partition("\n## ")[0]
    whole, switch = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    if client == "onnxruntime":
        call = "session.run(outputs, feeds | past"
        assert f"`{call}, with_adapter)`" in section and f"{call})" in whole
        code = f"import onnxruntime as ort\n{switch}{whole.replace(call, f'{call}, with_adapter')}"
    else:
        made = "generator = og.Generator(model, params)\n"
        assert made in switch and made in whole
        code = whole.replace(made, switch)
    texts = {}
    for about, lines in (("with", code), ("without", whole)):
        names: dict[str, Any] = {}
        exec(compile(lines, "README.md", "exec"), names)
        texts[about] = list(names["answer"])
    prompt = [int(token) for token in names["prompt"]]
    (name,) = re.findall(r"adapters/(\w+)\.onnx_adapter", switch)
    for about, asked in (("with", name), ("without", None)):
        expected = greedy(place, asked, state_of(out), 16, prompt)
        ended = expected.index(2) if 2 in expected else 16
        assert texts[about][:ended] == expected[:ended] and ended
    assert texts["with"] != texts["without"]


@pytest.mark.parametrize("form", ["portable", "fused", "int4"])
def test_genai_and_run_write_what_peft_writes(form: str, place: Path, tmp_path: Path) -> None:
    options, _ = FORMS[form]
    out = apart(place, tmp_path / "out", options)
    state, new = state_of(out), 12
    model = og.Model(str(out))
    adapters = og.Adapters(model)
    for known in CONFIGS:
        adapters.load(str(out / adapter_file(known)), known)
    texts = []
    names: tuple[str | None, ...] = (None, "two", "one", None)
    for name in names:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(IDS) + new, min_length=len(IDS) + new)
        generator = og.Generator(model, params)
        if name is not None:
            generator.set_active_adapter(adapters, name)
        generator.append_tokens(IDS)
        while not generator.is_done():
            generator.generate_next_token()
        found = generator.get_sequence(0)[len(IDS) :].tolist()
        expected = greedy(place, name, state, new)
        ended = expected.index(2) if 2 in expected else new
        assert found[:ended] == expected[:ended], name
        ours = [piece.token for piece in api.run(out, IDS, max_new_tokens=new, adapter=name)]
        assert ours[:ended] == expected[:ended], name
        texts.append(expected)
    assert texts[0] != texts[1] != texts[2]


def test_a_batch_has_the_adapter_too(place: Path, tmp_path: Path) -> None:
    out = apart(place, tmp_path / "out", ExportOptions(profile="ort-cpu"))
    runner = api.Runner(out, adapter="one")
    alone = [piece.token for piece in runner.run(IDS, max_new_tokens=6)]
    for stream, _ in runner.run_batch([IDS, IDS[:4]], max_new_tokens=6)[:1]:
        assert list(stream.tokens) == alone


def test_the_folder_names_them(place: Path, tmp_path: Path) -> None:
    out = apart(place, tmp_path / "out", ExportOptions())
    again = apart(place, tmp_path / "again", ExportOptions())
    manifest = read_manifest(out)
    assert {name: one.rank for name, one in manifest.adapters.items()} == {"one": 4, "two": 3}
    page = (out / "README.md").read_text()
    for name in CONFIGS:
        file = adapter_file(name)
        assert f"adapter `{name}`, a LoRA of rank" in page and f"`{file}`" in page
        assert (out / file).read_bytes() == (again / file).read_bytes()
        assert manifest.files[file].size == (out / file).stat().st_size
    assert "set_active_adapter" in page and "add_active_adapter" in page
    assert check_integrity(out).whole
    data = (out / adapter_file("two")).read_bytes()
    (out / adapter_file("two")).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (damage,) = check_integrity(out).findings
    assert "two" in damage.file


def test_verify_looks_at_each(place: Path, tmp_path: Path) -> None:
    out = apart(place, tmp_path / "out", ExportOptions(profile="ort-cpu"))
    report = verify_folder(out, steps=4)
    assert report.passed
    for name in CONFIGS:
        for case in ("prefill", "decode"):
            compared = {
                row.witness for row in report.rows if row.case.startswith(f"{case} with {name}")
            }
            assert compared == {"torch", "reference", "spec"}


@pytest.mark.parametrize(
    ("dtype", "seed", "config"),
    [
        ("float32", 4, {"r": 2, "lora_alpha": 16, "target_modules": [*EVERY[:2], *EVERY[5:]]}),
        ("bfloat16", 12, {"r": 8, "lora_alpha": 16, "target_modules": EVERY[:5] + EVERY[6:]}),
    ],
    ids=["float32", "bfloat16"],
)
def test_rounding_of_a_strong_adapter_is_no_mistake(
    dtype: str, seed: int, config: dict[str, Any], tmp_path: Path
) -> None:
    """What its first product is rounded by every result gets alike, and attention gathers it."""
    llama(attention_bias=True).save_pretrained(tmp_path / "base")
    model = get_peft_model(llama(attention_bias=True), LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) / 4)
    model.save_pretrained(str(tmp_path / "lora"))
    adapter = {"strong": tmp_path / "lora"}
    options = ExportOptions(profile="ort-cpu", dtype=dtype)
    out = exported(tmp_path / "base", tmp_path / "out", options, adapter=adapter)
    rows = verify_folder(out, steps=8).rows
    assert not [row.cells() for row in rows if row.verdict == "different"]


def wrong(out: Path, kind: str) -> None:
    """The last sum with an adapter is another operator."""
    model = onnx.load(out / "model.onnx", load_external_data=False)
    products = {
        n.output[0] for n in model.graph.node if n.op_type == "MatMul" and "lora_B" in n.input[1]
    }
    node = [n for n in model.graph.node if n.op_type == "Add" and n.input[1] in products][-1]
    node.op_type = kind
    onnx.save(model, out / "model.onnx")


def test_verify_sees_a_graph_that_is_wrong_with_an_adapter_alone(
    place: Path, tmp_path: Path
) -> None:
    out = apart(place, tmp_path / "out", ExportOptions())
    wrong(out, "Sub")
    rows = verify_folder(out, ("torch",), steps=4).rows
    different = {row.case.removesuffix(", exactly") for row in rows if row.verdict == "different"}
    assert different == {"prefill with one", "decode with one"}


def refused(act: Any) -> str:
    with pytest.raises(LlamagenError) as caught:
        act()
    (found,) = caught.value.diagnostics
    return f"{found.code} {found.message} ({found.help})"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (ExportOptions(stages=2), "stages"),
        (ExportOptions(web=True), "--web"),
        (ExportOptions(profile="ort-cpu", cache_dtype="int8"), "--cache-dtype"),
        (ExportOptions(format="transformers"), "transformers"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_has_no_inputs_for_them(
    options: ExportOptions, said: str, place: Path, tmp_path: Path
) -> None:
    text = refused(lambda: apart(place, tmp_path / "out", options))
    assert text.startswith("LG657") and said in text and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 2, "target_modules": ["embed_tokens"]}, "LG657"),
        ({"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["norm"]}, "LG657"),
        ({"r": 2, "target_modules": ["q_proj"], "use_dora": True}, "LG625"),
    ],
    ids=["embedding", "whole weights", "dora"],
)
def test_what_is_no_product_beside_a_projection(
    config: dict[str, Any], said: str, place: Path, tmp_path: Path
) -> None:
    odd = write_adapter(tmp_path / "odd", 0, **config)
    adapters = {"one": place / "one", "odd": odd}
    text = refused(lambda: exported(place / "base", tmp_path / "out", adapter=adapters))
    assert text.startswith(said) and "odd" in text and not (tmp_path / "out").exists()


def test_another_base_and_names_that_are_no_files(place: Path, tmp_path: Path) -> None:
    llama(intermediate_size=80).save_pretrained(tmp_path / "other")
    for base, names, said in (
        (tmp_path / "other", ["one"], "LG625"),
        (place / "base", ["../one"], "LG657"),
        (place / "base", ["a", "A"], "LG657"),
    ):
        adapters = dict.fromkeys(names, place / "one")
        assert refused(
            lambda b=base, a=adapters: exported(b, tmp_path / "out", adapter=a)
        ).startswith(said)
        assert not (tmp_path / "out").exists()


def test_values_that_the_dtype_cannot_hold(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "two", tmp_path / "large")
    file = tmp_path / "large" / "adapter_model.safetensors"
    state = load_file(file)
    first = min(name for name in state if "lora_B" in name)
    adapters = {"large": tmp_path / "large"}
    for value, dtype, code in ((1e6, "float16", "LG621"), (float("nan"), "float32", "LG620")):
        save_file({**state, first: torch.full_like(state[first], value)}, file)
        options = ExportOptions(dtype=dtype)
        text = refused(
            lambda o=options: exported(place / "base", tmp_path / "out", o, adapter=adapters)
        )
        assert text.startswith(code) and not (tmp_path / "out").exists()


def test_an_adapter_beside_the_weights_may_stay_apart(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "base", tmp_path / "both")
    shutil.copytree(place / "one", tmp_path / "both", dirs_exist_ok=True)
    assert refused(lambda: exported(tmp_path / "both", tmp_path / "out")).startswith("LG623")
    out = exported(tmp_path / "both", tmp_path / "out", adapter={"one": tmp_path / "both"})
    assert list(read_manifest(out).adapters) == ["one"]


def test_run_refuses_what_is_not_there_or_not_its_own(place: Path, tmp_path: Path) -> None:
    out = apart(place, tmp_path / "out", ExportOptions())
    assert "one, two" in refused(lambda: api.run(out, IDS, adapter="three"))
    fused = apart(place, tmp_path / "fused", ExportOptions(profile="ort-cpu"))
    shutil.copyfile(fused / adapter_file("one"), out / adapter_file("one"))
    assert refused(lambda: api.run(out, IDS, adapter="one")).startswith("LG713")
    for data in (b"", b"no adapter", (fused / adapter_file("two")).read_bytes()[:200]):
        (out / adapter_file("two")).write_bytes(data)
        assert refused(lambda: api.run(out, IDS, adapter="two")).startswith("LG713")
    plain = exported(place / "base", tmp_path / "plain")
    assert refused(lambda: api.run(plain, IDS, adapter="one")).startswith("LG658")


@pytest.mark.parametrize(
    "said", [["a=x", "a=y"], ["x", "y"], ["a=x", "y"]], ids=["twice", "no names", "one name"]
)
def test_the_command_line_refuses_names_that_are_not_clear(
    said: list[str], place: Path, tmp_path: Path
) -> None:
    for name in ("x", "y"):
        shutil.copytree(place / "two", tmp_path / name)
    words = [word for one in said for word in ("--adapter", one.replace("x", str(tmp_path / "x")))]
    command = ["export", str(place / "base"), "--out", str(tmp_path / "out"), *words]
    assert main(command) == 2 and not (tmp_path / "out").exists()


def test_a_manifest_that_names_what_is_not_there(place: Path, tmp_path: Path) -> None:
    out = apart(place, tmp_path / "out", ExportOptions())
    file = out / "MANIFEST.json"
    said = json.loads(file.read_text())
    said["adapters"]["../two"] = said["adapters"].pop("two")
    file.write_text(json.dumps(said))
    assert refused(lambda: read_manifest(out)).startswith("LG775")
