"""Folders for transformers with each layer cut over the ranks of this torchrun: equal to the standalone files?

    torchrun --nproc-per-node N -m tests.parity.hub_worker FOLDER...

Rank 0 prints a line of JSON for each: what the logits differ by over their spread, and whether that is within what
float32 does to this model (as `verify` measures it, in float64); or why the model was refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, logging

import llamagen
from llamagen.emit.manifest import SPEC_FILE
from llamagen.emit.torch.check import load_module
from llamagen.verify.limits import difference, measured_tolerance

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)


def main() -> None:
    dist.init_process_group("gloo")
    for name in sys.argv[1:]:
        folder = Path(name)
        model = llamagen.load(folder / SPEC_FILE)
        try:
            cut = AutoModelForCausalLM.from_pretrained(
                folder, trust_remote_code=True, dtype=torch.float32, tp_plan="auto"
            ).eval()
        except ValueError as error:
            said: dict[str, object] = {"folder": folder.name, "refused": str(error)}
        else:
            whole = load_module(model.torch_source()).CausalLM.from_pretrained(folder)
            generator = torch.Generator().manual_seed(0)
            shape = (2, 13)
            size = model.graph.outputs[0][1].shape[-1].value
            ids = torch.randint(size, shape, generator=generator)
            with torch.no_grad():
                ours, theirs = whole(ids), cut(input_ids=ids).logits
            theirs = theirs.full_tensor() if hasattr(theirs, "full_tensor") else theirs
            with torch.no_grad():
                exact = whole.double()(ids).flatten(0, 1).numpy()
            near = measured_tolerance("float32", difference(ours.flatten(0, 1).numpy(), exact))
            away = difference(theirs.flatten(0, 1).numpy(), exact)
            of_rank = {
                name: list(weight.to_local().shape)
                for name, weight in cut.named_parameters()
                if hasattr(weight, "to_local")
            }
            smaller = sum(
                of_rank[name] != list(weight.shape)
                for name, weight in whole.named_parameters()
                if name in of_rank
            )
            said = {
                "folder": folder.name,
                "difference": float((ours - theirs).abs().max() / ours.std()),
                "within": away.within(near),
                "cut": smaller,
            }
        if dist.get_rank() == 0:
            print(json.dumps(said), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
