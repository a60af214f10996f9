"""Python names for what a graph calls things, and its numbers as the spec wrote them: ``NUM_HEADS * HEAD_DIM``.

The only way for text of a spec into generated code.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Container, Mapping

from llamagen.diagnostics import LlamagenError, Span
from llamagen.emit.torch.place import library
from llamagen.ir.graph import Graph
from llamagen.ops.code import Binary, Code, Negative, Text, flat, literal
from llamagen.ops.op import AttrValue
from llamagen.spec.expr import (
    Attribute,
    Expr,
    ExpressionError,
    ListExpr,
    Literal_,
    Name,
    Static,
    Unary,
    evaluate,
)
from llamagen.spec.expr import Binary as BinaryExpr

_OF_EXPERTS = re.compile(r"Experts[0-9]*")
_OPERATORS = ("+", "-", "*", "/", "//", "%", "**")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)

_STAND_INS = frozenset({"BESIDE", "CROSS", "IMAGES", "KEYS", "Model", "STATES"})
"""Names of the library that a file does not have."""
HELPER_NAMES = frozenset(
    {
        *(name for name in library().definitions if "." not in name),
        *(alias.asname or alias.name for line in library().imports for alias in line.names),
        "bool", "enumerate", "float", "hasattr", "int", "len", "list", "next", "range", "str", "sum", "super", "tuple",
        "ALL_ATTENTION_FUNCTIONS", "Cache", "DynamicCache", "GenerationMixin", "GradientCheckpointingLayer",
        "PreTrainedModel", "BaseModelOutputWithPast", "CausalLMOutputWithPast", "can_return_tuple", "capture_outputs",
        "attend", "cache", "chunked_mask", "config", "cross", "kwargs", "layer", "of_eager", "self", "sliding_mask",
        "RoundedLateRMSNorm", "ShiftedRMSNorm", "ShiftedRoundedLateRMSNorm",
    } - _STAND_INS
)  # fmt: skip
"""Names that files use; values and blocks of a spec give way to them."""

MODULE_ATTRIBUTES = frozenset(
    {
        "T_destination", "add_module", "apply", "attend", "bfloat16", "buffers", "call_super_init", "children",
        "compile", "cpu", "cuda", "double", "dtype", "dump_patches", "eval", "extra_repr", "float", "forward",
        "from_pretrained", "generate", "get_buffer", "get_extra_state", "get_parameter", "get_submodule",
        "half", "in_forward",
        "ipu", "load_state_dict", "loss", "modules", "mtia", "named_buffers", "named_children", "named_modules",
        "named_parameters", "parameters", "register_backward_hook", "register_buffer", "register_forward_hook",
        "register_forward_pre_hook", "register_full_backward_hook", "register_full_backward_pre_hook",
        "register_load_state_dict_post_hook", "register_load_state_dict_pre_hook", "register_module",
        "register_parameter", "register_state_dict_post_hook", "register_state_dict_pre_hook", "requires_grad_",
        "reset_parameters", "see",
        "set_extra_state", "set_submodule", "share_memory", "slopes", "state_dict",
        "tensor_parallel", "tie", "to", "to_empty", "train",
        "training", "type", "xpu", "zero_grad",
    }
)  # fmt: skip
"""What ``torch.nn.Module`` (2.13) and the generated classes own; a test compares it with torch."""

HUB_ATTRIBUTES = frozenset(
    {
        "activation_checkpointing_disable", "activation_checkpointing_enable", "active_adapters", "add_adapter",
        "add_model_tags", "adjust_generation_fn", "all_tied_weights_keys", "barrier_after_gathered_checkpoint_save",
        "base_model", "base_model_prefix", "can_generate", "can_record_outputs", "compute_transition_scores",
        "config", "config_class", "continuous_batching_context_manager", "delete_adapter", "dequantize",
        "destroy_cached_continuous_batching_manager", "device", "disable_adapters", "disable_input_require_grads",
        "dummy_inputs", "enable_adapters", "enable_input_require_grads", "enable_peft_hotswap", "ep_plan",
        "fsdp_plan", "fsdp_size", "gather_sharded_state_dict_for_save", "generate_batch", "generation_config",
        "generation_config_class", "get_adapter_state_dict", "get_compiled_call", "get_correct_attn_implementation",
        "get_correct_experts_implementation", "get_decoder", "get_encoder", "get_expanded_tied_weights_keys",
        "get_experts_implementation", "get_init_context", "get_input_embeddings", "get_memory_footprint",
        "get_output_embeddings", "get_parameter_or_buffer", "get_position_embeddings",
        "gradient_checkpointing_disable", "gradient_checkpointing_enable", "heal_tokens", "init_continuous_batching",
        "init_parallel_plans", "init_weights", "initialize_weights", "input_modalities",
        "is_activation_checkpointing", "is_backend_compatible", "is_custom_code",
        "is_distributed_loading_by_transformers", "is_gradient_checkpointing", "is_remote_code", "kernel_config",
        "load_adapter", "load_custom_generate", "loss_function", "loss_type", "main_input_name",
        "mark_tied_weights_as_initialized", "maybe_distribute_model", "model_tags", "name_or_path",
        "named_non_persistent_buffers", "num_parameters", "output_modalities", "post_init", "pp_plan",
        "prepare_distribute_model", "prepare_inputs_for_generation", "push_to_hub", "register_for_auto_class",
        "resize_position_embeddings", "resize_token_embeddings", "retrieve_modules_from_names",
        "save_distributed_checkpoint", "save_pretrained", "set_adapter", "set_attn_implementation", "set_decoder",
        "set_encoder", "set_experts_implementation", "set_input_embeddings", "set_output_embeddings",
        "set_use_kernels", "should_save_on_this_rank", "supports_context_parallel",
        "smart_apply", "supports_gradient_checkpointing", "supports_pp_plan", "supports_tp_plan", "tie_weights",
        "tp_plan", "tp_size", "use_kernels", "warn_if_padding_and_no_attention_mask",
    }
)  # fmt: skip
"""What a model of transformers (5.23) owns beyond that; a test compares it with transformers."""

LAYER_ATTRIBUTES = frozenset({"attn", "config", "layer_idx", "num_key_value_groups", "scaling"})
"""What engines read of a block with attention, and what vLLM puts there."""


def identifier(name: str, what: str, span: Span | None = None) -> str:
    """``name`` if it is a plain ASCII identifier. Raises LlamagenError (LG740) otherwise."""
    if _IDENTIFIER.fullmatch(name) is None:
        raise LlamagenError.of("LG740", f"{what} {name!r} is not a Python name", span)
    return name


def part_name(name: str, span: Span | None) -> str:
    """Part names are those of the checkpoint, so one that Python or torch owns is an error (LG740).

    What begins with an underscore is torch's, whether it is there today or not.
    """
    identifier(name, "part", span)
    if keyword.iskeyword(name) or name in MODULE_ATTRIBUTES or name.startswith("_"):
        owner = "Python" if keyword.iskeyword(name) else "torch.nn.Module"
        message = (
            f"part `{name}` cannot be an attribute of a PyTorch module: the name belongs to {owner}"
        )
        help = "give the part another name, and map the checkpoint's name to it under `checkpoint`"
        raise LlamagenError.of("LG740", message, span, help)
    return name


def local(name: str, taken: Container[str] = ()) -> str:
    """A variable for value ``name``; it gets underscores until it shadows nothing."""
    while keyword.iskeyword(name) or name in HELPER_NAMES or name in taken:
        name += "_"
    return name


def class_names(graph: Graph) -> dict[str, str]:
    """Block -> its class; a name of the templates or of a constant gets ``Block`` after it, until no other has it."""
    blocks = {block.name: block.span for block in graph.blocks.values()}
    constants = {constant_name(name.replace(".", "_")) for name in graph.constants}
    classes: dict[str, str] = {}
    for name, span in blocks.items():
        own = identifier(name, "block", span)
        others = (blocks.keys() - {name}) | set(classes.values())
        while _is_ours(own) or own in constants or own in others:
            own += "Block"
        classes[name] = own
    return classes


def _is_ours(name: str) -> bool:
    return name in HELPER_NAMES or keyword.iskeyword(name) or bool(_OF_EXPERTS.fullmatch(name))


def constant_name(name: str) -> str:
    """``hidden_size`` -> ``HIDDEN_SIZE``; one or two letters get an underscore: they would read as an axis."""
    upper = identifier(name, "constant").upper()
    return f"{upper}_" if len(upper) < 3 or upper in HELPER_NAMES else upper


def docstring_text(text: str) -> str:
    """One line that is safe inside a triple-quoted docstring: what is not plain printable ASCII becomes ``?``."""
    line = " ".join(text.split())
    return "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in line)


class Constants:
    """Module constants of one generated file: those that were printed, by name."""

    def __init__(self, scalars: Mapping[str, int | float | bool | str]) -> None:
        self.scalars = {
            name: value
            for name, value in scalars.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self.order = [constant_name(name.replace(".", "_")) for name in self.scalars]
        records: dict[str, dict[str, Static]] = {}
        for path, number in self.scalars.items():
            record, _, name = path.rpartition(".")
            records.setdefault(record, {})[name] = number
        self.scope: dict[str, Static] = {**records.pop("", {}), **records}
        self.used: dict[str, int | float | tuple[float, ...]] = {}

    def code(self, value: AttrValue, source: Expr | None) -> Code:
        """The source expression over constants if it means exactly ``value``, else the literal."""
        if source is not None and not isinstance(source, Literal_) and self._means(source, value):
            code = self._expression(source)
            if code is not None:
                return code
        assert not isinstance(value, tuple)
        return literal(value)

    def codes(self, values: AttrValue, source: Expr | None) -> tuple[Code, ...]:
        """Each of a list of numbers, with its own source if the spec wrote a list."""
        assert isinstance(values, tuple)
        sources: tuple[Expr | None, ...] = (None,) * len(values)
        if isinstance(source, ListExpr) and len(source.items) == len(values):
            sources = source.items
        return tuple(self.code(v, s) for v, s in zip(values, sources, strict=True))

    def number_like(self, value: int | float, name: str, define: str = "") -> str:
        """The hyperparameter ``name`` if it has this value; else a constant ``define``, or the literal."""
        if self.scalars.get(name) == value:
            return flat(self.code(value, Name(name)))
        return self.define(define, value).text if define else literal(value).text

    def one_below(self, value: int, *names: str) -> str:
        """``value`` as the first of the hyperparameters ``names`` that is one more, less one; else the literal."""
        name = next((n for n in names if self.scalars.get(n) == value + 1), None)
        if name is None:
            return literal(value).text
        return f"{self.number_like(value + 1, name)} - 1"

    def define(self, name: str, value: int | float | tuple[float, ...]) -> Text:
        """A constant that the graph has no scalar for, such as ``ROPE_THETA``."""
        reserved = {constant_name(n): v for n, v in self.scalars.items() if "." not in n}
        n, chosen = 1, name
        while {**reserved, **self.used}.get(chosen, value) != value:
            n += 1
            chosen = f"{name}_{n}"
        self.used[chosen] = value
        return Text(chosen)

    def lines(self) -> tuple[tuple[str, str], ...]:
        """(name, literal) in the spec's order, then those that were defined."""
        rank = {name: i for i, name in enumerate(self.order)}
        names = sorted(self.used, key=lambda n: rank.get(n, len(rank)))
        return tuple((n, literal(self.used[n]).text) for n in names)

    def _means(self, source: Expr, value: AttrValue) -> bool:
        try:
            meaning = evaluate(source, self.scope)
        except ExpressionError:
            return False
        if isinstance(meaning, bool) or not isinstance(meaning, int | float):
            return False
        return meaning == value and (
            isinstance(meaning, int) == isinstance(value, int) or meaning == 0
        )

    def _expression(self, source: Expr) -> Code | None:
        match source:
            case Name(id=id):
                name = constant_name(id)
                self.used[name] = self.scalars[id]
                return Text(name)
            case Attribute(base=Name(id=record), name=name):
                path = f"{record}.{name}"
                return self.define(constant_name(f"{record}_{name}"), self.scalars[path])
            case Literal_(value=int() | float() as value):
                return literal(value)
            case Unary(op="-", operand=operand):
                inner = self._expression(operand)
                return Negative(inner) if inner is not None else None
            case BinaryExpr(op=op, left=left, right=right) if op in _OPERATORS:
                a, b = self._expression(left), self._expression(right)
                return Binary(op, a, b) if a is not None and b is not None else None
            case _:
                return None
