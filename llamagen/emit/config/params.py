"""Meta's params.json in the words of config.json. Rules: llama-models models/{llama3,llama4}, meta-llama/llama."""

from __future__ import annotations

from collections.abc import Mapping

from llamagen.diagnostics import Diagnostic, LlamagenError, did_you_mean
from llamagen.emit.config.codecs import Json
from llamagen.emit.config.json_source import JsonSource
from llamagen.emit.config.wanted import Wanted
from llamagen.spec.evaluate import ceil_to

_SAME: Mapping[str, str] = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
}
_LLAMA4: Mapping[str, str] = {
    "attention_chunk_size": "attention_chunk_size",
    "use_qk_norm": "use_qk_norm",
}
_MOE: Mapping[str, str] = {
    "num_experts": "num_local_experts",
    "top_k": "num_experts_per_tok",
    "interleave_moe_layer_step": "interleave_moe_layer_step",
}
_IGNORED: Mapping[str, str] = {
    "model_parallel": "how many files the weights are cut into",
    "max_batch_size": "a default of the calling program",
    "max_seq_len": "a default of the calling program",
    "quantization_args": "how weights are stored",
    "lora_args": "how weights are stored",
}
_FFN = ("multiple_of", "ffn_dim_multiplier", "ffn_exp")
_OTHER = ("use_scaled_rope", "moe_args", "vision_args", "nope_layer_interval")
_MLLAMA = ("vision_chunk_size", "vision_max_num_chunks", "vision_num_cross_attention_layers")
_KNOWN = (*_SAME, *_LLAMA4, *_FFN, *_IGNORED, *_OTHER, *_MLLAMA)
_LARGEST = 2**31


def read_params(source: JsonSource) -> Wanted:
    """Raises LG107 for an unknown key, LG102 for a missing one, LG108 for a number no rule takes."""
    given = source.value
    _refuse_unknown(source)
    kind = "llama4" if "moe_args" in given else "mllama" if _MLLAMA[0] in given else "llama"
    lead = "" if kind == "llama" else "text_config."
    values: dict[str, Json] = {}
    written: dict[str, str] = {}

    def say(key: str, value: Json, path: str) -> None:
        values[key] = value
        written[key] = path

    for path, key in _SAME.items():
        if path in given:
            say(f"{lead}{key}", given[path], path)
    heads = _number(source, "n_heads")
    values.setdefault(f"{lead}num_key_value_heads", given["n_heads"])
    notes: list[str] = []
    vocabulary = f"{lead}vocab_size"
    if given.get("vocab_size", -1) == -1:
        notes.append("the vocabulary is not stated; it is that of the nearest model")
        values.pop(vocabulary, None)
    scaled = given.get("use_scaled_rope") is True
    if kind == "llama" and "rope_theta" not in given:
        say("rope_theta", 500000.0 if "use_scaled_rope" in given else 10000.0, "rope_theta")
    if scaled:
        notes.append(
            "the factors of `use_scaled_rope` are in Meta's code; they are the nearest model's"
        )
    width = _width(source, int(_number(source, "dim")), kind)
    match kind:
        case "llama4":
            say("text_config.intermediate_size", width, "multiple_of")
            for path, key in _LLAMA4.items():
                if path in given:
                    say(f"text_config.{key}", given[path], path)
            moe = given["moe_args"]
            assert isinstance(moe, Mapping)
            for name, key in _MOE.items():
                if name in moe:
                    say(f"text_config.{key}", moe[name], f"moe_args.{name}")
        case "mllama":
            say("text_config.intermediate_size", width, "multiple_of")
            cross = _number(source, "vision_num_cross_attention_layers")
            say(
                "text_config.num_hidden_layers",
                int(_number(source, "n_layers") + cross),
                "n_layers",
            )
            say("vision_config.image_size", given["vision_chunk_size"], "vision_chunk_size")
            if "vision_max_num_chunks" in given:
                say(
                    "vision_config.max_num_tiles",
                    given["vision_max_num_chunks"],
                    "vision_max_num_chunks",
                )
        case _:
            say("intermediate_size", width, "multiple_of")
            if "head_dim" not in given and heads:
                values["head_dim"] = int(_number(source, "dim")) // int(heads)
    ignored = {key: _IGNORED[key] for key in given if key in _IGNORED}
    return Wanted(
        source,
        "params.json",
        kind,
        values,
        written,
        ignored,
        tuple(notes),
        partial=True,
        scaled=scaled,
    )


def _refuse_unknown(source: JsonSource) -> None:
    findings: list[Diagnostic] = []
    for key in source.value:
        if key not in _KNOWN:
            near = did_you_mean(key, _KNOWN, aliases={})
            help = (
                f"did you mean `{near}`?"
                if near
                else "remove it if it changes nothing of the graph"
            )
            message = f"`{key[:80]}` is not a key of params.json that is known here"
            findings.append(Diagnostic("LG107", "error", message, source.place(key), (), help))
    for key in ("dim", "n_layers", "n_heads", "multiple_of", "norm_eps"):
        if key not in source.value:
            message = f"`{source.file}` lacks `{key}`"
            help = "no default is right for it"
            findings.append(Diagnostic("LG102", "error", message, source.place(""), (), help))
    for key in ("moe_args", "vision_args"):
        if key in source.value and not isinstance(source.value[key], Mapping):
            message = f"`{key}` is not a mapping"
            findings.append(Diagnostic("LG108", "error", message, source.place(key)))
    if findings:
        raise LlamagenError(findings)


def _number(source: JsonSource, path: str) -> int | float:
    here: Json = source.value
    for name in path.split("."):
        here = here.get(name) if isinstance(here, Mapping) else None
    whole = not isinstance(here, bool) and isinstance(here, int | float)
    if not whole or not 0 < here < _LARGEST:  # type: ignore[operator]
        message = f"`{path}` is not a number between 0 and 2^31"
        help = "sizes are whole numbers, as in Meta's files"
        raise LlamagenError.of("LG108", message, source.place(path), help)
    assert isinstance(here, int | float)
    return here


def _width(source: JsonSource, dim: int, kind: str) -> int:
    """Width of the feed-forward; of an expert where there are experts (facts 1 and 4.8)."""
    multiple = int(_number(source, "multiple_of"))
    factor = _number(source, "ffn_dim_multiplier") if source.value.get("ffn_dim_multiplier") else 1
    inner = int(factor * int(2 * 4 * dim / 3))
    if kind == "llama4":
        # auto_scale_F: what capacity and shared expert use comes off the width
        used = _number(source, "moe_args.capacity_factor") + 1
        inner = int(inner / used)
    return ceil_to(inner, multiple)
