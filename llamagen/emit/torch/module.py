"""Graph -> the text of one standalone PyTorch file: the model's class, and around it what its code names."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import lru_cache

from llamagen.diagnostics import LlamagenError
from llamagen.emit.torch.blocks import Body, class_text, init_lines, start_lines
from llamagen.emit.torch.check import check_source
from llamagen.emit.torch.names import docstring_text, part_name
from llamagen.emit.torch.place import library
from llamagen.emit.torch.plan import CACHED, Plan, make_plan
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import Graph
from llamagen.ir.joined import Joined
from llamagen.ops.code import WIDTH, Fixed, Stay, Text
from llamagen.ops.dims import Dim
from llamagen.ops.op import State

TEXT_INPUTS = ("input_ids", "position_ids", "attention_mask")
_FUNCTIONS = ("positions", "sample")
"""What a file has after its model, not before its blocks."""


def emit_torch(model: Graph | Joined, initializer_range: float | None = None) -> str:
    """A Python file that defines the model, standalone but for torch: same graph, same bytes.

    ``initializer_range`` is the standard deviation of fresh weights; None where nobody states it.
    The text is parsed again and checked against an allow-list of syntax (check.py). Raises LlamagenError.
    """
    return formatted({"": source_of(model, initializer_range)})[""]


def formatted(texts: Mapping[str, str]) -> dict[str, str]:
    """Python files by name, as ``ruff format`` lays them out.

    Settings of the user's count for nothing. Raises LlamagenError (LG742) for what does not parse.
    """
    from ruff import find_ruff_bin

    settings = ["line-length=100", "format.skip-magic-trailing-comma=true"]
    options = ["--isolated", "--no-cache", "--quiet", "--target-version", "py311"]
    options += [word for setting in settings for word in ("--config", setting)]
    command = [find_ruff_bin(), "format", *options, "-"]
    laid_out: dict[str, str] = {}
    # through pipes: no file of ours is in the way of a limit or a full disk
    for name, text in texts.items():
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
        if done.returncode:
            reason = done.stderr.decode("utf-8", "replace").strip()
            raise LlamagenError.of("LG742", f"generated code does not parse: {reason}")
        laid_out[name] = done.stdout.decode()
    return laid_out


def source_of(model: Graph | Joined, initializer_range: float | None = None) -> str:
    """The file before it is formatted. Raises LlamagenError (LG740, LG741) for what cannot be a PyTorch module."""
    plan = make_plan(model)
    blocks = list(printed_classes(plan, but={plan.graph.root}))
    root = _Model(plan)
    classes = [*blocks, root.text()]
    text = assembled(
        plan, classes, _head(plan, root), "", initializer_range, root.source, root.tables()
    )
    check_source(text)
    return text


def printed_classes(plan: Plan, but: Set[str]) -> Iterator[str]:
    """Blocks that differ in shapes alone read the same: one class is enough. Those below come first."""
    kept: dict[tuple[str, str], str] = {}
    for block in plan.graph.blocks.values():
        if block.name not in but:
            text = class_text(plan, block)
            name = kept.setdefault((block.definition, text), plan.names[block.name])
            if name == plan.names[block.name]:
                yield f"class {name}{text}"
            plan.names[block.name] = name


def assembled(
    plan: Plan,
    classes: Sequence[str],
    head: str,
    more_imports: str,
    initializer_range: float | None,
    source: str = "input_ids",
    tables: Iterable[str] = (),
) -> str:
    """The classes with what they name: constants, definitions of the library, imports.

    ``source`` is the variable of the model's first input, ``tables`` what the loader reads.
    """
    placed = _definitions(plan, source, classes)
    fresh = placed.pop("INITIALIZER_RANGE", "")
    aliases = [placed.pop(name) for name in ("KeyValue", "Rope", "Attend") if name in placed]
    functions = [placed.pop(name) for name in _FUNCTIONS if name in placed]
    constants = [f"{name} = {value}" for name, value in plan.constants.lines()]
    if fresh:
        stated = f"INITIALIZER_RANGE = {initializer_range!r}"
        constants.append(fresh if initializer_range is None else stated)
    groups = ["\n".join(constants), *tables, "\n".join(aliases)]
    parts = ["\n\n".join(g for g in groups if g), *placed.values(), *classes, *functions]
    names = frozenset[str]().union(*map(_names, parts))
    body = "\n\n\n".join(parts)
    imports = "\n".join(text for text in (_imports(names), more_imports) if text)
    return f"{head}\n{imports}\n\n{body}\n"


def _definitions(plan: Plan, source: str, classes: Sequence[str]) -> dict[str, str]:
    """What the library has of the names in the classes and in what is placed for them, in its order."""
    texts: dict[str, str] = {}
    for several in plan.placed.values():
        texts |= several
    fixed = plan.fixed | {"positions": {"input_ids": Text(source)}}
    waiting, placed = [*classes, *texts.values()], dict[str, str]()
    while waiting:
        for name in sorted(_names(waiting.pop()) & library().definitions.keys() - placed.keys()):
            if name in plan.placed or name == "TIED":
                continue
            if name == "Attend" and not plan.extras:
                types = f"Tensor, Tensor, Tensor, {plan.mask_type}"
                placed[name] = f"Attend = Callable[[{types}], Tensor]"
            else:
                words = plan.words.get(name)
                placed[name] = library().place(name, fixed.get(name), words=words)
            waiting.append(placed[name])
    ordered: dict[str, str] = {}
    for name in library().definitions:
        ordered |= plan.placed.get(name, {})
        if name in placed:
            ordered[name] = placed[name]
    return ordered


@lru_cache(1024)
def _names(text: str) -> frozenset[str]:
    return frozenset(n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name))


def _imports(names: frozenset[str]) -> str:
    """The library's imports, as far as they are named; a blank line before those of torch."""
    groups: list[list[str]] = []
    for line in library().imports:
        aliases = [a for a in line.names if (a.asname or a.name.partition(".")[0]) in names]
        if aliases:
            source = f"from {line.module} " if isinstance(line, ast.ImportFrom) else ""
            text = f"{source}import {', '.join(map(ast.unparse, aliases))}"
            if not groups or text == "import torch":
                groups.append([])
            groups[-1].append(text)
    return "\n\n".join("\n".join(group) for group in groups)


def _head(plan: Plan, model: _Model) -> str:
    legend = "R rotated features, " if plan.partial else ""
    return f'''"""{docstring_text(plan.graph.spec_id)} in one PyTorch file, generated by llamagen.

It needs torch, and safetensors to read a checkpoint.

    model = {model.name}.from_pretrained("path/to/checkpoint", dtype=torch.bfloat16)
{model.usage()}

Shapes: B batch, S new tokens, P past tokens, T = P + S, N heads, K key/value heads, H head_dim,
{legend}D hidden, V vocab; x_BNSH is a tensor of shape [B, N, S, H].
"""
'''


class _Model:
    """The class of the root: its parts and forward, and what every model has (loading, caching, generating)."""

    def __init__(self, plan: Plan) -> None:
        """Raises LlamagenError (LG741) for a model with no input, or with several results beside keys and values."""
        self.plan = plan
        block, outputs = plan.graph.root_block, plan.graph.output_names
        self.several = len(block.outputs) > 1
        if not block.inputs or (self.several and plan.has(State.WRITTEN)):
            message = "a PyTorch model takes a tensor first, and returns one where it writes keys and values"
            raise LlamagenError.of("LG741", message, block.span)
        self.name = plan.names[block.name]
        self.ties = ties_of(plan.graph)
        self.caches = any(map(plan.has, CACHED))
        self.reads_cross = plan.has(State.READ)
        self.writes_cross = plan.has(State.WRITTEN) and plan.whole is None
        self.reads_mask = "attention_mask" in plan.arguments[block.name]
        encoders = len(plan.whole.encoder.prelude) if plan.whole is not None else 0
        self.of_images, self.shared = plan.shared[:encoders], plan.shared[encoders:]
        self.places = any(s.kind in ("rope", "mask", "temperature") for s in self.shared)
        self.places |= "position_ids" in plan.arguments[block.name]
        self.piece = outputs != ("logits",) and not self.places and not self.caches
        """Whether it has neither tokens in order nor a cache: an encoder, what joins embeddings."""
        self.body = Body(block, plan)
        self.body.bind_graph_inputs()
        self.inputs = tuple(dict.fromkeys((*self.body.input_names, *plan.declared)))
        """Variables of the graph's inputs; the first of a text model is what stands for its tokens."""
        self.source = self.inputs[0]
        self.images = tuple(v.id for v in plan.whole.encoder.inputs) if plan.whole else ()
        self.beside = tuple(name for name, origin in plan.beside.items() if name == origin)
        """What comes with images, and what each call has for its tokens after them."""

    @property
    def more(self) -> dict[str, str]:
        """What a text model takes after its tokens, without defaults."""
        if self.plan.whole is not None:
            return {}
        more = {i: "Tensor" for i in self.inputs[1:] if i not in TEXT_INPUTS}
        return more | ({"cross_key_values": "Sequence[KeyValue]"} if self.reads_cross else {})

    @property
    def generates(self) -> bool:
        tokens = self.source == "input_ids" and "logits" in self.plan.graph.output_names
        return self.caches and tokens and not self.more

    @property
    def result(self) -> str:
        """What a call of the model gives, as an assignment names it."""
        return ", ".join(self.plan.graph.output_names)

    def tables(self) -> Iterator[str]:
        """What the loader reads."""
        if self.ties:
            items = (f'"{path}": "{source}"' for path, source in self.ties.items())
            yield f"TIED = {{{', '.join(items)}}}"

    def usage(self) -> str:
        """Calls of the model, for the head of the file."""
        call = ", ".join((self.source, *self.more))
        if self.piece:
            results = [*self.plan.graph.output_names, *["cross_key_values"] * self.writes_cross]
            lines = [f"{', '.join(results)} = model({', '.join(self.inputs)})"]
        elif self.generates:
            lines = [
                f"{self.result} = model(input_ids)",
                f"{self.result} = model(input_ids, cache=cache)  # after what cache = KVCache() has seen",
                "ids = model.generate(input_ids, max_new_tokens=32)",
                "loss = model.loss(input_ids, labels=input_ids)",
            ]
            if self.images:
                named = ", ".join(f"{name}={name}" for name in (*self.images, *self.beside))
                lines += [
                    f"{self.result} = model(input_ids, {named})  # images, beside the ids of their tokens"
                ]
        elif self.caches and (self.more or self.source != "input_ids"):
            lines = [
                "cache = KVCache()",
                f"{self.result} = model({call}, cache=cache)",
            ]
        elif self.reads_mask or any(s.kind == "mask" for s in self.shared):
            lines = [f"{self.result} = model(input_ids, attention_mask=attention_mask)"]
        else:
            lines = [f"{self.result} = model(input_ids)"]
        return "\n".join(f"    {line}".rstrip() for line in lines)

    def text(self) -> str:
        plan = self.plan
        parameters = ["self"] + ['attention: str = "sdpa"'] * plan.choice
        lines = [
            f"class {self.name}(nn.Module):",
            *self.doc(),
            "",
            f"    def __init__({', '.join(parameters)}) -> None:",
            "        super().__init__()",
            *["        self.attend = ATTENTION[attention]"] * plan.choice,
            *init_lines(plan, plan.graph.root_block, "self.attend"),
            "        self.apply(init_weights)",
            *["        self.tie()"] * bool(self.ties),
            "",
            *([*start, ""] if (start := start_lines(plan, plan.graph.root_block)) else ()),
            *(self.piece_forward() if self.piece else self.forward()),
            *self.see(),
            "",
            library().place("Model.dtype"),
            *self.tie(),
        ]
        if self.generates:
            methods = (self.with_images(f"Model.{name}") for name in ("loss", "generate"))
            lines += [line for method in methods for line in ("", self.with_outputs(method))]
        fixed: dict[str, Fixed] = {"TIED": Stay.PRESENT if self.ties else None}
        if not plan.choice:
            fixed["attention"] = Stay.LEFT_OUT
        return "\n".join([*lines, "", library().place("Model.from_pretrained", fixed)])

    def with_images(self, method: str) -> str:
        """A method of the library with what this model takes of images."""
        fixed: dict[str, Fixed] = {}
        names = {"images": self.images, "beside": self.beside}
        for one, several in names.items():
            fixed |= {one: Stay.KEPT if several else None, one.upper(): bool(several)}
        text = library().place(method, fixed)
        for one, several in names.items():
            for usage in (f"{one}: Tensor | None = None", f"{one}={one}"):
                usages = (usage.replace(one, name) for name in several)
                text = text.replace(usage, ", ".join(usages))
            text = re.sub(rf"\b{one}\b(?= = | is |\[)", several[0] if several else one, text)
        return text

    def with_outputs(self, method: str) -> str:
        """A method of the library that takes the logits out of what this model gives."""
        if not self.several:
            return method
        names = ("logits" if name == "logits" else "_" for name in self.plan.graph.output_names)
        method = re.sub(r"\blogits_to_keep=1,?", "", method)
        return method.replace("logits = self(", f"{', '.join(names)} = self(")

    def doc(self) -> Iterator[str]:
        if not self.piece:
            yield '    """The whole model."""'
            return
        graph, layers = self.plan.graph, len(flatten(self.plan.graph).cross_writes)
        kept = [f"(key, value) for each of {layers} layers"] if layers else []
        yield from _signature("One graph of the model: ", graph, kept, "    ")

    def tie(self) -> Iterator[str]:
        """A method that makes one parameter of two."""
        if self.ties:
            yield from ["", "    def tie(self) -> None:"]
        for path, source in self.ties.items():
            yield f"        self.{path} = self.{source}"

    # Forwards

    def see(self) -> Iterator[str]:
        """A method for what is computed once of images."""
        if self.plan.whole is None:
            return
        encoder = self.plan.whole.encoder
        inputs = [f"{name}: Tensor" for name in self.images]
        yield from ["", f"    def see({', '.join(['self', *inputs])}) -> Tensor:"]
        yield from _signature("What the text model reads: ", encoder, [], " " * 8)
        yield from (f"        {', '.join(s.variables)} = {s.call}" for s in self.of_images)
        body = Body(encoder.root_block, self.plan)
        body.bind_graph_inputs()
        body.run_all()
        result = body.results()
        yield from [*body.lines, *body.put("return ", result)]

    def piece_forward(self) -> Iterator[str]:
        body, outputs = self.body, self.plan.graph.output_names
        results = ["Tensor"] * len(outputs) + ["list[KeyValue]"] * self.writes_cross
        type_ = results[0] if len(results) == 1 else f"tuple[{', '.join(results)}]"
        inputs = [f"{i}: Tensor" for i in self.inputs]
        yield f"    def forward({', '.join(['self', *inputs])}) -> {type_}:"
        yield from self.prologue("grid", "tiles")
        if self.writes_cross:
            yield "        cross: list[KeyValue] = []"
        body.run_all()
        result = body.results()
        yield from body.lines
        if not outputs:
            yield from [*body.put("", result), "        return cross"]
        elif self.writes_cross:
            yield from [*body.put("x = ", result), "        return x, cross"]
        else:
            yield from body.put("return ", result)

    def prologue(self, *kinds: str) -> Iterator[str]:
        for shared in sorted(self.shared, key=lambda s: s.kind in kinds and kinds.index(s.kind)):
            if shared.kind in kinds:
                one = f"{', '.join(shared.variables)} = {shared.call}"
                if origin := self.plan.beside.get(shared.variables[0]):
                    yield f"        {' = '.join(shared.variables)} = None"
                    yield f"        if {origin} is not None:"
                    one = f"    {one}"
                yield f"        {one}"

    def forward(self) -> Iterator[str]:
        plan = self.plan
        parameters = [f"{self.source}: Tensor", *(f"{n}: {t}" for n, t in self.more.items())]
        parameters += [f"{name}: Tensor | None = None" for name in (*self.images, *self.beside)]
        parameters += ["position_ids: Tensor | None = None", "attention_mask: Tensor | None = None"]
        parameters += ["cache: KVCache | None = None"] * self.caches
        logits = plan.graph.output_names == ("logits",)
        parameters += ["logits_to_keep: int = 0"] * logits
        result = f"tuple[{', '.join(['Tensor'] * len(self.body.block.outputs))}]"
        ids = "input_ids and position_ids are [B, S]"
        if self.source != "input_ids":
            ids = f"{self.source} are [B, S, D], position_ids [B, S]"
        yield f"    def forward(self, {', '.join(parameters)}) -> {result if self.several else 'Tensor'}:"
        gives = (f"{name} {_shape(type_.shape)}" for name, type_ in plan.graph.outputs)
        yield f'        """{"Logits [B, S, V]" if logits else ", ".join(gives)}.'
        yield ""
        yield f"        {ids}; attention_mask is [B, T], 0 for padding, which goes"
        kept = " With logits_to_keep only that many last positions get logits." * logits
        yield f"        on the left.{kept}"
        if self.reads_cross:
            yield "        cross_key_values are what the graph that reads the images returned."
        if self.images:
            yield ""
            yield f"        {', '.join(self.images)}: as `see` has them, with the call for the images' tokens."
        for name in self.beside:
            shape = next(v.type.shape for v in plan.graph.inputs if v.id == name)
            yield f"        {name} {_shape(shape)}: what the new tokens see; with every call from there on."
        yield '        """'
        if self.places or self.caches:
            yield from self.by_place()
        if self.reads_cross:
            yield "        cross = iter(cross_key_values)"
        if plan.whole is not None:
            first, *others = self.images
            arguments = ", ".join((f"{first}.to(self.dtype)", *others))
            yield f"        {plan.handed} = None"
            yield f"        if {first} is not None:"
            yield f"            {plan.handed} = self.see({arguments})"
        body = self.body
        body.run_all()
        found = body.results()
        if logits and not plan.head:
            found = body.last_tokens(found, body.type(body.block.outputs[0]))
        yield from body.lines
        if self.caches:
            name = "logits" if logits else "result"
            yield from body.put(f"{name} = ", found)
            yield "        if cache is not None:"
            yield "            cache.finish()"
            yield f"        return {name}"
        else:
            yield from body.put("return ", found)

    def by_place(self) -> Iterator[str]:
        """What depends on positions, and what they depend on."""
        plan = self.plan
        masks = [s for s in self.shared if s.kind == "mask"]
        if masks or self.reads_mask:
            yield f"        S, device = {self.source}.shape[1], {self.source}.device"
        elif self.caches:
            yield f"        S = {self.source}.shape[1]"
        yield f"        P = {'cache.start(S) if cache is not None else ' * self.caches}0"
        if masks or self.places:
            yield "        if attention_mask is not None and attention_mask.shape[1] < P + S:"
            yield "            given = attention_mask.shape[1]"
            yield '            raise ValueError(f"attention_mask has {given} columns for {P + S} tokens")'
        if self.places:
            yield "        if position_ids is None:"
            yield f"            position_ids = positions({self.source}, attention_mask, P)"
        for mask in masks:
            variable, later = mask.variables[0], " or (P > 0 and S > 1)" * self.caches
            if mask.causal and plan.choice:
                yield f"        {variable} = None  # sdpa needs none where a query sees every key up to its own"
                yield f"        if attention_mask is not None or self.attend is eager{later}:"
                yield f"            {variable} = {mask.call}"
            else:
                yield f"        {variable} = {mask.call}"
        if self.reads_mask:
            yield "        if attention_mask is None:"
            ones = f"torch.ones({self.source}.shape[0], P + S, device=device)"
            yield f"            attention_mask = {ones}"
        yield from self.prologue("grid", "rope", "tiles", "temperature")


def _signature(title: str, graph: Graph, more: Sequence[str], indent: str) -> Iterator[str]:
    """A docstring: what goes into a graph and what comes out."""
    inputs = ", ".join(f"{v.id} {_shape(v.type.shape)}" for v in graph.inputs)
    outputs = ", ".join((*(f"{n} {_shape(t.shape)}" for n, t in graph.outputs), *more))
    line = f'{indent}"""{title}{inputs} -> {outputs}."""'
    if len(line) <= WIDTH:
        yield line
        return
    yield from (f'{indent}"""{title.strip()}', "", indent + inputs)
    yield from (f"{indent}-> {outputs}", f'{indent}"""')


def _shape(dims: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, dims))}]"


def ties_of(graph: Graph) -> dict[str, str]:
    """Path of a parameter -> the path of the one that it is. Raises LlamagenError (LG741) for those in a stack."""
    ties: dict[str, str] = {}
    for path, part in graph.ties.items():
        ties[path] = source = part.tied_to or ""
        for component in (*path.split("."), *source.split(".")):
            if component.isdecimal():
                message = f"`{path}` is tied to `{source}`: layers of a stack cannot be tied"
                raise LlamagenError.of("LG741", message, part.span)
            part_name(component, part.span)
    return ties
