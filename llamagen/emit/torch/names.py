"""Python names for what a graph calls things. The only way for text of a spec into generated code."""

from __future__ import annotations

import keyword
import re
from collections.abc import Container

from llamagen.diagnostics import LlamagenError, Span
from llamagen.ir.graph import Graph

_OF_EXPERTS = re.compile(r"Experts[0-9]*")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)

HELPER_NAMES = frozenset(
    {
        "ATTENTION", "Attend", "Callable", "Collection", "Experts", "F", "Iterator", "KVCache", "KeyValue", "Path",
        "RMSNorm", "Rope", "RoundedLateRMSNorm", "Self", "Sequence", "ShiftedRMSNorm", "ShiftedRoundedLateRMSNorm",
        "TIED", "Tensor", "ValueError", "alibi_slopes", "any_layer", "attend", "bool", "cache", "causal_mask",
        "chunked_mask", "cross", "cross_masks", "eager", "float", "full_attention", "int", "json", "layer", "len",
        "list", "math", "merge_heads", "next", "nn", "positions", "range", "rms_normalize", "rotate",
        "rotate_interleaved", "sample", "sdpa", "self", "sliding_mask", "softcap", "split_heads", "str", "super",
        "temperature_table", "tile_mask", "torch", "tuple", "weight_files",
    }
)  # fmt: skip
"""Names that the templates use; values and blocks of a spec give way to them."""

MODULE_ATTRIBUTES = frozenset(
    {
        "T_destination", "add_module", "apply", "attend", "bfloat16", "buffers", "call_super_init", "children",
        "compile", "cpu", "cuda", "double", "dtype", "dump_patches", "eval", "extra_repr", "float", "forward",
        "from_pretrained", "generate", "get_buffer", "get_extra_state", "get_parameter", "get_submodule",
        "half", "ipu", "load_state_dict", "modules", "mtia", "named_buffers", "named_children", "named_modules",
        "named_parameters", "parameters", "register_backward_hook", "register_buffer", "register_forward_hook",
        "register_forward_pre_hook", "register_full_backward_hook", "register_full_backward_pre_hook",
        "register_load_state_dict_post_hook", "register_load_state_dict_pre_hook", "register_module",
        "register_parameter", "register_state_dict_post_hook", "register_state_dict_pre_hook", "requires_grad_",
        "set_extra_state", "set_submodule", "share_memory", "state_dict", "tie", "to", "to_empty", "train",
        "training", "type", "xpu", "zero_grad",
    }
)  # fmt: skip
"""What ``torch.nn.Module`` (2.13) and the generated classes own; a test compares it with torch."""


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
    constants = {constant_name(name) for name in graph.constants}
    found: dict[str, str] = {}
    for name, span in blocks.items():
        own = identifier(name, "block", span)
        others = (blocks.keys() - {name}) | set(found.values())
        while _is_ours(own) or own in constants or own in others:
            own += "Block"
        found[name] = own
    return found


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
