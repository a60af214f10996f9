"""Folders for transformers: their code is the generated PyTorch, in everything that people do with such a folder."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationMixin,
    LlamaForCausalLM,
    PreTrainedModel,
    logging,
)
from transformers.dynamic_module_utils import get_imports

import llamagen
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import read_hub_manifest, read_manifest
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.emit.torch.check import load_module
from llamagen.emit.torch.names import HUB_ATTRIBUTES, MODULE_ATTRIBUTES
from llamagen.verify.integrity import check_integrity
from tests.clients.models import TextModel
from tests.parity.models import FOREIGN, NOT_CODE
from tests.real import smollm2

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)

SPECS = Path(__file__).parents[1] / "specs"
NAMES = ("odd", *(name for name in FOREIGN if name not in NOT_CODE))
CODE = ExportOptions(format="transformers", custom_code=True)


def spec_of(name: str) -> Path:
    return SPECS / ("odd.yaml" if name == "odd" else f"foreign/{name}.yaml")


@cache
def _root() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp())


@cache
def folder_of(name: str) -> Path:
    out = _root() / name
    llamagen.load(spec_of(name)).export(out, CODE, random_weights=1)
    return out


@cache
def ours(name: str) -> Any:
    source = llamagen.load(spec_of(name)).torch_source()
    return load_module(source).CausalLM.from_pretrained(folder_of(name))


def theirs(folder: Path, **options: Any) -> Any:
    options = {"trust_remote_code": True, "dtype": torch.float32, **options}
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def tokens(name: str, *shape: int) -> torch.Tensor:
    size = llamagen.load(spec_of(name)).graph.outputs[0][1].shape[-1].value
    return torch.randint(2, size, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_and_generated_tokens_are_those_of_the_standalone_file(name: str) -> None:
    a, b, ids = ours(name), theirs(folder_of(name)), tokens(name, 2, 21)
    mask = torch.ones_like(ids)
    mask[1, :6] = 0  # crosses every window and chunk of these specs
    assert torch.equal(a(ids), b(input_ids=ids).logits)
    padded = a(ids, attention_mask=mask), b(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(*(logits[mask.bool()] for logits in padded))
    assert torch.equal(a(ids)[:, -2:], b(input_ids=ids, logits_to_keep=2).logits)
    words = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    answer = b.generate(ids, attention_mask=mask, eos_token_id=None, **words)
    assert torch.equal(a.generate(ids, mask, max_new_tokens=9), answer)


@pytest.mark.parametrize("name", ["odd", "gemma3", "mixtral", "gpt2"])
@torch.no_grad()
def test_a_saved_model_is_the_same_with_its_code(name: str, tmp_path: Path) -> None:
    model, ids = theirs(folder_of(name)), tokens(name, 1, 9)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(
        theirs(tmp_path / "saved")(input_ids=ids).logits, model(input_ids=ids).logits
    )
    base = AutoModel.from_pretrained(folder_of(name), trust_remote_code=True, dtype=torch.float32)
    assert type(base).__name__.endswith("Model")
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert torch.equal(base(input_ids=ids).last_hidden_state, hidden[-1])
    assert len(hidden) == model.config.num_hidden_layers + 1


@pytest.mark.parametrize("name", ["odd", "gemma3", "deepseek_v3"])
def test_activations_that_are_computed_again_give_the_same_gradients(name: str) -> None:
    ids, found = tokens(name, 2, 9), []
    for again in (False, True):
        model = theirs(folder_of(name)).train()
        if again:
            model.gradient_checkpointing_enable()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((loss, *gradients))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.allclose(found[0][0], ours(name).loss(ids, ids))


@torch.no_grad()
def test_peft_wraps_the_model() -> None:
    ids, model = tokens("odd", 1, 9), theirs(folder_of("odd"))
    before = model(input_ids=ids).logits
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    wrapped: Any = get_peft_model(model, config)
    assert torch.equal(wrapped(input_ids=ids).logits, before)


@pytest.mark.parametrize("name", ["odd", "cohere2", "gemma2"])
@torch.no_grad()
def test_implementations_of_attention_agree(name: str) -> None:
    ids, a = tokens(name, 2, 13), theirs(folder_of(name))(input_ids=tokens(name, 2, 13)).logits
    for one in ("eager",) if name == "gemma2" else ("eager", "flex_attention"):
        b = theirs(folder_of(name), attn_implementation=one)(input_ids=ids).logits
        assert torch.allclose(a, b, atol=1e-5 * float(a.std())), one


@pytest.mark.parametrize("name", ["odd", "cohere2"])
@torch.no_grad()
def test_a_cache_of_fixed_size_gives_the_same_tokens(name: str) -> None:
    ids, model = tokens(name, 1, 9), theirs(folder_of(name))
    words = {"max_new_tokens": 7, "do_sample": False, "disable_compile": True}
    static = model.generate(ids, cache_implementation="static", **words)
    assert torch.equal(model.generate(ids, **words), static)


@torch.no_grad()
def test_the_whole_model_compiles_into_one_graph() -> None:
    ids, model = tokens("odd", 2, 9), theirs(folder_of("odd"))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(input_ids=ids, use_cache=False).logits, model(input_ids=ids).logits)


def test_a_fact_that_the_code_has_otherwise_is_refused(tmp_path: Path) -> None:
    for file in (*folder_of("gemma2").glob("*.py"), folder_of("gemma2") / "config.json"):
        text = file.read_text().replace('"sliding_window": 4', '"sliding_window": 9')
        (tmp_path / file.name).write_text(text if file.suffix == ".json" else file.read_text())
    with pytest.raises(ValueError, match=r"sliding_window is 9, but the code .* a model with 4"):
        AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)


def test_names_that_a_model_of_transformers_owns_are_no_parts() -> None:
    owned = {n for kind in (PreTrainedModel, GenerationMixin) for n in dir(kind) if n[0] != "_"}
    assert owned - MODULE_ATTRIBUTES <= HUB_ATTRIBUTES


def test_code_is_not_run_unasked() -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained(folder_of("odd"), trust_remote_code=False)


@pytest.mark.parametrize("name", NAMES)
def test_code_needs_torch_and_transformers_alone(name: str) -> None:
    for file in folder_of(name).glob("*.py"):
        assert set(get_imports(file)) <= {"collections", "math", "torch", "transformers"}


def test_layers_are_cut_over_ranks_and_illegal_degrees_refused() -> None:
    refused = {"cohere", "mpt", "gpt_neox", "gpt_oss_attention", "olmo2", "olmo3", "olmoe", "phi3"}
    refused |= {"bloom", "gpt_oss"}
    folders = [str(folder_of(name)) for name in NAMES]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", "-m", "tests.parity.hub_worker", *folders]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["folder"] for line in lines] == list(NAMES)
    assert {line["folder"] for line in lines if "refused" in line} == refused
    for line in lines:
        if "refused" in line:
            assert "transformers cannot cut the layers over 2 devices, but over" in line["refused"]
            assert not line["refused"].strip().endswith(":"), "and it says why"
        else:
            assert line["within"], line
            assert line["cut"] > 0, line


# folders


@torch.no_grad()
def test_a_model_with_a_class_of_its_own_keeps_it_unless_asked(tmp_path: Path) -> None:
    spec = TextModel("llama/3.2/1b").spec(tmp_path)
    model = llamagen.load(spec)
    llamagen.random_checkpoint(spec, tmp_path / "weights", dtype="float32")
    plain = ExportOptions(format="transformers")
    model.export(tmp_path / "native", plain, checkpoint=tmp_path / "weights")
    model.export(tmp_path / "code", CODE, checkpoint=tmp_path / "weights")
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "native", dtype=torch.float32)
    assert type(native) is LlamaForCausalLM
    assert not list((tmp_path / "native").glob("*.py"))
    assert [read_hub_manifest(tmp_path / n).code for n in ("native", "code")] == [False, True]
    code, ids = theirs(tmp_path / "code"), torch.arange(12)[None]
    assert type(code) is not LlamaForCausalLM
    assert torch.equal(native(input_ids=ids).logits, code(input_ids=ids).logits)
    for name in ("native", "code"):
        stored = tmp_path / "weights" / "model.safetensors", tmp_path / name / "model.safetensors"
        assert os.path.samefile(*stored)
        assert check_integrity(tmp_path / name).whole


def test_weights_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llamagen.random_checkpoint(spec_of("odd"), tmp_path / "weights", shard_bytes=1_000_000)

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another device")

    monkeypatch.setattr(os, "link", refuse)
    llamagen.load(spec_of("odd")).export(tmp_path / "out", CODE, checkpoint=tmp_path / "weights")
    for file in (tmp_path / "weights").glob("*.safetensors"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert theirs(tmp_path / "out").config.num_hidden_layers == 4


@torch.no_grad()
def test_weights_under_other_names_are_written_as_parameters(tmp_path: Path) -> None:
    """As the Hub has those of Mixtral: three matrices an expert."""
    (tmp_path / "hub").mkdir()
    stored: dict[str, torch.Tensor] = {}
    for name, value in load_file(folder_of("mixtral") / "model.safetensors").items():
        path = name.replace(".mlp.", ".block_sparse_moe.")
        if "experts" not in path:
            stored[path] = value
            continue
        for e, one in enumerate(value):
            parts = (
                {"w2": one}
                if path.endswith("down_proj")
                else dict(zip(("w1", "w3"), one.chunk(2), strict=True))
            )
            stored |= {
                f"{path.rpartition('.')[0]}.{e}.{w}.weight": part.contiguous()
                for w, part in parts.items()
            }
    save_file(stored, tmp_path / "hub" / "model.safetensors")
    model = llamagen.load(spec_of("mixtral"))
    model.export(tmp_path / "out", CODE, checkpoint=tmp_path / "hub")
    assert read_hub_manifest(tmp_path / "out").weights.mode == "copy"
    ids = tokens("mixtral", 1, 9)
    assert torch.equal(theirs(tmp_path / "out")(input_ids=ids).logits, ours("mixtral")(ids))


@pytest.mark.slow
def test_a_trained_model_answers_as_run_does(tmp_path: Path) -> None:
    """SmolLM2 in Q4_1, decoded: as the class of transformers, and as code."""
    model, asked = llamagen.api.imported(smollm2()), "What is the capital of France?"
    exact = ExportOptions(quantize=QuantizeOptions(scheme="none"))
    model.export(tmp_path / "onnx", exact, checkpoint=smollm2())
    said = "".join(p.text for p in llamagen.api.run(tmp_path / "onnx", asked, chat=True))
    assert said == "The capital of France is Paris."
    for name, options in (("native", ExportOptions(format="transformers")), ("code", CODE)):
        out = tmp_path / name
        model.export(out, options, checkpoint=smollm2())
        tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=True)
        messages = [{"role": "user", "content": asked}]
        words = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        read = tokenizer.apply_chat_template(messages, **words)
        ids = theirs(out).generate(**read, max_new_tokens=24, do_sample=False)[0]
        new = ids[read["input_ids"].shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True) == said


@pytest.mark.parametrize(
    ("spec", "options", "code", "said"),
    [
        ("llama/3.2/11b-vision", CODE, "LG743", "cannot be code for transformers"),
        ("llama/3.2/1b", ExportOptions(format="transformers", logits="all"), "LG744", "--logits"),
        ("llama/3.2/1b", ExportOptions(format="transformers", stages=2), "LG744", "--stages"),
        (
            "llama/3.2/1b",
            ExportOptions(format="transformers", quantize=QuantizeOptions(scheme="int4")),
            "LG744",
            "--quantize",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    spec: str, options: ExportOptions, code: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(LlamagenError) as caught:
        llamagen.load(spec).export(tmp_path / "out", options, random_weights=0)
    (finding,) = caught.value.diagnostics
    assert finding.code == code and said in finding.message
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_other_kind_says_so(tmp_path: Path) -> None:
    with pytest.raises(LlamagenError, match="is a folder for transformers"):
        read_manifest(folder_of("odd"))
    llamagen.load(spec_of("odd")).export(tmp_path / "onnx", random_weights=0)
    with pytest.raises(LlamagenError, match="is a folder for ONNX Runtime"):
        read_hub_manifest(tmp_path / "onnx")
