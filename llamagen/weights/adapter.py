"""LoRA adapters of PEFT, for the weights that they were trained beside: W + factor * B A, merged in float32 or kept
apart.

A folder has adapter_config.json and adapter_model.safetensors or .bin with, for a module of the Hub's names,
`base_model.model.MODULE.lora_A.weight` [r, in] and `lora_B.weight` [out, r] (peft, tuners/lora/layer.py:
`get_delta_weight`); of an embedding `lora_embedding_A` [r, rows] and `lora_embedding_B` [width, r]; and whole weights
of `modules_to_save`. The factor is alpha / r, or alpha / sqrt(r) with `use_rslora`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from pathlib import Path

from llamagen.diagnostics import Diagnostic, LlamagenError, did_you_mean, quoted
from llamagen.files import CONFIG, exists, read_bytes
from llamagen.weights.checkpoint import Checkpoint, Stamp, StoredTensor, stamp_of
from llamagen.weights.names import Binding
from llamagen.weights.remote import named
from llamagen.weights.safetensors import WEIGHT_DTYPES, parse_strict, shape_text
from llamagen.weights.tensors import low_rank, stored, swap_last

_CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_BASE = ".base_layer.weight"
"""Of an embedding that has a LoRA, PEFT stores the whole weight beside it, too."""
_TENSOR = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)")
_WORDS = re.compile(r"[A-Za-z0-9_.]+")
_HUB_FOLDER = re.compile(r"models--(.+?)--(.+)")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_READ = (
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "peft_type",
)
_TRAINING = (
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type",
)  # fmt: skip
"""Keys that say how an adapter was made, or which modules it has, which its tensors say themselves."""
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that leave the base as it was."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to a weight [out, in]: factor * up @ down."""

    up: Binding
    """[out, r]"""
    down: Binding
    """[r, in]"""
    factor: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """Its tensors by name without the prefix, and what its configuration says."""

    folder: Path
    file: Path
    """Of its weights."""
    tensors: Mapping[str, StoredTensor]
    config: Mapping[str, object]
    stamps: Mapping[Path, Stamp | None]

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Reads the configuration and headers. Raises LG625 for what is no LoRA adapter, LG60x for its file."""
        config_file = folder / _CONFIG
        file = next((folder / name for name in _FILES if exists(folder / name)), None)
        if not exists(config_file) or file is None:
            missing = _CONFIG if file is not None else " and no ".join(_FILES)
            raise _refused(
                folder, f"has no {missing}", "give the folder that PEFT's save_pretrained wrote"
            )
        stamps = {path: stamp_of(path) for path in (config_file, file)}
        try:
            config = parse_strict(read_bytes(config_file, CONFIG, within=folder))
        except ValueError as error:
            raise _refused(folder, f"has no usable {_CONFIG}: {error}", "copy it again") from error
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            kind = config.get("peft_type") if isinstance(config, dict) else None
            raise _refused(folder, f"is of the type {quoted(str(kind))}", "LORA can be merged here")
        merge = "merge it with PEFT: `merge_and_unload()`, then `save_pretrained`"
        for key, value in config.items():
            if key not in (*_READ, *_TRAINING) and value not in (None, False, "none", {}, []):
                raise _refused(folder, f"says `{key}`, which is not merged here", merge)
        if config.get("init_lora_weights") not in _STARTS:
            how = f"was begun by `{config['init_lora_weights']}`, which changes the base's weights too"
            raise _refused(
                folder, how, "save it as a plain LoRA (`path_initial_model_for_weight_conversion`)"
            )
        tensors = Checkpoint.open(file).tensors
        names = {n.removeprefix(_PREFIX): t for n, t in tensors.items()}
        return cls(folder, file, names, config, stamps)

    def merged_into(
        self, bindings: Mapping[str, Binding], checkpoint: Path
    ) -> tuple[dict[str, Binding], Diagnostic]:
        """The bindings with the adapter in those that it changes, and the note LG626. Raises LG625 for another base."""
        self.require_base(checkpoint)
        bases = {**bindings, **self.whole_weights(bindings)}
        changed = {path: base for path, base in bases.items() if base is not bindings[path]}
        for name in self.tensors:
            match = _TENSOR.fullmatch(name)
            if match is not None:
                base = self.base_of(f"{match[1]}.weight", bases)
                added = self.product(base, match[1], embedding="embedding" in match[2])
                up, down = ((one.tensor, one.dtype) for one in (added.up, added.down))
                merged = low_rank((base.tensor, base.dtype), up, down, added.factor)
                names = (*base.sources, *added.up.sources, *added.down.sources)
                changed[base.name] = replace(base, dtype="F32", tensor=merged, sources=names)
        if not changed:
            raise _refused(self.folder, "has no tensors", "is the download complete?")
        message = f"{len(changed)} weights have {quoted(named(self.folder))} merged into them"
        return {**bindings, **changed}, self.noted(message, checkpoint)

    def apart_from(
        self, bindings: Mapping[str, Binding], checkpoint: Path
    ) -> tuple[dict[str, LowRank], Diagnostic]:
        """What it adds to weights, by role path, and the note LG626. Raises LG625 for another base, LG657 for what no
        product beside a projection is.
        """
        self.require_base(checkpoint)
        products: dict[str, LowRank] = {}
        for name in self.tensors:
            match = _TENSOR.fullmatch(name)
            if match is None or "embedding" in match[2]:
                raise LlamagenError.of(
                    "LG657",
                    f"the adapter {quoted(str(self.folder))} has {quoted(name)}, which is no LoRA of a projection",
                    help=f"merge it: --adapter {named(self.folder)}",
                )
            base = self.base_of(f"{match[1]}.weight", bindings)
            products[base.name] = self.product(base, match[1], embedding=False)
        if not products:
            raise _refused(self.folder, "has no tensors", "is the download complete?")
        message = f"{quoted(named(self.folder))} stays beside {len(products)} weights"
        return products, self.noted(message, checkpoint)

    def noted(self, message: str, checkpoint: Path) -> Diagnostic:
        on = self.config.get("base_model_name_or_path")
        known = (
            "it does not say on what it was trained"
            if not on
            else f"it was trained on {quoted(str(on))}"
        )
        help = f"{known}: is that what {quoted(named(checkpoint))} is?"
        return Diagnostic("LG626", "note", message, help=help)

    def require_base(self, checkpoint: Path) -> None:
        """The Hub's names of both, where both are known, are one."""
        on = self.config.get("base_model_name_or_path")
        folders = (_HUB_FOLDER.fullmatch(part) for part in checkpoint.absolute().parts)
        known = next((f"{one[1]}/{one[2]}" for one in folders if one is not None), None)
        if known and isinstance(on, str) and _HUB_NAME.fullmatch(on) and on != known:
            help = "merge it into the model that it was trained on"
            raise _refused(
                self.folder, f"was trained on {on}; the weights are those of {known}", help
            )

    def base_of(self, path: str, bindings: Mapping[str, Binding]) -> Binding:
        if path in bindings:
            return bindings[path]
        help = did_you_mean(
            path, bindings, "an adapter fits the model that it was trained on alone"
        )
        raise _refused(self.folder, f"changes {quoted(path)}, which the model has not", help)

    def whole_weights(self, bindings: Mapping[str, Binding]) -> dict[str, Binding]:
        """Weights of `modules_to_save`, and those that lie beside a LoRA of an embedding."""
        saved = self.config.get("modules_to_save")
        ends = (
            tuple(one for one in saved if isinstance(one, str)) if isinstance(saved, list) else ()
        )
        whole: dict[str, Binding] = {}
        for name, tensor in self.tensors.items():
            if _TENSOR.fullmatch(name):
                continue
            module = name.removesuffix(_BASE).removesuffix(".weight")
            base = self.base_of(f"{module}.weight", bindings)
            dtype = next((one for one in WEIGHT_DTYPES if one == tensor.read_as), None)
            known = name.endswith(_BASE) or module.endswith(ends)  # as PEFT compares them
            if not known or dtype is None or tensor.shape != base.tensor.shape:
                what = f"{quoted(name)} ({tensor.dtype} {shape_text(tensor.shape)})"
                help = f"`modules_to_save` may replace {quoted(base.name)} {shape_text(base.tensor.shape)}"
                raise _refused(self.folder, f"has {what}, which is no part of a LoRA", help)
            whole[base.name] = Binding(base.name, dtype, stored(tensor.entries[0]), (name,))
        return whole

    def product(self, base: Binding, module: str, embedding: bool) -> LowRank:
        names = (
            (f"{module}.lora_embedding_A", f"{module}.lora_embedding_B")
            if embedding
            else (f"{module}.lora_B.weight", f"{module}.lora_A.weight")
        )
        pair = [self.tensors.get(name) for name in names]
        rank, factor = self.scale(module)
        parts: list[Binding] = []
        for name, tensor in zip(names, pair, strict=True):
            dtype = next((one for one in WEIGHT_DTYPES if tensor and one == tensor.read_as), None)
            if tensor is None or dtype is None or len(tensor.shape) != 2:
                raise _refused(
                    self.folder, f"has no usable {quoted(name)}", "is the download complete?"
                )
            values = stored(tensor.entries[0])
            parts.append(Binding(name, dtype, swap_last(values) if embedding else values, (name,)))
        up, down = parts
        if up.tensor.shape[1] != rank or (*up.tensor.shape[:1], *down.tensor.shape[1:]) != base.tensor.shape or (
            down.tensor.shape[0] != rank
        ):  # fmt: skip
            shapes = f"{shape_text(up.tensor.shape)} times {shape_text(down.tensor.shape)}"
            has = f"for {quoted(base.name)} {shape_text(base.tensor.shape)} it has {shapes}, by rank {rank}"
            raise _refused(
                self.folder,
                f"was trained on another base: {has}",
                "give the model that it was trained on",
            )
        return LowRank(up, down, factor)

    @property
    def base(self) -> str | None:
        """What it was trained on, as it says itself: a name on the Hub; of a folder, its last part."""
        on = self.config.get("base_model_name_or_path")
        if not isinstance(on, str) or not on:
            return None
        return on if _HUB_NAME.fullmatch(on) else Path(on).name

    @property
    def rank(self) -> int:
        """Of the modules that no pattern names. Raises LG625."""
        return self.scale("")[0]

    def scale(self, module: str) -> tuple[int, float]:
        """The rank of a module, and the factor of its product."""
        rank = self.number("rank_pattern", "r", module)
        alpha = self.number("alpha_pattern", "lora_alpha", module)
        if rank != int(rank) or not 0 < rank < 1 << 20:
            raise _refused(self.folder, f"says an impossible rank, {rank}", "copy it again")
        return int(rank), alpha / (sqrt(rank) if self.config.get("use_rslora") else rank)

    def number(self, pattern: str, usual: str, module: str) -> float:
        """The value of the first key of a pattern that ends the module's name, or the usual one."""
        table, default = self.config.get(pattern) or {}, self.config.get(usual, 8)
        if not isinstance(table, dict):
            raise _refused(self.folder, f"says no table under `{pattern}`", "copy it again")
        for key in table:  # expressions of strangers can take for ever
            if not _WORDS.fullmatch(key):
                raise _refused(
                    self.folder,
                    f"has the expression {quoted(key)} in `{pattern}`",
                    "write modules out there",
                )
        found = next((v for k, v in table.items() if f".{module}".endswith(f".{k}")), default)
        if isinstance(found, bool) or not isinstance(found, int | float) or not isfinite(found):
            raise _refused(
                self.folder, f"says {found!r} where a number belongs: `{usual}`", "copy it again"
            )
        return found


def _refused(folder: Path, what: str, help: str | None) -> LlamagenError:
    return LlamagenError.of("LG625", f"the adapter {quoted(str(folder))} {what}", help=help)
