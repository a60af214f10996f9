"""Graph -> the text of `parallel.py`, which stands beside `modeling.py` and cuts its model over several GPUs.

The shard plan (ir/shard.py) becomes data; functions are the source of parallel_library.py; the forward of a pipeline
stage is printed from the blocks on the way to the layers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TypeVar

from llamagen.emit.torch.blocks import Body
from llamagen.emit.torch.check import Besides, check_source
from llamagen.emit.torch.module import formatted
from llamagen.emit.torch.names import docstring_text
from llamagen.emit.torch.place import Library
from llamagen.emit.torch.plan import Plan, make_plan
from llamagen.ir.graph import Block, BlockPart, Graph, Node, StackPart, join
from llamagen.ir.joined import Joined
from llamagen.ir.shard import (
    ShardPlan,
    SharedTokens,
    Stack,
    Style,
    pipeline_stack,
    plan,
    sequence_of,
)
from llamagen.ops.code import Code, Fixed, Stay, Text, flat
from llamagen.ops.op import a_int, a_str

T = TypeVar("T")

_BESIDES = Besides(
    frozenset(
        {
            "re",
            "modeling",
            "torch.distributed",
            *(
                f"torch.distributed.{name}"
                for name in ("checkpoint", "device_mesh", "fsdp", "tensor", "tensor.parallel")
            ),
        }
    ),
    frozenset({"all", "getattr", "type"}),
    frozenset({"_apply", "_parameters", "__class__", "__name__"}),
    (ast.GeneratorExp, ast.NamedExpr),
)


@cache
def _library() -> Library:
    return Library(Path(__file__).with_name("parallel_library.py").read_text(encoding="utf-8"))


def emit_parallel(model: Graph | Joined, text_model: Graph, modeling: str) -> str:
    """A Python file for the model of ``modeling``, the text of its `modeling.py`: same graph, same bytes.

    ``text_model`` is what pipeline stages are of: the model without images. Raises LlamagenError (LG740, LG741) for
    what cannot be a PyTorch module.
    """
    sharding = plan(model.graph if isinstance(model, Joined) else model)
    stack = pipeline_stack(plan(text_model))
    stage = _Stage(make_plan(model), make_plan(text_model), stack) if stack is not None else None
    text = _file(sharding, stage, modeling)
    check_source(text, _BESIDES)
    return formatted({"": text})[""]


# data


def patterns(values: Mapping[str, T], paths: Iterable[str]) -> dict[str, T]:
    """``values`` by path, with ``*`` for the numbers of layers where all ``paths`` that are so alike have one value."""
    alike: dict[str, list[str]] = {}
    for path in paths:
        alike.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", path), []).append(path)
    found: dict[str, T] = {}
    for pattern, several in alike.items():
        have = [path for path in several if path in values]
        if len(have) == len(several) and len({repr(values[path]) for path in have}) == 1:
            found[pattern] = values[have[0]]
        else:
            found |= {path: values[path] for path in have}
    return found


_WORDS = {
    Style.COLUMN: "column",
    Style.ROW: "row",
    Style.VOCABULARY: "vocabulary",
    Style.HEAD: "head",
    Style.NORM: "norm",
    Style.SHARED: "shared",
    Style.EXPERTS: "experts",
}


def _data(sharding: ShardPlan) -> tuple[dict[str, str], dict[str, object], dict[str, object]]:
    """PLAN, PIECES and SUMMED."""
    styles: dict[str, str] = {}
    pieces: dict[str, object] = {}
    summed: dict[str, object] = {}
    paths: list[str] = []
    for path, block, part in sharding.graph.op_parts:
        share = sharding.shares.get((block.name, part.name))
        parameters = part.row.parameters(part.attrs)
        paths += [path, *(join(path, p.name) for p in parameters if p.name)]
        if share is None or share.style is Style.WHOLE:
            continue
        if share.style is Style.PARAMETER:
            styles[path] = f"axis {share.axis}"
        else:
            styles[path] = _WORDS[share.style]
        if share.pieces:
            pieces |= {join(path, p.name): (0, share.pieces) for p in parameters}
        if share.style is Style.EXPERTS:
            width, outer = (
                a_int(part.attrs, "intermediate"),
                a_str(part.attrs, "layout") == "in_out",
            )
            up, down = (2, 1) if outer else (1, 2)
            styles[join(path, "gate_up_proj")] = f"axis {up}"
            styles[join(path, "down_proj")] = f"axis {down}"
            pieces[join(path, "gate_up_proj")] = (up, (width, width))
    for here in sharding.graph.instances:
        paths += [
            join(here.path, part)
            for part in here.block.parts
            if isinstance(here.block.parts[part], BlockPart)
        ]
        for entry in sharding.entries.get(here.block.name, ()):
            summed[join(here.path, entry.part)] = (entry.start, entry.size)
    paths = list(dict.fromkeys(paths))
    return patterns(styles, paths), patterns(pieces, paths), patterns(summed, paths)


def _token_data(shared: SharedTokens, sharding: ShardPlan) -> tuple[dict[str, object], list[str]]:
    """GATHERED and TOKENWISE."""
    gathered: dict[str, object] = {}
    tokenwise: dict[str, object] = {}
    paths: list[str] = []
    for here in sharding.graph.instances:
        for part in here.block.parts:
            path, key = join(here.path, part), (here.block.name, part)
            paths.append(path)
            if key in shared.gathered:
                gathered[path] = shared.gathered[key]
            if key in shared.shared:
                tokenwise[path] = True
    return patterns(gathered, paths), list(patterns(tokenwise, paths))


def _table(name: str, values: Mapping[str, object]) -> str:
    rows = "".join(f"    {_quoted(path)}: {_quoted(value)},\n" for path, value in values.items())
    return f"{name} = {{\n{rows}}}"


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


# the file


def _file(sharding: ShardPlan, stage: _Stage | None, modeling: str) -> str:
    styles, pieces, summed = _data(sharding)
    words = {style.partition(" ")[0] for style in styles.values()}
    ties = {path: part.tied_to or "" for path, part in sharding.graph.ties.items()}
    layers = next((s.path for s in sharding.stacks), "")
    fixed: dict[str, Fixed] = {
        "EXPERTS": "experts" in words,
        "NORMS": "norm" in words,
        "HEAD": "head" in words,
        "VOCABULARY": "vocabulary" in words,
        "SLOPES": ".slopes" in modeling,
    }
    shared = sequence_of(sharding)
    sequence = not isinstance(shared, str)
    if isinstance(shared, str):
        fixed["sequence"] = False
    for name, values in (("PIECES", pieces), ("SUMMED", summed), ("TIED", ties)):
        fixed[name] = Stay.PRESENT if values else False
    library = _library()
    wanted = ["parallelize", "pattern", "style_of", "distribute", "rank_order"]
    wanted += ["fully_shard_layers", "load", "gathered"]
    wanted += ["tie"] * bool(ties) + ["sum_gradient"] * bool(summed)
    wanted += ["whole_parts", "gather_tokens"] * sequence
    wanted += ["add_tied_gradients"] * bool(ties and stage)
    wanted += ["ExpertsParallel"] * bool(fixed["EXPERTS"]) + ["NormParallel"] * bool(fixed["NORMS"])
    wanted = [name for name in wanted if name != "rank_order" or pieces]
    wanted = [name for name in wanted if name != "fully_shard_layers" or layers]
    placed = [library.place(name, fixed) for name in library.definitions if name in wanted]
    placed = [text.replace('"LAYERS"', f'"{layers}"') for text in placed]
    if not pieces:
        placed = [_without_pieces(text) for text in placed]
    reasons = [
        f"# {'.'.join(key)} is whole: {share.reason}."
        for key, share in sharding.shares.items()
        if share.style is Style.WHOLE
    ]
    tables = ["\n".join([*reasons, _table("PLAN", styles)])]
    if pieces:
        tables.append("# Axis, and sizes of what is computed at once.\n" + _table("PIECES", pieces))
    if summed:
        comment = (
            "# Start and size of features that meet cut values whole: their gradients are summed.\n"
        )
        tables.append(comment + _table("SUMMED", summed))
    if not isinstance(shared, str):
        gathered, tokenwise = _token_data(shared, sharding)
        comment = "# Where the tokens of all ranks come together, and whether column parts alone read them.\n"
        tables.append(comment + _table("GATHERED", gathered))
        rows = "".join(f"    {_quoted(path)},\n" for path in tokenwise)
        comment = "# Whole parts that see a rank's tokens alone then: their gradients are summed.\n"
        tables.append(
            f"{comment}TOKENWISE = {{\n{rows}}}" if tokenwise else "TOKENWISE: set[str] = set()"
        )
    tables.append(f"TENSOR_PARALLEL_DEGREES = {sharding.degrees[:16]!r}")
    if ties:
        tables.append(_table("TIED", ties))
    tables.append('Model = TypeVar("Model", bound=nn.Module)')
    own = [stage.text(), stage.function()] if stage is not None else []
    body = "\n\n\n".join(["\n\n".join(tables), *placed, *own])
    head = _head(sharding, stage, trains="def loss(" in modeling)
    return f"{head}\n{_imports(body, modeling)}\n\n{body}\n"


def _without_pieces(text: str) -> str:
    """Without the tensors that are read whole to be put in another order."""
    text = text.replace("    whole: dict[str, Tensor] = {}\n", "")
    return text.replace("{**state, **whole}", "state")


def _imports(body: str, modeling: str) -> str:
    names = {n.id for n in ast.walk(ast.parse(body)) if isinstance(n, ast.Name)}
    lines: list[str] = []
    ours = sorted((names & _defined(modeling)) - _defined(body))
    for line in _library().imports:
        aliases = [a for a in line.names if (a.asname or a.name.partition(".")[0]) in names]
        if not aliases:
            continue
        source = f"from {line.module} " if isinstance(line, ast.ImportFrom) else ""
        listed = ", ".join(map(ast.unparse, aliases))
        wide = isinstance(line, ast.ImportFrom) and len(listed) > 60
        if listed == "torch":
            lines.append("")
        lines.append(f"{source}import {f'({listed},)' if wide else listed}")
    if ours:
        lines += ["", f"from modeling import {', '.join(ours)}"]
    return "\n".join(lines)


def _defined(text: str) -> set[str]:
    """Functions, classes and constants of a file."""
    found: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _head(sharding: ShardPlan, stage: _Stage | None, *, trains: bool) -> str:
    """``trains`` says whether the model has a loss of its own."""
    degree = sharding.degrees[-1] if len(sharding.degrees) < 5 else sharding.degrees[3]
    name = docstring_text(sharding.graph.spec_id)
    model = "model" if stage is None else stage.model
    call = f"{', '.join(sharding.graph.output_names)} = model(input_ids)"
    if trains:
        call = "model.loss(input_ids, labels=input_ids).backward()"
    pipeline = ""
    if stage is not None:
        pipeline = """
Pipeline stages, a rank each (torchrun --nproc-per-node 4 pipeline.py):

    with torch.device("meta"):
        part = stage(rank, 4).to(torch.bfloat16)
    part.to_empty(device="cuda")
    load(part.model, "path/to/checkpoint")
    schedule = Schedule1F1B(PipelineStage(part, rank, 4, device), 8, loss_fn)
"""
    return f'''"""{name} on several GPUs, generated by llamagen. Beside modeling.py; it needs only torch.

Tensor parallel, and FSDP2 over its groups (torchrun --nproc-per-node {2 * degree} train.py):

    mesh = init_device_mesh("cuda", (2, {degree}), mesh_dim_names=("dp", "tp"))
    with torch.device("meta"):
        model = {model}().to(torch.bfloat16)
    parallelize(model, mesh["tp"])
    fully_shard_layers(model, mesh["dp"])
    model.to_empty(device="cuda")
    load(model, "path/to/checkpoint")
    {call}
{pipeline}"""
'''


class _Stage:
    """The class of a pipeline stage: the root's forward with the layers of one rank."""

    def __init__(self, whole: Plan, plan: Plan, stack: Stack) -> None:
        self.whole, self.plan, self.graph, self.stack = whole, plan, plan.graph, stack
        self.model = whole.names[whole.graph.root]
        self.way = list(_way(self.graph.root_block, self.graph))
        """Blocks from the root to the one that has the layers, each with its node that leads there."""

    def text(self) -> str:
        stack = self.stack
        owner, _, layers = stack.path.rpartition(".")
        inner = "model." + owner if owner else "model"
        gives = ", ".join(self.graph.output_names)
        lines = [
            "class Stage(nn.Module):",
            '    """The layers of one pipeline stage, under the names that they have in `model`.',
            "",
            f"    The first stage takes ids [B, S], the others hidden states [B, S, D]; the last gives {gives}.",
            '    """',
            "",
            f"    def __init__(self, model: {self.model}, rank: int, of: int) -> None:",
            "        super().__init__()",
            "        self.model, self.first, self.last = model, rank == 0, rank == of - 1",
            f"        layers = {inner}.{layers}",
            "        first, end = len(layers) * rank // of, len(layers) * (rank + 1) // of",
            f"        {inner}.{layers} = nn.ModuleDict({{str(i): layers[i] for i in range(first, end)}})",
        ]
        for where, parts in (("first", stack.before), ("last", stack.behind)):
            if parts:
                lines.append(f"        if not self.{where}:")
                lines += [f"            model.{path} = None" for path in parts]
        images = [p for p in self.whole.graph.root_block.parts if p not in self.way[0][0].parts]
        lines += [f"        model.{name} = None" for name in images]
        return "\n".join([*lines, "", *self.forward()])

    def forward(self) -> Iterator[str]:
        plan, bodies = self.plan, [Body(block, self.plan) for block, _ in self.way]
        several = " | tuple[Tensor, ...]" * (len(self.graph.output_names) > 1)
        yield f"    def forward(self, x: Tensor) -> Tensor{several}:"
        source = bodies[0].block.inputs[0].id
        yield "        model, S, P, device = self.model, x.shape[1], 0, x.device"
        if any("attention_mask" in s.call for s in plan.shared):
            yield "        attention_mask = None"
        yield "        position_ids = torch.arange(S, device=device)[None]"
        shared = [s for s in plan.shared if s.kind in ("mask", "rope", "temperature", "grid")]
        for one in sorted(shared, key=lambda s: s.kind != "mask"):
            call = one.call.replace("self.", "model.").replace(source, "x")
            if one.kind == "mask" and one.causal and plan.choice:
                yield f"        {one.variables[0]} = None"
                yield "        if model.attend is eager:"
                yield f"            {one.variables[0]} = {call}"
            else:
                yield f"        {', '.join(one.variables)} = {call}"
        if "attention_mask" in plan.arguments[self.graph.root]:
            yield "        attention_mask = torch.ones(x.shape[0], S, device=device)"
        yield "        if self.first:"
        path, x = "model", Text("x")
        places: list[str] = []
        codes: list[Code] = []
        begun: list[str] = []
        for i, (body, (block, node)) in enumerate(zip(bodies, self.way, strict=True)):
            body.depth = 3
            body.taken |= {"model", "S", "P", "device", "layer"}
            if i:
                body.codes.update({v.id: code for v, code in zip(block.inputs, codes, strict=True)})
            else:
                body.bind_graph_inputs()
                body.codes[source] = x
            body.run(block.nodes[: block.nodes.index(node)])
            codes = [body.read(o) for o in node.operands]
            begun += _at(body.lines, path)
            body.lines = []
            places.append(path)
            path = f"{path}.{node.part}"
        last_block, last_node = self.way[-1]
        first = flat(codes[0])
        if first != "x":
            begun += _at([f"            x = {first}"], places[-1])
        yield from begun or ["            pass"]
        part = last_block.parts[last_node.part or ""]
        assert isinstance(part, StackPart)
        handed = {v for s in shared for v in s.variables} | {"position_ids", "attention_mask"}
        wanted = self.whole.arguments[self._layer()]
        arguments = ", ".join(("x", *(a if a in handed else "None" for a in wanted)))
        yield f"        for layer in {path}.values():"
        yield f"            x = layer({arguments})"
        yield "        if self.last:"
        code = Text("x")
        for body, (block, node), place in zip(
            reversed(bodies), reversed(self.way), reversed(places), strict=True
        ):
            body.codes[node.results[0]] = code
            body.variables[node.results[0]] = "x"
            body.run(block.nodes[block.nodes.index(node) + 1 :])
            result = body.results()
            if flat(result) != "x":
                body.lines += body.put("x = ", result)
            yield from _at(body.lines, place)
            code = Text("x")
        yield "        return x"

    def _layer(self) -> str:
        """A block of the layers in the model that may read images too."""
        block = self.whole.graph.root_block
        for name in self.stack.path.split("."):
            part = block.parts[name]
            if isinstance(part, StackPart):
                return part.blocks[0]
            assert isinstance(part, BlockPart)
            block = self.whole.graph.blocks[part.block]
        raise AssertionError(self.stack.path)

    def function(self) -> str:
        choice = 'attention: str = "sdpa"' if self.plan.choice else ""
        given = ", ".join(filter(None, ("rank: int", "of: int", choice)))
        return f'''def stage({given}) -> Stage:
    """Part `rank` of `of` pipeline stages, for torch.distributed.pipelining.PipelineStage."""
    if not 0 <= rank < of <= {self.stack.layers}:
        raise ValueError(f"{{of}} stages for {self.stack.layers} layers, rank {{rank}}")
    return Stage({self.model}({"attention" if self.plan.choice else ""}), rank, of)'''


def _at(lines: Iterable[str], place: str) -> Iterator[str]:
    """Statements of a block's forward, outside of it."""
    yield from (re.sub(r"\bself\.", f"{place}.", line) for line in lines)


def _way(block: Block, graph: Graph) -> Iterator[tuple[Block, Node]]:
    """From ``block`` down to the one that runs the layers."""
    for node in block.nodes:
        part = block.part_of(node)
        if isinstance(part, StackPart):
            yield block, node
            return
        if isinstance(part, BlockPart):
            below = list(_way(graph.blocks[part.block], graph))
            if below:
                yield block, node
                yield from below
                return
