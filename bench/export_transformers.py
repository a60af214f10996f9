"""transformers' own ONNX exporter with a key/value cache: python -m bench.export_transformers CHECKPOINT OUT."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ort-fusions", choices=["cpu"])
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32).eval()
    ids = torch.arange(12).reshape(2, 6) + 1
    # with a mask of ones alone the exporter drops the input
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        past = model(ids[:, :3], attention_mask=mask[:, :3], use_cache=True).past_key_values
    sample = {
        "input_ids": ids[:, 3:],
        "attention_mask": mask,
        "position_ids": positions[:, 3:],
        "past_key_values": past,
        "use_cache": True,
    }
    config = OnnxConfig(dynamic=True, ort_fusions=options.ort_fusions)
    OnnxExporter().export(model, sample, config=config).save_pretrained(options.out)


if __name__ == "__main__":
    main()
