"""What `parallel.py` is made of besides its data, as ordinary functions and classes: place.py takes their source.

Names in capitals that a model has none of are false, and what they decide is gone from its file.
"""

import re
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

PLAN: dict[str, str] = {}
PIECES: dict[str, tuple[int, tuple[int, ...]]] = {}
SUMMED: dict[str, tuple[int, int]] = {}
GATHERED: dict[str, bool] = {}
TOKENWISE: set[str] = set()
TENSOR_PARALLEL_DEGREES: tuple[int, ...] = ()
TIED: dict[str, str] = {}

# Which styles PLAN has, and whether heads have slopes.
EXPERTS = NORMS = HEAD = VOCABULARY = SHARED = CUT = SLOPES = True

Model = TypeVar("Model", bound=nn.Module)


def parallelize(
    model: Model, mesh: DeviceMesh, sequence: bool = False, loss: bool = False
) -> Model:
    """Cut a model over the ranks of a mesh of one dimension, as PLAN says; every parameter is a DTensor then.

    Its weights are the same on all ranks before, or none yet (on the meta device). With `sequence`
    each rank has some of the tokens where nothing else is cut, which a cache cannot do; with `loss` the
    logits stay cut along the vocabulary, for torch.distributed.tensor.parallel.loss_parallel().
    """
    ranks = mesh.size()
    if ranks not in TENSOR_PARALLEL_DEGREES:
        raise ValueError(f"{ranks} ranks cannot share this model, but {TENSOR_PARALLEL_DEGREES}")
    model.tensor_parallel = ranks
    if PIECES:
        for path, parameter in model.named_parameters():
            if (order := rank_order(path, ranks)) is not None and not parameter.is_meta:
                parameter.data = parameter.data.index_select(*order)
    logits, tokens = Shard(-1) if loss else Replicate(), Shard(1) if sequence else Replicate()
    styles: dict[str, ParallelStyle] = {
        "column": ColwiseParallel(),
        "row": RowwiseParallel(output_layouts=tokens),
    }
    if VOCABULARY:
        styles["vocabulary"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=tokens)
    if HEAD:
        styles["head"] = ColwiseParallel(output_layouts=logits, use_local_output=not loss)
    if EXPERTS:
        styles["experts"] = ExpertsParallel(tokens)
    if NORMS:
        styles["norm"] = NormParallel()
    if sequence:
        model.register_forward_pre_hook(whole_parts)
        for path, module in model.named_modules():
            if (columns := GATHERED.get(path, GATHERED.get(pattern(path)))) is not None:
                gather_tokens(module, mesh, columns)
    plan = {path: style for path, _ in model.named_modules() if (style := style_of(path)) in styles}
    parallelize_module(model, mesh, {path: styles[style] for path, style in plan.items()})
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not isinstance(parameter, DTensor):
                style = style_of(f"{path}.{name}") or style_of(path)
                axis = style.removeprefix("axis ")
                placement = Shard(int(axis)) if axis.isdecimal() else Replicate()
                summed = style == "shared"
                if sequence:
                    summed |= not TOKENWISE.isdisjoint(
                        (path, pattern(path), pattern(f"{path}.{name}"))
                    )
                distribute(module, name, mesh, placement, summed)
    if SLOPES:
        rank = mesh.get_local_rank()
        for module in model.modules():
            if hasattr(module, "slopes"):
                heads = len(module.slopes) // ranks
                module.slopes = module.slopes[rank * heads : (rank + 1) * heads]
    if SUMMED:
        for path, module in model.named_modules():
            if (features := SUMMED.get(pattern(path))) is not None:
                sum_gradient(module, mesh, *features)
    if TIED:
        tie(model)
    return model


def pattern(path: str) -> str:
    """A path as PLAN has it: * is any layer."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)


def style_of(path: str) -> str:
    """How PLAN shares a module or a parameter; what it does not name is whole on every rank."""
    return PLAN.get(path) or PLAN.get(pattern(path), "")


def tie(model: nn.Module) -> None:
    """One parameter of two again, where both are here (on a pipeline stage one may not be)."""
    modules = dict(model.named_modules())
    paths = [path.removesuffix(".weight") for pair in TIED.items() for path in pair]
    if all(path in modules for path in paths):
        model.tie()


def distribute(
    module: nn.Module, name: str, mesh: DeviceMesh, placement: Shard | Replicate, summed: bool
) -> None:
    """Make a parameter a DTensor, of which the module's forward sees this rank's part as a plain tensor.

    With `summed` the gradient of that part is a summand of the whole.
    """
    parameter = module._parameters[name]
    cut = nn.Parameter(distribute_tensor(parameter.data, mesh, [placement]))
    module.register_parameter(name, cut.requires_grad_(parameter.requires_grad))
    gradient = [Partial()] if summed else [placement]

    def read(module: nn.Module) -> Tensor:
        parameter = module._parameters[name]
        return parameter.to_local(grad_placements=gradient) if module.in_forward else parameter

    def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        module.in_forward = True

    def end(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        module.in_forward = False

    kind, module.in_forward = type(module), False
    module.__class__ = type(kind.__name__, (kind,), {name: property(read)})
    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end, always_call=True)


def sum_gradient(module: nn.Module, mesh: DeviceMesh, start: int, size: int) -> None:
    """These features of a module's result meet values that are cut: each rank has a summand of their gradient."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        before, part, after = y.split((start, size, y.shape[-1] - start - size), dim=-1)
        part = DTensor.from_local(part, mesh, [Replicate()], run_check=False)
        return torch.cat((before, part.to_local(grad_placements=[Partial()]), after), dim=-1)

    module.register_forward_hook(hook)


def whole_parts(model: nn.Module, inputs: tuple[Tensor]) -> None:
    """Every rank has as many tokens."""
    if inputs[0].shape[1] % model.tensor_parallel:
        tokens, ranks = inputs[0].shape[1], model.tensor_parallel
        raise ValueError(f"{tokens} tokens for {ranks} ranks: pad them, or leave out `sequence`")


def gather_tokens(module: nn.Module, mesh: DeviceMesh, columns: bool) -> None:
    """Before a module the tokens of all ranks come together: as a DTensor where column parts alone read
    them, so that a summand of the gradient is scattered at once."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = DTensor.from_local(inputs[0], mesh, [Shard(1)], run_check=False)
        x = x.redistribute(placements=[Replicate()])
        return (x if columns else x.to_local(), *inputs[1:])

    module.register_forward_pre_hook(hook)


class ExpertsParallel(ParallelStyle):
    """Each rank has a part of the features of every expert, and a summand of their result."""

    def __init__(self, tokens: Shard | Replicate) -> None:
        super().__init__()
        self.tokens = tokens

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        def whole(x: Tensor) -> Tensor:
            x = DTensor.from_local(x, mesh, [self.tokens], run_check=False)
            x = x.redistribute(placements=[Replicate()])
            return x.to_local(grad_placements=[Partial()])

        def inputs(module: nn.Module, values: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
            x, indices, weights = values
            return whole(x), whole(indices), whole(weights)

        def outputs(module: nn.Module, values: tuple[Tensor, ...], y: Tensor) -> Tensor:
            y = DTensor.from_local(y, mesh, [Partial()], run_check=False)
            return y.redistribute(placements=[self.tokens]).to_local()

        module.register_forward_pre_hook(inputs)
        module.register_forward_hook(outputs)
        return module


class NormParallel(ParallelStyle):
    """A norm over features of which each rank has a part: one number a token is summed over the ranks."""

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        for name, parameter in list(module.named_parameters()):
            cut = nn.Parameter(distribute_tensor(parameter.data, mesh, [Shard(0)]))
            module.register_parameter(name, cut.requires_grad_(parameter.requires_grad))

        def inputs(module: nn.Module, values: tuple[Tensor]) -> Tensor:
            return DTensor.from_local(values[0], mesh, [Shard(-1)], run_check=False)

        def outputs(module: nn.Module, values: tuple[Tensor], y: DTensor) -> Tensor:
            return y.redistribute(placements=[Shard(y.ndim - 1)]).to_local()

        module.register_forward_pre_hook(inputs)
        module.register_forward_hook(outputs)
        return module


def rank_order(path: str, ranks: int) -> tuple[int, Tensor] | None:
    """The axis of a parameter that is several pieces, and its rows rank by rank: parts of all pieces."""
    if (pieces := PIECES.get(path) or PIECES.get(pattern(path))) is None:
        return None
    axis, sizes = pieces
    parts = [rows.chunk(ranks) for rows in torch.arange(sum(sizes)).split(sizes)]
    return axis, torch.cat([piece[rank] for rank in range(ranks) for piece in parts])


def fully_shard_layers(model: Model, mesh: DeviceMesh) -> Model:
    """FSDP2 over the ranks of a mesh of one dimension: a layer's parameters are together when it runs.

    After `parallelize`, if both are wanted.
    """
    for layer in model.get_submodule("LAYERS").children():
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def load(model: nn.Module, folder: str | Path) -> None:
    """The weights of a Hugging Face folder into a model that has memory: each rank reads its parts.

    A model made on the meta device gets memory by `model.to_empty(device=...)`.
    """
    if TIED:
        tie(model)  # to_empty makes two of one
    state = dict(model.named_parameters())
    if TIED:
        state = {TIED.get(name, name): parameter for name, parameter in state.items()}
    whole: dict[str, Tensor] = {}
    if PIECES:
        ranks = getattr(model, "tensor_parallel", 1)
        orders = {name: order for name in state if (order := rank_order(name, ranks)) is not None}
        for name in orders:
            whole[name] = torch.empty(state[name].shape, dtype=state[name].dtype)
    dcp.load({**state, **whole}, storage_reader=HuggingFaceStorageReader(str(folder)))
    if PIECES:
        with torch.no_grad():
            for name, order in orders.items():
                rows, parameter = whole[name].index_select(*order), state[name]
                if isinstance(parameter, DTensor):
                    mesh, placements = parameter.device_mesh, parameter.placements
                    rows = distribute_tensor(rows.to(mesh.device_type), mesh, placements)
                parameter.copy_(rows)


def add_tied_gradients(part: nn.Module, group: dist.ProcessGroup) -> None:
    """Sum the gradients of a weight that the first stage and the last have; `group` is of those two ranks."""
    weights = dict(part.model.named_parameters())
    for path, source in TIED.items():
        for name in (path, source):
            if name in weights:
                dist.all_reduce(weights[name].grad, group=group)


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """Whole weights by name, in the order of modeling.py, on every rank: for a checkpoint."""
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        weight = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if PIECES and (order := rank_order(name, getattr(model, "tensor_parallel", 1))) is not None:
            weight = weight.index_select(order[0], order[1].argsort())
        weights[name] = weight.detach()
    return weights
