"""What quantising costs: the numbers themselves, and where they are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from llamagen import api
from llamagen.api import load, random_checkpoint
from llamagen.cli import main
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import read_manifest
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.verify import quality
from tests.parity.models import SPECS

DENSE = SPECS / "reduced" / "llama-3.1-8b.yaml"
EXPERTS = SPECS / "reduced" / "llama-4-scout.yaml"


def test_the_divergence_of_known_distributions() -> None:
    p = np.array([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]])
    q = np.array([[0.25, 0.5, 0.25], [0.1, 0.4, 0.5]])
    # logits may be shifted by anything
    found = quality.compared(np.log(q) + 3.0, np.log(p) - [[700.0], [20.0]])
    divergence = [(p[i] * np.log(p[i] / q[i])).sum() for i in range(2)]
    assert found.kl_mean == pytest.approx(np.mean(divergence), rel=1e-3)
    assert found.kl_max == pytest.approx(max(divergence), rel=1e-3)
    assert found.top1_agreement == 0.5 and found.positions == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whose", ["the folder", "the float32 model"])
def test_no_quality_of_logits_that_are_no_numbers(value: float, whose: str) -> None:
    sound, damaged = np.zeros((1, 3)), np.array([[0.0, value, 0.0]])
    pair = (damaged, sound) if whose == "the folder" else (sound, damaged)
    with pytest.raises(LlamagenError) as caught:
        quality.compared(*pair)
    (found,) = caught.value.diagnostics
    assert found.code == "LG777" and whose in found.message


def test_fewer_bits_cost_more(tmp_path: Path) -> None:
    results = {}
    for scheme in ("none", "int8", "int4"):
        out = tmp_path / scheme
        load(DENSE).export(out, ExportOptions(quantize=QuantizeOptions(scheme)), random_weights=1)
        before = {p.name: p.read_bytes() for p in out.iterdir() if p.name != "MANIFEST.json"}
        results[scheme] = api.measure_quality(out)
        assert read_manifest(out).quality == results[scheme]
        assert {
            p.name: p.read_bytes() for p in out.iterdir() if p.name != "MANIFEST.json"
        } == before
        assert api.check_integrity(out).findings == ()
    none, int8, int4 = results.values()
    assert none.kl_max < 1e-9 and none.top1_agreement == 1.0
    assert 1e-6 < int8.kl_mean < 1e-3 and int8.top1_agreement > 0.9
    assert 10 * int8.kl_mean < int4.kl_mean < 0.1 and int4.top1_agreement < int8.top1_agreement


def test_against_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_checkpoint(DENSE, tmp_path / "checkpoint", seed=1)
    out = str(tmp_path / "out")
    command = ["export", str(DENSE), "--checkpoint", str(tmp_path / "checkpoint"), "--out", out]
    assert main([*command, "--quantize", "w8a8"]) == 0
    assert f"verify {out} --quality {tmp_path / 'checkpoint'}" in capsys.readouterr().err
    assert main(["verify", out, "--quality", str(tmp_path / "checkpoint")]) == 0
    assert "same likeliest token" in capsys.readouterr().out
    with pytest.raises(LlamagenError) as caught:
        api.measure_quality(out)
    assert caught.value.diagnostics[0].code == "LG778"


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (DENSE, QuantizeOptions()),
        (DENSE, QuantizeOptions("int4", block_size=32)),
        (DENSE, QuantizeOptions("int4", block_size=128, asymmetric=True)),
        (DENSE, QuantizeOptions("int8")),
        (DENSE, QuantizeOptions("w8a8")),
        (EXPERTS, QuantizeOptions("int4")),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_checkpoint_is_refused(
    tmp_path: Path, spec: Path, options: QuantizeOptions, dtype: str
) -> None:
    """Only one tensor is another's, and of codes only a row: what a fine-tune leaves of it."""
    random_checkpoint(spec, tmp_path / "checkpoint", seed=1)
    load(spec).export(
        tmp_path / "out",
        ExportOptions(dtype=dtype, quantize=options),
        checkpoint=tmp_path / "checkpoint",
    )
    assert api.measure_quality(tmp_path / "out", tmp_path / "checkpoint")
    before = (tmp_path / "out/MANIFEST.json").read_bytes()
    file = tmp_path / "checkpoint/model.safetensors"
    tensors = load_file(file)
    prefix = "language_model." if spec == EXPERTS else ""
    for end in ("norm.weight", "layers.1.self_attn.v_proj.weight"):
        name = f"{prefix}model.{end}"
        changed = tensors[name].clone()
        changed[0] = -changed[0]
        save_file({**tensors, name: changed}, file)
        with pytest.raises(LlamagenError) as caught:
            api.measure_quality(tmp_path / "out", tmp_path / "checkpoint")
        assert caught.value.diagnostics[0].code == "LG778"
        assert f"`{name}`" in caught.value.diagnostics[0].message
    assert (tmp_path / "out/MANIFEST.json").read_bytes() == before


def test_a_model_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(DENSE).export(tmp_path / "out", random_weights=1)
    monkeypatch.setattr(quality, "MEMORY_SHARE", 1e-9)
    with pytest.raises(LlamagenError) as caught:
        api.measure_quality(tmp_path / "out")
    assert caught.value.diagnostics[0].code == "LG778"
    assert read_manifest(tmp_path / "out").quality is None
