"""Who computes: one graph by the float64 reference, the generated PyTorch module or ONNX Runtime; a model by these or
by transformers.

A backend knows how to run one graph (``OneGraph``), by itself the witness of a model of text. Which graphs are run
when, and what goes from one to the next, is the same for every backend (``GraphsWitness``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from inspect import signature
from pathlib import Path
from sys import modules
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llamagen import files
from llamagen.diagnostics import LlamagenError
from llamagen.emit.onnx.data import attach_arrays, serialize
from llamagen.emit.onnx.emit import INPUT_NAMES, emit_onnx
from llamagen.emit.onnx.session import (
    OpenOptions,
    as_input,
    as_past,
    computed,
    computing,
    empty_cache,
    open_session,
)
from llamagen.emit.options import DEFAULTS, ExportOptions
from llamagen.emit.torch.check import load_module
from llamagen.emit.torch.module import emit_torch
from llamagen.emit.torch.names import class_names
from llamagen.ir.flatten import FlatGraph, Slot, flatten
from llamagen.ir.graph import MAIN, Graph
from llamagen.ir.pipeline import Pipeline
from llamagen.ir.reference import Rounding, evaluate_graph
from llamagen.verify.limits import RunDType
from llamagen.verify.routing import Routers, RoutersDiffer, Script, together
from llamagen.verify.scenarios import NOTHING, FloatArray, IntArray, N, Session, Values

if TYPE_CHECKING:
    import onnxruntime as ort
    import torch
    from onnxruntime import OrtValue

CROSS = "cross_key_values"
"""What the generated module takes keys and values of another graph as, and how their names begin outside."""

TAP, PACKED_TAP = "tap/", "packed tap/"
"""How outputs begin that only a copy of a graph has; of the latter, real tokens come first in the rows."""
ROUTER = "router/"
"""How taps of routers begin, before their number; others are role paths of layers."""

WeightReader = Callable[[str], NDArray[np.generic]]
"""Role path -> tensor, read when it is asked for."""

Told = Callable[[str, NDArray[np.generic]], None]
"""Gets what each layer, by its role path, hands on."""


class OpenGraph(Protocol):
    """One graph in use; it keeps its cache from call to call."""

    def run(self, values: Values) -> Values:
        """Outputs by name. ``values`` may hold more than the graph reads."""


class OneGraph(Protocol):
    """One graph of one backend."""

    @property
    def name(self) -> str: ...

    def open(self, past: Values = NOTHING) -> OpenGraph:
        """With keys and values [B, K, P, H] of all tokens before by their names outside, or none."""

    def start(self, images: Values = NOTHING, past: Values = NOTHING) -> Session:
        return TextSession(self.open(past))


@dataclass(frozen=True, slots=True)
class GraphsWitness:
    """Graphs of a model by one backend; without those of the pipeline it reads text alone."""

    name: str
    graphs: Mapping[str, OneGraph]
    pipeline: Pipeline | None = None
    outputs: tuple[str, ...] = ("logits",)
    """Of the text model, side by side: what a session of text gives."""

    def start(self, images: Values = NOTHING, past: Values = NOTHING) -> Session:
        """Run what is run once, if there are images; text goes through the graph ``model``."""
        if not images:
            return TextSession(self.graphs[MAIN].open(past), self.outputs)
        if self.pipeline is None:
            raise ValueError(f"{self.name} has no graphs for images")
        return ImageSession(self.graphs, self.pipeline, images)


@dataclass
class TextSession:
    """One graph from ids to logits, or to several outputs side by side."""

    graph: OpenGraph
    outputs: tuple[str, ...] = ("logits",)

    def step(
        self, input_ids: IntArray, mask: IntArray, positions: IntArray, beside: Values = NOTHING
    ) -> FloatArray:
        values = {"input_ids": input_ids, "attention_mask": mask, "positions": positions, **beside}
        results = self.graph.run(values)
        return side_by_side({name: results[name] for name in self.outputs}, input_ids.shape)


def side_by_side(outputs: Values, call: tuple[int, ...]) -> FloatArray:
    """Numbers of tokens [B, S, n] and of texts [B, n], which are those of each token of ``call`` [B, S]: [B, S, all n].

    A row for the last token of the call alone where one of the outputs has no other. Raises LG760 for other shapes.
    """
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in outputs.items()}
    rows = call[1]
    for name, array in arrays.items():
        if array.ndim == 3 and array.shape[1] == 1:
            rows = 1
        if array.ndim not in (2, 3) or array.shape[:-1] not in (call[:1], call, (call[0], 1)):
            message = (
                f"the model gives {name} of the shape {list(array.shape)} for {list(call)} tokens"
            )
            raise LlamagenError.of("LG760", message, help="export the model again")
    return np.concatenate(
        [
            np.repeat(array[:, None], rows, axis=1) if array.ndim == 2 else array[:, -rows:]
            for array in arrays.values()
        ],
        axis=-1,
    )


class ImageSession:
    """Images once, then ids call by call."""

    def __init__(
        self, graphs: Mapping[str, OneGraph], pipeline: Pipeline, images: Values = NOTHING
    ) -> None:
        self.pipeline = pipeline
        values = dict(images)
        for name in pipeline.once:
            values.update(graphs[name].open().run(values))
        self.handed = {name: v for name, v in values.items() if name not in images}
        self.steps = [graphs[name].open() for name in pipeline.steps]

    def step(
        self, input_ids: IntArray, mask: IntArray, positions: IntArray, beside: Values = NOTHING
    ) -> FloatArray:
        tokens = {"input_ids": input_ids, "attention_mask": mask, "positions": positions}
        values = {**tokens, **beside, **self.handed}
        # what the images became, of placeholders as much as this call's ids stand for
        for name, placeholder in self.pipeline.placeholders.items():
            count, rest = divmod(int((input_ids == placeholder.token).sum()), placeholder.rows)
            if rest:
                raise ValueError(f"a call ends inside an image: {rest} of {placeholder.rows} rows")
            values[name], self.handed[name] = np.split(self.handed[name], [count])
        for step in self.steps:
            values.update(step.run(values))
        return np.asarray(values["logits"], dtype=np.float64)


def in_place(packed: NDArray[N], mask: NDArray[np.generic]) -> NDArray[N]:
    """Rows [B, S, D] with real tokens first -> each where the mask [B, T] has it; padding is zero."""
    new = np.asarray(mask, dtype=np.int64)[:, -packed.shape[1] :] > 0
    placed = np.zeros_like(packed)
    for row, real in enumerate(new):
        placed[row, real] = packed[row, : int(real.sum())]
    return placed


def kept(of_tokens: NDArray[N], keep: int | None) -> NDArray[N]:
    """Of keys or values [B, K, P, H] the last ``keep`` tokens, as a bounded cache has them."""
    return of_tokens if keep is None else of_tokens[:, :, max(of_tokens.shape[2] - keep, 0) :]


def kept_tokens(dim: object) -> int | None:
    """``keep`` of a cache, by its dimension: ``past_sequence_length_8191``, in 0.1.0 ``past_sequence_8191``."""
    words = re.fullmatch(r"past_sequence(?:_length)?_(\d+)", str(dim))
    return int(words[1]) if words else None


# The float64 reference


@dataclass(frozen=True)
class ReferenceWitness(OneGraph):
    """The float64 interpreter. Weights are read at every use, so a model need not fit in memory."""

    flat: FlatGraph
    weights: WeightReader
    rounding: Rounding = None
    """Round the result of every op, to see what a dtype alone can do to this model."""
    name: str = "reference"
    outputs: tuple[str, ...] = ("logits",)
    """What the graph calls its results."""
    float32_angles: bool = False
    """Compute rotations in float32 too, which matters at far positions."""
    told: Told | None = None
    routers: Routers | None = None
    """The experts to take, in place of those that its own scores are for."""

    @staticmethod
    def of_graph(
        graph: Graph,
        weights: WeightReader,
        rounding: Rounding = None,
        float32_angles: bool = False,
    ) -> ReferenceWitness:
        return ReferenceWitness(
            flatten(graph),
            weights,
            rounding=rounding,
            outputs=graph.output_names,
            float32_angles=float32_angles,
        )

    def open(self, past: Values = NOTHING) -> OpenGraph:
        return _OpenReference(self, past)


class _OpenReference:
    def __init__(self, witness: ReferenceWitness, past: Values = NOTHING) -> None:
        self.witness = witness
        self.past: tuple[FloatArray, ...] | None = None
        if past:
            self.past = tuple(
                kept(past[slot.past], slot.keep).astype(np.float64) for slot in witness.flat.slots
            )
        self.script = witness.routers.open() if witness.routers is not None else None

    def run(self, values: Values) -> Values:
        w, script = self.witness, self.script
        with nullcontext() if script is None else script.call(values):
            result = evaluate_graph(
                w.flat,
                w.weights,
                values,
                self.past if w.flat.slots else None,
                keep_values=w.told is not None,
                rounding=w.rounding,
                float32_angles=w.float32_angles,
                choose=None if script is None else script.choose,
            )
        for layer in w.flat.layers if w.told is not None else ():
            assert w.told is not None
            w.told(layer.path, result.values[layer.value])
        self.past = result.present
        return {**dict(zip(w.outputs, result.outputs, strict=True)), **result.cross}


# ONNX Runtime


@dataclass(frozen=True)
class OnnxWitness(OneGraph):
    """An ONNX Runtime session over a model with the standard names of inputs and outputs."""

    session: ort.InferenceSession
    name: str = "onnx"
    file: str = "the model"
    made_for: str = ""
    told: Told | None = None
    """Gets the routers' choices as well, where the session is of a copy that has them."""
    adapter: Mapping[str, OrtValue] = field(default_factory=dict)
    """What is given to inputs beside weights."""

    @staticmethod
    def of_graph(
        graph: Graph,
        weights: WeightReader,
        options: ExportOptions = DEFAULTS,
        threads: int = 1,
    ) -> OnnxWitness:
        """Emit ``graph`` with its weights inside; for models far below 2 GB."""
        emitted = emit_onnx(graph, options)
        attach_arrays(emitted, lambda path: weights(path).astype(np.float32, copy=False))
        return OnnxWitness(open_session(serialize(emitted), OpenOptions(threads)))

    def open(self, past: Values = NOTHING) -> OpenOnnx:
        return OpenOnnx(self, past)


@dataclass(frozen=True)
class StagedGraph(OneGraph):
    """Graphs of some layers each as one: the next reads what those before it hand on, and each keeps its own cache."""

    stages: tuple[OnnxWitness, ...]
    name: str = "stages"

    def open(self, past: Values = NOTHING) -> OpenGraph:
        return _OpenStages([stage.open(past) for stage in self.stages])


@dataclass
class _OpenStages:
    stages: list[OpenGraph]

    def run(self, values: Values) -> Values:
        for stage in self.stages:
            values = {**values, **stage.run(values)}
        return values


class OpenOnnx:
    """A session in use."""

    def __init__(self, witness: OnnxWitness, past: Values = NOTHING) -> None:
        self.witness = witness
        inputs = witness.session.get_inputs()
        self.inputs = {i.name: i.type for i in inputs}
        self.past: dict[str, NDArray[np.generic]] = {
            i.name: kept(past[i.name], kept_tokens(i.shape[2])) for i in inputs if i.name in past
        }
        """Keys and values of the tokens so far; nothing before the first call."""

    def run(self, values: Values) -> Values:
        witness = self.witness
        named = {INPUT_NAMES.get(name, name): value for name, value in values.items()}
        batch = len(next(iter(named.values())))
        named |= self.past or empty_cache(witness.session, batch)
        feeds = {n: as_input(named[n], kind) for n, kind in self.inputs.items() if n in named}
        with computing(witness.file, OpenOptions(made_for=witness.made_for)):
            results = computed(witness.session, feeds, witness.adapter)
        logits = results.get("logits")
        if logits is not None and (logits.ndim != 3 or len(logits) != batch):
            message = f"{witness.file} gives logits of the shape {list(logits.shape)}"
            raise LlamagenError.of("LG760", message, help="export the model again")
        self.past = as_past(results)
        outputs: dict[str, NDArray[np.generic]] = {}
        for name, value in results.items():
            if not name.startswith((TAP, PACKED_TAP)):
                outputs[name] = value
            elif witness.told is not None:
                tap = name.removeprefix(TAP).removeprefix(PACKED_TAP)
                if tap.startswith(ROUTER):  # some have the tokens of all rows one after the other
                    value = value.reshape(*values["input_ids"].shape, -1)
                if name.startswith(PACKED_TAP):
                    value = in_place(value, values["attention_mask"])
                witness.told(tap, value)
        return {n: v for n, v in outputs.items() if not n.startswith("present.")}


# PyTorch


@dataclass(frozen=True)
class TorchWitness(OneGraph):
    """The generated PyTorch module."""

    model: torch.nn.Module
    name: str = "torch"
    outputs: tuple[str, ...] = ("logits",)
    """What the graph calls its results."""
    slots: tuple[Slot, ...] = ()
    told: Told | None = None
    routers: Routers | None = None
    """The experts to take, in place of those that its own scores are for."""

    @staticmethod
    def of_graph(graph: Graph, weights: WeightReader, dtype: RunDType = "float32") -> TorchWitness:
        """Emit ``graph``, import the file and load the weights by role path."""
        import torch

        module = load_module(emit_torch(graph))
        wanted: torch.dtype = getattr(torch, dtype)
        with torch.device("meta"):
            model: torch.nn.Module = getattr(module, class_names(graph)[graph.root])()
        state = {
            path: torch.from_numpy(np.array(weights(path), dtype=np.float32)).to(wanted)
            for path in graph.parameters
        }
        tied: Mapping[str, str] = getattr(module, "TIED", {})
        state.update({name: state[source] for name, source in tied.items()})
        model.load_state_dict(state, strict=True, assign=True)
        slots = flatten(graph).slots
        return TorchWitness(model.eval(), outputs=graph.output_names, slots=slots)

    def open(self, past: Values = NOTHING) -> OpenGraph:
        return _OpenTorch(self, past)


class _OpenTorch:
    def __init__(self, witness: TorchWitness, past: Values = NOTHING) -> None:
        self.witness = witness
        self.arguments = set(signature(witness.model.forward).parameters)
        self.dtype = next(witness.model.parameters()).dtype
        self.cache: object = None
        if "cache" in self.arguments:
            cache = modules[type(witness.model).__module__].KVCache()
            for slot in witness.slots if past else ():
                cache.slots.append(self.tensor(kept(past[slot.past], slot.keep)))
                cache.tokens = past[slot.past].shape[2]
            self.cache = cache
        self.script = witness.routers.open() if witness.routers is not None else None

    def run(self, values: Values) -> Values:
        import torch

        model, told, outputs = self.witness.model, self.witness.told, self.witness.outputs
        named = {INPUT_NAMES.get(name, name): value for name, value in values.items()}
        arguments: dict[str, Any] = {
            n: self.tensor(v) for n, v in named.items() if n in self.arguments
        }
        if CROSS in self.arguments:  # keys and values of another graph, in the order of their slots
            count = sum(name.startswith(f"{CROSS}.") for name in values) // 2
            names = [(f"{CROSS}.{i}.key", f"{CROSS}.{i}.value") for i in range(count)]
            pairs = [(self.tensor(values[k]), self.tensor(values[v])) for k, v in names]
            arguments[CROSS] = pairs
        if self.cache is not None:
            arguments["cache"] = self.cache
        with ExitStack() as around:
            around.enter_context(torch.no_grad())
            if self.script is not None:
                around.enter_context(self.script.call(values))
                around.enter_context(directed(self.script))
            if told is not None:
                for path, module in model.named_modules():
                    if path.rpartition(".")[2].isdecimal():  # a layer of a stack
                        around.callback(module.register_forward_hook(_telling(told, path)).remove)
            results = model(**arguments)
        several = list(results) if isinstance(results, tuple) else [results]
        written = several.pop() if len(several) > len(outputs) or not outputs else []
        tensors = dict(zip(outputs, several, strict=True))
        for i, (key, value) in enumerate(written):
            tensors |= {f"{CROSS}.{i}.key": key, f"{CROSS}.{i}.value": value}
        return {name: value.float().numpy() for name, value in tensors.items()}

    def tensor(self, value: NDArray[np.generic]) -> torch.Tensor:
        """Ids and masks as they are, anything else in the model's dtype."""
        import torch

        if np.issubdtype(value.dtype, np.integer):
            return torch.from_numpy(np.array(value))
        return torch.from_numpy(np.array(value, dtype=np.float64)).to(self.dtype)


def _telling(told: Told, path: str) -> Callable[[object, object, Any], None]:
    def hook(module: object, arguments: object, result: Any) -> None:
        carried = result[0] if isinstance(result, tuple) else result
        told(path, carried.detach().double().numpy())

    return hook


def directed(script: Script) -> AbstractContextManager[object]:
    """Inside, ``torch.topk`` takes the places that ``script`` tells and gives the values that are there."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Directed(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func not in (torch.topk, torch.Tensor.topk):
                return func(*args, **(kwargs or {}))
            scores: torch.Tensor = args[0] if args else kwargs["input"]
            chosen = script.choose(np.asarray(scores.detach().double().numpy(), np.float64))
            indices = torch.from_numpy(np.ascontiguousarray(chosen))
            return torch.return_types.topk((scores.gather(-1, indices), indices))

    return Directed()


# transformers

COUNTS_PADDING = "row by row: transformers takes padding for positions"
"""Its attention temperature grows with the place in the batch, padding included; a row alone has none."""

COUNTS_PLACES = "transformers stretches scores by places in the cache, not by position_ids"
"""So a text with a gap in its positions cannot be compared with it."""


@dataclass(frozen=True, slots=True)
class Correction:
    """Where transformers 5.23 departs from the code a model was trained with. It is no reason for a wider tolerance:
    in the context of ``apply`` a model of transformers is corrected in exactly that. Tests show that the corrected
    model is equal, and by how much the plain one is not."""

    name: str
    apply: Callable[[torch.nn.Module], AbstractContextManager[None]]


@contextmanager
def _states_before_layers(model: torch.nn.Module) -> Iterator[None]:
    """Intermediate state i is what layer i of the vision encoder reads (image_transformer.py, return_intermediate).

    In transformers it is what layer i returns, since 4.56: every intermediate state is one layer late.
    """
    encoders: list[Any] = [m for m in model.modules() if type(m).__name__ == "MllamaVisionModel"]
    late = [encoder.intermediate_layers_indices for encoder in encoders]
    for encoder in encoders:
        encoder.intermediate_layers_indices = [i - 1 for i in encoder.intermediate_layers_indices]
    try:
        yield
    finally:
        for encoder, indices in zip(encoders, late, strict=True):
            encoder.intermediate_layers_indices = indices


@contextmanager
def _unseen_rows_are_zero(model: torch.nn.Module) -> Iterator[None]:
    """Text that sees no image gets nothing from cross-attention: its rows are multiplied by 0 before wo.

    In transformers it gets a uniform mix of all image tokens: the row mask, which the layer keeps for the feed-forward,
    is missing before o_proj (issue 39379).
    """
    with ExitStack() as stack:
        for module in model.modules():
            if type(module).__name__ == "MllamaCrossAttentionDecoderLayer":
                layer: Any = module
                masks: list[torch.Tensor | None] = [None]

                def remember(
                    module: object, args: object, given: Any, masks: list[Any] = masks
                ) -> None:
                    masks[0] = given["full_text_row_masked_out_mask"]

                def multiply(module: object, args: Any, masks: list[Any] = masks) -> Any:
                    return None if masks[0] is None else (args[0] * masks[0][:, 0],)

                hook = layer.register_forward_pre_hook(remember, with_kwargs=True)
                stack.callback(hook.remove)
                hook = layer.cross_attn.o_proj.register_forward_pre_hook(multiply)
                stack.callback(hook.remove)
        yield


LATE_STATES = Correction("late intermediate states", _states_before_layers)
UNMASKED_ROWS = Correction("unmasked text rows", _unseen_rows_are_zero)
CORRECTIONS: Mapping[str, tuple[Correction, ...]] = {"mllama": (LATE_STATES, UNMASKED_ROWS)}
"""By ``model_type`` of transformers."""


@dataclass(frozen=True)
class TransformersWitness:
    """A model that transformers made from a configuration, in float32, with eager attention."""

    model: torch.nn.Module
    name: str = "transformers"
    corrections: tuple[Correction, ...] = ()
    """In force while it runs."""
    routers: Routers | None = None
    """The experts to take, in place of those that its own scores are for."""

    @staticmethod
    def of_folder(
        folder: Path,
        paths: Sequence[str],
        weights: WeightReader,
        *,
        images: bool = False,
        trusted: Path | None = None,
    ) -> TransformersWitness:
        """``images`` asks for the model that reads them too; ``trusted`` is a folder whose config.json counts and whose
        code is run, in this process, as transformers has no other way. Raises LG774 when transformers is not
        installed, the folder has no config.json, or the names of the weights are not those of the model."""
        try:
            library = import_module("transformers")
        except ImportError:
            help = "`pip install transformers`, or leave this witness out"
            raise LlamagenError.of("LG774", "transformers is not installed", help=help) from None
        import torch

        folder, trust = trusted or folder, trusted is not None
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
                folder, local_files_only=True, trust_remote_code=trust
            )
            with torch.device("meta"):
                kind = type(auto.from_config(config, trust_remote_code=trust))
            # from_pretrained, because it knows the names of checkpoints; without a folder it reads none
            model, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
        except Exception as error:  # whatever its constructors assert
            message = f"transformers cannot build the model of config.json: {error}"
            raise LlamagenError.of("LG774", message) from error
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[what]:
                message = f"transformers' {what.replace('_', ' ')}: {sorted(report[what])[:3]}"
                raise LlamagenError.of("LG774", message)
        known = CORRECTIONS.get(config.model_type, ()) if images else ()
        return TransformersWitness(model.eval(), corrections=known)

    def start(self, images: Values = NOTHING, past: Values = NOTHING) -> Session:
        assert not past, "it keeps its cache in objects of its own"
        return TransformersSession(self, images)


class TransformersSession:
    """Images go in with the first call; their names are those of the graphs' inputs."""

    def __init__(self, witness: TransformersWitness, images: Values = NOTHING) -> None:
        self.witness = witness
        self.images = images
        self.script = witness.routers.open() if witness.routers is not None else None
        self.past: object = None
        for module in witness.model.modules():  # a rope of an earlier, longer text stays grown
            rope: Any = module
            if getattr(rope, "rope_type", None) == "dynamic":
                rope.inv_freq = rope.original_inv_freq
                rope.max_seq_len_cached = rope.original_max_seq_len

    def step(
        self, input_ids: IntArray, mask: IntArray, positions: IntArray, beside: Values = NOTHING
    ) -> FloatArray:
        import torch

        tokens = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}
        values = {**tokens, **beside, **self.images}
        with ExitStack() as around:
            around.enter_context(torch.no_grad())
            for correction in self.witness.corrections:
                around.enter_context(correction.apply(self.witness.model))
            if self.script is not None:
                around.enter_context(self.script.call(values))
                around.enter_context(directed(self.script))
            try:
                result = self.witness.model(
                    **{name: torch.from_numpy(np.array(v)) for name, v in values.items()},
                    past_key_values=self.past,
                    use_cache=True,
                )
            except RoutersDiffer:
                raise
            except (
                Exception
            ) as error:  # code of others, of `--trust-code` too, raises what it likes
                message = f"transformers cannot run its model: {type(error).__name__}: {error}"
                raise LlamagenError.of("LG774", message[:400]) from error
        self.images = NOTHING
        self.past = result.past_key_values
        return np.asarray(result.logits.double().numpy(), dtype=np.float64)


def with_experts(
    witness: GraphsWitness | TransformersWitness, routers: Mapping[str, Routers]
) -> GraphsWitness | TransformersWitness:
    """``witness`` made to take the experts that it is told."""
    if isinstance(witness, TransformersWitness):
        return replace(witness, routers=together(routers))
    graphs: dict[str, OneGraph] = {}
    for name, graph in witness.graphs.items():
        assert isinstance(graph, ReferenceWitness | TorchWitness), "ONNX Runtime chooses itself"
        graphs[name] = replace(graph, routers=routers.get(name))
    return replace(witness, graphs=graphs)
