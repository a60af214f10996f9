"""transformers as a witness: its own code for the folder's config.json, with the folder's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llamagen import files
from llamagen.diagnostics import LlamagenError
from llamagen.verify.corrections import CORRECTIONS, Correction, corrected
from llamagen.verify.numerics import FloatArray
from llamagen.verify.routed_torch import directed
from llamagen.verify.routing import Routers, together
from llamagen.verify.scenario import NOTHING, IntArray, Session, Values
from llamagen.verify.witnesses import WeightReader

if TYPE_CHECKING:
    import torch

COUNTS_PADDING = "row by row: transformers takes padding for positions"
"""Its attention temperature grows with the place in the batch, padding included; a row alone has none."""

COUNTS_PLACES = "transformers stretches scores by places in the cache, not by position_ids"
"""So a text with a gap in its positions cannot be compared with it."""


@dataclass(frozen=True)
class TransformersWitness:
    """A model that transformers made from a configuration, in float32, with eager attention."""

    model: torch.nn.Module
    name: str = "transformers"
    corrections: tuple[Correction, ...] = ()
    """Where it departs from the code the model was trained with: corrected while it runs."""
    routers: Routers | None = None
    """The experts to take, in place of those that its own scores are for."""

    @staticmethod
    def of_folder(
        folder: Path, paths: Sequence[str], weights: WeightReader, *, images: bool = False
    ) -> TransformersWitness:
        """``images`` asks for the model that reads them too. Raises LG774 when transformers is not
        installed, the folder has no config.json, or the names of the weights are not those of the model."""
        try:
            library = import_module("transformers")
        except ImportError:
            help = "`pip install transformers`, or leave this witness out"
            raise LlamagenError.of("LG774", "transformers is not installed", help=help) from None
        import torch

        if not files.exists(folder / "config.json"):
            help = "it is copied from a checkpoint in the Hub's format when a model is exported"
            message = f"{str(folder)!r} has no config.json for transformers"
            raise LlamagenError.of("LG774", message, help=help)
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
        files.checked(folder / "config.json", files.SETTINGS, within=folder)
        state = {p: torch.from_numpy(np.array(weights(p), dtype=np.float32)) for p in paths}
        auto = library.AutoModelForImageTextToText if images else library.AutoModelForCausalLM
        try:
            config = library.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            with torch.device("meta"):
                kind = type(auto.from_config(config))
        except Exception as error:  # whatever its constructors assert
            message = f"transformers cannot build the model of config.json: {error}"
            raise LlamagenError.of("LG774", message) from error
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
        known = CORRECTIONS.get(config.model_type, ()) if images else ()
        return TransformersWitness(model.eval(), corrections=known)

    def without(self, correction: Correction) -> TransformersWitness:
        """The same model, one correction less."""
        kept = tuple(one for one in self.corrections if one is not correction)
        return replace(self, corrections=kept)

    def start(self, images: Values = NOTHING) -> Session:
        return TransformersSession(self, images)

    def directed(self, routers: Mapping[str, Routers]) -> TransformersWitness:
        """The same model, which takes the experts that it is told."""
        return replace(self, routers=together(routers))


class TransformersSession:
    """Images go in with the first call; their names are those of the graphs' inputs."""

    def __init__(self, witness: TransformersWitness, images: Values = NOTHING) -> None:
        self.witness = witness
        self.images = images
        self.script = witness.routers.open() if witness.routers is not None else None
        self.past: object = None

    def step(
        self, input_ids: IntArray, mask: IntArray, positions: IntArray, beside: Values = NOTHING
    ) -> FloatArray:
        import torch

        given = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": positions,
            **beside,
            **self.images,
        }
        model, script = self.witness.model, self.script
        with ExitStack() as around:
            around.enter_context(torch.no_grad())
            around.enter_context(corrected(model, self.witness.corrections))
            if script is not None:
                around.enter_context(script.call(input_ids.shape[1]))
                around.enter_context(directed(script))
            result = model(
                **{name: torch.from_numpy(np.array(v)) for name, v in given.items()},
                past_key_values=self.past,
                use_cache=True,
            )
        self.images = NOTHING
        self.past = result.past_key_values
        return np.asarray(result.logits.double().numpy(), dtype=np.float64)
