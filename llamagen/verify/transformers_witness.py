"""transformers as a witness: its own code for the folder's config.json, with the folder's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llamagen.diagnostics import LlamagenError
from llamagen.verify.numerics import FloatArray
from llamagen.verify.scenario import IntArray, Session
from llamagen.verify.witnesses import WeightReader

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TransformersWitness:
    """A model that transformers made from a configuration, in float32, with eager attention."""

    model: torch.nn.Module
    name: str = "transformers"

    @staticmethod
    def of_folder(folder: Path, paths: Sequence[str], weights: WeightReader) -> TransformersWitness:
        """Raises LG774 when transformers is not installed, the folder has no config.json, or the
        names of the weights are not those of the model."""
        try:
            library = import_module("transformers")
        except ImportError:
            help = "`pip install transformers`, or leave this witness out"
            raise LlamagenError.of("LG774", "transformers is not installed", help=help) from None
        import torch

        if not (folder / "config.json").is_file():
            help = "it is copied from a checkpoint in the Hub's format when a model is exported"
            message = f"{str(folder)!r} has no config.json for transformers"
            raise LlamagenError.of("LG774", message, help=help)
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
        config = library.AutoConfig.from_pretrained(folder)
        state = {p: torch.from_numpy(np.array(weights(p), dtype=np.float32)) for p in paths}
        with torch.device("meta"):
            kind = type(library.AutoModelForCausalLM.from_config(config))
        # from_pretrained, because it knows the names of checkpoints; without a folder it reads none
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[what]:
                message = f"transformers' {what.replace('_', ' ')}: {sorted(report[what])[:3]}"
                raise LlamagenError.of("LG774", message)
        return TransformersWitness(model.eval())

    def start(self) -> Session:
        return _TransformersSession(self.model)


class _TransformersSession:
    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.past: object = None

    def step(self, input_ids: IntArray, mask: IntArray, positions: IntArray) -> FloatArray:
        import torch

        with torch.no_grad():
            result = self.model(
                input_ids=torch.from_numpy(np.ascontiguousarray(input_ids)),
                attention_mask=torch.from_numpy(np.ascontiguousarray(mask)),
                position_ids=torch.from_numpy(np.ascontiguousarray(positions)),
                past_key_values=self.past,
                use_cache=True,
            )
        self.past = result.past_key_values
        return np.asarray(result.logits.double().numpy(), dtype=np.float64)
