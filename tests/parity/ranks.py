"""What each rank of a torchrun does: ``torchrun --nproc-per-node N ranks.py FOLDER``.

Below FOLDER is a folder a case, with modeling.py, parallel.py and case.json, which says what is asked. Rank 0 writes
answer.json beside them: differences to the model alone, of logits relative to their standard deviation, of gradients to
the largest of the parameter.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

Answer = dict[str, Any]


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # parallel.py imports modeling
    spec.loader.exec_module(module)
    return module


def randomised(model: nn.Module) -> nn.Module:
    """Weights of unit scale, gains near one: every path counts."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.normal_(mean=1.0, std=0.3)
    return model


def tied(model: Any) -> Any:
    if hasattr(model, "tie"):
        model.tie()
    return model


def full(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


class Case:
    def __init__(self, folder: Path) -> None:
        self.asked = json.loads((folder / "case.json").read_text())
        self.modeling = module_of(folder / "modeling.py")
        self.parallel = module_of(folder / "parallel.py")
        self.kind = getattr(self.modeling, self.asked["model"])
        self.folder = folder
        self.dtype = getattr(torch, self.asked.get("dtype", "float64"))
        self.alone = tied(randomised(self.kind()).to(self.dtype))
        torch.manual_seed(1)
        self.ids = torch.randint(0, self.asked["vocabulary"], (4, 12))

    def copied(self) -> Any:
        return tied(copy.deepcopy(self.alone))

    def mesh(self) -> DeviceMesh:
        return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))

    def off(self, found: Tensor, expected: Tensor) -> float:
        return float(((full(found) - expected).abs().max() / expected.std()).detach())

    def loss(self, model: nn.Module) -> Tensor:
        logits = full(model(self.ids))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), self.ids[:, 1:].flatten())

    def gradients(self, model: nn.Module) -> dict[str, float]:
        """The worst gradient against that of the model alone."""
        self.alone.zero_grad()
        self.loss(self.alone).backward()
        self.loss(model).backward()
        return self.compared(model)

    def compared(self, model: nn.Module) -> dict[str, float]:
        expected = {name: p.grad for name, p in self.alone.named_parameters()}
        largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
        ranks = getattr(model, "tensor_parallel", 1)
        off: dict[str, float] = {}
        for name, parameter in model.named_parameters():
            want, have = expected[name], parameter.grad
            if want is None:
                continue
            # a bias of keys and the router of one expert have gradients of zero, and rounding
            scale = max(float(want.abs().max()), 1e-3 * largest)
            if have is None:
                off[name] = float(want.abs().max()) / scale
                continue
            have = full(have)
            order = getattr(self.parallel, "rank_order", lambda *_: None)(name, ranks)
            if order is not None:
                have = have.index_select(order[0], order[1].argsort())
            off[name] = float((have - want).abs().max()) / scale
        name = max(off, key=lambda n: off[n])
        return {"gradient": off[name], "of": name}  # type: ignore[dict-item]

    # what may be asked

    def tensor_parallel(self) -> Answer:
        cut = self.parallel.parallelize(self.copied(), self.mesh())
        mask = torch.ones_like(self.ids)
        mask[1, :4] = 0
        answer: Answer = {}
        with torch.no_grad():
            answer["prefill"] = self.off(cut(self.ids), self.alone(self.ids))
            if self.asked.get("caches", True):
                caches = [self.modeling.KVCache() for _ in range(2)]
                for ids in (self.ids, self.ids[:, :3]):
                    two = [m(ids, cache=c) for m, c in zip((cut, self.alone), caches, strict=True)]
                    answer["decode"] = self.off(*two)
            padded = [m(self.ids, attention_mask=mask)[mask.bool()] for m in (cut, self.alone)]
            answer["padded"] = self.off(*padded)
        sizes = [sum(full(p).numel() for p in self.alone.parameters())]
        sizes += [sum(p.to_local().numel() for p in cut.parameters())]
        answer["share"] = sizes[1] / sizes[0]
        whole = self.parallel.gathered(cut)
        answer["gathered"] = all(
            torch.equal(whole[name], p) for name, p in self.alone.named_parameters()
        )
        if self.asked.get("train", True):
            answer |= self.gradients(cut)
        return answer

    def generate(self) -> Answer:
        cut = self.parallel.parallelize(self.copied(), self.mesh())
        ids = self.ids[:, :5]
        return {
            "same": bool(
                (
                    cut.generate(ids, max_new_tokens=6)
                    == self.alone.generate(ids, max_new_tokens=6)
                ).all()
            )
        }

    def refused(self) -> Answer:
        mesh = DeviceMesh("cpu", list(range(3)))
        try:
            self.parallel.parallelize(self.copied(), mesh)
        except ValueError as error:
            return {"error": str(error)}
        return {"error": None}

    def fsdp(self) -> Answer:
        model = self.parallel.fully_shard_layers(self.copied(), self.mesh())
        with torch.no_grad():
            off = self.off(model(self.ids), self.alone(self.ids))
        return {"prefill": off, **self.gradients(model)}

    def fsdp_tp(self) -> Answer:
        shape = (dist.get_world_size() // 2, 2)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
        model = self.parallel.parallelize(self.copied(), mesh["tp"])
        self.parallel.fully_shard_layers(model, mesh["dp"])
        with torch.no_grad():
            off = self.off(model(self.ids), self.alone(self.ids))
        return {"prefill": off, **self.gradients(model)}

    def pipeline(self) -> Answer:
        """1F1B over four batches of one row; each rank has its layers, and gradients that are a mean of the batches."""
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B

        rank, of = dist.get_rank(), dist.get_world_size()
        part = self.parallel.stage(rank, of).to(self.dtype)
        weights = dict(self.alone.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, parameter in part.model.named_parameters():
                parameter.copy_(weights[name])
        schedule = Schedule1F1B(
            PipelineStage(part, rank, of, torch.device("cpu")),
            4,
            loss_fn=lambda y, t: F.cross_entropy(y[:, :-1].flatten(0, 1), t[:, 1:].flatten()),
        )
        result = None
        if rank == 0:
            schedule.step(self.ids)
        elif rank == of - 1:
            result = schedule.step(target=self.ids, losses=[])
        else:
            schedule.step()
        self.alone.zero_grad()
        self.loss(self.alone).backward()
        off: Answer = {}
        if result is not None:
            off["prefill"] = self.off(result, self.alone(self.ids))
        if getattr(self.parallel, "TIED", {}):
            ends = dist.new_group([0, of - 1])
            if rank in (0, of - 1):
                self.parallel.add_tied_gradients(part, ends)
        worst = 0.0
        for name, parameter in part.model.named_parameters():
            want = weights[name].grad
            if want is not None and want.abs().max() > 0:
                have = parameter.grad
                assert have is not None, name
                worst = max(worst, float((have - want).abs().max() / want.abs().max()))
        every: list[Any] = [None] * of
        dist.all_gather_object(every, {**off, "gradient": worst})
        return {
            "prefill": max(one.get("prefill", 0.0) for one in every),
            "gradient": max(one["gradient"] for one in every),
        }

    def loads(self) -> Answer:
        """From safetensors of the whole model, made on the meta device, cut, and given memory."""
        with torch.device("meta"):
            model = self.kind().to(self.dtype)
        return self.loaded(self.parallel.parallelize(model, self.mesh()))

    def loads_sharded(self) -> Answer:
        """As the head of the file has it: two dimensions, and training afterwards."""
        shape = (dist.get_world_size() // 2, 2)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
        with torch.device("meta"):
            model = self.kind().to(self.dtype)
        self.parallel.parallelize(model, mesh["tp"])
        self.parallel.fully_shard_layers(model, mesh["dp"])
        return {**self.loaded(model), **self.gradients(model)}

    def loaded(self, model: nn.Module) -> Answer:
        from safetensors.torch import save_file

        where = self.folder / "checkpoint"
        if dist.get_rank() == 0:
            where.mkdir(exist_ok=True)
            tensors = {n: p.detach().contiguous() for n, p in self.alone.named_parameters()}
            save_file(tensors, where / "model.safetensors")
        dist.barrier()
        model.to_empty(device="cpu")
        self.parallel.load(model, where)
        with torch.no_grad():
            return {"prefill": self.off(model(self.ids), self.alone(self.ids))}

    def compiled(self) -> Answer:
        torch._dynamo.config.capture_dynamic_output_shape_ops = True
        cut = self.parallel.parallelize(self.copied(), self.mesh())
        with torch.no_grad():
            found = torch.compile(cut, fullgraph=True, backend="aot_eager")(self.ids)
            return {"prefill": self.off(found, self.alone(self.ids))}

    def sequence_parallel(self) -> Answer:
        cut = self.parallel.parallelize(self.copied(), self.mesh(), sequence=True)
        with torch.no_grad():
            answer: Answer = {"prefill": self.off(cut(self.ids), self.alone(self.ids))}
        try:
            cut(self.ids[:, :3])
        except ValueError:
            answer["uneven refused"] = True
        return answer | self.gradients(cut)

    def loss_parallel(self) -> Answer:
        from torch.distributed.tensor.parallel import loss_parallel

        cut = self.parallel.parallelize(self.copied(), self.mesh(), loss=True)
        self.alone.zero_grad()
        expected = F.cross_entropy(self.alone(self.ids).flatten(0, 1), self.ids.flatten())
        expected.backward()
        with loss_parallel():
            found = F.cross_entropy(cut(self.ids).flatten(0, 1), self.ids.flatten())
            found.backward()
        return {"loss": abs(float((full(found) - expected).detach())), **self.compared(cut)}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for folder in sorted(p.parent for p in Path(sys.argv[1]).glob("*/case.json")):
        answers: Answer = {}
        try:
            case = Case(folder)
            for name in case.asked["ask"]:
                ask: Callable[[], Answer] = getattr(case, name)
                answers[name] = ask()
        except Exception:
            answers["error"] = traceback.format_exc()
        if dist.get_rank() == 0:
            (folder / "answer.json").write_text(json.dumps(answers))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
