"""Two LoRA adapters of tiny.yaml, in the format of PEFT, for `prepare.py` of the cases."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def loras() -> None:
    random = np.random.default_rng(5)
    for name, rank, modules in (("pirate", 2, ("q_proj", "v_proj")), ("poet", 3, ("q_proj",))):
        rows = {"q_proj": 32, "v_proj": 16}
        tensors = {}
        for layer in range(2):
            for module in modules:
                prefix = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                down, up = (rank, 32), (rows[module], rank)
                for part, shape in (("lora_A", down), ("lora_B", up)):
                    values = random.standard_normal(shape).astype(np.float32)
                    tensors[f"{prefix}.{part}.weight"] = values
        Path(name).mkdir()
        save_file(tensors, f"{name}/adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": 4,
            "base_model_name_or_path": "org/tiny",
        }
        Path(name, "adapter_config.json").write_text(json.dumps(config))
